"""One training or evaluation at a time on a device, of whatever deployment, worker, terminal or home it is.

Two that share a GPU run out of memory, and two that share processors are slower than one after the other. First come,
first served: each one who waits has a ticket in the folder, else a run would take the device again between its stages.
Locks are the kernel's, on files of the user's, so they are free when their holder dies, however it dies; what the file
says is for who waits. The folder is under /tmp, where another user may have made it first and would hold every lock in
it: only one that is this user's and closed to others is taken.
"""

import logging
import os
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from prefect.runtime import flow_run

from tunewright import config
from tunewright.cost_model.devices import identities_here
from tunewright.errors import ConfigError
from tunewright.store import locks
from tunewright.store.caching import count_waiting
from tunewright.store.locks import try_lock

log = logging.getLogger("tunewright")

LOOK_SECONDS = 0.5
PAUSED_SECONDS = 10.0  # without a look, after which one who waits does not keep others waiting
TICKET = ".ticket"
MAX_SHOWN = 200  # characters of who holds it


@contextmanager
def on_devices(number: int = 1) -> Iterator[None]:
    """Holds the first so many devices of this machine for the flow run, in the block; a CPU is one, for all."""
    holder = f'run "{flow_run.name}"' if flow_run.name else "another command of tunewright"
    with ExitStack() as block:
        for device in sorted(identities_here(number)):  # in one order, so that no two wait for each other
            block.enter_context(held(device, holder))
        yield


@contextmanager
def held(device: str, holder: str) -> Iterator[None]:
    """Holds a device, known by a GPU's UUID or "cpu", for the block; waits for it and says for whom.

    `holder` is who others are told of, such as the run by its name. The artifact that is made does not count the
    waiting.
    """
    file = _own_folder() / f"{device}.lock"
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+", encoding="utf-8") as lock:
        started = time.monotonic()
        with _queued(file) as num_before:
            _wait(lock, file, num_before)
        count_waiting(time.monotonic() - started)
        lock.truncate(0)
        lock.write(f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')} by {holder} (process {os.getpid()})")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)  # before it is free: what stands there is of who holds it


def _own_folder() -> Path:
    """The folder of the locks, closed to others. Raises ConfigError where it is another user's, or no folder."""
    folder = config.device_locks()
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(
            f"{folder}: belongs to user {found.st_uid} or is not a folder, so its locks could block every run; "
            "remove it, or set TMPDIR to a folder of your own"
        )
    folder.chmod(0o700)
    return folder


@contextmanager
def _queued(file: Path) -> Iterator[Callable[[], int]]:
    """A place in the queue for the device: how many of those before it have processes that live and look."""
    own = file.with_name(f"{file.stem}.{time.time_ns():020}-{uuid.uuid4().hex[:8]}{TICKET}")
    with locks.presence(own):
        yield partial(_num_before, own, file.stem)


def _num_before(own: Path, device: str) -> int:
    os.utime(own)
    number = 0
    for other in sorted(own.parent.glob(f"{device}.*{TICKET}")):
        if other >= own:
            break
        with suppress(FileNotFoundError):  # it had its turn meanwhile
            if locks.is_left(other):
                other.unlink()
            else:
                number += time.time() - other.stat().st_mtime < PAUSED_SECONDS
    return number


def _wait(lock: IO[str], file: Path, num_before: Callable[[], int]) -> None:
    said = ""
    while (number := num_before()) or not try_lock(lock):
        held_by = "".join(filter(str.isprintable, file.read_text(encoding="utf-8", errors="replace")))[:MAX_SHOWN]
        if held_by and held_by != said:
            said = held_by
            name = "CPU" if file.stem == "cpu" else f"GPU {file.stem}"
            since = held_by.removeprefix(time.strftime("%Y-%m-%d "))
            queue = f"; {number} {'other waits' if number == 1 else 'others wait'} before this one" if number else ""
            log.info("  waiting for the %s: in use since %s%s", name, since, queue)
        time.sleep(LOOK_SECONDS)
    if said:
        log.info("  the device is free")
