"""Unneeded items in the home and the shared store, with size and reason: old artifacts and abandoned work.

For each call of a stage ("evaluate base") the artifacts of the newest runs of each pipeline are needed, and all that
were used within a day, as a run may be using them. Artifacts that no call names, such as the parts of ingest, are
needed for a week after their last use. Removed artifacts are made again when needed (docs/recovering.md).

Unfinished work is kept for a while, since it is what a run resumes from. A clock that is wrong for a while, as before
it is set after a start, must not make all work look old. So work is first marked, and removed only by a look at least a
day after the mark that finds it untouched still. A mark from the future says that the clock was wrong, and is taken
off.

An artifact of the shared store is kept for `store_days` after it was put there, and for as long as the newest runs of
this home need it, or those of any home that ran a pipeline in these days (pipelines.py). All of it can be made again,
and a machine that still has an artifact puts it back there when it next uses it. Only a base may be lost with it: one
that a version in MLflow needs is kept (registry/needless.py).
"""

import logging
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tunewright import config
from tunewright.serving import BASES
from tunewright.store import pipelines
from tunewright.store.caching import lock, work_folder
from tunewright.store.manifest import folder_of, forget
from tunewright.store.shared import CONTENT, RECENT_RUNS, SharedStore, Stored, shared_store

Kind = Literal[
    "artifact",
    "copy of a champion",
    "unfinished work",
    "rejected version",
    "rejected version on the server",
    "deleted in MLflow",
    "unchanged run",
    "artifact in the store",
    "unfinished work in the store",
    "old runs in the store",
]
BUSY_DAYS = 1  # a run that uses an artifact holds no lock on it, and takes less
log = logging.getLogger("tunewright")
KEPT_DAYS = 7
DAY = 86_400  # seconds
MARK = "stale"


@dataclass(frozen=True, kw_only=True)
class Needless:
    """Something that can be removed."""

    kind: Kind
    name: str  # such as train/5f0c..., or tiny version 3
    size: int  # bytes
    why: str
    remove: Callable[[], bool]  # returns False where a run is at it, and leaves it then


def in_home(keep_runs: int) -> Iterator[Needless]:
    """The artifacts but those of the newest `keep_runs` runs of each pipeline, and what is unused for KEPT_DAYS."""
    home, asked = config.home(), pipelines.asked()
    for folder in sorted((home / "artifacts").glob("*/*/")):
        if folder.name.startswith("."):
            if is_old(folder, BUSY_DAYS):
                yield _of(folder, "unfinished work", "left by a run that was killed", folder.name.split(".")[1])
            continue
        place, when = asked.get(folder.name, (None, 0.0))
        used = max(when, folder.stat().st_mtime)
        kept_days = KEPT_DAYS if place is None else BUSY_DAYS
        if (place is None or place >= keep_runs) and time.time() - used > kept_days * DAY:
            yield _of(folder, "artifact", f"not used by newer runs, last used {_days(used)} days ago", folder.name)
    for copy in sorted((home / "champions").glob("*/")):
        if is_old(copy, KEPT_DAYS):
            yield _copy(copy)
    for work in sorted((home / "work").glob("*/*/")):
        since = last_touched(work)
        if time.time() - since > KEPT_DAYS * DAY:
            yield _of(work, "unfinished work", f"untouched for {_days(since)} days", work.name)


def in_store(
    keep_runs: int, store_days: int, needed_bases: Callable[[Collection[str]], Collection[str]]
) -> Iterator[Needless]:
    """The artifacts and the unfinished work of the shared store, but what is younger or needed by recent runs.

    `needed_bases` is asked which bases, by their digests, versions need: only where there are old ones.
    """
    if (store := shared_store()) is None:
        return
    now, runs = time.time(), store.objects(RECENT_RUNS)
    recent = [path for path, each in runs.items() if now - each.written <= store_days * DAY]
    asked = pipelines.asked_anywhere(store, recent, keep_runs)
    asked |= {key for key, (place, _) in pipelines.asked().items() if place < keep_runs}
    old: dict[str, float] = {}  # when each was put there
    needed: set[str] = set()  # the sha256 of files
    trees = {f"artifacts/{name.removesuffix('.json')}": tree for name, tree in store.objects("trees/artifacts").items()}
    old_bases = {
        Path(at).name
        for at, tree in trees.items()
        if at.startswith(f"{BASES}/") and now - tree.written > store_days * DAY
    }
    if old_bases:
        asked |= {*needed_bases(old_bases)}
    for at, tree in trees.items():
        if Path(at).name in asked or now - tree.written <= store_days * DAY:
            needed |= {file.sha256 for file in store.listed(at).values()}
        else:
            old[at] = tree.written
    content = store.objects(CONTENT)
    free = {sha256 for sha256, each in content.items() if now - each.written > BUSY_DAYS * DAY} - needed
    for at, written in old.items():
        own = free & {file.sha256 for file in store.listed(at).values()}
        free -= own
        why = f"put there {_days(written)} days ago, not used by the newest runs of any machine"
        yield _of_store(store, "artifact in the store", at, own, sum(content[sha256].size for sha256 in own), why)
    for sha256 in sorted(free):
        yield _of_store(
            store, "artifact in the store", "", {sha256}, content[sha256].size, "a file that no artifact has"
        )
    for name, tree in store.objects("trees/work").items():
        if now - tree.written > KEPT_DAYS * DAY:
            at = f"work/{name.removesuffix('.json')}"
            size, why = (
                sum(file.size for file in store.listed(at).values()),
                f"untouched for {_days(tree.written)} days",
            )
            yield _of_store(store, "unfinished work in the store", at, set(), size, why)
    for path in runs.keys() - {*recent}:
        yield _of_runs(store, path, runs[path])


def _of_store(store: SharedStore, kind: Kind, at: str, own: set[str], size: int, why: str) -> Needless:
    def remove() -> bool:
        if at:
            store.remove(at)
        for sha256 in own:  # after the tree that names it, so that none is left that names what is gone
            store.remove_content(sha256)
        return True

    name = at.partition("/")[2] or next(iter(own))[:12]
    return Needless(kind=kind, name=name, size=size, why=why, remove=remove)


def _of_runs(store: SharedStore, path: str, stored: Stored) -> Needless:
    def remove() -> bool:
        store.remove_runs(path)
        return True

    why = f"no run of this pipeline in its home for {_days(stored.written)} days"
    return Needless(
        kind="old runs in the store", name=path.removesuffix(".json"), size=stored.size, why=why, remove=remove
    )


def _copy(folder: Path) -> Needless:
    def remove() -> bool:
        shutil.rmtree(folder)
        return True

    why = f"last used {_days(folder.stat().st_mtime)} days ago; it can be downloaded again from MLflow"
    return Needless(kind="copy of a champion", name=folder.name, size=size_of(folder), why=why, remove=remove)


def size_of(folder: Path) -> int:
    """The bytes of all files beneath a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def is_old(folder: Path, days: float) -> bool:
    """Whether a folder was changed last before so many days."""
    return time.time() - folder.stat().st_mtime > days * DAY


def _of(folder: Path, kind: Kind, why: str, key: str) -> Needless:
    stage = folder.parent.name

    def remove() -> bool:
        try:
            with lock(folder_of(stage, key), wait=False):  # as a run that makes it holds it
                shutil.rmtree(folder)
                if kind == "artifact":
                    forget(stage, key)
                    pipelines.forget(key)
        except BlockingIOError:
            return False
        return True

    return Needless(kind=kind, name=f"{stage}/{folder.name}", size=size_of(folder), why=why, remove=remove)


def _days(since: float) -> int:
    return int((time.time() - since) / DAY)


def remove_stale(stage: Path) -> None:
    """Removes the work on artifacts of the folder `stage` that lay untouched for KEPT_DAYS, unless a run holds it.

    Younger work stays, whatever became of other runs since: it can be that of a run that goes on tomorrow.
    """
    for work in work_folder(stage / "any").parent.glob("*/"):
        try:
            with lock(stage / work.name, wait=False):
                if _is_stale(work):
                    shutil.rmtree(work)
                    log.info("  removed unfinished work untouched for %d days: %s", KEPT_DAYS, work)
        except BlockingIOError:  # a run is at work there
            continue


def last_touched(work: Path) -> float:
    """Return when something in the folder of work in progress was last touched, in seconds since the epoch."""
    times = (path.stat().st_mtime for path in work.iterdir() if path.name != MARK)
    return max(times, default=work.stat().st_mtime)


def _is_stale(work: Path) -> bool:
    """Whether work lay untouched for KEPT_DAYS, as was found a day ago as well; what is so found is marked."""
    now, mark = time.time(), work / MARK
    marked = mark.stat().st_mtime if mark.exists() else now
    is_old = now - last_touched(work) > KEPT_DAYS * DAY and marked <= now
    if not is_old:
        mark.unlink(missing_ok=True)
    elif not mark.exists():
        mark.touch()
    return is_old and now - marked >= DAY
