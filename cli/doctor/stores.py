"""The home folder: whether it can be written, whether it has room, and whether its databases are whole."""

import shlex
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from tunewright import config
from tunewright.cli.doctor.finding import Finding
from tunewright.errors import ConfigError
from tunewright.store import databases

GB = 1_000_000_000
LITTLE_GB = 5  # a few candidates of a small model, with their checkpoints
NETWORKED = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "ceph", "lustre")


def findings() -> Iterator[Finding]:
    """Looks at the home; one that is not there yet is made and taken away again."""
    home = config.home()
    existed = home.exists()
    try:
        config.make_home()
    except ConfigError as error:
        yield Finding("failure", "home", str(error), "set TUNEWRIGHT_HOME to a folder that can be written")
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
    elif others := stat.S_IMODE(home.stat().st_mode) & 0o077:
        yield Finding(
            "warning",
            "home",
            f"other users of this machine can open {home} (its mode ends with {others:02o}), which holds rows, "
            "answers, models and the password of tunewright up",
            f"chmod 700 {shlex.quote(str(home))}",
        )
    else:
        yield Finding("ok", "home", str(home))


def _database(name: str, file: Path) -> Finding:
    """Whether sqlite finds it whole, and MLflow made its own to the end."""
    if said := databases.fault(file):
        return Finding(
            "failure",
            name,
            f"{file}: {said}",
            f"restore {file} from a backup, or move it away: the next run creates a new one",
        )
    if file == config.mlflow_database() and not databases.is_finished(file):
        return Finding(
            "warning",
            name,
            f"{file} is incomplete, since MLflow was interrupted while creating it; it has no experiments "
            "and no models",
            "nothing to do: the next run creates a new one and keeps this file beside it",
        )
    return Finding("ok", name, f"{file}, {file.stat().st_size / 1e6:.1f} MB")
