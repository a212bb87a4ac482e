"""The model in MLflow's format: tuned weights, tokenizer, contract and code; no pickle, and the base by its hash."""

import importlib.metadata
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright import serving
from tunewright.artifacts.payloads import Contract
from tunewright.cost_model import shapes
from tunewright.modeling import architecture
from tunewright.modeling.models import copy_tokenizer
from tunewright.registry import files
from tunewright.registry.candidate import Candidate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

BATCH = 8  # rows that a server answers at once, where the base's class answers them then as it does each alone


def logged_model(client: "MlflowClient", candidate: Candidate, run: "Run") -> "LoggedModel":
    """The model itself, whole: a new one, or the one that an earlier attempt uploaded and nobody has altered since."""
    from mlflow.entities import LoggedModelStatus

    fingerprint = f"tags.fingerprint = '{candidate.identity}'"
    found = client.search_logged_models([run.info.experiment_id], fingerprint, max_results=1)
    if found:
        model = found[0]
    else:
        sections = ("model.", "method.", "training.")
        model = client.create_logged_model(
            run.info.experiment_id,
            candidate.name,
            run.info.run_id,
            {"fingerprint": candidate.identity},
            {key: value for key, value in run.data.params.items() if key.startswith(sections)},
            candidate.run.adapter.method,
        )
    if model.status != LoggedModelStatus.READY or not files.is_whole(model, candidate.name):
        _upload(client, candidate, model)
        model = client.finalize_logged_model(model.model_id, "READY")
    tags = {"verdict": candidate.run.verdict.in_words, "gain": candidate.run.verdict.gain}
    client.set_logged_model_tags(model.model_id, tags)
    client.log_model_artifact(model.model_id, str(candidate.page.path("report.html")), "reports")
    return model


def _upload(client: "MlflowClient", candidate: Candidate, model: "LoggedModel") -> None:
    """Uploads the model's files in the place of what may lie there, and keeps their digest in its tags and at home."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with tempfile.TemporaryDirectory() as folder:
        _save(Path(folder), candidate, model)
        digest = files.seal(Path(folder, "saved"))
        if client.list_logged_model_artifacts(model.model_id):
            get_artifact_repository(str(model.artifact_location)).delete_artifacts()
        client.log_model_artifacts(model.model_id, str(Path(folder, "saved")))
    files.remember(candidate.name, model.model_id, files.FILES, digest)
    client.set_logged_model_tags(model.model_id, {files.FILES: digest})


def _save(folder: Path, candidate: Candidate, model: "LoggedModel") -> None:
    """Writes the model in MLflow's format to folder/saved: weights, tokenizer and code, and the base by its hash."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    base = candidate.run.base
    local = Path(base.reference).expanduser()
    reference = str(local.absolute()) if local.is_dir() else base.reference
    named = {
        "reference": reference,
        "revision": base.revision,
        "digest": base.weights_digest,
        "precision": candidate.own_answers.precision or None,
        "batch": BATCH if architecture.of(shapes.config_in(base.weights)).pads_left else 1,
    }
    (folder / "base.json").write_text(json.dumps(named), encoding="utf-8")
    copy_tokenizer(base.weights, folder / "tokenizer")
    save_model(
        folder / "saved",
        python_model=serving.__file__,
        artifacts={
            "model": str(candidate.run.adapter.path("model")),
            "contract": str(candidate.run.adapter.path(Contract.FILE)),
            "base": str(folder / "base.json"),
            "tokenizer": str(folder / "tokenizer"),
        },
        signature=_signature(candidate.max_new_tokens),
        input_example=[{"messages": [{"role": "user", "content": "Hello"}]}],
        pip_requirements=requirements(candidate),
        mlflow_model=Model(run_id=model.source_run_id, model_uuid=model.model_id, model_id=model.model_id),
    )


def _signature(max_new_tokens: int) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array, Object, Property

    message = Object([Property("role", DataType.string), Property("content", DataType.string)])
    messages = ColSpec(Array(message), "messages", required=False)
    return ModelSignature(
        # As a string, MLflow's server makes the text "None" of null and "5" of 5; serving.py refuses what is no text.
        Schema([messages, ColSpec(AnyType(), "prompt", required=False)]),
        Schema([ColSpec(DataType.string)]),
        ParamSchema([ParamSpec("max_new_tokens", DataType.long, max_new_tokens)]),
    )


def requirements(candidate: Candidate) -> list[str]:
    """Return the packages that serving.py needs to load this model, pinned to the installed versions."""
    names = ["mlflow", "torch", "transformers", "tokenizers", "safetensors"]
    tuned = candidate.run.adapter.path("model")
    if (tuned / "adapter_config.json").is_file():
        names.append("peft")
    if serving.needs_base(tuned) and candidate.run.base.reference.startswith("package:"):
        package = candidate.run.base.reference.removeprefix("package:").partition("/")[0]
        names += ["gguf", importlib.metadata.packages_distributions()[package][0]]
    # A local part such as +cpu names a build that PyPI does not have.
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in names]
