"""The registered model: one version a candidate, and which of them carries the alias."""

import json
from typing import TYPE_CHECKING

from tunewright import config
from tunewright.artifacts import Registered
from tunewright.config import Registry
from tunewright.registry import files
from tunewright.registry.candidate import Candidate, card
from tunewright.registry.standing import SENTENCE
from tunewright.registry.tracking import connected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion


def get_or_create(client: "MlflowClient", candidate: Candidate, model: "LoggedModel", run: "Run") -> "ModelVersion":
    """The version of this candidate, with what was found out about it this time."""
    name = candidate.name
    found = client.search_model_versions(f"name = '{name}' and tags.fingerprint = '{candidate.identity}'")
    tags = {
        "verdict": candidate.run.verdict.in_words,
        SENTENCE: candidate.run.verdict.sentence,
        "gain": candidate.run.verdict.gain,
        files.WEIGHTS: candidate.run.adapter.digest,
        files.FILES: model.tags[files.FILES],
        "challenged": candidate.challenged,
        **candidate.data,
    }
    if found:
        version = found[0]
        if (
            files.model_id(version) != model.model_id
        ):  # somebody deleted that one, and its files are still the version's
            del tags[files.FILES]
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, value)
    else:
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        version = client.create_model_version(
            name,
            f"models:/{model.model_id}",
            run.info.run_id,
            tags | {"fingerprint": candidate.identity},
            await_creation_for=0,
            model_id=model.model_id,
        )
    client.update_model_version(name, version.version, card(candidate, run.info.experiment_id, run.info.run_id))
    shown = json.dumps([{"name": name, "version": str(version.version)}])
    client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": shown})  # in the UI's list of models
    return client.get_model_version(name, version.version)  # with its tags as they are now


def lost(registered: Registered) -> str:
    """Describe the missing part of a registered version that somebody deleted, or return "" if it is there."""
    from mlflow.exceptions import MlflowException

    name, number = registered.name, registered.version
    if registered.tracking_uri is None and not config.mlflow_database().is_file():
        return f"{config.mlflow_database()} is gone"
    with connected(Registry(name=name, tracking_uri=registered.tracking_uri)) as client:
        try:
            is_there = client.get_model_version(name, number).run_id == (registered.version_run_id or registered.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            is_there = False
    return "" if is_there else f"{registered.uri} is not in MLflow any more"


def holder(client: "MlflowClient", registry: Registry) -> "ModelVersion | None":
    """The version that carries the alias."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(registry.name, registry.alias)
    except MlflowException as error:
        # No such model is RESOURCE_DOES_NOT_EXIST, no such alias of a model INVALID_PARAMETER_VALUE.
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
