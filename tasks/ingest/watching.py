"""The files of a deployment as they are now, beside those that its last finished run read, for flows/watch.py.

A change is announced once. Where the run that it starts fails, as it does where the data are refused, it is not started
again until the files change again. What the newest run read counts as announced, whatever is known of it here. Files
that cannot be read may be on their way; that they could not be read for an hour is told once.

`<home>/watch/<deployment>/` has in state.json what the last finished run read and what was announced. With a store it
is in shared.json, one history for all machines (histories.py), as each poll may be on another one. What this machine
has read of the files is in seen.json: a file is read again only where its size, its time or its entity tag is another.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ValidationError

from tunewright import config
from tunewright.config import Data
from tunewright.errors import StoreError
from tunewright.store import disk
from tunewright.store.cache_key import hash_of
from tunewright.store.histories import held, up_to_date
from tunewright.store.shared import shared_store
from tunewright.tasks.ingest import SourceFile, source_files
from tunewright.tasks.ingest.files import identify, is_remote, stamp
from tunewright.tasks.ingest.opening import Compression

log = logging.getLogger("tunewright")

SETTLED_SECONDS = 1.0  # a local file that has not changed for so long is no more being written
REPAIRED = "the newest run failed, and the files are again as the last finished run read them"
NAMED = 3  # changes that are named one by one
LONG_UNREADABLE = timedelta(hours=1)


class Seen(BaseModel, frozen=True):
    """A file as the last poll found it."""

    stamp: str | None
    compression: Compression
    digest: str


class FilesSeen(BaseModel):
    """The files as the last poll on this machine found them."""

    files: dict[str, Seen] = {}

    def identify(self, path: str) -> tuple[Compression, str]:
        """As tunewright.tasks.ingest.files does, from memory where the file is the same."""
        now, known = stamp(path), self.files.get(path)
        if known is None or now is None or known.stamp != now:
            compression, digest = identify(path)
            known = Seen(stamp=now, compression=compression, digest=digest)
        self.files[path] = known
        return known.compression, known.digest


class Outage(BaseModel, frozen=True):
    """Polls in a row that could not read the files."""

    since: datetime
    is_announced: bool = False


class WatcherState(BaseModel, frozen=True):
    """The state of a watcher, for all machines that poll."""

    read: dict[str, str] | None = None  # digests of the files that the last finished run read, by their paths
    announced: str = ""  # digest of the files of the last announcement
    outage: Outage | None = None


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
    """Notes what a run of a deployment read that has finished; a store without an answer is no failure of the run."""
    read = {file.path: file.digest for file in files}
    try:
        _change(deployment, lambda state: state.model_copy(update={"read": read}))
    except StoreError as error:
        log.warning("%s; the next poll notes what this run read", error)


def digest(files: Iterable[SourceFile]) -> str:
    """One digest of the paths and contents of files."""
    return hash_of({file.path: file.digest for file in files})


def has_finished(deployment: str) -> bool:
    """Whether a run of a deployment has finished, ever."""
    return _state(up_to_date(_file_of(deployment))).read is not None


def look(deployment: str, data: Data, newest: NewestRun | None = None) -> Poll:
    """Looks at the files of a deployment. What is to be announced counts as announced from then on.

    Where the newest run has failed after a change was announced, a change back is one as well.

    Raises ConfigError and DataError where they cannot be read.
    """
    memory_file = _place(deployment) / "seen.json"
    try:
        memory = FilesSeen.model_validate_json(memory_file.read_bytes())
    except (FileNotFoundError, ValidationError):
        memory = FilesSeen()
    before = dict(memory.files)
    files = source_files(data, memory.identify)
    now, about = {file.path: file.digest for file in files}, digest(files)
    memory.files = {path: seen for path, seen in memory.files.items() if path in now}
    fresh = [path for path in now if before.get(path) != memory.files.get(path) and not is_remote(path)]

    @cache
    def is_being_written() -> bool:
        if fresh:
            time.sleep(SETTLED_SECONDS)
        return any(not Path(path).exists() or stamp(path) != memory.files[path].stamp for path in fresh)

    def compare(state: WatcherState) -> tuple[WatcherState, Poll]:
        read, announced = state.read, state.announced
        if newest and newest.files == about:
            read, announced = (now if newest.has_finished else read), about
        changed = changes(read, now)
        is_repaired = bool(newest and newest.has_failed and newest.files != about and announced and not changed)
        found = (REPAIRED,) if is_repaired else changed
        is_unsettled = bool(found) and is_being_written()
        is_new = bool(found) and not is_unsettled and announced != about
        if is_new or not found:
            announced = about if changed else ""
        poll = Poll(num_files=len(now), changes=found, is_new=is_new, is_unsettled=is_unsettled)
        return WatcherState(read=read, announced=announced), poll

    _, poll = compare(_change(deployment, lambda state: compare(state)[0]))
    disk.replace(memory_file, memory.model_dump_json())
    return poll


def long_unreadable(deployment: str) -> datetime | None:
    """Notes that a poll could not read the files; returns since when none could, if that is to be announced now."""
    now = datetime.now(UTC)

    def outage(state: WatcherState) -> tuple[Outage, bool]:
        known = state.outage or Outage(since=now)
        since = min(known.since, now)  # the clock may have been set back
        is_new = not known.is_announced and now - since >= LONG_UNREADABLE
        return known.model_copy(update={"since": since, "is_announced": known.is_announced or is_new}), is_new

    found, is_new = outage(_change(deployment, lambda state: state.model_copy(update={"outage": outage(state)[0]})))
    return found.since if is_new else None


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


def _change(deployment: str, change: Callable[[WatcherState], WatcherState]) -> WatcherState:
    """Change the state of a watcher, in turn with all other polls, and return what it was before."""
    config.make_home()
    file = _file_of(deployment)
    file.parent.mkdir(parents=True, exist_ok=True)
    state = _state(up_to_date(file))
    if change(state) == state:  # most polls find no news, and take no lease for that
        return state
    with held(file):
        state = _state(file)
        disk.replace(file, change(state).model_dump_json())
        return state


def _file_of(deployment: str) -> Path:
    """The file of a watcher's state; what a home saw before it had a store is left out, as others saw other things."""
    return _place(deployment) / ("shared.json" if shared_store() else "state.json")


def _state(file: Path) -> WatcherState:
    try:
        return WatcherState.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return WatcherState()


def _place(deployment: str) -> Path:
    return config.home() / "watch" / deployment
