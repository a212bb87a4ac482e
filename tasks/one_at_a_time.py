"""One training at a time on a device, whatever the deployment, the worker, the terminal or the home that it is of.

Two that share a GPU run out of memory, and two that share processors are slower than one after the other. The lock is
one of the kernel's on a file of the user's, so it is free when its holder dies, however it dies; what the file says is
for who waits.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks import config

log = logging.getLogger("tunewright")

LOOK_SECONDS = 0.5


@contextmanager
def held(device: str, holder: str) -> Iterator[float]:
    """Holds a device, known by a GPU's UUID or "cpu", for the block; waits for it, says for whom, and yields how long.

    `holder` is what others are told: the name of the run.
    """
    folder = config.device_locks()
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{device}.lock"
    with os.fdopen(os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+", encoding="utf-8") as lock:
        started = time.monotonic()
        _wait(lock.fileno(), file)
        waited = time.monotonic() - started
        lock.truncate(0)
        lock.write(f"{holder} since {time.strftime('%Y-%m-%d %H:%M:%S %Z')}, process {os.getpid()}")
        lock.flush()
        try:
            yield waited
        finally:
            lock.truncate(0)  # before it is free: what stands there is of who holds it


def _wait(descriptor: int, file: Path) -> None:
    said = ""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            held_by = file.read_text(encoding="utf-8")
            if held_by and held_by != said:
                said = held_by
                log.info("  waiting for the device (%s): held by %s", file.stem, held_by)
            time.sleep(LOOK_SECONDS)
    if said:
        log.info("  the device is free")
