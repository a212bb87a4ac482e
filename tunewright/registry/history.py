"""The history of an alias: every move of it, and every decision of a person on a version; who, when and why.

Each is a tag of the registered model under a key of its own, so that nothing is ever written over, a version can come
and go several times, and of two writers at once neither is lost.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal
from uuid import uuid4

from pydantic import BaseModel

from tunewright.config import Registry

if TYPE_CHECKING:
    from mlflow import MlflowClient

PREFIX = "tunewright.release."  # of the tags
PIPELINE = "pipeline"  # who moved the alias where no person did

What = Literal["promoted", "approved", "rejected", "superseded", "promoted by hand", "rolled back", "withdrawn"]


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

    @property
    def is_move(self) -> bool:
        """Whether the alias moved."""
        return self.before != self.after


def now() -> str:
    """The time in UTC, to the microsecond, so that text order is time order."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def append(client: "MlflowClient", name: str, event: Event) -> Event:
    """Adds an event to the history of a registered model, and returns it."""
    key = f"{PREFIX}{event.when.replace(':', '')}.{uuid4().hex[:6]}"
    client.set_registered_model_tag(name, key, event.model_dump_json())
    return event


def read(client: "MlflowClient", registry: Registry) -> list[Event]:
    """All events of an alias, the oldest first."""
    tags = client.get_registered_model(registry.name).tags
    events = [Event.model_validate_json(value) for key, value in tags.items() if key.startswith(PREFIX)]
    return sorted((event for event in events if event.alias == registry.alias), key=lambda event: event.when)


def carriers(events: Sequence[Event], held: str) -> list[str]:
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
