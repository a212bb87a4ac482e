"""The record that the parent reads while training runs, and the callback that writes it.

Which step is the best and when training stops early is a function of the evaluations so far, and of nothing else.
transformers' own callback moves its mark with every evaluation, so that slow but steady progress below the threshold
stops it; it counts in a state that has to be restored; and resumed where it had stopped, it trains another step. Here
all is derived from the log that each checkpoint carries.
"""

import contextlib
import json
import math
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from transformers import TrainerCallback

from tunewright.artifacts import training_log
from tunewright.config import Training
from tunewright.modeling import groups
from tunewright.modeling.objectives import MARGIN, REWARDS
from tunewright.tasks.train.trainer import checkpoints, copies, ranks
from tunewright.tasks.train.trainer.watch import Watch


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


def start_as_good(
    lines: Sequence[Mapping[str, Any]], found: ValidationResult, training: Training
) -> ValidationResult | None:
    """The evaluation before the first step, from the lines of the record, if `found` is no better; None without one."""
    start = next((each for each in evaluations(lines, training) if each.step == 0), None)
    return start if start and best([start, found], training) is start else None


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


STATE = "trainer_state.json"  # in a checkpoint, by transformers
BEAT_SECONDS = 1.0  # between two signs of life
OF_DRAW = ("reward", "reward_std", "no_signal_share", "answer_tokens", "cut_share", *groups.FIGURES)
FIGURES = ("loss", *REWARDS, MARGIN, *OF_DRAW, "grad_norm", "learning_rate", "epoch")


class Record:
    """status.json, which is written once, and metrics.jsonl, one line a step and one an evaluation.

    Of several ranks the first one writes; the others know the same.
    """

    def __init__(self, folder: Path, resumed_from: int, skipped: Sequence[str] = ()) -> None:
        self.folder = folder
        self.resumed_from = resumed_from
        self.skipped = list(skipped)  # a line for each checkpoint that could not be resumed from
        self.beaten = 0.0
        self.interrupted = False
        signal.signal(signal.SIGTERM, self._interrupt)
        lines = ranks.from_first(self._begin)
        self.losses = [line["loss"] for line in lines if "loss" in line]
        self.evaluated = {line["step"] for line in lines if "eval_loss" in line}

    def _begin(self) -> list[dict[str, Any]]:
        """The lines up to the checkpoint, which are kept: what was logged after it happens again."""
        metrics = self.folder / training_log.FILE
        lines = [line for line in training_log.read(metrics) if line["step"] <= self.resumed_from]
        unfinished = self.folder / ".metrics.jsonl"
        unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
        unfinished.rename(metrics)
        return lines

    def _interrupt(self, *_: Any) -> None:
        self.interrupted = True

    def is_interrupted(self) -> bool:
        """Whether the parent has asked to stop. Whoever works for long asks often, which is a sign of life as well.

        All ranks ask at once, and hear the same.
        """
        self.beat()
        self.interrupted = ranks.total(self.interrupted) > 0
        return self.interrupted

    def beat(self, doing: str = "") -> None:
        """Shows the parent that the trainer is at work, and on what, where it writes nothing else for a while."""
        now = time.monotonic()
        if ranks.own() == 0 and now - self.beaten > BEAT_SECONDS:
            self.beaten = now
            with contextlib.suppress(OSError):  # of a full disk what is worth keeping says more
                (self.folder / training_log.ALIVE).write_text(doing, encoding="utf-8")

    def start(self, **facts: Any) -> None:
        """Says how the run is laid out, before the first step."""
        if ranks.own() > 0:
            return
        unfinished = self.folder / ".status.json"
        resumed = {"resumed_from": self.resumed_from, "skipped_checkpoints": self.skipped}
        unfinished.write_text(json.dumps(resumed | facts), encoding="utf-8")
        unfinished.rename(self.folder / "status.json")

    def line(self, step: int, planned: int, **figures: Any) -> None:
        """Appends one line."""
        if ranks.own() > 0:
            return
        with (self.folder / training_log.FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "planned": planned, "time": time.time(), **figures}) + "\n")


class Recorder(TrainerCallback):
    """Keeps each step's figures, seals each checkpoint, and stops where the parent asks for it."""

    def __init__(self, record: Record, watch: Watch, training: Training, checkpoint_minutes: float) -> None:
        self.record, self.watch, self.training = record, watch, training
        self.checkpoint_seconds = 60 * checkpoint_minutes
        self.began = self.saved = time.perf_counter()
        self.seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Has each rank drop other parts of its rows; a checkpoint's random state comes after it."""
        import torch

        if ranks.own() > 0:
            torch.manual_seed(args.seed + ranks.own())

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the clock."""
        self.record.beat()
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stops the clock; and training, with a checkpoint, where the parent asks for it."""
        self.seconds = time.perf_counter() - self.began
        if self.record.is_interrupted():
            # The evaluation that may be due here is made up for when the run goes on from this checkpoint.
            control.should_evaluate, control.should_save, control.should_training_stop = False, True, True
        elif self._is_checkpoint_due():
            control.should_save = True

    def _is_checkpoint_due(self) -> bool:
        """Whether enough time has passed by the clock of the first rank; all ranks ask at once, and hear the same."""
        is_due = time.perf_counter() - self.saved > self.checkpoint_seconds
        return ranks.total(is_due and ranks.own() == 0) > 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Writes a line; raises FloatingPointError where the gradient or the validation loss is not a number."""
        logs = logs or {}
        if "loss" in logs:
            figures: dict[str, Any] = {name: logs[name] for name in FIGURES if name in logs}
            if not math.isfinite(figures.get("grad_norm", 0.0)):
                self.watch.fail(f"the gradient norm is {figures['grad_norm']}", state.global_step)
            num_rows = len(self.watch.rows)
            num_tokens = sum(len(row["input_ids"]) + len(row.get("rejected_ids", ())) for row in self.watch.rows)
            figures |= {
                "seconds": round(self.seconds, 4),
                "rows_per_second": round(num_rows / self.seconds, 3),
                "tokens_per_second": round(num_tokens / self.seconds, 1),
                "memory_bytes": _memory(),
            }
            if self.watch.found:
                figures["worst"] = self.watch.found
            if self.watch.sample:
                figures["sample"] = self.watch.sample
            self.record.line(state.global_step, state.max_steps, **figures)
        elif "eval_loss" in logs:
            if not math.isfinite(logs["eval_loss"]):
                self.watch.fail(f"the validation loss is {logs['eval_loss']}", state.global_step)
            if state.global_step in self.record.evaluated:
                return  # made up for after all, in a run that was killed before it could keep that
            names = (
                "epoch",
                "eval_loss",
                f"eval_{self.training.best_by}",
                *(f"eval_{name}" for name in (*REWARDS, MARGIN, "kl", "reward")),
            )
            figures = {name: logs[name] for name in names if name in logs} | {"seconds": logs.get("eval_runtime")}
            self.record.line(state.global_step, state.max_steps, **figures)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends training where patience is exhausted; with a checkpoint, where the parent asked for it meanwhile."""
        if is_exhausted(evaluations(state.log_history, self.training), self.training):
            control.should_training_stop = True
        if self.record.is_interrupted():
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Seals the checkpoint once all ranks have written their part; those not needed any more are removed."""
        ranks.wait()
        checkpoint = checkpoints.at(Path(args.output_dir), state.global_step)
        copies.at_first(checkpoint)
        if ranks.own() > 0:
            return
        checkpoints.seal(checkpoint, _best_step(state, self.training))
        checkpoints.prune(checkpoint)
        self.saved = time.perf_counter()


def keep_evaluation(folder: Path, state: Any, training: Training) -> None:
    """Adds an evaluation to the sealed checkpoint of the trainer's state, and removes those not needed any more."""
    checkpoint = checkpoints.at(folder, state.global_step)
    new = folder / f".{STATE}"
    state.save_to_json(str(new))
    checkpoints.replace(checkpoint, STATE, new, _best_step(state, training))
    checkpoints.prune(checkpoint)


def _best_step(state: Any, training: Training) -> int | None:
    found = best(evaluations(state.log_history, training), training)
    return found.step if found else None


def _memory() -> int:
    """The most that tensors took on the GPU so far, or what this process holds of the main memory."""
    import psutil
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else psutil.Process().memory_info().rss
