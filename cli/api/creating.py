"""Requests that create a job: read, validated, and refused by name where nothing here does what they ask.

The fields are mapped by the rules of `tunewright import`, so that a job here is what an imported one is.
"""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from tunewright.accepted import did_you_mean, in_full, shown
from tunewright.cli.api.files import UPLOAD, StoredFiles
from tunewright.cli.api.identifiers import new_id
from tunewright.cli.api.jobs import FineTuningJob, JobStore
from tunewright.cli.api.sentences import for_client
from tunewright.cli.api.template import JobFiles, Template, largest
from tunewright.cli.deployment_file import ENTRYPOINT
from tunewright.cli.imports import openai
from tunewright.cli.imports.places import Places
from tunewright.cli.imports.rules import Original
from tunewright.cli.serve.asking import RequestError, json_object, place, refusal
from tunewright.errors import ConfigError
from tunewright.flows.parameters import slug

MOST_METADATA, LONGEST_KEY, LONGEST_VALUE = 16, 64, 512
LONGEST_SUFFIX = 64  # characters
MOST_EPOCHS, LARGEST_BATCH, HIGHEST_RATE, LARGEST_SEED = (
    largest(name) for name in ("epochs", "batch", "learning_rate", "seed")
)
OF_FIELDS = {
    "n_epochs": f"auto, or a whole number from 1 to {in_full(MOST_EPOCHS)}",
    "batch_size": f"auto, or a whole number from 1 to {in_full(LARGEST_BATCH)}",
    "learning_rate_multiplier": "auto, or a number above 0",
    "seed": f"a whole number from 0 to {in_full(LARGEST_SEED)}",
    "suffix": f"text of 1 to {LONGEST_SUFFIX} characters, with one of a-z or 0-9 among them",
    "type": "supervised",
    "metadata": f"up to {MOST_METADATA} pairs of texts, keys of up to {LONGEST_KEY} and values of up to "
    f"{LONGEST_VALUE} characters",
}

Auto = Literal["auto"]


class _Hyperparameters(BaseModel, strict=True, extra="forbid"):
    n_epochs: Auto | Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=LARGEST_BATCH)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, allow_inf_nan=False)] = "auto"


class _Supervised(BaseModel, strict=True, extra="forbid"):
    hyperparameters: _Hyperparameters | None = None


class _Method(BaseModel, strict=True, extra="forbid"):
    type: Literal["supervised"]
    supervised: _Supervised | None = None


class _Create(BaseModel, strict=True, extra="forbid"):
    """Fields of a request."""

    model: str
    training_file: str
    validation_file: str | None = None
    hyperparameters: _Hyperparameters | None = None
    method: _Method | None = None
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=LONGEST_SUFFIX)] | None = None
    metadata: dict[str, str] | None = None


def create(body: bytes, template: Template, files: StoredFiles, jobs: JobStore) -> FineTuningJob:
    """A new job of a request, which is kept with its deployment file. Raises RequestError."""
    fields = _fields(json_object(body))
    base = template.bases.get(fields.model)
    if base is None and fields.model.startswith("ft:"):
        said = f"model {shown(fields.model)}: fine-tuning of a fine-tuned model is not supported; accepted: "
        raise RequestError(said + ", ".join(template.bases), param="model", code="model_not_available")
    if base is None:
        said = f"model {shown(fields.model)}: {did_you_mean(fields.model, template.bases)}"
        raise RequestError(said, param="model", code="model_not_available")
    asked = _hyperparameters(fields, template.settings.training.learning_rate)
    chosen = _files(fields, files)
    if fields.suffix is not None and not slug(fields.suffix):
        raise RequestError(f"suffix {shown(fields.suffix)}: accepted: {OF_FIELDS['suffix']}", param="suffix")
    changed = _changed(asked, fields.seed)
    if (times := asked["learning_rate_multiplier"]) != "auto":
        changed["training.learning_rate"] = times * template.settings.training.learning_rate
    try:
        parameters = template.job(base, chosen, fields.suffix or "", changed)
    except ConfigError as error:
        said = for_client(str(error), files, (), template.folder)
        raise RequestError(said, param="hyperparameters", code="invalid_value") from error
    training = template.settings.training
    job = FineTuningJob(
        id=new_id("ftjob"),
        created=time.time(),
        model=fields.model,
        base=base,
        training_file=fields.training_file,
        validation_file=fields.validation_file,
        hyperparameters=_resolved(asked, template),
        seed=training.seed if fields.seed is None else fields.seed,
        suffix=fields.suffix,
        metadata=fields.metadata,
        name=parameters["registry"]["name"],
    )
    deployment = {"name": job.name, "entrypoint": ENTRYPOINT, "parameters": parameters}
    jobs.add(job, yaml.safe_dump({"deployments": [deployment]}, sort_keys=False))
    return job


def _fields(given: dict[str, Any]) -> _Create:
    """The fields of a request. Raises RequestError for one that asks for what nothing here does."""
    original = Original(given, Places(Path(), Path(), Path()))
    if openai.method_of(original) == "dpo":
        said = 'method.type: "dpo" is training on preferences, which tunewright run does; accepted: supervised'
        raise RequestError(said, param="method.type", code="unsupported_method")
    for key, what in openai.refused(original):
        raise RequestError(f"{key}: {what}; accepted: supervised", param=key, code="unsupported_method")
    for key in given.keys() & {"integrations"}:
        if given.pop(key):
            said = f"{key}: not supported, as MLflow records every job; leave it out"
            raise RequestError(said, param=key, code="unsupported_parameter")
    if unknown := [key for key in given if key not in _Create.model_fields]:
        said = f"{shown(unknown[0])}: no such field; {did_you_mean(unknown[0], _Create.model_fields)}"
        raise RequestError(said, param=unknown[0], code="unknown_parameter")
    try:
        fields = _Create.model_validate(given)
    except ValidationError as error:
        raise _refused(error) from None
    metadata = fields.metadata or {}
    if len(metadata) > MOST_METADATA or any(
        len(key) > LONGEST_KEY or len(value) > LONGEST_VALUE for key, value in metadata.items()
    ):
        raise RequestError(f"metadata: accepted: {OF_FIELDS['metadata']}", param="metadata")
    return fields


def _refused(error: ValidationError) -> RequestError:
    (first, *_) = error.errors(include_url=False)
    path = [str(each) for each in first["loc"]]
    if path[0] == "metadata":
        return RequestError(f"{place(path)} {shown(first['input'])}: accepted: {OF_FIELDS['metadata']}", param=path[0])
    named = next((at for at, name in enumerate(path, start=1) if name in OF_FIELDS), 0)
    if first["type"] == "extra_forbidden" or not named:
        return refusal(error)
    where = place(path[:named])
    said = f"{where}: is missing;" if first["type"] == "missing" else f"{where} {shown(first['input'])}:"
    return RequestError(f"{said} accepted: {OF_FIELDS[path[named - 1]]}", param=where)


def _files(fields: _Create, files: StoredFiles) -> JobFiles:
    """The uploaded files of a job. Raises RequestError."""
    found: dict[str, Path] = {}
    for param in ("training_file", "validation_file"):
        name = getattr(fields, param)
        if name is None:
            continue
        file = files.get(name, param)
        if file.purpose != UPLOAD:
            raise RequestError(f"{param}: {name} has the purpose {file.purpose}; accepted: {UPLOAD}", param=param)
        found[param] = Path("..", "..", files.folder.name, files.path(file).name)  # so that the home can be moved
    if fields.training_file == fields.validation_file:
        raise RequestError("validation_file: is the training file; accepted: another one", param="validation_file")
    return JobFiles(found["training_file"], found.get("validation_file"))


def _hyperparameters(fields: _Create, rate: float) -> dict[str, Any]:
    """Those of the method, or those beside it, as older requests have them.

    Raises RequestError where they differ, or make a learning rate of `rate` that is too high.
    """
    supervised = fields.method.supervised if fields.method else None
    newer, older = supervised.hyperparameters if supervised else None, fields.hyperparameters
    if newer and older and newer != older:
        raise RequestError(
            "hyperparameters: differ from method.supervised.hyperparameters; accepted: one of them",
            param="hyperparameters",
        )
    chosen = newer or older or _Hyperparameters()
    times = chosen.learning_rate_multiplier
    if times != "auto" and not 0 < times * rate <= HIGHEST_RATE:
        where = f"{'method.supervised.' if newer else ''}hyperparameters.learning_rate_multiplier"
        most = in_full(HIGHEST_RATE / rate)
        raise RequestError(f"{where} {shown(times)}: accepted: auto, or a number above 0, up to {most}", param=where)
    return chosen.model_dump()


def _changed(asked: dict[str, Any], seed: int | None) -> dict[str, Any]:
    """The settings by their dotted keys, as the rules of `tunewright import` have them."""
    given = asked | ({} if seed is None else {"seed": seed})
    original = Original(given, Places(Path(), Path(), Path()))
    changed: dict[str, Any] = {}
    for key in given.keys() - {"learning_rate_multiplier"}:  # whose meaning is this API's own
        changed |= openai.TABLE[key].decide(given[key], original).values
    return changed


def _resolved(asked: dict[str, Any], template: Template) -> dict[str, Any]:
    """The hyperparameters as they are reported: what `auto` stands for, where that is known before the training."""
    training = template.settings.training
    epochs = training.epochs if training.max_steps is None else "auto"  # of which the rows say how many that is
    epochs = int(epochs) if isinstance(epochs, float) and epochs.is_integer() else epochs
    usual = {"n_epochs": epochs, "batch_size": training.batch, "learning_rate_multiplier": 1.0}
    return {key: usual[key] if value == "auto" else value for key, value in asked.items()}
