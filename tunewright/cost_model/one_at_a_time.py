"""One training or evaluation at a time on a device, of whatever deployment, worker, terminal or home it is.

Two that share a GPU run out of memory, and two that share processors are slower than one after the other. The lock is
one of the kernel's on a file of the user's, so it is free when its holder dies, however it dies; what the file says is
for who waits. The folder is under /tmp, where another user may have made it first and would hold every lock in it: only
one that is this user's and closed to others is taken.
"""

import logging
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from prefect.runtime import flow_run

from tunewright import config
from tunewright.cost_model.devices import identity_here
from tunewright.errors import ConfigError
from tunewright.store.locks import try_lock

log = logging.getLogger("tunewright")

LOOK_SECONDS = 0.5
MAX_SHOWN = 200  # characters of who holds it


@contextmanager
def on_device() -> Iterator[float]:
    """Holds this machine's device for the flow run, in the block; yields the seconds that it waited for another run."""
    with held(identity_here(), f'"{flow_run.name}"' if flow_run.name else "a call") as waited:
        yield waited


@contextmanager
def held(device: str, holder: str) -> Iterator[float]:
    """Holds a device, known by a GPU's UUID or "cpu", for the block; waits for it, says for whom, and yields how long.

    `holder` is what others are told: the name of the run.
    """
    file = _own_folder() / f"{device}.lock"
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+", encoding="utf-8") as lock:
        started = time.monotonic()
        _wait(lock, file)
        waited = time.monotonic() - started
        lock.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S %Z")
        lock.write(f"another run ({holder}, process {os.getpid()}) since {since}")
        lock.flush()
        try:
            yield waited
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


def _wait(lock: IO[str], file: Path) -> None:
    said = ""
    while not try_lock(lock):
        held_by = "".join(filter(str.isprintable, file.read_text(encoding="utf-8", errors="replace")))[:MAX_SHOWN]
        if held_by and held_by != said:
            said = held_by
            today = held_by.replace(time.strftime(") since %Y-%m-%d "), ") since ")
            log.info("  waiting for the %s: in use by %s", "CPU" if file.stem == "cpu" else f"GPU {file.stem}", today)
        time.sleep(LOOK_SECONDS)
    if said:
        log.info("  the device is free")
