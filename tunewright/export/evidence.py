"""The record in MLflow of how a version was made and measured, from which its model card is made."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from tunewright.artifacts.payloads import VerdictDetails
from tunewright.errors import TunewrightError
from tunewright.registry import files
from tunewright.registry.alias_state import deciding_run, verdict_of
from tunewright.registry.run_writer import CONTEXT
from tunewright.registry.runs import WARNINGS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


class CardEvidence(NamedTuple):
    """How a version was made and measured, and what the latest run that had it found."""

    name: str
    version: str
    params: dict[str, str]  # the settings, flat
    tags: dict[str, str]  # of the run
    verdict: VerdictDetails
    sentence: str  # of the verdict, which does not say that it waits
    rows: dict[str, int]  # split -> rows
    num_replay: int = 0  # general rows among those that train

    @property
    def sources(self) -> list[str]:
        """The names of the sources that it was trained on; not of a user-provided validation or test set."""
        uses = {key: self.params.get(f"{key.removesuffix('path')}use_as") for key in self.params if _is_source(key)}
        paths = (self.params[key] for key, use in uses.items() if use not in ("validation", "test"))
        return list(dict.fromkeys(map(source_name, paths)))

    @property
    def warnings(self) -> list[str]:
        """Warnings of the verdict and the training curves, without advice for whoever trains."""
        said = (*self.tags.get(WARNINGS, "").splitlines(), self.tags.get("training", ""))
        shown = (each.partition("; ")[0].partition(". ")[0] for each in said if each)
        return [each for each in shown if not each.startswith("No warnings")]


def of_version(client: "MlflowClient", version: "ModelVersion", folder: Path) -> CardEvidence:
    """Reads what the run with the latest verdict has. Raises TunewrightError where its verdict is not there."""
    run_id = deciding_run(version)
    run = client.get_run(run_id)
    uri, file = files.uri_of(version), VerdictDetails.FILE
    if file not in [each.path for each in client.list_artifacts(run_id)]:
        raise TunewrightError(
            f"{uri}: run {run_id} in MLflow has no {file}, of which the model card is made; {files.CURE}"
        )
    try:
        verdict = VerdictDetails.load_from(files.download(f"runs:/{run_id}/{file}", folder).parent)
    except ValidationError:
        raise TunewrightError(f"{uri}: {file} of run {run_id} was altered; {files.CURE}") from None
    profiles = dict(_profiles(run.inputs.dataset_inputs if run.inputs else ()))
    return CardEvidence(
        name=version.name,
        version=str(version.version),
        params=run.data.params,
        tags=run.data.tags,
        verdict=verdict,
        sentence=verdict_of(version),
        rows={split: int(profile["num_rows"]) for split, profile in profiles.items()},
        num_replay=int(profiles.get("train", {}).get("num_replay", 0)),
    )


def _profiles(inputs: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The counts of each split of the data that a run has as its inputs."""
    for each in inputs:
        split = next((tag.value for tag in each.tags if tag.key == CONTEXT), None)
        if split and each.dataset.profile:
            yield split, json.loads(each.dataset.profile)


def _is_source(key: str) -> bool:
    return key.startswith("data.sources.") and key.endswith(".path")


def source_name(path: str) -> str:
    """The name of a source for a stranger: of a file its name alone, as its folder is that of a machine."""
    return path if path.startswith(("hf://", "hub:")) else PurePosixPath(path.rstrip("/")).name or path
