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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunewright import cost_model, machine
from tunewright.artifacts import Adapter, Artifact, Base, Scan, Tokens
from tunewright.artifacts.payloads import Contract, TrainingSummary
from tunewright.config import CHECKPOINT_MINUTES, Compute, Grpo, Method, Preference, Training
from tunewright.errors import (
    NO_SPACE,
    ApiError,
    ConfigError,
    TrainerDied,
    TrainerFailed,
    TrainingError,
    TunewrightError,
    shortened,
)
from tunewright.metrics.rewards import folders_of
from tunewright.reports import curves
from tunewright.reports.curves.reading import SIZED_BY
from tunewright.reports.pages import counted
from tunewright.reports.progress import Progress, duration
from tunewright.store import cache_key, needless
from tunewright.store.caching import work_folder
from tunewright.store.stage import stage
from tunewright.tasks.train import rendezvous, shared_checkpoints, trainer
from tunewright.tasks.train.heartbeat import Heartbeat
from tunewright.tasks.train.trainer import (
    __main__ as process_of_trainer,  # named, so that its code is part of train's key
)
from tunewright.tasks.train.trainer.checkpoints import newest_sealed

log = logging.getLogger("tunewright")

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "safetensors")
VOLATILE = ("curves", "metrics", "status", "summary", "trainer")  # which differ where the weights do not
UNKEYED = ("checkpoint_minutes",)  # on which no file that is kept depends
SECONDS = "seconds.json"
LOG = "trainer.log"  # what the trainer printed
POLL_SECONDS = 0.5
ROOM_BYTES = 50_000_000  # with less than this free, a checkpoint cannot have been written
GRACE_SECONDS = 6.0  # for a checkpoint, when the run is cancelled
OF_SETTINGS_OR_DATA = ("FloatingPointError", "ValueError")  # errors that the next attempt would end with as well
OF_SUMMARY = {"steps", "best_step", "best_by", "best_value", "best_validation_loss", "stopped_early"}
ATTEMPT = "--- attempt"  # begins the line before each attempt's output in trainer.log


def seconds_in(work: Path) -> float:
    """The seconds of all attempts at a training, also of one that was killed, from a file of the work folder."""
    try:
        return float(json.loads((work / SECONDS).read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError):
        return 0.0


def _keep_seconds(work: Path, seconds: float) -> None:
    unfinished = work / f"{SECONDS}.part"
    unfinished.write_text(json.dumps(seconds), encoding="utf-8")
    os.utime(unfinished, (0, 0))  # it is no sign of life of the trainer's (heartbeat.py)
    unfinished.replace(work / SECONDS)


def run_trainer(job: trainer.Job, work: Path) -> None:
    """Runs the trainer to its planned end in `work`, halving the micro-batch while memory runs out.

    Raises TrainerDied if it was killed, ConfigError where the settings cannot be, ApiError where the server that draws
    answers is away, and TrainingError if it ended otherwise before its planned end.
    """
    micro_batch = job.micro_batch
    while True:
        code = _attempt(job.model_copy(update={"micro_batch": micro_batch}), work)
        if code == trainer.FINISHED:
            return
        if code != trainer.OUT_OF_MEMORY:
            raise _failure(code, work)
        if micro_batch == 1:
            kind, size = job.method.kind, SIZED_BY.get(job.method.kind)  # what takes less memory, and is not set yet
            smaller = ["compute.checkpointing=true"] * (not job.compute.checkpointing)
            smaller += ["method.kind=qlora"] * (kind != "qlora") + [f"a lower {size}"] * bool(size)
            raise TrainingError(
                f"out of memory with training.micro_batch=1 ({error_in(work)}): use {', '.join(smaller)}, or a "
                "smaller model.base"
            )
        micro_batch //= 2
        log.warning("out of memory: retrying with training.micro_batch=%d; training.batch stays the same", micro_batch)


def _attempt(job: trainer.Job, work: Path) -> int:
    """One trainer process from start to end, and its exit code; the kernel's end of it for want of memory is one.

    Raises TrainerDied where it hung and was ended.
    """
    killed = machine.oom_kills()
    part = rendezvous.called(job, cache_key.of_call({}, __name__, LIBRARIES)) if job.compute.nodes > 1 else None
    with started(job, work, part) as process:
        progress, heartbeat = Progress(work), Heartbeat(work, process.pid)
        earlier, began = seconds_in(work), time.monotonic()
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
            progress.update()
            _keep_seconds(work, earlier + time.monotonic() - began)
            if heartbeat.hangs(progress.step_seconds):
                _end(process)
                raise TrainerDied(
                    f"the trainer hung: no file written for {duration(heartbeat.silent)}; it was killed, and "
                    f"{_next_attempt(work)}"
                )
        progress.update(last=True)
        _keep_seconds(work, earlier + time.monotonic() - began)
    if process.returncode == -signal.SIGKILL and machine.oom_kills() > killed:
        error = {"type": "OutOfMemory", "message": "the kernel killed the trainer, out of memory"}
        (work / "error.json").write_text(json.dumps(error), encoding="utf-8")
        return trainer.OUT_OF_MEMORY
    return process.returncode


@contextlib.contextmanager
def started(
    job: trainer.Job, work: Path, part: Mapping[str, str] | None = None, *, grace: float = GRACE_SECONDS
) -> Iterator[subprocess.Popen[Any]]:
    """The trainer at work on the job in the folder `work`; `part` is its part in a training of several machines.

    Whatever ends this block ends the trainer and its children: politely first, with so many seconds for a checkpoint.
    """
    for leftover in ("error.json", "status.json", TrainingSummary.FILE):
        (work / leftover).unlink(missing_ok=True)
    job_file = work / "job.json"
    job_file.write_text(job.model_dump_json(indent=1), encoding="utf-8")
    environment = os.environ | {
        # No others: with more in sight, transformers would spread a batch over them in a way of its own.
        "CUDA_VISIBLE_DEVICES": ",".join(machine.first_gpus(job.compute.devices)),
        "WANDB_DISABLED": "true",
        **(part or {}),
    }
    with (work / LOG).open("a", encoding="utf-8") as output:
        output.write(f"{ATTEMPT} of {time.strftime('%Y-%m-%d %H:%M:%S')}, training.micro_batch={job.micro_batch}\n")
        output.flush()
        process = subprocess.Popen(
            # -P: a file of the user's where they run, such as datasets.py, is no library of ours.
            [sys.executable, "-P", "-m", process_of_trainer.__name__, str(job_file), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=machine.importing_project(environment),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(grace)
            except subprocess.TimeoutExpired:
                _end(process)


def _end(process: subprocess.Popen[Any]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _next_attempt(work: Path) -> str:
    if newest_sealed(work / "checkpoints"):
        return "the training resumes from its last valid checkpoint"
    return "the training starts again from step 1, as there is no checkpoint yet (training.checkpoint_minutes)"


def _failure(code: int, work: Path) -> TunewrightError:
    if code < 0:
        name = signal.Signals(-code).name
        return TrainerDied(f"the trainer was killed by {name}; {_next_attempt(work)}")
    if code == trainer.LOST:
        return TrainerDied(f"{_told(work)[1]}; {_next_attempt(work)}")
    if code == trainer.INTERRUPTED:
        return TrainerDied("the trainer was stopped and saved a checkpoint; the next run resumes from it")
    if shutil.disk_usage(work).free < ROOM_BYTES:
        return TrainingError(f"training did not finish: {NO_SPACE.format(work)}")
    kind, message = _told(work)
    for error in (ConfigError, ApiError):
        if kind == error.__name__:
            return error(message)
    failed = TrainingError if kind in OF_SETTINGS_OR_DATA else TrainerFailed
    said = shortened(error_in(work)) if failed is TrainerFailed else error_in(work)
    return failed(f"training did not finish: {said}; full output: {work / LOG}")


def _told(work: Path) -> tuple[str, str]:
    """The type and the message of the error that the trainer told of; both empty where it could not."""
    with contextlib.suppress(OSError, ValueError):
        error = json.loads((work / "error.json").read_text(encoding="utf-8"))
        return error["type"], error["message"]
    return "", ""


def error_in(work: Path) -> str:
    """Return the error that the trainer told of, or the last line of its output."""
    kind, message = _told(work)
    if kind:
        return f"{kind}: {message}"
    lines = (work / LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return "no output" if not lines or lines[-1].startswith(ATTEMPT) else lines[-1]


@stage("{method.kind} lr={training.learning_rate}", libraries=LIBRARIES, volatile=VOLATILE, unkeyed=UNKEYED)
def train(
    folder: Path,
    tokens: Tokens,
    base: Base,
    method: Method,
    training: Training,
    compute: Compute,
    scan: Scan | None = None,
    begins_as: Artifact | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> Adapter:
    """The tuned weights of the best step by training.best_by, with the curves, warnings and the contract.

    `begins_as` is a version of the registered model; its weights are kept where no step is better.
    """
    made = trained(folder, tokens, base, method, training, compute, scan, checkpoint_minutes, begins_as=begins_as)
    return made.model_copy(update={"began_as": begins_as.key}) if begins_as else made


def trained(
    folder: Path,
    tokens: Tokens,
    base: Base,
    method: Method,
    training: Training,
    compute: Compute,
    scan: Scan | None,
    checkpoint_minutes: float,
    *,
    preference: Preference | None = None,
    grpo: Grpo | None = None,
    schema: str = "",
    begins_as: Artifact | None = None,
) -> Adapter:
    """As `train`; with `preference` on pairs, and with `grpo` on rewards, of which schema_valid reads `schema`.

    It goes on from where `begins_as` ended, another training or a registered version, or from the base.
    """
    if not tokens.num_replay:  # the base gave no answer that could be kept
        training = training.model_copy(update={"kl_to_base": 0.0})
    work = work_folder(folder)
    work.mkdir(parents=True, exist_ok=True)
    with cost_model.on_devices(compute.devices):
        micro_batch, ddp, shortage = cost_model.before_training(
            base, tokens, method, training, compute, preference=preference, grpo=grpo
        )
        if shortage:
            log.warning("  %s", shortage)
        job = trainer.Job.of(
            base.weights,
            tokens.folder,
            reference=base.reference,
            method=method,
            modules=scan.chosen if scan else (),
            training=training,
            compute=compute,
            micro_batch=micro_batch,
            ddp=ddp,
            checkpoint_minutes=checkpoint_minutes,
            preference=preference,
            grpo=grpo,
            json_schema=schema,
            import_from=folders_of(grpo.rewards) if grpo else (),
            begins_as=begins_as.path("model") if begins_as else None,
        )
        numbers, unit = (tokens.num_train, tokens.num_validation), "{} row"
        if preference and preference.learns_labels:
            numbers, unit = tokens.num_labelled, "labelled {} answer"
        elif preference:
            numbers, unit = (tokens.num_pairs, tokens.num_validation_pairs), "{} pair"
        rows = map(counted, numbers, map(unit.format, ("training", "validation")))
        log.info("  loading %s; %s, %s", base.reference, *rows)
        if training.share < 1:
            log.info("  training.share=%g: it trains on this share of the training rows", training.share)
        if training.anchor:
            general = counted(tokens.num_replay, "general row")
            log.info("  training.kl_to_base=%g: the model is held to its base on %s", training.anchor, general)
        with shared_checkpoints.kept(work):
            earlier = seconds_in(work)
            run_trainer(job, work)
        seconds = seconds_in(work)
    needless.remove_stale(folder.parent)
    shutil.move(work / "model", folder / "model")
    for name in ("metrics.jsonl", "status.json", TrainingSummary.FILE, LOG):
        shutil.copy(work / name, folder / name)
    shutil.copy(tokens.path(Contract.FILE), folder)
    found = curves.read(folder)
    warnings = curves.warnings(found)
    curves.write_page(folder / "curves.html", found, warnings)
    summary = TrainingSummary.load_from(folder)
    return Adapter(
        method=method.kind,
        preference=preference.method if preference else "",
        rewards=tuple(grpo.rewards) if grpo else (),
        **summary.model_dump(include=OF_SUMMARY),
        warnings=tuple(warning.sentence for warning in warnings),
        train_seconds=round(seconds, 1),
        earlier_seconds=round(earlier, 1),
    )
