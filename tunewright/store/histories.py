"""Files of a home that only grow, such as the uses of test sets: one for all machines that share a store.

Each state of such a file is kept in the store under a number. Before a change, the newest is fetched under a lease;
after it, the new state is written under the next number, which fails where another machine wrote that number. So no
line is lost or counted twice, whoever writes at the same time. `<home>/shared/PATH.json` notes which state a file is. A
change that a kill kept from the store is dropped by the next fetch: nobody had been told of it.
"""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from tunewright import config
from tunewright.errors import ConfigError, StoreError
from tunewright.store import disk
from tunewright.store.caching import lock
from tunewright.store.shared import SharedStore, path_in_home, shared_store


class State(BaseModel, frozen=True):
    """The state of the store that a file of this home is."""

    number: int = 0
    sha256: str = ""


@contextlib.contextmanager
def held(file: Path) -> Iterator[None]:
    """Hold the right to change a history, which is up to date within; afterwards the store has the change.

    Raises StoreError where the store cannot be reached; the file is then as it was before.
    """
    with lock(file), contextlib.ExitStack() as stack:
        if (store := shared_store()) is None:
            yield
            return
        stack.enter_context(store.lease(path_in_home(file)))
        _fetch(store, file)
        before = _content(file)
        try:
            yield
            if _content(file) != before or not _state(file).number:
                _put(store, file)
        except BaseException:
            disk.replace(file, before.decode()) if before is not None else file.unlink(missing_ok=True)
            raise


def up_to_date(file: Path) -> Path:
    """The history, brought up to date where a store shares it."""
    if store := shared_store():
        config.make_home()
        file.parent.mkdir(parents=True, exist_ok=True)
        _fetch(store, file)
    return file


def require_states(store: SharedStore) -> None:
    """Raises ConfigError where the store lacks a state of a history that this home had from one."""
    notes = config.home() / "shared"
    for note in sorted(notes.rglob("*.json")):
        file = config.home() / note.relative_to(notes).with_suffix("")
        _require_state(store, file, store.newest(path_in_home(file))[0])


def _require_state(store: SharedStore, file: Path, number: int) -> None:
    state = _state(file)
    if number < state.number and file.exists():
        raise ConfigError(
            f"{store.named}: {file} is state {state.number} of a history of which this store has "
            f"{f'only {number}' if number else 'none'}: it is another store, not mounted, or restored from an older "
            f"backup; accepted: the store of this home; to go by this store, move {file} away"
        )


def _fetch(store: SharedStore, file: Path) -> None:
    """Bring a file up to date.

    Raises ConfigError where it has a history from before it was shared, or lines that the store has lost.
    """
    number, newest = store.newest(path_in_home(file))
    _require_state(store, file, number)
    own, state = _content(file), _state(file)
    if not number or (number == state.number and own is not None and _sha256(own) == state.sha256):
        return
    if own not in {None, newest} and not state.number:
        raise ConfigError(
            f"{store.named}: {file} has lines that the history of the same name in the store has not; use "
            "another registry.name, or move the file away to go by the store"
        )
    if own != newest:
        disk.replace(file, newest.decode())
    _note(file, number, newest)


def _put(store: SharedStore, file: Path) -> None:
    content, number = _content(file), _state(file).number + 1
    if content is None:
        return
    if not store.add(path_in_home(file), number, content):
        raise StoreError(f"{store.named}: another machine changed {path_in_home(file)} at the same time")
    _note(file, number, content)


def _state(file: Path) -> State:
    try:
        return State.model_validate_json(_note_of(file).read_bytes())
    except (FileNotFoundError, ValidationError):
        return State()


def _note(file: Path, number: int, content: bytes) -> None:
    note = _note_of(file)
    note.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(note, State(number=number, sha256=_sha256(content)).model_dump_json())


def _note_of(file: Path) -> Path:
    return config.home() / "shared" / f"{path_in_home(file)}.json"


def _content(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
