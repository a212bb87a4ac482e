"""The points that the trainer writes, as events and as the result file of a job; and how many tokens it trained on."""

import csv
import io
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import training_log
from tunewright.cli.api.jobs import JobEvent

MOST_EVENTS = 1_000  # of the steps of a training; the result file has all of them
COLUMNS = ("step", "train_loss", "valid_loss", "learning_rate", "epoch")
Figures = dict[str, float | int | str]


class TrainingPoint(NamedTuple):
    """A line of the trainer's metrics.jsonl: the loss of a step, or of the validation rows after it."""

    step: int
    planned: int
    time: float
    epoch: float
    learning_rate: float | None
    train_loss: float | None
    valid_loss: float | None


class TrainingFollower:
    """The points of a training that goes on; those that were events before are left out."""

    def __init__(self, events: list[JobEvent]) -> None:
        self.last_step = max((int(each.data["step"]) for each in events if each.data), default=0)
        self.points: list[TrainingPoint] = []

    def read(self, metrics: Path, *, is_over: bool = False) -> Iterator[tuple[str, Figures]]:
        """The message and the figures of each step that is new in the file, which may have been written anew.

        The newest step waits for its validation loss, until it has one, a later step is there or the training is over.
        """
        self.points = points(metrics)
        steps: dict[int, list[TrainingPoint]] = {}
        for point in self.points:
            steps.setdefault(point.step, []).append(point)
        newest = max(steps, default=0)
        for step in sorted(steps):
            planned = steps[step][0].planned
            train_loss, valid_loss = losses(steps[step], step)
            every = max(1, math.ceil(planned / MOST_EVENTS))
            if step <= self.last_step or (step % every and step != planned and valid_loss is None):
                continue
            if step == newest and valid_loss is None and not is_over:
                return
            self.last_step = step
            yield _event(step, planned, train_loss, valid_loss)

    def end(self) -> int | None:
        """When the training is likely to end, in seconds since the epoch; None where that cannot be told."""
        steps = [each for each in self.points if each.train_loss is not None]
        if len(steps) < 2 or steps[-1].step >= steps[-1].planned:
            return None
        first, last = steps[max(0, len(steps) - 50)], steps[-1]
        seconds = (last.time - first.time) / max(1, last.step - first.step)
        return int(max(time.time(), last.time + seconds * (last.planned - last.step)))


def _event(step: int, planned: int, train_loss: float | None, valid_loss: float | None) -> tuple[str, Figures]:
    figures: Figures = {"step": step, "total_steps": planned}
    said: list[str] = []
    if train_loss is not None:
        figures["train_loss"] = train_loss
        said.append(f"training loss={train_loss:.4f}")
    if valid_loss is not None:
        figures |= {"valid_loss": valid_loss, "full_valid_loss": valid_loss}
        said.append(f"validation loss={valid_loss:.4f}")
    return f"Step {step}/{planned}: {', '.join(said)}", figures


def points(metrics: Path) -> list[TrainingPoint]:
    """The points of a metrics.jsonl up to the first line that is not whole."""
    return [
        TrainingPoint(
            *(line[name] for name in ("step", "planned", "time", "epoch")),
            *(line.get(name) for name in ("learning_rate", "loss", "eval_loss")),
        )
        for line in training_log.read(metrics)
    ]


def as_csv(found: list[TrainingPoint]) -> str:
    """The result file: a line for each step, with the loss of the validation rows where they were evaluated."""
    rows: dict[int, dict[str, Any]] = {}
    for point in found:
        given = {name: getattr(point, name) for name in COLUMNS}
        rows.setdefault(point.step, {}).update({name: value for name, value in given.items() if value is not None})
    text = io.StringIO()
    writer: csv.DictWriter[str] = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    return text.getvalue()


def losses(found: list[TrainingPoint], step: int) -> tuple[float | None, float | None]:
    """The training and the validation loss at a step."""
    of_step = [each for each in found if each.step == step]
    trained = (each.train_loss for each in of_step if each.train_loss is not None)
    validated = (each.valid_loss for each in of_step if each.valid_loss is not None)
    return next(trained, None), next(validated, None)


def epochs(found: list[TrainingPoint]) -> float:
    """The epochs that were trained."""
    return max((each.epoch for each in found), default=0.0)


def trained_tokens(rendered: Path, num_epochs: float) -> int:
    """The tokens of the training rows, prompts among them, as often as they were trained on."""
    column = pq.read_table(rendered / "train.parquet", columns=["input_ids"])["input_ids"]
    lengths: Any = pc.sum(pc.list_value_length(column))  # pyright: ignore[reportAttributeAccessIssue]
    return math.floor(lengths.as_py() * num_epochs + 0.5)
