"""The manifest of an artifact, and how a whole and unaltered artifact is told from any other.

manifest.json has the sha256 of every file, the record and the ingredients of the key. The sha256 of the manifest itself
is kept apart from the artifacts, in `<home>/made/<stage>/<key>`, which finds an edited record, and another artifact
with a consistent manifest in the place of the one that was made. An artifact without such an entry, made by an earlier
version of Tunewright or copied from another home, is accepted if its manifest agrees with its files and its key.
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

from tunewright import config, serving
from tunewright.accepted import printable
from tunewright.artifacts import Artifact
from tunewright.store import disk
from tunewright.store.cache_key import key_of
from tunewright.store.disk import digest_of
from tunewright.store.shared import File, path_in_home, shared_store

A = TypeVar("A", bound=Artifact)

MANIFEST = "manifest.json"


class Damaged(Exception):
    """An artifact is not whole, or not the one that was made; the message says what is wrong."""


class Manifest(BaseModel, frozen=True):
    """The manifest of an artifact, written after its files."""

    stage: str
    key: str
    files: dict[str, File]  # by their path in the folder
    record: dict[str, Any]
    record_type: str
    ingredients: dict[str, Any]
    made: str  # UTC
    made_by: str  # the name of the flow run
    seconds: float  # that it took


class Whole(NamedTuple, Generic[A]):
    """An artifact that is whole and unaltered."""

    record: A
    manifest: Manifest


def folder_of(stage: str, key: str) -> Path:
    """The folder of an artifact."""
    return config.home() / "artifacts" / stage / key


def files_in(folder: Path, *, but: Collection[str] = (MANIFEST,)) -> dict[str, File]:
    """Every file beneath a folder but some, by its path in the folder."""
    paths = ((name, folder / name) for name in sorted(serving.files_in(folder).difference(but)))
    return {name: File(sha256=digest_of(path), size=path.stat().st_size) for name, path in paths}


def fetch(folder: Path) -> bool:
    """Fetches a folder that this home lacks from the store that machines share; returns whether it did."""
    store = None if folder.exists() else shared_store()
    return store is not None and store.get(path_in_home(folder), folder)


def share(folder: Path, *, is_new: bool = False) -> None:
    """Copies a folder of this home to the store that machines share; unless it `is_new`, only where that lacks it."""
    if (store := shared_store()) and (is_new or not store.has_tree(path_in_home(folder))):
        store.put(path_in_home(folder), folder, files_in(folder, but=()))


def write(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest into a folder that becomes the artifact's."""
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def remember(folder: Path, stage: str, key: str) -> None:
    """Keeps the sha256 of the manifest in `folder` apart from the artifacts, in one step."""
    entry = _entry(stage, key)
    entry.parent.mkdir(parents=True, exist_ok=True)
    disk.replace(entry, digest_of(folder / MANIFEST))


def was_made(stage: str, key: str) -> bool:
    """Whether the artifact was whole at any time, and was not forgotten since."""
    return _entry(stage, key).exists()


def forget(stage: str, key: str) -> None:
    """Removes what is kept of an artifact that was removed."""
    _entry(stage, key).unlink(missing_ok=True)


def read(kind: type[A], stage: str, key: str, *, with_files: bool = True) -> Whole[A]:
    """The record and the manifest of the artifact that a stage keeps under a key, its files verified too by default.

    One that this home lacks is fetched from the store that machines share, if there is one.

    Raises Damaged.
    """
    folder, entry = folder_of(stage, key), _entry(stage, key)
    is_fetched = with_files and fetch(folder)
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_bytes())
        record = kind.model_validate(manifest.record | {"folder": folder})
    except FileNotFoundError:
        raise Damaged(f"artifact {key} has no {MANIFEST}") from None
    except (ValidationError, NotADirectoryError, IsADirectoryError):
        raise Damaged(f"artifact {key}: {MANIFEST} was altered") from None
    is_its_own = (manifest.stage, manifest.key, key_of(stage, manifest.ingredients)) == (stage, key, key)
    if not is_its_own or (entry.exists() and entry.read_bytes() != digest_of(folder / MANIFEST).encode()):
        raise Damaged(f"artifact {key}: {MANIFEST} was altered")
    if with_files:
        _check(folder, manifest)
    if is_fetched:
        remember(folder, stage, key)
    return Whole(record, manifest)


def is_whole(record: Artifact) -> bool:
    """Whether the artifact of a record is whole and unaltered."""
    try:
        read(type(record), record.stage, record.key)
    except Damaged:
        return False
    return True


def _check(folder: Path, manifest: Manifest) -> None:
    names = serving.files_in(folder) - {MANIFEST}
    for name, expected in manifest.files.items():
        file = folder / name
        if name not in names or not file.is_file():  # an edited manifest may name what no file system has
            raise Damaged(f"artifact {folder.name}: {printable(name)} is missing")
        if file.stat().st_size != expected.size or digest_of(file) != expected.sha256:
            raise Damaged(f"artifact {folder.name}: {name} was altered")
    if added := sorted(names - manifest.files.keys()):
        raise Damaged(f"artifact {folder.name}: {printable(added[0])} was added")


def _entry(stage: str, key: str) -> Path:
    return config.home() / "made" / stage / key
