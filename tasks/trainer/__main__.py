"""`python -m tasks.trainer JOB`: what the process is, and how it ends."""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path

from tasks.trainer import FAILED, OUT_OF_MEMORY, Job

PR_SET_PDEATHSIG = 1


def main(job_file: Path) -> int:
    """Runs the job and returns the exit code."""
    _end_with_parent()
    folder = job_file.parent
    job = Job.model_validate_json(job_file.read_text(encoding="utf-8"))
    import torch

    from tasks.trainer.fit import fit

    torch.set_num_threads(job.compute.threads or _physical_cores())
    try:
        return fit(job, folder)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return _failed(folder, error, OUT_OF_MEMORY)
    except RuntimeError as error:  # the CPU allocator has no type of its own
        return _failed(folder, error, OUT_OF_MEMORY if "can't allocate memory" in str(error) else FAILED)
    except (OSError, ValueError, FloatingPointError) as error:
        return _failed(folder, error, FAILED)


def _physical_cores() -> int:
    import psutil

    return min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))


def _end_with_parent() -> None:
    """Asks the kernel to end this process when its parent dies, however it dies: no orphan keeps the device."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _failed(folder: Path, error: BaseException, code: int) -> int:
    message = " ".join(str(error).split())[:500]
    (folder / "error.json").write_text(json.dumps({"type": type(error).__name__, "message": message}), "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
