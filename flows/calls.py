"""How the pipeline's stages are called: for real by Run, or looked up by Plan, in the order that flows/finetune.py has.

A call is `call(task, argument=value, ...)`. Both keep a Step for each call, which is all that reports need.
"""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from prefect import Task

from flows import release
from flows.inputs import Inputs, draw
from tasks import ledger, pipelines, versions
from tasks.artifacts import (
    Adapter,
    Answers,
    Artifact,
    CheckedRows,
    Contender,
    Registered,
    Rows,
    Splits,
    UniqueRows,
    Verdict,
)
from tasks.caching import Cached, Earlier, Found, seconds_of
from tasks.causes import causes
from tasks.config import STAGES, Registry, Settings, Stage
from tasks.errors import ConfigError
from tasks.ingest import SourceFile
from tasks.register import trained_on_test
from tasks.register.release import as_now
from tasks.rotation import Draw
from tasks.stopped import Stopped
from tasks.versions import Before

log = logging.getLogger("tunewright")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of a stage: what came of it, or would."""

    stage: str
    of: str = ""  # what tells calls of one stage apart: the contender that is evaluated
    state: Literal["ran", "cached", "run"]
    seconds: float = 0.0
    saved: float = 0.0  # seconds that it took when it was made
    because: Sequence[str] = ()
    message: str = ""
    note: str = ""  # on what it was given, where that is not what the settings say
    record: Artifact | None = None
    stopped: Stopped | None = None  # what it left where it refused its inputs; behind a run, those of last time
    last: Artifact | None = None  # what it made for this pipeline the last time, of a plan's stage that would run

    @property
    def name(self) -> str:
        """The stage, and of what."""
        return f"{self.stage} {self.of}".strip()


ONLY_WITH = {
    "scan": "method.kind=spectrum",
    "prompt": "evaluation.contenders",
    "forgetting": "evaluation.forgetting",
    "lm_eval": "lm_eval.tasks",
    "judge": "judge.url",
}


class Reached(Exception):
    """The stage that the run was to go to is done."""


class Unknown(Exception):
    """A plan cannot see further: what a later stage would read was never made."""


def stages(settings: Settings, until: Stage = "register", refresh: Sequence[Stage] = ()) -> tuple[Stage, ...]:
    """The stages of a run up to `until`, in their order: of those in ONLY_WITH the ones that are set.

    Raises ConfigError where a stage that is asked for is none of them, or comes after the last.
    """
    left_out = {
        "scan": settings.method.kind != "spectrum",
        "prompt": not settings.evaluation.contenders,
        "forgetting": not settings.evaluation.forgetting,
        "lm_eval": not settings.lm_eval.tasks,
        "judge": settings.judge.url is None,
    }
    used: tuple[Stage, ...] = tuple(stage for stage in STAGES if not left_out.get(stage))
    if absent := [stage for stage in (until, *refresh) if stage not in used]:
        accepted = ", ".join(used)
        raise ConfigError(f"{absent[0]} is a stage with {ONLY_WITH[absent[0]]} only; accepted are {accepted}")
    wanted = used[: used.index(until) + 1]
    if beyond := [stage for stage in refresh if stage not in wanted]:
        raise ConfigError(
            f"refresh={beyond[0]}: it comes after until={until}, so it would not run; accepted are {', '.join(wanted)}"
        )
    return wanted


class _Calls:
    """The steps so far, in order."""

    def __init__(self, settings: Settings, until: Stage, refresh: Sequence[Stage] = ()) -> None:
        self.stages = stages(settings, until, refresh)
        self.pipeline = settings.registry.name
        self.until = until
        self.refresh = refresh
        self.steps: list[Step] = []
        self.drawn: Draw | None = None
        self.files: tuple[SourceFile, ...] = ()

    def draw(self, settings: Settings, read: Inputs) -> Settings:
        """The settings with the split.seed that this run's test rows are drawn with (tasks/rotation.py)."""
        self.files = read.files
        self.drawn = draw(settings, read)
        if self.drawn.said:
            log.info("%s", self.drawn.said)
        return self.drawn.settings(settings)

    def keep(self, step: Step, *, last_of_stage: bool) -> None:
        note = self.drawn.said if self.drawn and step.stage == "split" else ""
        self.steps.append(replace(step, note=note))
        if last_of_stage:
            self.reached(step.stage)

    def reached(self, stage: str) -> None:
        """Ends the calls where the stage is the last one asked for."""
        if stage == self.until:
            raise Reached

    def digest(self, record: Artifact) -> str:
        """The record's digest, or "" if it is still to be made."""
        return record.digest


class Run(_Calls):
    """Calls each stage as a Prefect task; a stage in `refresh` is made anew."""

    def __call__(self, task: Task[Any, Any], *, last_of_stage: bool = True, **inputs: Any) -> Any:
        """The stage's record. Raises what the stage raised, or Reached."""
        started = time.monotonic()
        name, stage = _name(task, inputs), _stage(task)
        log.info("%s", name)
        pipelines.note(self.pipeline, name, stage.key(**inputs))
        chosen = task.with_options(refresh_cache=True) if task.name in self.refresh else task
        state = chosen(**inputs, return_state=True)
        record = state.result()
        is_cached = state.name == "Cached"
        step = Step(
            stage=task.name,
            of=_of(inputs),
            state="cached" if is_cached else "ran",
            seconds=time.monotonic() - started,
            saved=seconds_of(record) if is_cached else 0.0,
            message=state.message or "",
            record=record,
        )
        if step.state == "cached":
            log.info("  cached: %s", step.message)
        self.keep(step, last_of_stage=last_of_stage)
        return record

    def accept(self, before: Before, rows: Rows, checked: CheckedRows, unique: UniqueRows, splits: Splits) -> None:
        """Enters the data into the accepted versions; then split has reached its end."""
        versions.accept(before, rows, checked, unique, splits)
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
        verdict = _favoured(verdict, splits, opponent, settings)
        for warning in verdict.warnings:
            log.warning("decide: %s", warning)
        self.steps[-1] = replace(self.steps[-1], record=verdict)
        self.reached("decide")
        return verdict

    def ask(self, registered: Registered, registry: Registry) -> None:
        """Asks a person where the version waits for one, and says how it stands; register has reached its end."""
        registered, is_new = as_now(registry, registered), self.steps[-1].state == "ran"
        if is_new and registered.superseded:
            message = f"version {registered.version} was promoted before a person decided"
            log.info("no longer waiting, since %s: version %s", message, ", ".join(registered.superseded))
            release.end(registry, registered.superseded, "Superseded", message)
        self.steps[-1] = replace(self.steps[-1], record=release.ask(registry, registered))
        self.reached("register")


class Plan(_Calls):
    """Looks each stage up instead of calling it, and says why it would run.

    Where a stage would run, the plan goes on with what it made for this pipeline the last time: a later stage is then
    cached only if the stage hands on the same again, which the plan says as a cause and counts as a run.
    """

    def __init__(self, settings: Settings, until: Stage, refresh: Sequence[Stage] = ()) -> None:
        super().__init__(settings, until, refresh)
        self.uncertain: dict[str, str] = {}  # digest of what is still to be made -> the stage that makes it
        self.said: set[str] = set()  # causes that an earlier stage has

    def __call__(self, task: Task[Any, Any], *, last_of_stage: bool = True, **inputs: Any) -> Any:
        """The record that is there, that of the last time, or one that stands for it. Raises Unknown or Reached."""
        stage, name = _stage(task), _name(task, inputs)
        found = stage.look_up(**inputs)
        keys = pipelines.keys(self.pipeline, name)
        earlier = None if found.record else stage.nearest(found.ingredients, keys)
        because = list(self._because(task.name, found, earlier, is_known=found.key in keys))
        last = found.record or (earlier.record if earlier else None)
        step = Step(
            stage=task.name,
            of=_of(inputs),
            state="run" if because else "cached",
            because=because,
            record=None if task.name in self.refresh else found.record,
            stopped=found.stopped,
            last=last,
        )
        if because:
            last = last or stage.record_type.model_construct(stage=task.name, digest=f"unmade_{name.replace(' ', '_')}")
            self.uncertain[last.digest] = task.name
        self.keep(step, last_of_stage=last_of_stage)
        if task.name == "base" and step.last is None:
            raise Unknown
        return last

    def _because(self, stage: str, found: Found[Any], earlier: Earlier[Any] | None, *, is_known: bool) -> Iterator[str]:
        """Why it would run, if it would; of what an earlier stage has said nothing again."""
        read = json.dumps(found.ingredients)
        waits = {before for digest, before in self.uncertain.items() if digest in read}
        if waits:
            yield _first(sorted(waits, key=STAGES.index))
        if stage in self.refresh:
            yield "asked for by refresh"
        elif found.record:
            return
        elif found.fault:
            yield found.fault
        elif found.stopped and not waits:
            yield f"it stopped on the same data, {found.stopped.when}: {found.stopped.message}"
        elif earlier:
            new = causes(stage, earlier.ingredients, found.ingredients, earlier.record, waits)
            yield from (cause for cause in new if not waits or cause not in self.said)
            self.said.update(new)
        elif not waits:
            yield f"artifact {found.key} is gone" if is_known else "never run"

    def digest(self, record: Artifact) -> str:
        """The record's digest, or "" if it is of the last time."""
        return "" if record.digest in self.uncertain else record.digest

    def accept(self, *parts: object) -> None:
        """Accepts nothing; split has reached its end."""
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
        """Counts no look; decide has reached its end."""
        self.reached("decide")
        if verdict.digest in self.uncertain:
            return verdict
        verdict = ledger.look_up(self.pipeline, verdict, candidate, answers, settings.gate)
        return _favoured(verdict, splits, opponent, settings)

    def ask(self, registered: Registered, registry: Registry) -> None:
        """Asks nobody; register has reached its end."""
        self.reached("register")

    def fill(self) -> None:
        """Adds the stages that the plan could not look up, up to the last one asked for."""
        known = {step.stage for step in self.steps}
        missing = self.steps[-1].stage
        self.steps += [Step(stage=s, state="run", because=[_first([missing])]) for s in self.stages if s not in known]


def _favoured(verdict: Verdict, splits: Splits, opponent: Contender | None, settings: Settings) -> Verdict:
    """The verdict, with a warning where the champion was trained on rows that are test rows now."""
    warning = trained_on_test(settings.registry, opponent, splits, settings.split) if opponent else ""
    return verdict.model_copy(update={"warnings": (*verdict.warnings, *([warning] if warning else []))})


def _stage(task: Task[Any, Any]) -> Cached[Any, Any]:
    return task.fn  # pyright: ignore[reportReturnType] every stage's function is @cached


def _first(stages: Sequence[str]) -> str:
    """What has to run before: "ingest and check run first"."""
    *others, last = stages
    return f"{', '.join(others)} and {last} run first" if others else f"{last} runs first"


def _name(task: Task[Any, Any], inputs: dict[str, Any]) -> str:
    return f"{task.name} {_of(inputs)}".strip()


def _of(inputs: dict[str, Any]) -> str:
    return getattr(inputs.get("contender"), "name", "")


def as_json(step: Step) -> dict[str, Any]:
    """A step as `--json` shows it."""
    told = {name: said for name, said in (("of", step.of), ("note", step.note)) if said}
    shown: dict[str, Any] = {"stage": step.stage} | told | {"state": step.state}
    if step.state == "run" or step.because:
        return shown | {"because": list(step.because)}
    return shown | {"seconds": round(step.seconds, 3), "artifact": str(step.record.folder) if step.record else None}
