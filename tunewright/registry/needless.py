"""Unneeded items in MLflow: the weights of rejected candidates, and runs that a person deleted.

These versions stay: those that have or had an alias, as a rollback returns to them; those that a candidate was compared
with, as a run of unchanged settings compares it again; those that wait for a person or were approved; and the newest of
each model. Another version is removed with its weights; its run stays, with its scores, answers and verdict page, and
so does each use of the test rows. Only the database of this home is read.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright import compat, config
from tunewright.config import Registry
from tunewright.registry import files
from tunewright.registry.address import tracking_uri
from tunewright.registry.alias_history import PREFIX, Event
from tunewright.registry.alias_state import TAG
from tunewright.registry.run_writer import NOTHING_NEW
from tunewright.registry.tracking import connected
from tunewright.store.needless import Needless, size_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

HERE = Registry()
PROXIED = "mlflow-artifacts:"


def in_mlflow(keep_rejected: int) -> Iterator[Needless]:
    """Rejected versions but the newest `keep_rejected` of each model, and deleted runs of which there is no version."""
    if not config.mlflow_database().is_file():
        return
    from mlflow.entities import ViewType

    with connected(HERE) as client:
        models = list(client.search_registered_models(max_results=1000))
        versions = {model.name: list(client.search_model_versions(f"name = '{model.name}'")) for model in models}
        for model in models:
            yield from _rejected(client, model, versions[model.name], keep_rejected)
        of_versions = {version.run_id for each in versions.values() for version in each}
        for experiment in client.search_experiments(view_type=ViewType.ALL):
            for run in client.search_runs([experiment.experiment_id], "", ViewType.DELETED_ONLY, max_results=10_000):
                if run.info.run_id not in of_versions:
                    yield _of_run(run)


def _rejected(
    client: "MlflowClient", model: "RegisteredModel", versions: list["ModelVersion"], keep: int
) -> Iterator[Needless]:
    events = [Event.model_validate_json(value) for key, value in model.tags.items() if key.startswith(PREFIX)]
    needed = {number for event in events for number in (event.before, event.after)}
    needed |= {*map(str, model.aliases.values()), *(version.tags.get("challenged", "") for version in versions)}
    rejected = [
        version
        for version in sorted(versions, key=lambda version: int(version.version), reverse=True)
        if str(version.version) not in needed
        and "fingerprint" in version.tags  # a version that the pipeline made
        and version.tags.get(TAG) not in ("waiting", "approved")
    ]
    for version in rejected[keep:]:
        stored = client.get_logged_model(files.model_id(version)).artifact_location
        folder, name = _folder(stored), f"{model.name} version {version.version}"
        newer = f"{keep} newer {'one stays' if keep == 1 else 'ones stay'}"
        stood = version.tags.get(TAG) or f"not promoted (verdict: {version.tags.get('verdict', 'none')})"
        why = f"{stood}; {newer}"
        yield Needless(
            kind="rejected version",
            name=name,
            size=size_of(folder),
            why=why,
            remove=lambda v=version, f=folder: _drop(v, f),
        )


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

    name = f"run {run.info.run_name}"
    why = "it found nothing new" if NOTHING_NEW in run.data.tags else "a person deleted it"
    return Needless(kind="deleted in MLflow", name=name, size=size_of(folder), why=why, remove=remove)


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
