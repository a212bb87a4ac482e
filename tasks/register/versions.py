"""The registered model: one version a candidate, the proof that it answers as it was measured, and the alias."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from tasks.artifacts import Registered
from tasks.config import Registry
from tasks.errors import TunewrightError
from tasks.models import load_tokenizer
from tasks.register.candidate import Candidate, card
from tasks.register.tracking import connected

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

REHEARSED = 8  # rows that a version has to answer as the candidate did


def get_or_create(client: "MlflowClient", candidate: Candidate, model: "LoggedModel", run: "Run") -> "ModelVersion":
    """The version of this candidate, with what was found out about it this time."""
    name = candidate.name
    found = client.search_model_versions(f"name = '{name}' and tags.fingerprint = '{candidate.identity}'")
    tags = {
        "verdict": candidate.verdict.in_words,
        "gain": candidate.gain,
        "model_digest": candidate.adapter.digest,
        "challenged": candidate.challenged,
        **candidate.data,
    }
    if found:
        version = found[0]
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
    return version


def rehearse(candidate: Candidate, version: "ModelVersion") -> None:
    """Loads the version from the registry and asks it what the candidate was asked.

    Raises TunewrightError, with the row and both answers, if it says something else.
    """
    import torch
    from mlflow.pyfunc import load_model

    tokenizer = load_tokenizer(candidate.base)
    recorded = pq.read_table(candidate.own_answers.path("answers.parquet"), columns=["row_id", "answer"])
    recorded = recorded.slice(0, REHEARSED).to_pylist()
    ids = [row["row_id"] for row in recorded]
    rows = pq.read_table(candidate.splits.path("test.parquet"), filters=[("row_id", "in", ids)]).to_pylist()
    asked = {row["row_id"]: {"messages": row["messages"][:-1]} for row in rows}
    said = load_model(f"models:/{version.name}/{version.version}").predict([asked[row_id] for row_id in ids])
    others = [
        (row["row_id"], row["answer"], answer)
        for row, answer in zip(recorded, said, strict=True)
        if _spelled(tokenizer, answer) != _spelled(tokenizer, row["answer"])
    ]
    # In bfloat16, which a GPU computes in, a near tie falls one way or the other with what else is in the batch.
    if len(others) > (len(recorded) // 4 if torch.cuda.is_available() else 0):
        row_id, before, after = others[0]
        raise TunewrightError(
            f"models:/{version.name}/{version.version} is not the model that was measured: {len(others)} of "
            f"{len(recorded)} test rows are answered otherwise; row {row_id[:12]} was answered {before[:200]!r}, and "
            f"after reloading {after[:200]!r}; the alias {candidate.settings.registry.alias} did not move"
        )


def _spelled(tokenizer: Any, text: str) -> str:
    """A text as this tokenizer gives it back; some give other spaces than they were given."""
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True)


def promote(client: "MlflowClient", candidate: Candidate, version: "ModelVersion") -> None:
    """Moves the alias to the version, unless another champion came up that it was not compared with."""
    registry = candidate.settings.registry
    held = holder(client, registry)
    if held and str(held.version) not in (str(version.version), candidate.challenged):
        raise TunewrightError(
            f"version {held.version} of {registry.name} became {registry.alias} while this run compared itself with "
            f"{f'version {candidate.challenged}' if candidate.challenged else 'none'}; run again to be compared with it"
        )
    if held is None or str(held.version) != str(version.version):
        client.set_registered_model_alias(registry.name, registry.alias, version.version)
        client.update_registered_model(registry.name, candidate.verdict.sentence)


def lost(registered: Registered) -> str:
    """What is gone of a version that was registered, where somebody deleted it; empty where it is there."""
    from mlflow.exceptions import MlflowException

    uri, name, number = registered.tracking_uri, registered.name, registered.version
    database = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not database.is_file():
        return f"{database} is gone"
    with connected(Registry(name=name, tracking_uri=uri)) as client:
        try:
            is_there = client.get_model_version(name, number).run_id == registered.run_id
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
