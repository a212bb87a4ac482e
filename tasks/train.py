"""Starts the trainer process, shows its progress, and goes on where it was killed.

A process of its own: its crash is this task's failure and not the worker's, its memory is the system's again when it
ends, and cancelling ends the whole group. Work in progress lies in a folder that outlives a failed attempt, so that the
next attempt, or the next run, resumes from the newest valid checkpoint, to the same weights as an undisturbed run.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from tasks import trainer
from tasks.artifacts import Adapter, Base, Tokens
from tasks.caching import cached, work_folder
from tasks.config import Method, Training
from tasks.errors import NO_SPACE, TrainerDied, TrainingError, retry_transient

log = logging.getLogger("tunewright")

POLL_SECONDS = 0.5
PROGRESS_SECONDS = 3.0  # between two updates of the artifact in the Prefect UI
ROOM_BYTES = 50_000_000  # with less than this free, a checkpoint cannot have been written
GRACE_SECONDS = 20.0  # for a checkpoint, when the run is cancelled


def run_trainer(job: trainer.Job, work: Path) -> None:
    """Runs the trainer to its planned end in `work`, halving the micro batch while memory runs out.

    Raises TrainerDied if it was killed, and TrainingError if it ended otherwise before its planned end.
    """
    micro_batch = job.micro_batch
    while True:
        code = _attempt(job.model_copy(update={"micro_batch": micro_batch}), work)
        if code == trainer.FINISHED:
            return
        if code != trainer.OUT_OF_MEMORY:
            raise _failure(code, work)
        if micro_batch == 1:
            raise TrainingError(
                f"out of memory with training.micro_batch=1 ({_error(work)}): use method.kind=qlora, a lower "
                "method.rank, or a smaller model.base"
            )
        micro_batch = next(size for size in range(micro_batch // 2, 0, -1) if job.training.batch % size == 0)
        log.warning(
            "out of memory: going on with training.micro_batch=%d and as many rows a step as before", micro_batch
        )


def _attempt(job: trainer.Job, work: Path) -> int:
    """One trainer process from start to end, and its exit code."""
    for leftover in ("error.json", "status.json", "summary.json"):
        (work / leftover).unlink(missing_ok=True)
    job_file = work / "job.json"
    job_file.write_text(job.model_dump_json(indent=1), encoding="utf-8")
    environment = os.environ | {
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_DISABLED": "true",
    }
    root = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    with (work / "trainer.log").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tasks.trainer", str(job_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    with _ended_with_us(process):
        progress = Progress(work)
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            progress.update()
        progress.update(last=True)
    return process.returncode


@contextlib.contextmanager
def _ended_with_us(process: subprocess.Popen[Any]) -> Iterator[None]:
    """Whatever ends this block ends the trainer and its children: politely first, so that it can save a checkpoint."""
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Progress:
    """The trainer's metrics file, read as it grows, as log lines and as a progress artifact in the Prefect UI."""

    def __init__(self, work: Path) -> None:
        self.metrics = work / "metrics.jsonl"
        self.status = work / "status.json"
        self.offset = 0
        self.started: tuple[int, float] | None = None
        self.loss = self.validation = float("nan")
        self.artifact: Any = None
        self.shown = 0.0

    def update(self, *, last: bool = False) -> None:
        """Reads what is new; a line counts once it is whole."""
        if not self.status.exists() or not self.metrics.exists():
            return
        with self.metrics.open("rb") as file:
            file.seek(self.offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.offset += len(whole)
        lines = [json.loads(line) for line in whole.splitlines()]
        for line in lines:
            self.loss = line.get("loss", self.loss)
            if "eval_loss" in line:
                self.validation = line["eval_loss"]
                log.info("%s", self._sentence(line))
        if lines and (last or time.monotonic() - self.shown > PROGRESS_SECONDS):
            self.shown = time.monotonic()
            self._show(lines[-1])

    def _sentence(self, line: dict[str, Any]) -> str:
        step, planned = line["step"], line["planned"]
        self.started = self.started or (step, line["time"])
        since, at = self.started
        left = (line["time"] - at) / (step - since) * (planned - step) if step > since else float("nan")
        remaining = f", about {left:.0f} s left" if left == left and step < planned else ""
        return f"step {step} of {planned}: loss {self.loss:.4f}, validation loss {self.validation:.4f}{remaining}"

    def _show(self, line: dict[str, Any]) -> None:
        sentence, percent = self._sentence(line), 100 * line["step"] / line["planned"]
        if TaskRunContext.get() is None:
            return
        if self.artifact is None:
            self.artifact = create_progress_artifact(progress=percent, key="training", description=sentence)
        else:
            update_progress_artifact(artifact_id=self.artifact, progress=percent, description=sentence)


def _failure(code: int, work: Path) -> TrainingError:
    if code < 0:
        name = signal.Signals(-code).name
        return TrainerDied(f"the trainer was killed by {name}; it resumes from its last valid checkpoint")
    if code == trainer.INTERRUPTED:
        return TrainerDied("the trainer was asked to stop and saved a checkpoint; the next run goes on from there")
    if shutil.disk_usage(work).free < ROOM_BYTES:
        return TrainingError(f"training did not finish: {NO_SPACE.format(work)}")
    return TrainingError(f"training did not finish: {_error(work)}; its whole output is in {work / 'trainer.log'}")


def _error(work: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        error = json.loads((work / "error.json").read_text(encoding="utf-8"))
        return f"{error['type']}: {error['message']}"
    lines = (work / "trainer.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


@task(
    name="train",
    task_run_name="train {method.kind} lr={training.learning_rate}",
    retries=2,
    retry_delay_seconds=[2, 30],
    retry_condition_fn=retry_transient,
)
@cached(
    libraries=("torch", "transformers", "trl", "peft", "bitsandbytes"),
    volatile=("metrics", "status", "summary", "trainer"),
)
def train(folder: Path, tokens: Tokens, base: Base, method: Method, training: Training) -> Adapter:
    """The tuned weights of the step with the lowest validation loss, with the curves and the contract."""
    work = work_folder(folder)
    work.mkdir(parents=True, exist_ok=True)
    contract = json.loads(tokens.path("contract.json").read_text(encoding="utf-8"))
    job = trainer.Job(
        weights=base.weights,
        reference=base.reference,
        train=tokens.path("train.parquet"),
        validation=tokens.path("validation.parquet"),
        pad_token_id=contract["pad_token_id"],
        method=method,
        training=training,
        micro_batch=training.micro_batch or training.batch,
    )
    started = time.monotonic()
    run_trainer(job, work)
    summary = json.loads((work / "summary.json").read_text(encoding="utf-8"))
    shutil.copytree(work / "model", folder / "model")
    for name in ("metrics.jsonl", "status.json", "summary.json", "trainer.log"):
        shutil.copy(work / name, folder / name)
    shutil.copy(tokens.path("contract.json"), folder / "contract.json")
    return Adapter(
        method=method.kind,
        steps=summary["steps"],
        best_step=summary["best_step"],
        best_validation_loss=summary["best_validation_loss"],
        stopped_early=summary["stopped_early"],
        train_seconds=round(time.monotonic() - started, 1),
    )
