"""A folder that is written beside its place, and appears there once it is whole."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tunewright.errors import ConfigError, TunewrightError
from tunewright.export.parity import NOTHING
from tunewright.store import disk
from tunewright.store.locks import try_lock

SUFFIX = ".unfinished"


@contextlib.contextmanager
def unfinished(target: Path) -> Iterator[Path]:
    """A folder beside `target`, which becomes it when the block ends, and goes where it raises.

    One that a killed process left is removed: its lock is free.
    """
    for left in target.parent.glob(f".{target.name}.*{SUFFIX}"):
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left)
    try:
        made = Path(tempfile.mkdtemp(SUFFIX, f".{target.name}.", target.parent))
    except OSError as error:
        raise ConfigError(f"{target.parent}: cannot be written: {error.strerror}") from error
    try:
        with _locked(made):
            yield made
            _as_any_new(made)
            disk.sync(*made.rglob("*"), made)
            try:
                made.rename(target)
            except OSError as error:
                raise TunewrightError(f"{target} was made by another process meanwhile; {NOTHING}") from error
            disk.sync(target.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _as_any_new(folder: Path) -> None:
    """Gives files and folders the modes of any new ones: some libraries write for their user alone."""
    os.umask(mask := os.umask(0o077))
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder. Raises BlockingIOError where another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(descriptor):
            raise BlockingIOError(f"{folder}: another process holds the lock")
        yield
    finally:
        os.close(descriptor)
