"""Trainings of tests without the five seconds of processor time in which a trainer imports its libraries.

Those that ask for no process of the trainer's are done in this process, which has them. A trainer that is to be killed
is a fork of it. A training is deterministic, so that the first of those with the same settings, rows and base alone is
done.
"""

import contextlib
import hashlib
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextvars import copy_context
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

import psutil
import pytest
from conftest import Once

from tunewright.tasks.train import stage, trainer
from tunewright.tasks.train.trainer import ranks

Attempt = Callable[[trainer.Job, Path], int]

WITH_DEEPSPEED = pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed")
ZERO = tuple(pytest.param(strategy, marks=WITH_DEEPSPEED) for strategy in ("zero2", "zero3"))
ZERO_DEVICES = tuple(pytest.param("devices", strategy, marks=WITH_DEEPSPEED) for strategy in ("zero2", "zero3"))

FORKED = "forked trainer"
OF_SUBPROCESS = ("DEVNULL", "STDOUT", "TimeoutExpired")  # what stage.py takes of it besides
ITS_OWN = ("job.json", "alive", "trainer.lock")  # of the folder that a trainer worked in


class ForkedTrainer:
    """A trainer process that has the libraries of this one, in place of what subprocess.Popen would start."""

    def __init__(self, command: list[str], *, stdout: TextIO, env: dict[str, str], **_: Any) -> None:
        from tunewright.tasks.train.trainer import fit  # noqa: F401 before the fork

        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            code = trainer.FAILED
            try:
                code = self._work(command, stdout, env)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    @staticmethod
    def _work(command: list[str], stdout: TextIO, env: dict[str, str]) -> int:
        import torch

        from tunewright.tasks.train.trainer import __main__ as program

        os.setsid()
        Path("/proc/self/comm").write_text(FORKED)
        for descriptor in (1, 2):
            os.dup2(stdout.fileno(), descriptor)
        sys.stdout, sys.stderr = (open(descriptor, "w", buffering=1, closefd=False) for descriptor in (1, 2))  # noqa: SIM115 no paths
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.environ.clear()
        os.environ |= env
        torch.set_num_threads(1)  # makes the pool of threads anew that a fork loses
        return program.main(Path(command[-2]), int(command[-1]))

    def poll(self) -> int | None:
        if self.returncode is None and (waited := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(waited[1])
        return self.returncode

    def wait(self, timeout: float = math.inf) -> int:
        until = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > until:
                raise subprocess.TimeoutExpired("trainer", timeout)
            time.sleep(0.02)
        assert self.returncode is not None
        return self.returncode


def fork_trainers(patch: pytest.MonkeyPatch) -> None:
    """Has each trainer process be a fork of this one."""
    forking = SimpleNamespace(Popen=ForkedTrainer, **{name: getattr(subprocess, name) for name in OF_SUBPROCESS})
    patch.setattr(stage, "subprocess", forking)


def by_forks(job: trainer.Job, work: Path) -> int:
    """Trains by ranks that have the libraries of this process, without the seconds that it takes to import them.

    Those of another machine than the first one work in a folder of their own, which is empty.
    """
    before = stage.seconds_in(work)
    with tempfile.TemporaryDirectory() as folder:
        forked = [_fork(rank, job, work, Path(folder, "meeting")) for rank in range(job.compute.num_ranks)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in forked]
    stage._keep_seconds(work, before + 1)
    return min(codes) if min(codes) < 0 else max(codes)


def _fork(rank: int, job: trainer.Job, work: Path, meeting: Path) -> int:
    import torch

    from tunewright.tasks.train.trainer.fit import fit

    if pid := os.fork():
        return pid
    code = trainer.FAILED
    Path("/proc/self/comm").write_text(f"rank {rank}")
    torch.set_num_threads(1)  # as above; two threads that load would race for it
    try:
        node, local = divmod(rank, job.compute.devices)
        numbers = {"WORLD_SIZE": job.compute.num_ranks, "LOCAL_WORLD_SIZE": job.compute.devices}
        numbers |= {"RANK": rank, "LOCAL_RANK": local}
        os.environ |= {name: str(number) for name, number in numbers.items()}
        os.environ |= {ranks.MEETING: str(meeting), "MASTER_ADDR": "127.0.0.1", **ranks.LOOPBACK}
        if node:
            work = meeting.parent / f"machine {node}"
            work.mkdir(exist_ok=True)
        with (work / "trainer.log").open("a") as output, contextlib.redirect_stdout(output), ranks.joined():
            code = fit(job, work)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


class NotFinished(Exception):
    """The trainer came to no planned end, which is nothing to keep."""


def in_this_process(job: trainer.Job, work: Path) -> int:
    """Do and write what a trainer process does, without the seconds that it takes to import its libraries."""
    from accelerate.state import AcceleratorState

    from tunewright.tasks.train.trainer.fit import fit

    before, earlier, began = signal.getsignal(signal.SIGTERM), stage.seconds_in(work), time.monotonic()
    with (work / "trainer.log").open("a") as output:
        output.write(f"{stage.ATTEMPT} in the process of the tests, training.micro_batch={job.micro_batch}\n")
    progress = stage.Progress(work)
    try:
        code = fit(job, work)
        progress.update(last=True)
        return code
    finally:
        stage._keep_seconds(work, earlier + time.monotonic() - began)
        signal.signal(signal.SIGTERM, before)
        AcceleratorState._reset_state(reset_partial_state=True)  # the next one's precision may be another


def done_once(once: Once, patch: pytest.MonkeyPatch, attempt: Attempt = in_this_process) -> None:
    """Has a trainer that would begin what another came to the end of leave that one's files, in place of its own."""

    def recorded(job: trainer.Job, work: Path) -> int:
        if (work / "checkpoints").exists():  # it goes on where it was cut short
            return attempt(job, work)
        codes: list[int] = []

        def make(record: Path) -> None:
            codes.append(attempt(job, work))
            if codes[0] != trainer.FINISHED:
                raise NotFinished
            shutil.copytree(work, record, ignore=shutil.ignore_patterns(*ITS_OWN))

        try:
            record = once(f"training_{digest_of(job)}", make)
        except NotFinished:
            return codes[0]
        if not codes:
            shutil.copytree(record, work, dirs_exist_ok=True)
        return trainer.FINISHED

    patch.setattr(stage, "_attempt", recorded)


def digest_of(job: trainer.Job) -> str:
    """The hash of all that a training depends on."""
    places = {"weights", "train", "validation", "begins_as"}
    hashed = hashlib.sha256(job.model_dump_json(exclude=places).encode())
    folders = [job.weights, *filter(None, [job.begins_as])]
    for file in (job.train, job.validation, *(file for folder in folders for file in sorted(folder.iterdir()))):
        hashed.update(file.read_bytes())
    return hashed.hexdigest()


def reproduce_here(patch: pytest.MonkeyPatch) -> None:
    """Has `tunewright reproduce` run the stages in this process."""
    from tunewright.cli.reproduce import __main__ as reproducing

    def process(command: list[str], *, env: dict[str, str], stdout: int | None, **_: object) -> SimpleNamespace:
        with (
            pytest.MonkeyPatch.context() as patched,
            contextlib.redirect_stdout(sys.stderr if stdout == 2 else sys.stdout),
        ):
            patched.setenv("TUNEWRIGHT_HOME", env["TUNEWRIGHT_HOME"])
            if "TUNEWRIGHT_STORE" not in env:
                patched.delenv("TUNEWRIGHT_STORE", raising=False)
            copy_context().run(reproducing.main, Path(command[-1]))  # what it sets is of its process
        return SimpleNamespace(returncode=0)

    patch.setattr("tunewright.cli.reproduce.subprocess", SimpleNamespace(run=process, DEVNULL=subprocess.DEVNULL))


def kill_trainer_after(
    home: Path, line: str, sent: signal.Signals, stage: str = "train", *, see: Callable[[int], object] = lambda _: None
) -> threading.Thread:
    """Sends a signal to the trainer once its metrics hold `line`, after a look at the process by `see(pid)`."""

    def wait_and_kill() -> None:
        while True:
            for metrics in home.glob(f"work/{stage}/*/metrics.jsonl"):
                if line in metrics.read_text():
                    see(process := trainer_process())
                    os.kill(process, sent)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def trainer_process() -> int:
    for process in psutil.Process().children():
        if process.status() == psutil.STATUS_ZOMBIE:  # of an earlier training
            continue
        if process.name() == FORKED or "tunewright.tasks.train.trainer" in str(process.cmdline()):
            return process.pid
    raise AssertionError("no trainer runs")


@contextlib.contextmanager
def first_home(folder: Path, once: Once, mlflow_database: Path) -> Iterator[None]:
    """Work in a folder with a home that has no run yet, where each training is done once."""
    (folder / "home").mkdir()
    shutil.copy(mlflow_database, folder / "home")
    with pytest.MonkeyPatch.context() as patch:
        done_once(once, patch)
        patch.chdir(folder)
        patch.setenv("TUNEWRIGHT_HOME", str(folder / "home"))
        yield
