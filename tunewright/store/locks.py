"""Locks on files. The kernel frees them when the holder dies, however it dies."""

import contextlib
import fcntl
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

POLL_SECONDS = 0.1


def try_lock(file: IO[bytes] | IO[str] | int, *, shared: bool = False) -> bool:
    """Whether an open file, or the descriptor of a folder, could be locked at once.

    Raises OSError where its file system has no locks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def exclusive(path: Path, *, wait: float = math.inf) -> Iterator[None]:
    """Hold a lock that nobody else holds; the file is created if it is not there.

    Raises BlockingIOError where another process still holds it after `wait` seconds.
    """
    with path.open("a+b") as file:
        if wait == math.inf:
            fcntl.flock(file, fcntl.LOCK_EX)
        else:
            deadline = time.monotonic() + wait
            while not try_lock(file):
                if time.monotonic() >= deadline:
                    raise BlockingIOError(f"{file.name}: another process holds the lock")
                time.sleep(POLL_SECONDS)
        yield


@contextlib.contextmanager
def shared(path: Path) -> Iterator[None]:
    """Hold a lock beside others that are shared; waits for one that is exclusive."""
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def presence(path: Path, text: str = "", modified: float | None = None) -> Iterator[None]:
    """A file that is there, and exclusively locked, while the block goes on; of a killed process it stays, unlocked.

    It has its text, its lock and, where one is given, its time of `modified` (seconds) before its name, and loses that
    before the lock ends, so that nobody sees it unlocked.
    """
    unnamed = path.with_name(f".{path.name}")
    with exclusive(unnamed):
        try:
            unnamed.write_text(text, encoding="utf-8")
            if modified is not None:
                os.utime(unnamed, (modified, modified))
            unnamed.rename(path)
            yield
        finally:
            path.unlink(missing_ok=True)


def is_left(path: Path) -> bool:
    """Whether the `presence` at this path was left by a process that was killed."""
    return not is_held(path) and path.exists()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock exclusively. Nothing is written. Raises OSError where that cannot be told."""
    try:
        with path.open("rb") as file:
            return not try_lock(file, shared=True)
    except FileNotFoundError:
        return False
