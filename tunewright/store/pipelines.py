"""Which artifacts are a pipeline's own: those that its runs asked for, whether they were made for it or found.

Artifacts are known by what they are made of and shared by all pipelines of a home, so none of them says whose it is. A
pipeline is known by registry.name, as its versions of the data and its models are. An empty file
`<home>/pipelines/<name>/<call>/<key>` stands for a key that a run asked for, its time for when one did last.

With a store that machines share, each home also keeps the newest keys of each pipeline there, so that
`tunewright clean` on another machine leaves their artifacts.
"""

import hashlib
import logging
import socket
import uuid
from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from tunewright import config
from tunewright.errors import StoreError, TunewrightError
from tunewright.store import disk
from tunewright.store.shared import RECENT_RUNS, SharedStore, shared_store

log = logging.getLogger("tunewright")

SHARED_KEYS = 20  # of each call, the newest
RUNS = TypeAdapter(dict[str, list[str]])  # call -> keys, the newest first


def note(name: str, call: str, key: str) -> None:
    """Keeps that a run of the pipeline `name` asked for a key; `call` is a stage, and of what: "evaluate base"."""
    mark = _place(name, call) / key
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def share(name: str) -> None:
    """Keeps in the store that machines share, if there is one, what runs of the pipeline `name` in this home asked for.

    After a stage: where the store is away, the stage has failed with the reason, which is then not said twice.
    """
    if store := shared_store():
        try:
            store.note_runs(f"{name}/{_home_id()}.json", RUNS.dump_json(_newest(name)))
        except StoreError as error:  # the next call writes all of it again
            log.warning("  %s; tunewright clean elsewhere does not know of this run yet", error)


def keys(name: str, call: str) -> list[str]:
    """The keys that runs of the pipeline asked for in this call, the last one first."""
    marks = {mark: mark.stat().st_mtime_ns for mark in _place(name, call).glob("*")}
    return [mark.name for mark in sorted(marks, key=lambda mark: marks[mark], reverse=True)]


def names() -> list[str]:
    """The pipelines that had a run in this home."""
    return sorted(folder.name for folder in (config.home() / "pipelines").glob("*"))


def asked() -> dict[str, tuple[int, float]]:
    """All keys of all pipelines: how many others the same call asked for since, and when this one was asked for last.

    Of a key that several calls asked for it is the fewest, and the latest.
    """
    found: dict[str, tuple[int, float]] = {}
    for call in (config.home() / "pipelines").glob("*/*/"):
        times = sorted(((mark.stat().st_mtime, mark.name) for mark in call.iterdir()), reverse=True)
        for place, (when, key) in enumerate(times):
            before, earlier = found.get(key, (place, when))
            found[key] = min(place, before), max(when, earlier)
    return found


def asked_anywhere(store: SharedStore, paths: Iterable[str], keep_runs: int) -> set[str]:
    """The keys that the newest `keep_runs` runs of each call asked for, by these objects of homes in the store.

    Raises TunewrightError where one cannot be read.
    """
    found: set[str] = set()
    for path in paths:
        try:
            calls = RUNS.validate_json(store.noted_runs(path) or b"{}")
        except ValidationError:
            raise TunewrightError(
                f"{store.url}: {RECENT_RUNS}/{path} is no JSON of keys; delete it: the next run in its home writes it"
            ) from None
        found |= {key for keys in calls.values() for key in keys[:keep_runs]}
    return found


def forget(key: str) -> None:
    """Removes what says that runs asked for a key, whose artifact was removed."""
    for mark in (config.home() / "pipelines").glob(f"*/*/{key}"):
        mark.unlink(missing_ok=True)


def _newest(name: str) -> dict[str, list[str]]:
    """The newest keys of each call of a pipeline in this home."""
    calls = sorted((config.home() / "pipelines" / name).iterdir())
    return {call.name: keys(name, call.name)[:SHARED_KEYS] for call in calls}


def _home_id() -> str:
    """An id of this home. A copy elsewhere has another."""
    file = config.home() / "shared" / "id"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        disk.replace(file, uuid.uuid4().hex)
    parts = (file.read_text(encoding="utf-8"), socket.gethostname(), str(config.home()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:20]


def _place(name: str, call: str) -> Path:
    return config.home() / "pipelines" / name / call
