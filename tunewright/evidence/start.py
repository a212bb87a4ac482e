"""The version that a training begins as with model.start=champion: the one under the alias, where its data only grew.

A version of the same training rows is begun as it was itself. So data that did not change lead to the training that is
there, whichever version the last one has promoted, and other settings are tried from the same weights.
"""

import json
import tempfile
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright import config
from tunewright.artifacts import ASSIGNMENTS_FILE, Artifact, Base, Scan, Splits, Tokens
from tunewright.artifacts.payloads import Contract
from tunewright.config import Method, Registry
from tunewright.errors import DataError
from tunewright.evidence.bundle import EvidenceBundle, of_version
from tunewright.registry import files
from tunewright.registry.tracking import connected, patient
from tunewright.registry.versions import current_version, verified
from tunewright.store.cache_key import flat
from tunewright.store.lineage import NO_SPLIT
from tunewright.store.manifest import MANIFEST, Manifest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

STAGE = "version"  # of the weights in the key of a training


class Start(NamedTuple):
    """The weights that a training begins with, None for the base's, and which these are and why, in words."""

    weights: Artifact | None
    said: str


GIVEN: ContextVar[Start | None] = ContextVar("given", default=None)  # that of a version which is made again


@patient
def expected(registry: Registry) -> Start:
    """The start as far as it is known before the training rows are made."""
    if registry.tracking_uri is not None or config.mlflow_database().exists():
        with connected(registry) as client:
            if current_version(client, registry):
                return Start(None, "begins as the champion where the training rows only grew")
    return _first(registry)


def _first(registry: Registry) -> Start:
    return Start(None, f"begins as the base: no version is {registry.alias} yet")


@patient
def start(registry: Registry, method: Method, base: Base, splits: Splits, tokens: Tokens, scan: Scan | None) -> Start:
    """The start of a training by these inputs.

    Raises TunewrightError where the champion's files or its evidence were altered.
    """
    if registry.tracking_uri is None and not config.mlflow_database().exists():
        return _first(registry)
    with connected(registry) as client, tempfile.TemporaryDirectory() as folder:
        version = current_version(client, registry)
        if version is None:
            return _first(registry)
        which = f"version {version.version}"
        if not files.expected(version, files.EVIDENCE):
            return Start(None, f"begins as the base: {which} has no evidence of how it was made")
        champion = _Made(of_version(client, version, Path(folder)), Path(folder))
        if fault := next(champion.differs(method, base, tokens, scan), ""):
            return Start(None, f"begins as the base and not as {which}: {fault}")
        now, seen = _ids(splits), champion.rows()
        if gone := len(seen - now):
            fault = f"{gone:,} of its {len(seen):,} training rows are not in the training split any more"
            return Start(None, f"begins as the base and not as {which}: {fault}")
        if seen < now:
            more = f"the training rows have grown from {len(seen):,} to {len(now):,}"
            return Start(_weights(client, version, champion.digest), f"begins as {which}: {more}")
        return _as_it_began(client, registry, champion, which)


class _Made:
    """The training of a version, by its evidence, whose files are in a folder."""

    def __init__(self, evidence: EvidenceBundle, folder: Path) -> None:
        self.stages = {stage.stage: stage for stage in evidence.stages}
        self.folder = folder
        written = folder / self.stages["train"].place(MANIFEST) if "train" in self.stages else None
        made = Manifest.model_validate_json(written.read_bytes()) if written else None
        self.inputs: dict[str, Any] = made.ingredients if made else {}
        self.began_as: str = made.record.get("began_as", "") if made else ""

    @property
    def digest(self) -> str:
        return self.stages["train"].digest

    def differs(self, method: Method, base: Base, tokens: Tokens, scan: Scan | None) -> Iterator[str]:
        """Why a training by these inputs cannot go on from its weights."""
        if "examples" in self.stages:
            yield "it is a prompt and was not trained"
        if "train" not in self.stages or self.stages.keys() & {"prefer", "reinforce"}:
            yield "it was trained on preferences or rewards as well"
        if self.stages["base"].record["weights_digest"] != base.weights_digest:
            yield "it has another base"
        for name, value in flat("method", method):
            if self.inputs.get(name) != value:
                yield f"{name} was {json.dumps(self.inputs.get(name))}"
        if self.inputs.get("scan") != (scan and f"{scan.stage} {scan.digest}"):
            yield "it trained other modules"
        theirs = Contract.load_from((self.folder / self.stages["render"].place(Contract.FILE)).parent)
        if theirs.chat_template_sha256 != Contract.load(tokens).chat_template_sha256:
            yield "it has another chat template"

    def rows(self) -> set[str]:
        """The row_ids of its training rows."""
        placed = pq.read_table(self.folder / self.stages["split"].place(ASSIGNMENTS_FILE))
        trained = (pc.field("side") == "train") & ~pc.field("because").isin(NO_SPLIT)
        return {*placed.filter(trained)["row_id"].to_pylist()}


def _as_it_began(client: "MlflowClient", registry: Registry, champion: _Made, which: str) -> Start:
    """The start of the champion itself, whose training rows are those of now."""
    rows = f"{which}, which has the same training rows"
    if not champion.began_as:
        return Start(None, f"begins as the base, as did {rows}")
    began = _began(client, registry, champion)
    if began is None:
        gone = f"version {champion.began_as} is not in MLflow any more, as which {rows}, began"
        return Start(None, f"begins as the base: {gone}")
    return Start(began, f"begins as version {champion.began_as}, as did {rows}")


def _began(client: "MlflowClient", registry: Registry, made: _Made) -> Artifact | None:
    """The weights of the version that one was begun as; None where it is not in MLflow any more."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version(registry.name, made.began_as)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return _weights(client, version, str(made.inputs["begins_as"]).removeprefix(f"{STAGE} "))


def start_of(registry: Registry, evidence: EvidenceBundle, folder: Path) -> Start:
    """The start of the training of a version with this evidence, whose files are in `folder`.

    Raises DataError where it is a version that is not in MLflow any more.
    """
    made = _Made(evidence, folder)
    if not made.began_as:
        return Start(None, "begins as the base, as it did")
    with connected(registry) as client:
        if (began := _began(client, registry, made)) is None:
            raise DataError(
                f"it was begun as version {made.began_as} of {registry.name}, which is not in MLflow any more; restore "
                "that from a backup of MLflow"
            )
        return Start(began, f"begins as version {made.began_as}, as it did")


def _weights(client: "MlflowClient", version: "ModelVersion", digest: str) -> Artifact:
    """The weights of a version, in a verified copy of its files; `digest` is that of the training that made them."""
    folder = verified(client, version) / "artifacts"
    return Artifact(stage=STAGE, key=str(version.version), digest=digest, folder=folder)


def _ids(splits: Splits) -> set[str]:
    return {*pq.read_table(splits.path("train.parquet"), columns=["row_id"])["row_id"].to_pylist()}
