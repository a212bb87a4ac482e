"""A run: each stage is called as a Prefect task, and what a stage is followed by is done."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prefect import Task

from flows import release
from flows.calls.calls import Calls, favoured, name_of, stage_of, what
from flows.calls.step import Step
from tasks import ledger, pipelines, versions
from tasks.artifacts import Adapter, Answers, CheckedRows, Contender, Registered, Rows, Splits, UniqueRows, Verdict
from tasks.caching import seconds_of
from tasks.config import Registry, Settings, Stage
from tasks.errors import JudgeError
from tasks.register.release import as_now
from tasks.versions import Before

log = logging.getLogger("tunewright")


class Run(Calls):
    """Calls each stage as a Prefect task; a stage in `refresh` is made anew."""

    def __init__(self, settings: Settings, until: Stage, refresh: Sequence[Stage] = ()) -> None:
        super().__init__(settings, until, refresh)
        self.made: dict[str, Step] = {}  # key of a record -> the step that made it, before it all began again

    def begin_again(self) -> None:
        """Forgets the steps, so that the pipeline can go through its stages again; each still took what it took."""
        self.made = {step.record.key: step for step in self.steps if step.record and step.state == "ran"}
        self.steps, self.refresh = [], ()

    def __call__(self, task: Task[Any, Any], *, last_of_stage: bool = True, **inputs: Any) -> Any:
        """The stage's record. Raises what the stage raised, or Reached."""
        started = time.monotonic()
        name, stage = name_of(task, inputs), stage_of(task)
        log.info("%s", name)
        pipelines.note(self.pipeline, name, stage.key(**inputs))
        chosen = task.with_options(refresh_cache=True) if task.name in self.refresh else task
        state = chosen(**inputs, return_state=True)
        record = state.result()
        is_cached = state.name == "Cached"
        step = Step(
            stage=task.name,
            of=what(inputs),
            state="cached" if is_cached else "ran",
            seconds=time.monotonic() - started,
            saved=seconds_of(record) if is_cached else 0.0,
            message=state.message or "",
            record=record,
        )
        step = self.made.get(record.key, step)
        if step.state == "cached":
            log.info("  cached: %s", step.message)
        self.keep(step, last_of_stage=last_of_stage)
        return record

    def opinion(self, task: Task[Any, Any], **inputs: Any) -> Any:
        """The record of a stage that decides nothing, or None where it fails for now: the verdict stands without it."""
        try:
            return self(task, **inputs)
        except JudgeError as error:
            if self.until == task.name:
                raise
            log.warning("%s; the verdict stands without it, and the next run asks again", error)
            return None

    def accept(self, before: Before, rows: Rows, checked: CheckedRows, unique: UniqueRows, splits: Splits) -> None:
        """Enters the data into the accepted versions; then split has reached its end."""
        versions.accept(before, rows, checked, unique, splits, keep=self.keep_versions)
        self.reached("split")

    def look(
        self,
        verdict: Verdict,
        candidate: Adapter,
        answers: Answers,
        splits: Splits,
        opponent: Contender | None,
        settings: Settings,
    ) -> Verdict:
        """Counts the look at the test rows, which the verdict then says; then decide has reached its end."""
        assert self.drawn
        verdict = ledger.enter(
            self.pipeline,
            verdict,
            candidate,
            answers,
            settings.gate,
            seed=self.drawn.seed,
            recipe=self.drawn.recipe,
        )
        verdict = favoured(verdict, splits, opponent, settings)
        for warning in verdict.warnings:
            log.warning("decide: %s", warning)
        self.steps[-1] = replace(self.steps[-1], record=verdict)
        self.reached("decide")
        return verdict

    def ask(self, registered: Registered, registry: Registry) -> None:
        """Asks a person where the version waits for one, and says how it stands; register has reached its end."""
        registered, is_new = as_now(registry, registered), self.steps[-1].state == "ran"
        if is_new and registered.superseded:
            message = f"version {registered.version} took its place before a person decided"
            log.info("no longer waiting, since %s: version %s", message, ", ".join(registered.superseded))
            release.end(registry, registered.superseded, "Superseded", message)
        self.steps[-1] = replace(self.steps[-1], record=release.ask(registry, registered))
        self.reached("register")
