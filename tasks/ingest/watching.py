"""The files of a deployment as they are now, beside those that its last finished run read, for flows/watch.py.

In `<home>/watch/<deployment>/` a run that finishes leaves what it read (read.json), and a poll what it saw (seen.json):
a file is read again only where its size, its time or its entity tag is another. A change is announced once. Where the
run that it starts fails, as it does where the data are refused, it is not started again until the files change again.
What the newest run read counts as announced, whatever the home knows of it: the run may have been on another machine.
Files that cannot be read may be on their way; that they could not be read for an hour is told once (unreadable.json).
"""

import contextlib
import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from tunewright import config
from tunewright.config import Data
from tunewright.store import disk
from tunewright.store.cache_key import hash_of
from tunewright.tasks.ingest import SourceFile, source_files
from tunewright.tasks.ingest.files import identify, is_remote, stamp
from tunewright.tasks.ingest.opening import Compression

SETTLED_SECONDS = 1.0  # a local file that has not changed for so long is no more being written
REPAIRED = "the newest run failed, and the files are again as the last finished run read them"
NAMED = 3  # changes that are named one by one
LONG_UNREADABLE = timedelta(hours=1)


class Seen(BaseModel, frozen=True):
    """A file as the last poll found it."""

    stamp: str | None
    compression: Compression
    digest: str


class WatcherState(BaseModel):
    """The files seen at the last poll, and those of the last announcement."""

    files: dict[str, Seen] = {}
    announced: str = ""

    def identify(self, path: str) -> tuple[Compression, str]:
        """As tunewright.tasks.ingest.files does, from memory where the file is the same."""
        now, known = stamp(path), self.files.get(path)
        if known is None or now is None or known.stamp != now:
            compression, digest = identify(path)
            known = Seen(stamp=now, compression=compression, digest=digest)
        self.files[path] = known
        return known.compression, known.digest


class Outage(BaseModel):
    """Polls in a row that could not read the files."""

    since: datetime
    is_announced: bool = False


class NewestRun(NamedTuple):
    """The newest run of a deployment, as Prefect's server knows it."""

    files: str  # digest of those that it reads; empty where it did not say
    has_finished: bool
    has_failed: bool


class Poll(BaseModel, frozen=True):
    """Result of one poll."""

    num_files: int
    changes: tuple[str, ...]  # since the last finished run: "new: data/b.jsonl"
    is_new: bool = False  # whether they are to be announced: not yet, and nothing is being written any more
    is_unsettled: bool = False  # a file is still being written; the next poll tells


def keep_read(deployment: str, files: Iterable[SourceFile]) -> None:
    """Notes what a run of a deployment read that has finished."""
    _write(_place(deployment) / "read.json", json.dumps({file.path: file.digest for file in files}))


def digest(files: Iterable[SourceFile]) -> str:
    """One digest of the paths and contents of files."""
    return hash_of({file.path: file.digest for file in files})


def has_finished(deployment: str) -> bool:
    """Whether a run of a deployment has finished, ever."""
    return _read_by_last_run(deployment) is not None


def look(deployment: str, data: Data, newest: NewestRun | None = None) -> Poll:
    """Looks at the files of a deployment. What is to be announced counts as announced from then on.

    Where the newest run has failed after a change was announced, a change back is one as well.

    Raises ConfigError and DataError where they cannot be read.
    """
    folder = _place(deployment)
    try:
        memory = WatcherState.model_validate_json((folder / "seen.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        memory = WatcherState()
    before = dict(memory.files)
    files = source_files(data, memory.identify)
    _outage(deployment).unlink(missing_ok=True)
    now, about = {file.path: file.digest for file in files}, digest(files)
    memory.files = {path: seen for path, seen in memory.files.items() if path in now}
    if newest and newest.files == about:
        memory.announced = about
        if newest.has_finished:
            keep_read(deployment, files)
    changed = changes(_read_by_last_run(deployment), now)
    is_repaired = bool(newest and newest.has_failed and newest.files != about and memory.announced and not changed)
    found = (REPAIRED,) if is_repaired else changed
    fresh = [path for path in now if before.get(path) != memory.files.get(path) and not is_remote(path)]
    if found and fresh:
        time.sleep(SETTLED_SECONDS)
    is_unsettled = bool(found) and any(
        not Path(path).exists() or stamp(path) != memory.files[path].stamp for path in fresh
    )
    is_new = bool(found) and not is_unsettled and memory.announced != about
    if is_new or not found:
        memory.announced = about if changed else ""
    _write(folder / "seen.json", memory.model_dump_json())
    return Poll(num_files=len(now), changes=found, is_new=is_new, is_unsettled=is_unsettled)


def long_unreadable(deployment: str) -> datetime | None:
    """Notes that a poll could not read the files; returns since when none could, if that is to be announced now."""
    file, now = _outage(deployment), datetime.now(UTC)
    try:
        outage = Outage.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        outage = Outage(since=now)
    is_new = not outage.is_announced and now - outage.since >= LONG_UNREADABLE
    outage.is_announced |= is_new
    _write(file, outage.model_dump_json())
    return outage.since if is_new else None


def changes(read: Mapping[str, str] | None, now: Mapping[str, str]) -> tuple[str, ...]:
    """Return the differences between the files read by the last finished run (None without one) and those there now."""
    if read is None:
        return ("no run has finished yet",)
    new = [f"new: {path}" for path in now if path not in read]
    changed = [f"changed: {path}" for path in now if path in read and read[path] != now[path]]
    return (*new, *changed, *(f"gone: {path}" for path in read if path not in now))


def shown(changes: tuple[str, ...]) -> str:
    """The changes in a line."""
    more = f" and {len(changes) - NAMED} more" if len(changes) > NAMED else ""
    return ", ".join(changes[:NAMED]) + more


def _read_by_last_run(deployment: str) -> dict[str, str] | None:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads((_place(deployment) / "read.json").read_text(encoding="utf-8"))


def _outage(deployment: str) -> Path:
    return _place(deployment) / "unreadable.json"


def _place(deployment: str) -> Path:
    return config.home() / "watch" / deployment


def _write(file: Path, text: str) -> None:
    """Whole or not at all: a poll reads while a run writes."""
    config.make_home()
    file.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(file, text)
