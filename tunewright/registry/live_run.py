"""The MLflow run of a pipeline run while that goes on: opened by its first stage, fed all along, ended truthfully.

A thread beside the stages talks to MLflow, so that they wait neither for its import nor for its answers. The curves
come from the trainer's own file, where they stay for as long as MLflow does not answer. The run is found again by its
key, so that a killed or failed run goes on in it.

A run whose end MLflow does not know yet stands in the home (live_runs/), under a lock while its process lives. The next
run there, and `tunewright up` when it starts, send what is missing: that the process was killed, if nothing else is
known.
"""

import contextlib
import contextvars
import logging
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from tunewright import config
from tunewright.registry.candidate import PROGRESS, Point
from tunewright.registry.run_writer import RunEnding, RunFacts, RunWriter
from tunewright.registry.system_metrics import SystemMetrics
from tunewright.registry.tracking import connected
from tunewright.store import disk, locks

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger("tunewright")

SEND_SECONDS = 2.0  # between two requests
RETRY_SECONDS = 30.0  # at most, while MLflow does not answer
LOCK_SECONDS = 5.0  # for whoever sends what an earlier run of this key left
SAMPLE_SECONDS = 10.0  # between two samples of the machine, at first
SAMPLE_SHARE = 0.01  # of the time so far, where that is longer: about 500 samples a day
KEPT_SECONDS = 7 * 86_400.0  # an end that MLflow does not take, as where somebody deleted the run
KILLED = "the process was killed, or its machine went down; the next run resumes"


class KeptRun(BaseModel, frozen=True):
    """A run whose end MLflow does not know yet."""

    facts: RunFacts
    began: float
    metrics: Path | None
    ending: RunEnding | None
    run_id: str | None  # once MLflow has it


class LiveRun:
    """The MLflow run of the pipeline run that goes on; all but `hand_over` and `end` returns at once."""

    def __init__(self, opened_by: str = "") -> None:
        self.opened_by = opened_by  # the stage that opens it where it is not found in the cache; empty: any
        self.describe: Callable[[], RunFacts] | None = None
        self.stage = ""
        self.progress = ""
        self.metrics: Path | None = None
        self.is_registered = False  # from then on, register writes its curves and tags
        self.ending: RunEnding | None = None
        self._writer: RunWriter | None = None
        self._busy = threading.RLock()  # whoever uses the writer
        self._held, self._wake, self._done = threading.Event(), threading.Event(), threading.Event()
        self._is_given_up = False
        self._keeping = threading.Lock()
        self._thread: threading.Thread | None = None
        self._sampled: list[Point] = []

    @property
    def goes_on(self) -> bool:
        """Whether its thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def enters(self, stage: str) -> None:
        """The next stage."""
        self.stage = self.progress = stage

    def begins(self) -> None:
        """The stage makes something."""
        if self._thread is None and self.describe and self.opened_by in ("", self.stage):
            context = contextvars.copy_context()
            self._thread = threading.Thread(target=context.run, args=(self._work,), daemon=True)
            self._thread.start()

    def trains(self, metrics: Path) -> None:
        """The curves are in this metrics.jsonl."""
        self.metrics = metrics

    def comes_to(self, sentence: str) -> None:
        """How far the stage is."""
        self.progress = f"{self.stage}: {sentence}"

    def hand_over(self, client: "MlflowClient") -> str | None:
        """The id of the run with all its curves, for register to go on with; None where there is none."""
        if self._thread is None:
            return None
        self._held.wait()
        if self._writer is None:
            return None
        with self._busy:
            self._send(client, self._writer)
            self.is_registered = True
            return self._writer.run_id

    def go_on_as(self, client: "MlflowClient", run: "Run") -> None:
        """Goes on with another run: that in which the same decision stands, or a new one for a second decision."""
        if self._writer:
            with self._busy:
                self._writer.go_on_as(client, run)

    def end(self, ending: RunEnding, patience: float) -> None:
        """Ends the run. MLflow has so many seconds to take that; after them it stays in the home."""
        if self._thread is None:
            return
        self.ending = ending
        if self._writer:
            with contextlib.suppress(OSError):  # as where the disk is full
                self._keep(self._writer)
        self._wake.set()
        self._done.wait(patience)
        self._is_given_up = True
        self._wake.set()

    def _work(self) -> None:
        with contextlib.ExitStack() as lock:
            try:
                self._writer = self._hold(lock)
                if self.ending:  # it came before there was a writer
                    self._keep(self._writer)
            except Exception as error:  # of many types: no run ends for want of its picture
                log.warning("MLflow does not show this run while it goes on: %s", error)
            finally:
                self._held.set()
            if self._writer:
                self._feed(self._writer)
        self._done.set()

    def _hold(self, lock: contextlib.ExitStack) -> RunWriter:
        """Keeps the run in the home, under a lock; where the same run goes on elsewhere, as another one."""
        assert self.describe
        facts = self.describe()
        _folder().mkdir(parents=True, exist_ok=True)
        try:
            lock.enter_context(locks.exclusive(_lock_of(_file(facts)), wait=LOCK_SECONDS))
        except BlockingIOError:
            facts = facts.model_copy(update={"key": f"{facts.key[:20]}.{uuid.uuid4().hex[:12]}"})
            lock.enter_context(locks.exclusive(_lock_of(_file(facts))))
        writer = RunWriter(facts, time.time())
        self._keep(writer)
        return writer

    def _keep(self, writer: RunWriter) -> None:
        facts, began, run_id = writer.facts, writer.began, writer.run_id
        with self._keeping:
            kept = KeptRun(facts=facts, began=began, metrics=self.metrics, ending=self.ending, run_id=run_id)
            disk.replace(_file(facts), kept.model_dump_json())

    def _feed(self, writer: RunWriter) -> None:
        """Sends what is new, again and again, until MLflow has the end or it is given up."""
        sampler = threading.Thread(target=self._sample, args=(writer,), daemon=True)
        pause, is_silent, kept = SEND_SECONDS, False, (self.metrics, writer.run_id)
        while not self._is_given_up:
            ending = self.ending
            try:
                with self._busy, connected(writer.facts.registry) as client:
                    if not (ending and ending.is_needless and writer.run_id is None):
                        self._send(client, writer, is_end=bool(ending))
                    if ending:
                        writer.finish(client, ending)
                if kept != (self.metrics, writer.run_id):
                    kept = self.metrics, writer.run_id
                    self._keep(writer)
            except Exception as error:  # of many types: no run ends, or waits, for want of its picture
                writer.doubt()
                if not (is_silent or self._is_given_up):
                    log.warning(
                        "  MLflow does not get this run for now; the run goes on, and it is sent later: %s", error
                    )
                pause, is_silent = min(2 * pause, RETRY_SECONDS), True
            else:
                if ending:
                    _forget(_file(writer.facts))
                    return
                if is_silent:
                    log.info("  MLflow has all of this run again")
                pause, is_silent = SEND_SECONDS, False
                if sampler.ident is None:
                    sampler.start()
                    with contextlib.suppress(OSError):
                        finish_left()
            if ending is self.ending:
                self._wake.wait(pause)
                self._wake.clear()

    def _send(self, client: "MlflowClient", writer: RunWriter, *, is_end: bool = False) -> None:
        if not self.is_registered:
            writer.follow(self.metrics, to_its_end=is_end)
            writer.tags = {PROGRESS: self.progress}
            while self._sampled:
                writer.pending.append(self._sampled.pop(0))
        writer.send(client)

    def _sample(self, writer: RunWriter) -> None:
        """Samples the machine until the run ends, ever more rarely."""
        try:
            machine, began = SystemMetrics(), time.monotonic() - max(0.0, time.time() - writer.began)
            while self.ending is None:
                age = time.monotonic() - began  # whatever becomes of the machine's clock
                self._sampled += machine.sample(time.time(), int(age))
                until = age + max(SAMPLE_SECONDS, SAMPLE_SHARE * age)
                while self.ending is None and time.monotonic() - began < until:
                    time.sleep(1)
        except Exception as error:  # of a driver's, or of the system's: the run does not need it
            log.debug("no system metrics: %s", error)


def finish_left() -> None:
    """Has MLflow know how the runs of this home ended whose process is gone; where it does not answer, another time."""
    for file in sorted(_folder().glob("*.json")):
        with contextlib.suppress(BlockingIOError), locks.exclusive(_lock_of(file), wait=0):
            try:
                _finish(KeptRun.model_validate_json(file.read_bytes()), file)
            except FileNotFoundError:  # its process ended it meanwhile
                continue
            except ValidationError:  # of another version
                pass
            except Exception as error:  # of many types, as in a run
                log.debug("MLflow does not take the end in %s: %s", file, error)
                if time.time() - file.stat().st_mtime < KEPT_SECONDS:
                    continue
            _forget(file)


def _finish(left: KeptRun, file: Path) -> None:
    files = [each for each in (file, left.metrics) if each and each.exists()]
    seen = max(each.stat().st_mtime for each in files)
    ending = left.ending or RunEnding(status="KILLED", when=seen, stage="a stage", error=KILLED)
    writer = RunWriter(left.facts, left.began, left.run_id)
    with connected(left.facts.registry) as client:
        writer.follow(left.metrics, to_its_end=True)
        writer.send(client)
        writer.finish(client, ending)


def place() -> str:
    """The machine and the home."""
    return f"{socket.gethostname()}:{config.home().absolute()}"


def _folder() -> Path:
    return config.home() / "live_runs"


def _file(facts: RunFacts) -> Path:
    return _folder() / f"{facts.key}.json"


def _lock_of(file: Path) -> Path:
    return file.with_suffix(".lock")


def _forget(file: Path) -> None:
    file.unlink(missing_ok=True)
    _lock_of(file).unlink(missing_ok=True)


_CURRENT: ContextVar[LiveRun | None] = ContextVar("live_run", default=None)


def current() -> LiveRun | None:
    """The one of the pipeline run that goes on, if any."""
    return _CURRENT.get()


@contextlib.contextmanager
def used(run: LiveRun) -> Iterator[None]:
    """Makes it the current one within."""
    token = _CURRENT.set(run)
    try:
        yield
    finally:
        _CURRENT.reset(token)
