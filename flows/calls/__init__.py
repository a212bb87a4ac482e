"""Call the pipeline's stages with Run, or look them up with Plan, in the order of flows/finetune.py.

A call is `call(stage)(argument=value, ...)`, typed as the stage is. Both keep a Step for each, which is all that
reports need, and both end with Reached before the first stage after the last one asked for.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from prefect import State, Task

from tunewright.artifacts import (
    Adapter,
    Answers,
    Artifact,
    Base,
    CheckedRows,
    Registered,
    Rows,
    Splits,
    UniqueRows,
    Verdict,
)
from tunewright.config import Gate, Registry, Settings, Stage
from tunewright.errors import ApiError, ApiRefused
from tunewright.flows import budget, release
from tunewright.flows.calls.calls import (
    TRAININGS,
    A,
    Calls,
    P,
    Reached,
    Step,
    as_json,
    naming,
    stages,
    training_inputs,
)
from tunewright.flows.calls.plan import MADE_NOW, Plan
from tunewright.flows.inputs import Inputs
from tunewright.flows.live import describe
from tunewright.registry.address import public_address
from tunewright.registry.live_run import LiveRun
from tunewright.registry.release import as_now
from tunewright.store import bases, data_versions, pipelines, test_set_uses
from tunewright.store.caching import manifest_of
from tunewright.store.data_versions import Before
from tunewright.store.disk import now
from tunewright.store.stage import cached_part
from tunewright.store.test_set_uses import Draw
from tunewright.tasks.prefer import prefer
from tunewright.tasks.reinforce import reinforce
from tunewright.tasks.train.stage import train

__all__ = ["MADE_NOW", "TRAININGS", "Plan", "Reached", "Run", "Step", "as_json", "stages", "training_inputs"]

log = logging.getLogger("tunewright")

TRAINED_BY: Mapping[Stage, Task[..., Adapter]] = {"train": train, "prefer": prefer, "reinforce": reinforce}


class Run(Calls):
    """Calls each stage as a Prefect task; a stage in `refresh` is made anew."""

    def __init__(self, settings: Settings, until: Stage, refresh: Sequence[Stage] = ()) -> None:
        super().__init__(settings, until, refresh)
        self.began = now()
        self.live: LiveRun | None = None  # the run in MLflow
        self.made: dict[str, Step] = {}  # key of a record -> the step that made it, before it all began again

    def begin_again(self) -> None:
        """Forgets the steps, so that the pipeline can go through its stages again; each still took what it took."""
        self.made = {step.record.key: step for step in self.steps if step.record and step.state == "ran"}
        self.steps, self.refresh = [], ()

    def draw(self, settings: Settings, read: Inputs) -> Settings:
        """As for a plan; the run in MLflow is of these settings."""
        drawn = super().draw(settings, read)
        if self.live:
            describe(self.live, drawn, {file.path: file.digest for file in read.files}, read.base)
        return drawn

    def called(self, task: Task[..., A], of: str, inputs: Mapping[str, Any]) -> A:
        """The stage's record. Raises what the stage raised, and StageFailed in place of an unknown error."""
        started = time.monotonic()
        name = f"{task.name} {of}".strip()
        log.info("%s", name)
        if self.live:
            self.live.enters(name)
        pipelines.note(self.pipeline, name, cached_part(task).key(**inputs))
        chosen = task.with_options(refresh_cache=True) if task.name in self.refresh else task
        state = cast("State[A]", chosen(**inputs, return_state=True))
        with naming(name):
            record = state.result()
        pipelines.share(self.pipeline)
        if self.live and isinstance(record, Adapter):
            self.live.trains(record.path("metrics.jsonl"))
        is_cached = state.name == "Cached"
        found = manifest_of(record) if is_cached else None
        step = Step(
            stage=task.name,
            of=of,
            state="cached" if is_cached else "ran",
            seconds=time.monotonic() - started - (0.0 if is_cached else record.waited_seconds),
            saved=cached_part(task).saved(record.key, found.seconds) if found else 0.0,
            is_news=bool(found and found.made > self.began),
            message=state.message or "",
            record=record,
        )
        step = self.made.get(record.key, step)
        if step.state == "cached":
            log.info("  cached: %s", step.message)
            for warning in record.warned:
                log.warning("%s: %s", name, warning)
        self.keep(step)
        return record

    def optional(self, task: Task[P, A]) -> Callable[P, A | None]:
        """A stage that decides nothing, to be called for its record, or None where it fails for now."""

        def run(*args: P.args, **inputs: P.kwargs) -> A | None:
            started = time.monotonic()
            try:
                return self(task)(*args, **inputs)
            except (ApiError, ApiRefused) as error:
                if self.until == task.name:
                    raise
                said = f"{error}; the verdict does not depend on it, and the next run tries again"
                log.warning("%s", said)
                of, seconds = getattr(inputs.get("contender"), "name", ""), time.monotonic() - started
                self.keep(Step(stage=task.name, of=of, state="failed", seconds=seconds, note=said))
                return None

        return run

    def keep_base(self, base: Base, registry: Registry) -> None:
        """Copies the base to the store that machines share, if there is one."""
        bases.keep(self.pipeline, base, public_address(registry))

    def accept_version(
        self, before: Before, rows: Rows, all_rows: Rows, checked: CheckedRows, unique: UniqueRows, splits: Splits
    ) -> None:
        """Adds the data to the accepted versions; `all_rows` are those of ingest and the general rows, if any."""
        data_versions.accept(before, rows, checked, unique, splits, all_rows=all_rows, keep=self.keep_versions)

    def approve_cost(self, settings: Settings, inputs_of: Mapping[str, Mapping[str, Any]], /) -> None:
        """Raises what budget.require_approval raises; asks for nothing where the training is done."""
        if settings.operation.budget is None or not self.trainings:
            return
        found, of_train = None, inputs_of["train"]
        for name in self.trainings:
            begins_as = {} if name == "train" else {"begins_as": found and found.record}
            found = cached_part(TRAINED_BY[name]).look_up(**inputs_of[name], **begins_as)
            if found.record is None:
                break
        assert found, "a run trains"
        if found.record is None or {*self.trainings} & {*self.refresh}:
            seconds = sum(step.seconds for step in self.steps)
            budget.require_approval(settings, of_train["base"], of_train["tokens"], found.work, seconds)

    def begun(self, candidate: Artifact, answers: Answers, drawn: Draw) -> float:
        """The share of alpha of this use, which is entered."""
        return test_set_uses.begin(self.pipeline, candidate, answers, seed=drawn.seed, recipe=drawn.recipe)

    def counted(self, verdict: Verdict, candidate: Artifact, answers: Answers, gate: Gate, drawn: Draw) -> Verdict:
        """The verdict with the number of candidates that these test rows have judged, this one counted."""
        return test_set_uses.end(self.pipeline, verdict, candidate, answers, gate, seed=drawn.seed)

    def count_test_use(self, *given: Any) -> Verdict:
        """As for a plan; warns, and keeps the verdict in its step."""
        verdict = super().count_test_use(*given)
        for warning in verdict.warnings:
            log.warning("decide: %s", warning)
        self.steps[-1] = replace(self.steps[-1], record=verdict)
        return verdict

    def request_approval(self, registered: Registered, registry: Registry) -> None:
        """Asks a person where the version waits for one, and says how it stands."""
        registered, is_new = as_now(registry, registered), self.steps[-1].state == "ran"
        if is_new and registered.superseded:
            message = f"version {registered.version} took its place before a person decided"
            log.info("no longer waiting, since %s: version %s", message, ", ".join(registered.superseded))
            release.end(registry, registered.superseded, "Superseded", message)
        release.end_decided(registry)
        self.steps[-1] = replace(self.steps[-1], record=release.ask(registry, registered))
