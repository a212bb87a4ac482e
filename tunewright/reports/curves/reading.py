"""The trainer's files as curves."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

from tunewright.artifacts import training_log
from tunewright.artifacts.payloads import TrainingSummary
from tunewright.artifacts.training_log import Line

SIZED_BY = {
    "lora": "method.rank",
    "qlora": "method.rank",
    "spectrum": "method.share",
    "osf": "method.share",
}  # by method.kind
SMOOTHED = 40  # points that the line of the training loss has at most, means of neighbours
ENOUGH_EVALUATIONS = 3  # evaluations, from which on it can be told how the loss went


@dataclass(frozen=True)
class Curves:
    """The lines of metrics.jsonl, of steps and of evaluations in their order, and how training ended."""

    steps: list[Line]
    evaluations: list[Line]
    best_step: int
    best_by: str = "loss"
    stopped_early: bool = False
    status: Line = field(default_factory=dict)

    @property
    def planned(self) -> int:
        """The steps that were planned."""
        return self.steps[-1]["planned"] if self.steps else 0

    @property
    def is_of_pairs(self) -> bool:
        """Whether the training was on preference pairs or labelled answers."""
        return any("reward_accuracy" in line for line in self.steps)

    @property
    def is_of_labels(self) -> bool:
        """Whether the training was on desirable and undesirable answers."""
        return self.status.get("preference") == "kto"

    @property
    def section(self) -> str:
        """The section of the settings of its steps."""
        if self.is_of_rewards:
            return "grpo"
        return "preference" if self.is_of_pairs else "training"

    @property
    def is_of_rewards(self) -> bool:
        """Whether the training was on rewards."""
        return any("reward" in line for line in self.steps)

    @property
    def measured(self) -> str:
        """The measure of how well it went: loss, or reward."""
        return "reward" if self.is_of_rewards else "loss"

    @property
    def planned_by(self) -> str:
        """The setting that says how long to train."""
        return f"{self.section}.max_steps" if self.status.get("max_steps") else f"{self.section}.epochs"

    @property
    def sized_by(self) -> str:
        """The setting that says how much the method can learn; empty where it has none, as with method.kind=full."""
        return SIZED_BY.get(self.status.get("method", ""), "")

    @property
    def ended_by(self) -> str:
        """The setting that ended the training: with a higher one it would have gone on."""
        return "training.patience" if self.stopped_early else self.planned_by

    @property
    def epochs(self) -> float | None:
        """How many times the training rows were gone through; None where the trainer did not note it."""
        return max((line["epoch"] for line in (*self.steps, *self.evaluations) if "epoch" in line), default=None)

    @property
    def in_epochs(self) -> str:
        """Such as "0.9 epochs"; empty where the trainer did not note them."""
        said = f"{self.epochs:.2g}" if self.epochs is not None else ""
        return said and f"{said} epoch{'s'[: said != '1']}"

    @property
    def is_smoothed(self) -> bool:
        """Whether the line of the training loss has means of steps."""
        return len(self.steps) > SMOOTHED

    @property
    def nothing(self) -> str:
        """The sentence if there are no warnings; few evaluations do not prove that the loss settled."""
        return no_warnings(len(self.evaluations))

    @property
    def too_few(self) -> str:
        """The sentence that evaluations were too few to see how the loss went, or empty."""
        return _too_few(len(self.evaluations))

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a figure, where it is a number: of the steps, or of the evaluations for eval_..."""
        lines = self.evaluations if name.startswith("eval_") else self.steps
        return [(line["step"], line[name]) for line in lines if name in line and math.isfinite(line[name])]

    def course(self, name: str) -> list[tuple[int, float]]:
        """As `series` of an evaluation, without one that the last follows within half of the steps before it.

        Training ends with an evaluation, and two that lie so close say nothing of how it went.
        """
        series = self.series(name)
        steps = [0, *(step for step, _ in series)]
        if len(series) > 1 and 2 * (steps[-1] - steps[-2]) < steps[-2] - steps[-3]:
            del series[-2]
        return series

    @property
    def is_best_at_end(self) -> bool:
        """Whether no evaluation of the course before the last one was as good."""
        course = self.course("eval_loss")
        return self.best_step >= self.planned or (len(course) > 1 and self.best_step > course[-2][0])

    def worst(self) -> list[tuple[int, float, str]]:
        """(step, loss, row_id) of rows behind a spike of the loss, the largest loss first."""
        found = [(line["step"], loss, row) for line in self.steps for row, loss in line.get("worst", [])]
        return sorted(found, key=lambda item: (-item[1], item[0]))


def read(folder: Path) -> Curves:
    """The curves of a train artifact."""
    lines = training_log.read(folder / training_log.FILE)
    summary = TrainingSummary.load_from(folder)
    return Curves(
        steps=[line for line in lines if "loss" in line],
        evaluations=[line for line in lines if "eval_loss" in line],
        best_step=summary.best_step,
        best_by=summary.best_by,
        stopped_early=summary.stopped_early,
        status=json.loads((folder / "status.json").read_text(encoding="utf-8")),
    )


NO_WARNINGS = "No warnings about the training curves."


def no_warnings(evaluations: int) -> str:
    """Describe a training with this number of evaluations and no warning."""
    return _too_few(evaluations) or NO_WARNINGS


def _too_few(evaluations: int) -> str:
    if evaluations >= ENOUGH_EVALUATIONS:
        return ""
    said = f"{evaluations} evaluation{'s'[: evaluations != 1]}"
    too_few = f"Only {said}: too few to tell whether the loss had converged."
    return f"{too_few} Evaluate more often: set a smaller training.evaluate_every."


def number(value: float) -> str:
    """A number in a few characters."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"
