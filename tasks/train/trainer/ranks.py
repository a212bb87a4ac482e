"""The processes that train one model together, a rank for each device of `compute.devices`.

Each rank draws all rows of a step and computes its own share of the micro-batches, so that a step is that of one
process, but for rounding. Ranks of one machine meet by a file and not at a port: whoever reaches a port of torch's
rendezvous runs code by it. Those of several machines meet at the store of their attempt.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tunewright.tasks.train.trainer.attempt import Attempt

MEETING = "TUNEWRIGHT_RANKS"  # the variable with the file that they meet by
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
POLL_SECONDS = 0.05
END_SECONDS = 5.0  # for the others to end by themselves, once one has ended otherwise than planned

T = TypeVar("T")


def launch(number: int, *command: str, attempt: Attempt | None = None) -> int | None:
    """Runs `command` as so many ranks, and returns 0, or the exit code that says most of why they ended.

    Once one has ended with another code than 0, the others are killed. A code below 0 is a signal's, and comes before
    those of ranks that failed since they were left alone. In the attempt of several machines they are killed as well
    where another machine fails, and None is returned where none had ended.
    """
    before, whole = (number * attempt.node, number * attempt.nodes) if attempt else (0, number)
    listening = attempt.variables if attempt else LOOPBACK
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        shared = os.environ | listening | {MEETING: str(Path(folder, "meeting")), "WORLD_SIZE": str(whole)}
        shared |= {"LOCAL_WORLD_SIZE": str(number), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        ranks = [
            running.enter_context(_killed_at_end(subprocess.Popen(command, env=shared | _names(before + rank, rank))))
            for rank in range(number)
        ]
        codes: list[int | None] = [None]
        while None in codes and not any(codes) and (attempt is None or attempt.goes_on()):
            time.sleep(POLL_SECONDS)
            codes = [rank.poll() for rank in ranks]
        with contextlib.suppress(subprocess.TimeoutExpired):
            until = time.monotonic() + END_SECONDS
            for rank in ranks:
                rank.wait(max(0.0, until - time.monotonic()))
        if not any(ended := [rank.poll() or 0 for rank in ranks]) and None in codes:
            return None
        return min(ended) if min(ended) < 0 else max(ended)


def _names(rank: int, local: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(local)}


@contextlib.contextmanager
def _killed_at_end(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def is_rank() -> bool:
    """Whether this process is one of several ranks."""
    return MEETING in os.environ


def own() -> int:
    """The number of this rank, from 0 on."""
    return int(os.environ["RANK"]) if is_rank() else 0


def number() -> int:
    """Count the ranks."""
    return int(os.environ["WORLD_SIZE"]) if is_rank() else 1


def local() -> int:
    """The number of this rank among those of its machine."""
    return int(os.environ["LOCAL_RANK"]) if is_rank() else 0


def leads() -> bool:
    """Whether this rank is the first one of its machine."""
    return local() == 0


def machines() -> int:
    """Count the machines."""
    return number() // int(os.environ["LOCAL_WORLD_SIZE"]) if is_rank() else 1


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Has this rank connected to the others in the block, at whose end all have come to it. Alone it does nothing."""
    if not is_rank():
        yield
        return
    import torch
    from torch import distributed
    from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage] documented

    if torch.cuda.is_available():
        torch.cuda.set_device(local())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    attempt = Attempt.here()
    store = attempt.store if attempt else FileStore(os.environ[MEETING], number())
    store.set_timeout(distributed.default_pg_timeout)
    distributed.init_process_group(backend, store=store, rank=own(), world_size=number())
    yield
    distributed.barrier()
    distributed.destroy_process_group()


def wait() -> None:
    """Returns once all ranks have come to it."""
    total(0)


def total(value: float) -> float:
    """The sum of the ranks' values, the same on each."""
    if not is_rank():
        return value
    import torch
    from torch import distributed

    summed = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(summed)
    return summed.item()


def gathered(values: Sequence[T]) -> list[T]:
    """The values of all ranks, the first rank's first, the same on each."""
    if not is_rank():
        return [*values]
    from torch import distributed

    found: list[Any] = [None] * number()
    distributed.all_gather_object(found, [*values])
    return [each for some in found for each in some]


def from_first(make: Callable[[], T]) -> T:
    """The value that `make` returns at the first rank, which alone calls it."""
    if not is_rank():
        return make()
    from torch import distributed

    made = [make() if own() == 0 else None]
    distributed.broadcast_object_list(made)
    return made[0]  # pyright: ignore[reportReturnType] the first rank's
