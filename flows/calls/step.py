"""One call of a stage, as reports and `--json` show it: a task run of Prefect, and what is counted as a task.

A stage has one, or one for each contender, such as `evaluate base` and `evaluate candidate`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunewright.artifacts import Artifact
from tunewright.store.refusals import StoppedStage


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call of a stage: what came of it, or would."""

    stage: str
    of: str = ""  # what tells calls of one stage apart: the contender that is evaluated
    state: Literal["ran", "cached", "run"]
    seconds: float = 0.0  # that this run took for it, without those that it waited for a device
    saved: float = 0.0  # seconds that it took when it was made, without those that this run waited for it
    because: Sequence[str] = ()
    message: str = ""
    note: str = ""  # on what it was given, where that is not what the settings say
    record: Artifact | None = None
    stopped: StoppedStage | None = None  # what it left where it refused its inputs; behind a run, those of last time
    last: Artifact | None = None  # what it made for this pipeline the last time, of a plan's stage that would run

    @property
    def name(self) -> str:
        """The stage, and of what."""
        return f"{self.stage} {self.of}".strip()


def as_json(step: Step) -> dict[str, Any]:
    """A step as `--json` shows it."""
    told = {name: said for name, said in (("of", step.of), ("note", step.note)) if said}
    shown: dict[str, Any] = {"stage": step.stage} | told | {"state": step.state}
    if step.state == "run" or step.because:
        return shown | {"because": list(step.because)}
    return shown | {"seconds": round(step.seconds, 3), "artifact": str(step.record.folder) if step.record else None}
