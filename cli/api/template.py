"""The deployment file of an API: its settings hold for every job, and a job brings the rows and a few settings."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import annotated_types

from tunewright.accepted import shown
from tunewright.cli import deployment_file
from tunewright.cli.deployment_file import Document, with_paths
from tunewright.config import LocalPath, Settings, Training
from tunewright.config.environment import is_local
from tunewright.errors import ConfigError
from tunewright.flows.parameters import checked, slug
from tunewright.modeling import models

ROWS_OF_A_JOB = "rows-of-the-job.jsonl"  # stands for them where the file names no sources
KEPT = ("test", "replay")  # sources of the file that every job has beside its own rows
OF_A_JOB = {  # settings by the fields of a request that set them
    "model.base": "model",
    "training.epochs": "n_epochs",
    "training.batch": "batch_size",
    "training.learning_rate": "learning_rate_multiplier",
    "training.seed": "seed",
    "registry.name": "suffix",
}


@dataclass(frozen=True)
class JobFiles:
    """The uploaded files of a job."""

    training: Path
    validation: Path | None


@dataclass(frozen=True)
class Template:
    """The settings of a deployment file, with its paths absolute, and the bases that a job may name."""

    name: str  # registry.name
    folder: Path
    parameters: Mapping[str, Any]  # what was set, plain, as Prefect is given it
    settings: Settings
    bases: Mapping[str, str]  # the model that a request names -> model.base

    def job(self, base: str, files: JobFiles, suffix: str, changed: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of a job; `changed` are its settings by dotted keys. Raises ConfigError."""
        parameters = deepcopy(dict(self.parameters))
        if base != self.settings.model.base:
            parameters["model"].pop("revision", None)  # which is the other base's
        parameters["model"]["base"] = base
        parameters["data"]["sources"] = self._sources(files)
        training = parameters.setdefault("training", {})
        training |= {key.partition(".")[2]: value for key, value in changed.items()}
        if "training.epochs" in changed:
            training.pop("max_steps", None)  # which would override it
        micro_batch = training.get("micro_batch")
        if isinstance(micro_batch, int) and micro_batch > (batch := training.get("batch", micro_batch)):
            training["micro_batch"] = batch
        parameters.setdefault("registry", {})["name"] = slug(f"{self.name}-{suffix}" if suffix else self.name)
        checked(parameters, lambda key: f"the job's {OF_A_JOB.get(key, 'settings')}")
        return parameters

    def _sources(self, files: JobFiles) -> list[dict[str, Any]]:
        kept = KEPT if files.validation else (*KEPT, "validation")
        own = [{"path": str(files.training), "format": "jsonl"}]
        if files.validation:
            own.append({"path": str(files.validation), "format": "jsonl", "use_as": "validation"})
        return own + [each for each in self.parameters["data"]["sources"] if each.get("use_as") in kept]


def largest(name: str) -> int:
    """The bound of a field of the section training, up to which its numbers are accepted."""
    (bound,) = (each.le for each in Training.model_fields[name].metadata if isinstance(each, annotated_types.Le))
    return bound  # pyright: ignore[reportReturnType] all of them are whole numbers


def require_bases(template: Template, tell: Callable[[str], None]) -> None:
    """Raises ConfigError where a base is nowhere; where the hub cannot be reached now, that is told. No weight is read.

    The hub is not asked for a base that is here.
    """
    for base in dict.fromkeys(template.bases.values()):
        models.require_there(base)
        try:
            models.look_up(base, template.settings.model.revision if base == template.settings.model.base else None)
        except models.Unanswered as error:
            tell(str(error))


def load(file: Path, deployment: str | None, assignments: Sequence[str], models: Sequence[str]) -> Template:
    """The template in a deployment file, which need not name data.sources; `models` are those of --model.

    Raises ConfigError.
    """
    document = deployment_file.read(file)
    _give_rows(document)
    pipeline = deployment_file.load(document, deployment, assignments)
    if pipeline.until != "register":
        raise ConfigError(f"{pipeline.origins['until']}: until: a job ends with a registered version; leave it out")
    if prompt := pipeline.settings.method.prompt:
        raise ConfigError(
            f"{file}: method.kind={prompt} trains nothing, and a job is a training; accepted: a method that does"
        )
    folder = file.absolute().parent

    def absolute(path: str, mark: LocalPath) -> str:
        is_name = mark.or_name and not path.startswith(".") and not (folder / path).exists()
        return path if not is_local(path) or is_name else os.path.normpath(folder / path)

    parameters = with_paths("", pipeline.parameters, absolute)
    settings = checked(parameters, lambda key: str(file)).settings()
    bases = _bases(settings.model.base, models)
    return Template(pipeline.settings.registry.name, folder, parameters, settings, bases)


def _give_rows(document: Document) -> None:
    """Name rows in each deployment that names none, as the rows are each job's own."""
    deployments = document.value.get("deployments") if isinstance(document.value, dict) else None
    for each in deployments if isinstance(deployments, list) else ():
        parameters = each.setdefault("parameters", {}) if isinstance(each, dict) else None
        data = parameters.setdefault("data", {}) if isinstance(parameters, dict) else None
        if isinstance(data, dict):
            data.setdefault("sources", [{"path": ROWS_OF_A_JOB}])


def _bases(base: str, models: Sequence[str]) -> dict[str, str]:
    """The bases by the names of requests: each NAME=BASE, each NAME for the file's base, and that base's own name."""
    bases = {re.sub(r"\.gguf$", "", base.rstrip("/").rpartition("/")[2]): base}
    for each in models:
        name, named, other = each.partition("=")
        if named and not other:
            raise ConfigError(
                f"--model {shown(each)}: names no base; accepted: NAME=BASE, or NAME for that of the file"
            )
        if not re.fullmatch(r"[\w./-]{1,100}", name) or name.startswith("ft:"):
            raise ConfigError(f"--model {shown(each)}: accepted: NAME or NAME=BASE, such as gpt-4o-mini=./base")
        is_path = other and is_local(other) and (other.startswith(".") or Path(other).exists())
        bases[name] = str(Path(other).absolute()) if is_path else other or base
    return bases
