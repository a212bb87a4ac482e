"""A copy of all in the home that cannot be made again, taken while runs go on, and put into a home of its own.

The database first, by sqlite's own backup, which is of one moment whoever writes; then MLflow's files, of which that
database names none that come later; then the history of the data and the uses of test sets, each pipeline's under its
lock, and the jobs of `tunewright api`. So a copy may know of a use of a test set whose model is not in it, which is
then registered again and counted once, and never the other way round.
"""

import contextlib
import errno
import os
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tunewright import config
from tunewright.errors import ONLY_READ, ConfigError, TunewrightError
from tunewright.store import disk
from tunewright.store.caching import lock

FILES = "mlartifacts"
HISTORIES = ("versions", "test_set_uses", "registered", "alias_history")
SHARED = "shared"  # which states of a shared store the histories are
API = "api"  # the files and jobs of tunewright api, which name versions
OLD = "looks"  # the name of test_set_uses in homes and backups of an earlier release
WAIT_SECONDS = 30
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)  # that of the home
NO_BACKUP = "not a backup of tunewright home backup, or a damaged one"


def backup(file: Path, *, overwrite: bool = False) -> int:
    """Writes the copy to a tar file in one step, and returns its bytes.

    An earlier file stays until the new one is whole. Raises ConfigError where there is nothing to copy, or where the
    file exists and must not be overwritten.
    """
    home, names = config.home(), (config.mlflow_database().name, FILES, *HISTORIES)
    if not any((home / name).exists() for name in (*names, API, OLD)):
        raise ConfigError(f"TUNEWRIGHT_HOME={home}: it has none of {', '.join(names)}, so there is nothing to back up")
    with _written(file):
        if file.is_dir():
            raise ConfigError(f"{file} is a folder; give the name of a file")
        if file.exists() and not overwrite:
            raise ConfigError(f"{file} exists; give another name or --overwrite")
        if not file.absolute().parent.is_dir():
            raise ConfigError(f"{file}: there is no folder {file.absolute().parent}")
        beside = tempfile.TemporaryDirectory(dir=file.absolute().parent)
    with beside as folder, _room_beside(file):
        unfinished = Path(folder, "home.tar")
        with tarfile.open(unfinished, "w") as archive:
            if config.mlflow_database().is_file():
                copy = Path(folder, "mlflow.db")
                with (
                    contextlib.closing(sqlite3.connect(config.mlflow_database(), timeout=WAIT_SECONDS)) as source,
                    contextlib.closing(sqlite3.connect(copy)) as target,
                ):
                    source.backup(target)
                archive.add(copy, config.mlflow_database().name)
            _add(archive, FILES)
            for history in (*HISTORIES, OLD):
                with contextlib.ExitStack() as held:
                    for each in sorted((config.home() / history).glob("*.jsonl")):
                        with _unless_read_only():
                            held.enter_context(lock(each))
                    _add(archive, history)
            _add(archive, API)
            _add(archive, SHARED)
        disk.sync(unfinished)
        unfinished.chmod(0o600)  # it has answers to test rows
        with _written(file):
            unfinished.rename(file)
    return file.stat().st_size


@contextlib.contextmanager
def _unless_read_only() -> Iterator[None]:
    """Goes on where the home can only be read: a lock cannot be made there.

    None is needed: on a read-only disk nobody writes, and a history that its owner writes to has whole lines all along.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in ONLY_READ:
            raise


@contextlib.contextmanager
def _written(file: Path) -> Iterator[None]:
    """Raises ConfigError where the block may not write the file into its folder; a full disk is for others to say."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            raise
        folder = file.absolute().parent
        raise ConfigError(
            f"{file}: the folder {folder} cannot be written to: {error.strerror}; give a file in another folder"
        ) from error


@contextlib.contextmanager
def _room_beside(file: Path) -> Iterator[None]:
    """Raises TunewrightError where the disk of the file is full; a full disk of the home is for others to say."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, OSError):
            at = Path(os.fsdecode(error.filename)) if error.filename else file
            is_full = error.errno in {errno.ENOSPC, errno.EDQUOT} and not at.is_relative_to(config.home())
        else:
            is_full = error.sqlite_errorcode == sqlite3.SQLITE_FULL
        if not is_full:
            raise
        folder = file.absolute().parent
        raise TunewrightError(
            f"{file}: no space left on the disk of {folder}: free some, or give a file in another folder"
        ) from error


def restore(file: Path) -> list[str]:
    """Puts a copy into this home, on whatever path, and returns what it has.

    Raises ConfigError where the file is none, or the home has something of that already.
    """
    config.make_home()
    home = config.home()
    with tempfile.TemporaryDirectory(dir=home) as folder:
        _extract(file, Path(folder))
        found = sorted(path.name for path in Path(folder).iterdir())
        known = (config.mlflow_database().name, FILES, *HISTORIES, API, SHARED, OLD)
        if not found or any(name not in known for name in found):
            raise ConfigError(f"{file}: {NO_BACKUP}")
        if there := [name for name in found if (home / name).exists()]:
            raise ConfigError(f"this home is not empty ({home / there[0]} exists); restore into a new folder")
        for name in found:
            shutil.move(Path(folder, name), home / name)
    return found


def _extract(file: Path, folder: Path) -> None:
    """Extract a tar file. Raises ConfigError where it cannot be read, or is no tar file or a damaged one."""
    try:
        with tarfile.open(file) as archive:
            archive.extractall(folder, filter="data")
    except Exception as error:  # what tarfile raises for a damaged file is anything
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise
        if isinstance(error, OSError) and error.filename and Path(error.filename) == file:
            raise ConfigError(f"{file}: {error.strerror}") from error
        raise ConfigError(f"{file}: {NO_BACKUP}") from error


def _add(archive: tarfile.TarFile, name: str) -> None:
    """Adds a folder of the home without what is unfinished or locks; a file that goes meanwhile was needed no more."""
    root = config.home() / name
    for path in sorted(root.rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts):
            with contextlib.suppress(FileNotFoundError):
                archive.add(path, f"{name}/{path.relative_to(root)}")
