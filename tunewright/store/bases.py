"""Bases in the store that machines share: a machine that lacks one fetches it by its digest.

A run copies the folder of its base, or what it converted from a package, to the store as `artifacts/bases/<digest>`.
The history `bases/<pipeline>.jsonl` has the digest of the base that each `model.base` was, and the MLflow whose
versions may need it. A base from the hub is left out, since every machine can have it from there.
"""

import logging
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from tunewright import config
from tunewright.artifacts import Base
from tunewright.serving import BASES, find_base, loaded_files, package_file, weights_digest
from tunewright.store import disk
from tunewright.store.histories import held, up_to_date
from tunewright.store.shared import File, SharedStore, path_in_home, shared_store

log = logging.getLogger("tunewright")


class UsedBase(BaseModel, frozen=True):
    """The base of a run: model.base, its digest, and the address of the MLflow that the run registers in."""

    reference: str
    digest: str
    mlflow: str


def keep(pipeline: str, base: Base, mlflow: str) -> None:
    """Copies a base to the shared store, if there is one, and notes that the pipeline has it.

    `mlflow` is the address of the MLflow in which the pipeline registers.
    """
    store = shared_store()
    if store is None or not (_is_here(base.reference) or base.weights.is_relative_to(config.home() / BASES)):
        return
    at = path_in_home(_folder(base.weights_digest))
    files = store.listed(at)
    if not files:
        log.info("  copying the base to %s, for machines that do not have it", store.url)
        paths = {path.relative_to(base.weights).as_posix(): path for path in loaded_files(base.weights)}
        files = {name: File(sha256=disk.digest_of(path), size=path.stat().st_size) for name, path in paths.items()}
    store.put(at, base.weights, files)  # also where it is there, as it is kept since it was last put there
    used = UsedBase(reference=base.reference, digest=base.weights_digest, mlflow=mlflow)
    if _used(pipeline, base.reference) != used:
        with held(_history(pipeline)):
            disk.append(_history(pipeline), used)


def mlflows(store: SharedStore) -> Mapping[str, set[str]]:
    """Digest of a base -> the addresses of MLflow in which pipelines with this base register."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name in sorted({path.rpartition("/")[0] for path in store.objects("histories/bases")}):
        for used in _lines(config.home() / "bases" / name):
            found[used.digest].add(used.mlflow)
    return found


def at_hand(pipeline: str, reference: str) -> str:
    """Return `reference`, or the folder of the base that the pipeline used by this name, where this machine lacks it.

    The folder is fetched from the shared store, once.
    """
    if shared_store() is None or _is_here(reference) or not (used := _used(pipeline, reference)):
        return reference
    folder = fetched(used.digest)
    if folder is None:
        return reference
    said = "model.base=%s is not on this machine; the shared store has the one that this pipeline used last (sha256 %s)"
    log.info(said, reference, used.digest[:12])
    return str(folder)


def fetched(digest: str) -> Path | None:
    """The folder in this home of the base with this digest, fetched from the shared store; None if it has none."""
    folder = _folder(digest)
    if folder.is_dir() and weights_digest(folder) == digest:
        os.utime(folder)  # when it was last used (needless.py)
        return folder
    store = shared_store()
    if store is None or folder.is_dir() or not store.get(path_in_home(folder), folder):
        return None
    return folder if weights_digest(folder) == digest else None


def find(reference: str, revision: str | None, digest: str) -> Path:
    """The folder with the base of a version: on this machine, or fetched from the shared store.

    Raises what serving.find_base raises where neither has it.
    """
    try:
        return find_base(reference, revision, digest)
    except (OSError, ValueError):
        if folder := fetched(digest):
            return folder
        raise


def _is_here(reference: str) -> bool:
    """Whether model.base is a folder of this machine, or a file of a package that is installed."""
    if not reference.startswith("package:"):
        return Path(reference).expanduser().exists()
    try:
        return package_file(reference).is_file()
    except FileNotFoundError:
        return False


def _folder(digest: str) -> Path:
    """Where a base that was fetched lies in this home."""
    return config.home() / BASES / digest


def _history(pipeline: str) -> Path:
    return config.home() / "bases" / f"{pipeline}.jsonl"


def _used(pipeline: str, reference: str) -> UsedBase | None:
    """The base that the pipeline used last by this name."""
    return next((used for used in reversed(_lines(_history(pipeline))) if used.reference == reference), None)


def _lines(file: Path) -> list[UsedBase]:
    """The bases that a pipeline used, the oldest first."""
    return disk.read(up_to_date(file), UsedBase, f"is no base that was used; move {file} away")
