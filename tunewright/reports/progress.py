"""Progress of training (from the trainer's files) and of work that is counted: log lines and a Prefect artifact."""

import json
import logging
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from tunewright.artifacts.training_log import ALIVE, FILE, GrowingLog, Line
from tunewright.machine import busy_in_words
from tunewright.reports.pages import percent

log = logging.getLogger("tunewright")
steps_log = logging.getLogger("tunewright.steps")  # of its own, so that it can be heard alone

ARTIFACT_SECONDS = 3.0  # between two updates of the artifact
LOG_SECONDS = 30.0  # between two lines in the log, besides the first, the last and those of evaluations
FIRST_SECONDS = 5.0  # before the first line of work without steps: shorter work has none
EVALUATION_SECONDS = 5.0  # between two lines of evaluations: a short training has several a second
RECENT = 20  # steps that the time left is reckoned from
ENOUGH = 0.1  # share of the work that is done before a time left is told: a few steps or rows tell little


class Follower(Protocol):
    """An observer of the work within `followed`; it returns at once."""

    def trains(self, metrics: Path) -> None:
        """A trainer writes to this metrics.jsonl."""

    def comes_to(self, sentence: str) -> None:
        """How far the work of the stage is."""


_FOLLOWER: ContextVar[Follower | None] = ContextVar("follower", default=None)
_WHOLE: ContextVar["TotalWork"] = ContextVar("whole")
_WATCHER: ContextVar[Callable[[Line], None] | None] = ContextVar("watcher", default=None)


@contextmanager
def only_steps() -> Iterator[None]:
    """Log only the steps and warnings of the trainings within."""
    level = log.level
    if log.isEnabledFor(logging.INFO):
        steps_log.setLevel(logging.INFO)
        log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
        steps_log.setLevel(logging.NOTSET)


@contextmanager
def watched(by: Callable[[Line], None]) -> Iterator[None]:
    """Calls `by` with each evaluation of the trainings within, again where one goes on; what it raises ends them."""
    token = _WATCHER.set(by)
    try:
        yield
    finally:
        _WATCHER.reset(token)


@contextmanager
def followed(by: Follower) -> Iterator[None]:
    """Tells `by` how far the work within is."""
    token = _FOLLOWER.set(by)
    try:
        yield
    finally:
        _FOLLOWER.reset(token)


class ProgressArtifact:
    """A progress artifact of the current task run, updated every few seconds at most."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.artifact: Any = None
        self.shown = 0.0
        self.cannot_show = False

    def show(self, progress: float, sentence: str, *, at_once: bool = False) -> None:
        """Update it; outside a task run, and soon after the last update unless `at_once`, do nothing."""
        now = time.monotonic()
        if TaskRunContext.get() is None or not (at_once or now - self.shown > ARTIFACT_SECONDS):
            return
        self.shown = now
        try:
            if self.artifact is None:
                self.artifact = create_progress_artifact(progress=progress, key=self.key, description=sentence)
            else:
                update_progress_artifact(artifact_id=self.artifact, progress=progress, description=sentence)
        except Exception as error:  # the network's or the server's, of many types: no work ends with a picture of it
            if not self.cannot_show:
                log.warning("  the Prefect UI cannot show the progress; the work continues: %s", error)
            self.cannot_show = True


@contextmanager
def told_while_slow(doing: str) -> Iterator[None]:
    """Log what is done within, and for how long now, where it takes more than a few seconds."""
    started, ended = time.monotonic(), threading.Event()

    def tell() -> None:
        seconds = FIRST_SECONDS
        while not ended.wait(seconds):
            seconds = LOG_SECONDS
            log.info("  %s: %s so far%s", doing, duration(time.monotonic() - started), busy_in_words())

    teller = threading.Thread(target=copy_context().run, args=(tell,), daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()


class TotalWork(NamedTuple):
    """All the work of which a Countdown counts a part."""

    total: int
    done: int  # before this part
    started: float  # time.monotonic()


@contextmanager
def part_of(whole: TotalWork) -> Iterator[None]:
    """Have a Countdown within count a part of all the work."""
    token = _WHOLE.set(whole)
    try:
        yield
    finally:
        _WHOLE.reset(token)


class Countdown:
    """Progress of work that is counted, such as "40 of 120 answers, about 2 min left"."""

    def __init__(self, total: int, units: str, key: str, of: str = "") -> None:
        self.total, self.units = total, units
        self.artifact, self.of = ProgressArtifact(key), of
        self.started = self.logged = time.monotonic()
        self.said = 0  # done, as the last line in the log said

    def tell(self, done: int, share: float | None = None) -> None:
        """Show that so many are done, now and then; `share` is that of all the work, where they are not alike."""
        now, share = time.monotonic(), done / self.total if share is None else share
        whole = _WHOLE.get(TotalWork(self.total, 0, self.started))
        sentence = f"{whole.done + done:,} of {whole.total:,} {self.units}"
        if whole.done + done >= whole.total:
            sentence += f" in {duration(now - whole.started)}"
        elif done < self.total and share >= ENOUGH:
            parts_left = (whole.total - whole.done) / self.total
            sentence += f", about {duration((now - self.started) * (parts_left / share - 1))} left"
        is_first, is_new = self.logged == self.started, done > self.said
        if is_new and (
            now - self.logged >= (FIRST_SECONDS if is_first else LOG_SECONDS) or (done >= self.total and not is_first)
        ):
            self.logged, self.said = now, done
            log.info("  %s", sentence)
        progress = 100 * (whole.done + share * self.total) / whole.total
        self.artifact.show(progress, f"{self.of}: {sentence}" if self.of else sentence, at_once=done >= self.total)
        if follower := _FOLLOWER.get():
            follower.comes_to(sentence)


UNSAID = ("eval_reward_chosen", "eval_reward_rejected")  # whose difference, the margin, is said
OF_REWARDS = ("eval_loss", *UNSAID)  # likewise, of a training on rewards


class Progress:
    """Progress of the trainer in a work folder."""

    def __init__(self, work: Path) -> None:
        self.log, self.status, self.alive = GrowingLog(work / FILE), work / "status.json", work / ALIVE
        self.facts: dict[str, Any] | None = None
        self.steps: list[Line] = []
        self.evaluations: list[Line] = []
        self.artifact = ProgressArtifact("training-progress")
        self.logged = 0.0
        self.said = (0, 0)  # steps and evaluations that the last line in the log is of

    def update(self, *, last: bool = False) -> None:
        """Reads and shows what is new; a line counts once it is whole. Before there is any, what the trainer does."""
        if self.facts is None:
            if not self.status.exists():
                self._tell_before()
                return
            self.logged = 0.0
            self.facts = dict(json.loads(self.status.read_text(encoding="utf-8")))
            for skipped in self.facts["skipped_checkpoints"]:
                log.warning("  %s", skipped)
            for sentence in layout(self.facts):
                log.info("%s", sentence)
        new = self._read()
        now, there = time.monotonic(), (len(self.steps), len(self.evaluations))
        seconds = 0.0 if last or not self.logged else LOG_SECONDS if there[1] == self.said[1] else EVALUATION_SECONDS
        if there != self.said and now - self.logged >= seconds and (last or not self._awaits_evaluation()):
            self.logged, self.said = now, there
            steps_log.info("  %s", self.sentence())
        if not new:
            return
        if follower := _FOLLOWER.get():
            follower.trains(self.log.file)
            follower.comes_to(self.sentence())
        if TaskRunContext.get() is not None:
            step, planned = self._place()
            evaluated = any("eval_loss" in line for line in new)
            self.artifact.show(100 * step / planned, self.sentence(), at_once=evaluated or last)
        if watcher := _WATCHER.get():
            for line in new:
                if "eval_loss" in line:
                    watcher(line)

    def _tell_before(self) -> None:
        """Logs now and then what the trainer does before its first step."""
        doing = self.alive.read_text(encoding="utf-8") if self.alive.exists() else ""
        if doing and time.monotonic() - self.logged >= LOG_SECONDS:
            self.logged = time.monotonic()
            steps_log.info("  %s", doing)

    @property
    def step_seconds(self) -> float:
        """The median time of the recent steps; 0 before the first."""
        return statistics.median([line["seconds"] for line in self.steps[-RECENT:]] or [0.0])

    def _read(self) -> list[Line]:
        lines, is_anew = self.log.new()
        if is_anew:
            self.steps, self.evaluations = [], []
        self.steps += [line for line in lines if "loss" in line]
        self.evaluations += [line for line in lines if "eval_loss" in line]
        return lines

    def sentence(self) -> str:
        """Such as "step 40 of 60: loss 0.1234, validation loss 0.2345, 512 tokens/s, about 2 min left"."""
        step, planned = self._place()
        newest = (*self.steps[-1:], *self.evaluations[-1:])
        is_of_rewards = any({"reward", "eval_reward"} & line.keys() for line in newest)
        measured = "reward" if is_of_rewards else "loss"
        parts = [f"{measured} {self.steps[-1][measured]:.4f}"] if self.steps else []
        unsaid = OF_REWARDS if measured == "reward" else UNSAID
        for name, value in (self.evaluations[-1] if self.evaluations else {}).items():
            if name.startswith("eval_") and name not in unsaid:
                at = "" if self.evaluations[-1]["step"] == step else f" at step {self.evaluations[-1]['step']}"
                parts.append(f"validation {name.removeprefix('eval_').replace('_', ' ')} {value:.4f}{at}")
        facts = self.facts or {}
        resumed_from = facts.get("resumed_from", 0)
        steps, evaluations = (  # of this process: an earlier one had a speed of its own
            [line for line in lines if line["step"] > resumed_from] for lines in (self.steps, self.evaluations)
        )
        rates = [line["tokens_per_second"] for line in steps[-RECENT:]]
        parts += [f"{statistics.median(rates):,.0f} tokens/s"] if rates else []
        enough = step - resumed_from >= min(ENOUGH * planned, RECENT)
        left = seconds_left(steps, evaluations, facts.get("evaluate_every")) if enough else None
        parts += [f"about {duration(left)} left"] if left else []
        return f"step {step} of {planned}: {', '.join(parts)}"

    def _awaits_evaluation(self) -> bool:
        """Whether a step is done and its evaluation is not: the line of both is still to come."""
        step, planned = self._place()
        every = (self.facts or {}).get("evaluate_every")
        is_due = step >= planned or (every and step % every == 0)
        return bool(is_due) and (not self.evaluations or self.evaluations[-1]["step"] < step)

    def _place(self) -> tuple[int, int]:
        newest = max((lines[-1] for lines in (self.steps, self.evaluations) if lines), key=lambda line: line["step"])
        return newest["step"], newest["planned"]


def layout(facts: dict[str, Any]) -> list[str]:
    """Describe status.json before the first step: where it begins, what it trains, and its compute with reasons."""
    learning, total = facts["learning_parameters"], facts["parameters"]
    lines = [f"  {learning:,} of {total:,} parameters are trainable ({share(learning, total)})"]
    if facts["resumed_from"]:
        lines.insert(0, f"  resuming from step {facts['resumed_from']}")
    elif facts["skipped_checkpoints"]:
        lines.insert(0, "  no other checkpoint is left, so the training begins at step 1")
    for field, reason in facts["chosen"]["because"].items():
        value = facts["chosen"][field]
        value = {True: "on", False: "off"}.get(value, value)
        lines.append(f"  {field} {value}: {reason}")
    return lines


def seconds_left(steps: Sequence[Line], evaluations: Sequence[Line], every: int | None) -> float | None:
    """About how long the planned steps and evaluations that are left take; None where nothing is left or known."""
    if not steps or steps[-1]["step"] >= steps[-1]["planned"]:
        return None
    step, planned = steps[-1]["step"], steps[-1]["planned"]
    a_step = statistics.fmean(line["seconds"] for line in steps[-RECENT:])
    an_evaluation = evaluations[-1].get("seconds") if evaluations else None
    num_evaluations = planned // every - step // every + (planned % every > 0) if every else 0
    return a_step * (planned - step) + (an_evaluation or 0.0) * num_evaluations


def share(num_trained: int, num_parameters: int) -> str:
    """The trained share of all parameters, an adapter's included, as a percentage."""
    return percent(num_trained / num_parameters, 2)


def duration(seconds: float) -> str:
    """Such as 92 s, 2.5 min, 12 min or 3.5 h: never off by more than a twentieth."""
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    if seconds < 595:
        return f"{seconds / 60:.1f} min".replace(".0 ", " ")
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
