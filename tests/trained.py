"""Trainings of tests that ask for no process of the trainer's: in this process, which has its libraries, and once.

A training is deterministic, so that the first of those with the same settings, rows and base alone is done.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunewright.tasks.train import stage, trainer

Attempt = Callable[[trainer.Job, Path], int]

ITS_OWN = ("job.json", "alive", "trainer.lock")  # of the folder that a trainer worked in


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


def done_once(
    once: Callable[[str, Callable[[Path], object]], Path], patch: pytest.MonkeyPatch, attempt: Attempt = in_this_process
) -> None:
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
    hashed = hashlib.sha256(job.model_dump_json(exclude={"weights", "train", "validation"}).encode())
    for file in (job.train, job.validation, *sorted(job.weights.iterdir())):
        hashed.update(file.read_bytes())
    return hashed.hexdigest()


def reproduce_here(patch: pytest.MonkeyPatch) -> None:
    """Has `tunewright reproduce` run the stages in this process."""
    from tunewright.cli.reproduce import __main__ as reproducing

    def process(command: list[str], *, env: dict[str, str], stdout: int | None, **_: object) -> SimpleNamespace:
        with pytest.MonkeyPatch.context() as patched, redirect_stdout(sys.stderr if stdout == 2 else sys.stdout):
            patched.setenv("TUNEWRIGHT_HOME", env["TUNEWRIGHT_HOME"])
            reproducing.main(Path(command[-1]))
        return SimpleNamespace(returncode=0)

    patch.setattr("tunewright.cli.reproduce.subprocess", SimpleNamespace(run=process, DEVNULL=subprocess.DEVNULL))


def kill_trainer_after(home: Path, line: str, sent: signal.Signals, stage: str = "train") -> threading.Thread:
    """Sends a signal to the trainer once its metrics hold `line`."""

    def wait_and_kill() -> None:
        while True:
            for metrics in home.glob(f"work/{stage}/*/metrics.jsonl"):
                if line in metrics.read_text():
                    os.kill(trainer_process(), sent)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def trainer_process() -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, parent = (
                (folder / "cmdline").read_bytes(),
                (folder / "stat").read_text().rpartition(")")[2].split()[1],
            )
        except OSError:
            continue
        if b"tunewright.tasks.train.trainer" in command and int(parent) == os.getpid():
            return int(folder.name)
    raise AssertionError("no trainer runs")
