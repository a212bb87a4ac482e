"""Checkpoints in the store that machines share: a training goes on at another machine, to the same weights.

A new checkpoint is copied there at once, or a minute after the one before, and so is what a stopped trainer saved last.
A person's approval of the training's cost is kept there as well, so that no machine asks for it again.
"""

import contextlib
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tunewright.errors import StoreError
from tunewright.store import disk
from tunewright.store.manifest import files_in
from tunewright.store.shared import File, SharedStore, path_in_home, shared_store
from tunewright.tasks.train.trainer import checkpoints

log = logging.getLogger("tunewright")

SECONDS = 60.0  # between two copies
POLL_SECONDS = 2.0  # for a new checkpoint
FOLDER = "checkpoints"  # of the work folder
APPROVED = "approved.json"  # beside it


@contextlib.contextmanager
def kept(work: Path) -> Iterator[None]:
    """Keep the checkpoints of a training in the store, if there is one; before, fetch those that are further than here.

    They are removed there once the block ends without an error.
    """
    if (store := shared_store()) is None:
        yield
        return
    at = path_in_home(work)
    _fetch(store, at, work)
    ended = threading.Event()
    copying = threading.Thread(target=_copy_each, args=(store, at, work, ended), daemon=True)
    copying.start()
    try:
        yield
    except BaseException:
        ended.set()
        copying.join()
        _copy(store, at, work)
        raise
    ended.set()
    copying.join()
    store.remove(at)
    store.remove(_approval_of(work))


def is_approved(work: Path) -> bool:
    """Whether a person approved the cost of a training, on whichever machine."""
    store = shared_store()
    return (work / APPROVED).exists() or bool(store and store.has_tree(_approval_of(work)))


def keep_approval(work: Path, approval: str) -> None:
    """Keep that a person approved the cost of a training until it ends."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / APPROVED
    file.write_text(approval, encoding="utf-8")
    if store := shared_store():
        stored = File(sha256=disk.digest_of(file), size=file.stat().st_size)
        store.put(_approval_of(work), work, {APPROVED: stored})


def _approval_of(work: Path) -> str:
    """Where the approval of a training lies in the store, so that `tunewright clean` finds it when it is old."""
    return f"work/approved/{work.name}"


def _fetch(store: SharedStore, at: str, work: Path) -> None:
    there = max((checkpoints.steps(Path(Path(name).parts[1])) for name in store.listed(at) if "/" in name), default=0)
    if there <= checkpoints.newest_sealed(work / FOLDER):
        return
    with tempfile.TemporaryDirectory(dir=work) as folder:
        fetched = Path(folder, "work")
        if store.get(at, fetched):
            log.info("  another machine trained %d steps; this one goes on from its checkpoint", there)
            (work / FOLDER).mkdir(exist_ok=True)
            for each in (fetched / FOLDER).iterdir():
                shutil.rmtree(work / FOLDER / each.name, ignore_errors=True)
                each.rename(work / FOLDER / each.name)


def _copy_each(store: SharedStore, at: str, work: Path, ended: threading.Event) -> None:
    copied, pause = 0, POLL_SECONDS
    while not ended.wait(pause):
        newest, pause = checkpoints.newest_sealed(work / FOLDER), POLL_SECONDS
        if newest > copied:
            pause = SECONDS
            if _copy(store, at, work):
                copied = newest


def _copy(store: SharedStore, at: str, work: Path) -> bool:
    """Copy the checkpoints; returns False where that failed, which the next copy makes good."""
    try:
        files = {f"{FOLDER}/{name}": file for name, file in files_in(work / FOLDER).items()}
        if files:
            store.put(at, work, files)
    except (FileNotFoundError, StoreError) as error:  # one that the trainer removed meanwhile, or no answer
        log.warning("  the checkpoint is not in the store yet: %s", error)
        return False
    return True
