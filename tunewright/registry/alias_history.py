"""The history of an alias: every move of it, and every decision of a person; who, when and why.

Each entry is a tag of the registered model under a key of its own, so that nothing is ever written over, a version can
come and go several times, and of two writers at once neither is lost. Each names the sha256 of the one before it, so
that an entry that was altered or deleted is found.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from pydantic import BaseModel

from tunewright import config
from tunewright.config import Registry
from tunewright.errors import ConfigError, StoreError
from tunewright.store import disk
from tunewright.store.histories import held, up_to_date

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("tunewright")

PREFIX = "tunewright.release."  # of the tags
FOLDER = "alias_history"  # of the home
PIPELINE = "pipeline"  # who moved the alias where no person did

What = Literal["promoted", "approved", "rejected", "superseded", "promoted by hand", "rolled back", "withdrawn"]


class KeptEntry(BaseModel, frozen=True):
    """One line of alias_history/<name>.jsonl: an entry that this machine wrote."""

    model: int | None  # when the registered model was created in MLflow, which tells it from others of its name
    alias: str
    tag: str
    sha256: str


class Event(BaseModel, frozen=True):
    """One move of the alias, or one decision that left it where it was."""

    when: str  # UTC, ISO 8601
    alias: str
    what: What
    version: str  # that was decided on
    before: str  # the version under the alias before; empty for none
    after: str  # empty for none
    by: str
    why: str
    verdict: str  # of the version, at that time
    gain: str
    previous: str = ""  # sha256 of the entry before it; empty for the first, and in what an earlier Tunewright wrote

    @property
    def is_move(self) -> bool:
        """Whether the alias moved."""
        return self.before != self.after


def now() -> str:
    """The time in UTC, to the microsecond, so that text order is time order."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@contextlib.contextmanager
def moving(name: str) -> Iterator[None]:
    """Holds the right to move an alias of a model, of all processes in this home, from a look at it to its move.

    Where the home can only be read, nothing is held. Raises ConfigError where the shared store refuses, or refuses the
    history of the alias: no move would be entered into it.
    """
    with contextlib.ExitStack() as stack:
        if _home_is_written():
            stack.enter_context(held(_file(name).with_suffix(".moves")))
            up_to_date(_file(name))
        yield


def append_event(client: "MlflowClient", name: str, event: Event) -> Event:
    """Adds an event to the history of a registered model, behind the last one, and returns it.

    Where the home can only be read, it is not kept there.
    """
    is_written = _home_is_written()
    with contextlib.ExitStack() as stack:
        if is_written:
            stack.enter_context(held(_file(name)))
        model = client.get_registered_model(name)
        last = _entries(model.tags, event.alias)[-1:]
        event = event.model_copy(update={"previous": _sha256(last[0][1]) if last else ""})
        key, value = f"{PREFIX}{event.when.replace(':', '')}.{uuid4().hex[:6]}", event.model_dump_json()
        client.set_registered_model_tag(name, key, value)
        if is_written:
            entry = KeptEntry(model=model.creation_timestamp, alias=event.alias, tag=key, sha256=_sha256(value))
            disk.append(_file(name), entry)
    return event


def _home_is_written() -> bool:
    """Whether something can be written into the home."""
    try:
        config.make_home()
    except ConfigError:
        return False
    return True


def events_of(client: "MlflowClient", registry: Registry) -> list[Event]:
    """All events of an alias, the oldest first."""
    tags = client.get_registered_model(registry.name).tags
    return [event for _, _, event in _entries(tags, registry.alias)]


def faults(client: "MlflowClient", registry: Registry) -> list[str]:
    """The entries of an alias' history that were altered or deleted, in words.

    An entry names the sha256 of the one before it, and this home keeps that of each entry that this machine wrote, so
    that the last one is known as well. Two machines that wrote at one moment may both name the same entry. Where a
    shared store cannot be reached, it goes by what this home has, with a warning.
    """
    file = _file(registry.name)
    try:
        up_to_date(file)
    except StoreError as error:
        log.warning("%s; of the entries that other machines wrote, the last may be missing unnoticed", error)
    model = client.get_registered_model(registry.name)
    entries = _entries(model.tags, registry.alias)
    digests = {tag: _sha256(value) for tag, value, _ in entries}
    found = []
    for kept in disk.read(file, KeptEntry, "is no entry of an alias' history; delete the line"):
        if (kept.model, kept.alias) == (model.creation_timestamp, registry.alias):
            if kept.tag not in digests:
                found.append(f"{_said(kept.tag)} was deleted")
            elif digests[kept.tag] != kept.sha256:
                found.append(f"{_said(kept.tag)} was altered")
    known = {"", *digests.values()}
    for position, (_, _, event) in enumerate(entries):
        is_first = all(not earlier.previous for _, _, earlier in entries[:position])
        if event.previous not in known:
            found.append(f"an entry before that of {event.when} was altered or deleted")
        elif not event.previous and not is_first:
            found.append(f"the entry of {event.when} does not name the one before it")
    return list(dict.fromkeys(found))


def past_champions(events: Sequence[Event], held: str) -> list[str]:
    """The versions that a rollback goes back through, the oldest first; the last is `held`, which carries the alias.

    What was rolled back or withdrawn is not among them, so that one rollback after another goes further back. A move
    that was made elsewhere, and is in no event, is noticed by the version that the alias was on at the next one.
    """
    found: list[str] = []
    for event in filter(lambda event: event.is_move, events):
        _put(found, event.before)
        if event.what == "rolled back" and event.after in found:
            last = max(at for at, version in enumerate(found) if version == event.after)
            del found[last + 1 :]
        if event.what == "withdrawn":
            found = [version for version in found if version != event.before]
        _put(found, event.after)
    _put(found, held)
    return found


def _put(found: list[str], version: str) -> None:
    if version and found[-1:] != [version]:
        found.append(version)


def _entries(tags: Mapping[str, str], alias: str) -> list[tuple[str, str, Event]]:
    """The key and value of each tag with an event of an alias, and the event, the oldest first."""
    found = [(key, value, Event.model_validate_json(value)) for key, value in tags.items() if key.startswith(PREFIX)]
    return sorted((entry for entry in found if entry[2].alias == alias), key=lambda entry: entry[2].when)


def _said(tag: str) -> str:
    return f"the entry {tag.removeprefix(PREFIX)}"


def _sha256(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest()


def _file(name: str) -> Path:
    return config.home() / FOLDER / f"{name}.jsonl"
