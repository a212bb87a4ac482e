"""How the pipeline's stages are called: for real by Run, or looked up by Plan, in the order that flows/finetune.py has.

A call is `call(task, argument=value, ...)`. Both keep a Step for each call, which is all that reports need.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefect import Task

from tasks import versions
from tasks.artifacts import Artifact, CheckedRows, Rows, Splits, UniqueRows
from tasks.caching import Cached
from tasks.config import STAGES, Settings, Stage
from tasks.errors import ConfigError
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
    because: Sequence[str] = ()
    message: str = ""
    record: Artifact | None = None
    stopped: Stopped | None = None  # what it left where it refused its inputs; behind a run, those of last time
    last: Artifact | None = None  # what it made the last time, of a plan's stage that would run


class Reached(Exception):
    """The stage that the run was to go to is done."""


class Unknown(Exception):
    """A plan cannot see further: what a later stage would read was never made."""


def stages(settings: Settings) -> tuple[Stage, ...]:
    """The stages of a run with these settings, in their order: scan only where its choice is trained."""
    return tuple(stage for stage in STAGES if stage != "scan" or settings.method.kind == "spectrum")


class _Calls:
    """The steps so far, in order."""

    def __init__(self, until: Stage, refresh: Sequence[Stage] = (), stages: Sequence[Stage] = STAGES) -> None:
        if absent := [stage for stage in (until, *refresh) if stage not in stages]:
            accepted = ", ".join(stages)
            raise ConfigError(f"{absent[0]} is a stage with method.kind=spectrum only; accepted are {accepted}")
        self.until = until
        self.refresh = refresh
        self.stages = stages
        self.steps: list[Step] = []

    def keep(self, step: Step, *, last_of_stage: bool) -> None:
        self.steps.append(step)
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
        log.info("%s", f"{task.name} {_of(inputs)}".strip())
        chosen = task.with_options(refresh_cache=True) if task.name in self.refresh else task
        state = chosen(**inputs, return_state=True)
        record = state.result()
        step = Step(
            stage=task.name,
            of=_of(inputs),
            state="cached" if state.name == "Cached" else "ran",
            seconds=time.monotonic() - started,
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


class Plan(_Calls):
    """Looks each stage up instead of calling it, and says why it would run.

    Where a stage would run, the plan goes on with what it made the last time: a later stage is then cached only if the
    stage hands on the same again, which the plan says as a cause and counts as a run.
    """

    def __init__(self, until: Stage, refresh: Sequence[Stage] = (), stages: Sequence[Stage] = STAGES) -> None:
        super().__init__(until, refresh, stages)
        self.uncertain: dict[str, str] = {}  # digest of a record from the last time -> the stage that makes it anew

    def __call__(self, task: Task[Any, Any], *, last_of_stage: bool = True, **inputs: Any) -> Any:
        """The record that is there, or the one of the last time. Raises Unknown or Reached."""
        stage: Cached[Any, Any] = task.fn  # pyright: ignore[reportAssignmentType] every stage's function is @cached
        read = json.dumps(stage.ingredients(**inputs))
        waits_for = {before for digest, before in self.uncertain.items() if digest in read}
        because = [f"{before} runs first" for before in sorted(waits_for)]
        found = None if task.name in self.refresh else stage.find(**inputs)
        if found is None:
            because += ["asked for by refresh"] if task.name in self.refresh else stage.because(**inputs)
        record = found or stage.nearest(**inputs)
        state = "run" if because else "cached"
        if record is not None and state == "run":
            self.uncertain[record.digest] = task.name
        stopped = None if found else stage.stopped(**inputs)
        kept: dict[str, Any] = {"record": found, "stopped": stopped, "last": record}
        step = Step(stage=task.name, of=_of(inputs), state=state, because=because, **kept)
        self.keep(step, last_of_stage=last_of_stage)
        if record is None:
            raise Unknown
        return record

    def digest(self, record: Artifact) -> str:
        """The record's digest, or "" if it is of the last time."""
        return "" if record.digest in self.uncertain else record.digest

    def accept(self, *parts: object) -> None:
        """Accepts nothing; split has reached its end."""
        self.reached("split")

    def fill(self) -> None:
        """Adds the stages that the plan could not look up, up to the last one asked for."""
        known = {step.stage for step in self.steps}
        wanted = self.stages[: self.stages.index(self.until) + 1]
        missing = self.steps[-1].stage if self.steps else ""
        for stage in wanted:
            if stage not in known:
                self.steps.append(Step(stage=stage, state="run", because=[f"{missing} was never made before"]))


def _of(inputs: dict[str, Any]) -> str:
    return getattr(inputs.get("contender"), "name", "")


def as_json(step: Step) -> dict[str, Any]:
    """A step as `--json` shows it."""
    shown: dict[str, Any] = {"stage": step.stage} | ({"of": step.of} if step.of else {}) | {"state": step.state}
    if step.state == "run" or step.because:
        return shown | {"because": list(step.because)}
    return shown | {"seconds": round(step.seconds, 3), "artifact": str(step.record.folder) if step.record else None}
