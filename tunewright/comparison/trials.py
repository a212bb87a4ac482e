"""One training of one variant: how it went on the validation rows."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel

State = Literal["finished", "pruned", "failed"]
SMALLER_IS_BETTER = "loss"  # the one measure of training.best_by of which less is better


class ValidationPoint(BaseModel, frozen=True):
    """An evaluation of the validation rows."""

    step: int
    planned: int
    value: float  # of the measure

    @property
    def share(self) -> float:
        """How much of the planned steps was done, 0 to 1."""
        return self.step / self.planned


class Trial(BaseModel, frozen=True):
    """A variant that was trained from one seed."""

    variant: str  # its changes as the command line has them, "method.rank=8 training.learning_rate=1e-4"
    seed: int
    measure: str  # training.best_by
    state: State
    looks: tuple[ValidationPoint, ...]
    said: str  # what came of it: where it is the best, or why it was pruned or failed
    value: float | None = None  # of the measure at the best step; None where it did not finish
    best_step: int | None = None
    seconds: float | None = None
    learning: int | None = None  # parameters
    peak_bytes: int | None = None
    folder: Path | None = None  # train's artifact


def in_words(measure: str) -> str:
    """A measure as a sentence has it."""
    return measure.replace("_", " ")
