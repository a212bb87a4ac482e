"""The home folder: whether it can be written, whether it has room, and whether its databases are whole."""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from flows.doctor.finding import Finding
from tasks import config
from tasks.errors import ConfigError

GB = 1_000_000_000
LITTLE_GB = 5  # a few candidates of a small model, with their checkpoints
NETWORKED = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "ceph", "lustre")


def findings() -> Iterator[Finding]:
    """Looks at the home; one that is not there yet is made and taken away again."""
    home = config.home()
    existed = home.exists()
    try:
        config.make_home()
        with tempfile.NamedTemporaryFile(dir=home):
            pass
    except (ConfigError, OSError) as error:
        why = str(error) if isinstance(error, ConfigError) else f"{home}: {error.strerror}"
        yield Finding("failure", "home", why, "set TUNEWRIGHT_HOME to a folder that can be written")
        return
    room = shutil.disk_usage(home)
    yield from _place(home)
    disk = f"{room.free / GB:.1f} GB free of {room.total / GB:.0f}"
    if room.free < LITTLE_GB * GB:
        yield Finding("warning", "disk", disk, f"free some of {home}, or set TUNEWRIGHT_HOME to another disk")
    else:
        yield Finding("ok", "disk", disk)
    for name, file in (
        ("MLflow's database", config.mlflow_database()),
        ("Prefect's database", config.prefect_database()),
    ):
        if file.exists():
            yield _database(name, file)
    if not existed:
        home.rmdir()


def _place(home: Path) -> Iterator[Finding]:
    """A networked folder has no locks that hold, and databases in it break."""
    mounts = [part for part in psutil.disk_partitions(all=True) if home.is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""
    if kind.startswith(NETWORKED):
        yield Finding(
            "warning",
            "home",
            f"{home} is on {kind}, where file locks may not hold and sqlite can break",
            "set TUNEWRIGHT_HOME to a local disk, and registry.tracking_uri to an MLflow server",
        )
    else:
        yield Finding("ok", "home", str(home))


def _database(name: str, file: Path) -> Finding:
    """Whether sqlite finds it whole, read without a lock on it."""
    try:
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=5) as connection:
            (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        said = str(error)
    if said == "ok":
        return Finding("ok", name, f"{file}, {file.stat().st_size / 1e6:.1f} MB")
    return Finding(
        "failure", name, f"{file}: {said}", f"move {file} away, or put a copy of it back; runs make a new one"
    )
