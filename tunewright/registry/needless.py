"""Unneeded items in MLflow: the weights of rejected candidates, and runs that were deleted.

A person deleted them, or Tunewright did so with a run that found nothing new.

These versions stay: those that have or had an alias, as a rollback returns to them; those that a candidate was compared
with, as a run of unchanged settings compares it again; those that wait for a person or were approved; those with a copy
in another model, which has the same files; and the newest of each model. Another version is removed with its weights;
its run stays, with its scores, answers and verdict page, and so does each use of the test rows. On an MLflow server,
whose models may be those of others, only versions that a pipeline registered, of models that are named, are looked at.

A version needs its base, which the store that machines share may be the only one to have. Each MLflow is asked for such
bases that is known here: the database of this home and the MLflow that MLFLOW_TRACKING_URI names.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from tunewright import compat, config
from tunewright.config import Registry
from tunewright.errors import ConfigError, TunewrightError, one_line
from tunewright.registry import files
from tunewright.registry.address import VARIABLE, by_environment, public_address, tracking_uri
from tunewright.registry.alias_history import PREFIX, Event
from tunewright.registry.alias_state import TAG
from tunewright.registry.run_writer import NOTHING_NEW
from tunewright.registry.tracking import connected
from tunewright.store import bases
from tunewright.store.needless import Needless, size_of
from tunewright.store.shared import shared_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.entities import PagedList

T = TypeVar("T")

log = logging.getLogger("tunewright")

HERE = Registry()
PROXIED = "mlflow-artifacts:"
GC = "mlflow gc"


def in_mlflow(keep_rejected: int) -> Iterator[Needless]:
    """Rejected versions but the newest `keep_rejected` of each model, and deleted runs of which there is no version."""
    if not config.mlflow_database().is_file():
        return
    from mlflow.entities import ViewType

    with connected(HERE) as client:
        versions = _by_model(client)
        for model in _all_of(client.search_registered_models):
            for version, why in _rejected(model, versions, keep_rejected):
                yield _of_home(client, version, why)
        of_versions = {version.run_id for each in versions.values() for version in each}
        for experiment in client.search_experiments(view_type=ViewType.ALL):
            for run in client.search_runs([experiment.experiment_id], "", ViewType.DELETED_ONLY, max_results=10_000):
                if run.info.run_id not in of_versions:
                    yield _of_run(run)


def named_server() -> Registry:
    """The MLflow that MLFLOW_TRACKING_URI names. Raises ConfigError where that is none but the home's own."""
    if (server := by_environment(HERE)).tracking_uri is None:
        raise ConfigError(
            f"--server-models: {VARIABLE}={os.environ.get(VARIABLE, '')}; accepted: the address of an MLflow that "
            "is not this home's, such as https://models.example.com:5443"
        )
    return server


def on_server(server: Registry, names: Sequence[str], keep_rejected: int) -> list[Needless]:
    """Rejected versions but the newest `keep_rejected` of each model with such a name; bot-* stands for several.

    Raises ConfigError where no model has such a name, and TunewrightError where the server does not answer or refuses.
    """
    with connected(server) as client:
        models = list(_all_of(client.search_registered_models))
        for name in names:
            if not any(fnmatchcase(model.name, name) for model in models):
                there = ", ".join(sorted(model.name for model in models)) or "none"
                said = f"{public_address(server)} has no such model; it has: {there}"
                raise ConfigError(f"--server-models {name}: {said}")
        versions = _by_model(client)
        return [
            _of_server(client, server, version, why)
            for model in models
            if any(fnmatchcase(model.name, name) for name in names)
            for version, why in _rejected(model, versions, keep_rejected)
        ]


def needed_bases(digests: Collection[str]) -> set[str]:
    """Those of these bases that a version needs, or may need as its MLflow is none of those that are asked.

    Raises TunewrightError where one of them does not say which bases its versions have.
    """
    known = {public_address(registry): registry for registry in (HERE, by_environment(HERE))}
    used_by = bases.mlflows(store) if (store := shared_store()) else {}
    needed: set[str] = set()
    for digest in sorted(digests):
        if others := used_by.get(digest, set()) - known.keys():
            needed.add(digest)
            log.warning(
                "base %s stays in the store, as versions in %s may need it; set MLFLOW_TRACKING_URI to this address to "
                "have them looked at",
                digest[:12],
                " and ".join(sorted(others)),
            )
    for registry in known.values():
        needed |= _bases_of_versions(registry)
    return needed.intersection(digests)


def _bases_of_versions(registry: Registry) -> set[str]:
    if registry.tracking_uri is None and not config.mlflow_database().is_file():
        return set()
    with connected(registry) as client:
        versions = [each for each in _all_of(client.search_model_versions) if "fingerprint" in each.tags]
        return {_base_of(client, version) for version in versions}


def _base_of(client: "MlflowClient", version: "ModelVersion") -> str:
    """The digest of a version's base, by its file base.json. Raises TunewrightError."""
    from mlflow.exceptions import MlflowException

    place = client.get_model_version_download_uri(version.name, version.version)
    if client.tracking_uri == tracking_uri(HERE) and place.startswith(PROXIED):
        place = str(_folder(place))
    try:
        with tempfile.TemporaryDirectory() as folder:
            named = json.loads(files.download(f"{place}/artifacts/base.json", Path(folder)).read_bytes())
        return str(named["digest"])
    except (MlflowException, OSError, ValueError, KeyError, TypeError) as error:
        raise TunewrightError(
            f"{files.uri_of(version)}: base.json, which names its base, cannot be read: {one_line(error)}"
        ) from error


def _all_of(search: "Callable[..., PagedList[T]]") -> Iterator[T]:
    """Everything that a search of MLflow finds, page by page."""
    token: str | None = None
    while True:
        page = search(page_token=token)
        yield from page
        if not (token := page.token):
            return


def _by_model(client: "MlflowClient") -> "defaultdict[str, list[ModelVersion]]":
    """All versions, by the name of their model."""
    found: defaultdict[str, list[ModelVersion]] = defaultdict(list)
    for version in _all_of(client.search_model_versions):
        found[version.name].append(version)
    return found


def _rejected(
    model: "RegisteredModel", versions: "Mapping[str, list[ModelVersion]]", keep: int
) -> "Iterator[tuple[ModelVersion, str]]":
    """The versions of a model that nothing needs, and why; `versions` are those of all models."""
    try:
        events = [Event.model_validate_json(value) for key, value in model.tags.items() if key.startswith(PREFIX)]
    except ValidationError:
        raise TunewrightError(f"{model.name}: a tag {PREFIX}... in MLflow is no entry of its alias history") from None
    own, copied = versions.get(model.name, []), {str(each.source) for of in versions.values() for each in of}
    needed = {number for event in events for number in (event.before, event.after)}
    needed |= {*map(str, model.aliases.values()), *(version.tags.get("challenged", "") for version in own)}
    rejected = [
        version
        for version in sorted(own, key=lambda version: int(version.version), reverse=True)
        if str(version.version) not in needed
        and files.uri_of(version) not in copied
        and "fingerprint" in version.tags  # a version that the pipeline made
        and version.tags.get(TAG) not in ("waiting", "approved")
    ]
    for version in rejected[keep:]:
        stood = version.tags.get(TAG) or f"not promoted (verdict: {version.tags.get('verdict', 'none')})"
        yield version, f"{stood}; {keep} newer {'one stays' if keep == 1 else 'ones stay'}"


def _of_home(client: "MlflowClient", version: "ModelVersion", why: str) -> Needless:
    folder = _folder(client.get_logged_model(files.model_id(version)).artifact_location)
    return Needless(
        kind="rejected version",
        name=_name(version),
        size=size_of(folder),
        why=why,
        remove=lambda: _drop(version, folder),
    )


def _of_server(client: "MlflowClient", server: Registry, version: "ModelVersion", why: str) -> Needless:
    """A version on a server, which removes the files that it serves itself, and no others."""
    place = client.get_model_version_download_uri(version.name, version.version)
    is_served = re.fullmatch(rf"{PROXIED}/[^/].*/models/{re.escape(files.model_id(version))}/artifacts/?", place)
    stay = "" if is_served else f"; its files stay at {place} until the server's administrator calls {GC}"
    return Needless(
        kind="rejected version on the server",
        name=_name(version),
        size=_served_size(place) if is_served else 0,
        why=why + stay,
        remove=lambda: _drop_there(server, version, place if is_served else ""),
    )


def _name(version: "ModelVersion") -> str:
    return f"{version.name} version {version.version}"


def _served_size(place: str) -> int:
    """The bytes of all files at an address of MLflow's artifact store. Raises TunewrightError."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository, folders, size = get_artifact_repository(place), [""], 0
    try:
        while folders:
            for each in repository.list_artifacts(folders.pop() or None):
                if each.is_dir:
                    folders.append(each.path)
                else:
                    size += each.file_size or 0
    except OSError as error:  # of requests
        raise TunewrightError(f"{place} cannot be listed: {one_line(error)}") from error
    return size


def _drop_there(server: Registry, version: "ModelVersion", place: str) -> bool:
    """Removes a version from a server, with its files where there is a `place`, unless it got an alias meanwhile."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with connected(server) as client:
        if client.get_model_version(version.name, version.version).aliases:
            return False
        client.delete_model_version(version.name, version.version)
        try:
            if place:
                get_artifact_repository(place).delete_artifacts()
        except (MlflowException, OSError) as error:
            said = "%s was removed, but the server does not remove its files (%s); its administrator does so by %s"
            log.warning(said, files.uri_of(version), one_line(error), GC)
        try:
            client.delete_logged_model(files.model_id(version))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # somebody deleted it before
                raise
    return True


def _drop(version: "ModelVersion", folder: Path) -> bool:
    """Removes a version and then its weights, unless it got an alias in the meantime."""
    with connected(HERE) as client:
        if client.get_model_version(version.name, version.version).aliases:
            return False
        client.delete_model_version(version.name, version.version)
        client.delete_logged_model(files.model_id(version))
    shutil.rmtree(folder, ignore_errors=True)
    return True


def _of_run(run: "Run") -> Needless:
    folder, run_id = _folder(str(run.info.artifact_uri)), run.info.run_id

    def remove() -> bool:
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        with connected(HERE):
            store = SqlAlchemyStore(tracking_uri(HERE), str(config.mlflow_artifacts()))
            compat.delete_run(store, run_id)
        shutil.rmtree(folder, ignore_errors=True)
        return True

    name, size = f"run {run.info.run_name}", size_of(folder)
    if NOTHING_NEW in run.data.tags:
        why = "it found nothing new, so Tunewright hid it in MLflow"
        return Needless(kind="unchanged run", name=name, size=size, why=why, remove=remove)
    return Needless(kind="deleted in MLflow", name=name, size=size, why="a person deleted it", remove=remove)


def _folder(place: str) -> Path:
    """Return the folders that a database has in this home or, of a server with a proxy, below its root.

    What lies elsewhere is none of this home: a folder that is not there stands for it.
    """
    root = config.mlflow_artifacts()
    path = root / place.removeprefix(PROXIED).lstrip("/") if place.startswith(PROXIED) else Path(place)
    with contextlib.suppress(OSError):
        if path.resolve().is_relative_to(root.resolve()) and path.resolve() != root.resolve():
            return path
    return root / "nowhere"
