"""`python -m tunewright.tasks.train.trainer JOB PARENT_PID`: what the process is, and how it ends."""

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

from tunewright import compat, config
from tunewright.artifacts import training_log
from tunewright.errors import ApiError, ConfigError
from tunewright.machine import end_with_parent, num_cores
from tunewright.store import locks
from tunewright.tasks.train import trainer
from tunewright.tasks.train.trainer import FAILED, INTERRUPTED, OUT_OF_MEMORY, Job, copies, ranks
from tunewright.tasks.train.trainer.attempt import Attempt

WAIT_SECONDS = 10.0  # for a trainer before this one, whose end is near
# Of errors without a type of their own: the CPU allocator's, the system's, CUDA's outside of torch's allocator, and
# those of its libraries cuBLAS, cuDNN and cuSOLVER.
OUT_OF_MEMORY_WORDS = ("t allocate memory", "cannot allocate memory", "out of memory", "_status_alloc_failed")


def main(job_file: Path, parent: int | None = None) -> int:
    """Runs the job of the process `parent` and returns the exit code."""
    end_with_parent(signal.SIGKILL)  # no orphan keeps the device
    if parent not in (None, os.getppid()):
        return INTERRUPTED  # it died before the kernel was asked
    folder = job_file.parent
    job = Job.model_validate_json(job_file.read_text(encoding="utf-8"))
    try:
        if ranks.is_rank():
            return _fit(job, folder)
        with contextlib.ExitStack() as held:
            try:  # no two trainers write to the same checkpoints
                held.enter_context(locks.exclusive(folder / "trainer.lock", wait=WAIT_SECONDS))
            except BlockingIOError:
                raise BlockingIOError(f"another trainer is running in {folder}") from None
            return _fit(job, folder) if job.compute.num_ranks == 1 else _fit_by_ranks(job, job_file)
    except (RuntimeError, MemoryError, OSError, ValueError, FloatingPointError, ApiError, ConfigError) as error:
        message = " ".join(str(error).split())[:500]
        with contextlib.suppress(FileExistsError), (folder / "error.json").open("x", encoding="utf-8") as file:
            json.dump({"type": type(error).__name__, "message": message}, file)  # of ranks the first tells
        says_so = any(words in str(error).lower() for words in OUT_OF_MEMORY_WORDS)
        return OUT_OF_MEMORY if says_so or isinstance(error, MemoryError) else FAILED


def needs_packing(job: Job) -> bool:
    """Whether weights, or what the optimizer keeps, are packed into fewer bits, which bitsandbytes does."""
    is_packed = '"quantization_config"' in (job.weights / "config.json").read_text(encoding="utf-8")
    return is_packed or job.method.kind == "qlora" or "8bit" in job.compute.optimizer


def _fit(job: Job, folder: Path) -> int:
    config.quiet_libraries()
    with ranks.joined():
        job = here(job)
        if not needs_packing(job):
            sys.modules["bitsandbytes"] = None  # pyright: ignore[reportArgumentType] PEFT would import it, for 0.7 s
        import torch

        with compat.importing_without("boto3", "scipy"):
            compat.import_trl()
            from tunewright.tasks.train.trainer.fit import fit

        sys.path.extend(job.import_from)
        torch.set_num_threads(job.compute.threads or max(1, num_cores() // job.compute.devices))
        return fit(job, folder)


def here(job: Job) -> Job:
    """The job with the places of its files on this machine; those that it lacks are copied from the first one."""
    if missing := [folder for folder in job.import_from if not Path(folder).is_dir()]:
        raise ConfigError(f"grpo.rewards: {missing[0]} has to be at the same place on each machine; it is not on one")
    rows = {name: getattr(job, name) for name in ("train", "validation")}
    places: dict[str, Path] = {name: copies.here(file.parent, "*.parquet") / file.name for name, file in rows.items()}
    for name in ("weights", "begins_as"):
        if folder := getattr(job, name):
            places[name] = copies.here(folder)
    return job.model_copy(update=places)


def _fit_by_ranks(job: Job, job_file: Path) -> int:
    if attempt := Attempt.here():
        attempt.gather((job_file.parent / training_log.ALIVE).write_text)
    signal.signal(signal.SIGTERM, lambda *_: None)  # the ranks get it as well, and end by themselves
    own = [sys.executable, "-P", "-m", trainer.__name__, str(job_file), str(os.getpid())]
    code = ranks.launch(job.compute.devices, *own, attempt=attempt)
    if attempt:
        code = attempt.end(code, job_file.parent)
    assert code is not None
    if code < 0:
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:3])))
