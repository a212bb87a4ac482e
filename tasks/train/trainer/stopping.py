"""Which step is the best and when training stops early: functions of the evaluations so far, and of nothing else.

transformers' own callback moves its mark with every evaluation, so that slow but steady progress below the threshold
stops it; it counts in a state that has to be restored; and resumed where it had stopped, it trains another step. Here
all is derived from the log that each checkpoint carries.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tunewright.config import Training


class ValidationResult(NamedTuple):
    """An evaluation of the validation rows: after which step, and its value in the unit of training.best_by."""

    step: int
    value: float


def evaluations(history: Sequence[Mapping[str, Any]], training: Training) -> list[ValidationResult]:
    """The evaluations in a trainer's log, the oldest first."""
    name = f"eval_{training.best_by}"
    return [ValidationResult(entry["step"], entry[name]) for entry in history if name in entry]


def best(seen: Sequence[ValidationResult], training: Training) -> ValidationResult | None:
    """The evaluation with the best value, of equal ones the first; None of none."""
    return _last_better(seen, training, by_more_than=0.0)


def is_exhausted(seen: Sequence[ValidationResult], training: Training) -> bool:
    """Whether `patience` evaluations came after the last that was better by more than min_delta.

    Better than the last such one before it: progress that is slow but steady adds up.
    """
    found = _last_better(seen, training, by_more_than=training.min_delta)
    return bool(training.patience and found and len(seen) - 1 - seen.index(found) >= training.patience)


def _last_better(
    seen: Sequence[ValidationResult], training: Training, *, by_more_than: float
) -> ValidationResult | None:
    sign = -1 if training.best_by == "loss" else 1
    found: ValidationResult | None = None
    for evaluation in seen:
        if found is None or sign * (evaluation.value - found.value) > by_more_than:
            found = evaluation
    return found
