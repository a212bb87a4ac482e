"""MLflow: what was tried and what came of it, the model as a version, and the alias for the one that won."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.artifacts import Registered
from tunewright.errors import AnotherChampion
from tunewright.registry import alias, rehearsal, runs, versions
from tunewright.registry.candidate import Candidate
from tunewright.registry.champion import champion, trained_on_test
from tunewright.registry.tracking import connected, experiment
from tunewright.store.stage import stage
from tunewright.tasks.register.contenders import compare
from tunewright.tasks.register.model import logged_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

UNDECIDED = "tunewright.undecided"  # tag of a finished run without a decision: the alias moved, or a later run decided
LATER = "later verdict"  # tag of the run in which a version was made: what a later run found of the version

__all__ = ["champion", "register", "trained_on_test"]


@stage("{candidate.run.name}", libraries=("mlflow",), lost=versions.lost)
def register(folder: Path, candidate: Candidate) -> Registered:
    """The candidate as an MLflow run and a model version, reloaded and compared; under the alias if it was promoted.

    With gate.approval it waits for a person instead. An earlier attempt, finished or not, is completed and never
    doubled.
    """
    from mlflow.exceptions import MlflowException

    registry = candidate.settings.registry
    with connected(registry) as client:
        run = runs.of_candidate(client, candidate, experiment(client, registry, registry.name, candidate.columns))
        is_known = run.info.status == "FINISHED" and UNDECIDED not in run.data.tags
        try:
            runs.describe(client, candidate, run)
            model = logged_model(client, candidate, run)
            compare(client, candidate, run, model)
            version = versions.get_or_create(client, candidate, model, run)
            rehearsal.rehearse(client, candidate, version)
            superseded = alias.conclude(client, candidate, str(version.version))
        except AnotherChampion as error:  # the version stays, and the same run must not look like a failed one
            with contextlib.suppress(MlflowException):
                _finish_undecided(client, run.info.run_id, str(error))
            raise
        except Exception:
            with contextlib.suppress(MlflowException):  # such as the one that ends this attempt
                client.set_terminated(run.info.run_id, "FAILED")
            raise
        registered = Registered(
            name=registry.name,
            version=str(version.version),
            alias="",
            uri=f"models:/{registry.name}/{version.version}",
            run_id=run.info.run_id,
            version_run_id=str(version.run_id),
            experiment_id=run.info.experiment_id,
            tracking_uri=registry.tracking_uri,
            superseded=tuple(superseded),
            is_known=is_known,
        )
        registered = alias.as_it_stands(client, registry, registered)
        _note_in_source(client, version, run.info.run_id, candidate.run.verdict.in_words)
        if UNDECIDED in run.data.tags:
            client.delete_tag(run.info.run_id, UNDECIDED)
        client.set_terminated(run.info.run_id, "FINISHED")  # the last: by it a later run knows the decision
    said = registered.model_dump_json(indent=1, exclude={"folder", "is_known"})
    (folder / "model.json").write_text(said, encoding="utf-8")
    return registered


def _finish_undecided(client: "MlflowClient", run_id: str, why: str) -> None:
    client.set_tag(run_id, UNDECIDED, why[:500])
    client.set_terminated(run_id, "FINISHED")


def _note_in_source(client: "MlflowClient", version: "ModelVersion", run_id: str, verdict: str) -> None:
    """Tags the run in which a version was made with the verdict of a later run on it; a failed one ends as finished."""
    if version.run_id == run_id:
        return
    source = client.get_run(str(version.run_id))
    if source.info.lifecycle_stage != "active":
        return
    client.set_tag(source.info.run_id, LATER, f"{verdict}, by run {run_id}")
    if source.info.status == "FAILED":
        _finish_undecided(client, source.info.run_id, f"registered by run {run_id}")
