"""The evidence that a decision leaves in its MLflow run: `evidence/evidence.json` and the files that it lists.

evidence.json has the digests of every source file, of every stage's artifact and of every file that the verdict was
decided on, the settings, the commit of the code and the versions of all packages. Its own sha256 is the tag
`digest.evidence` of the version, and the machine that registered the version keeps it in `registered/` of its home.
Texts of training rows are not in it: a row is named by its row_id, which is the sha256 of its text.
"""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tunewright.artifacts import ASSIGNMENTS_FILE, Artifact, RunArtifacts
from tunewright.artifacts.payloads import Payload
from tunewright.config import Registry
from tunewright.errors import TunewrightError
from tunewright.registry import files, release
from tunewright.registry.candidate import Candidate
from tunewright.store.cache_key import pipeline_hash
from tunewright.store.code_hashes import commit
from tunewright.store.manifest import MANIFEST, digest_of

if TYPE_CHECKING:
    import pyarrow as pa
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

FOLDER = "evidence"  # among the artifacts of the run
SHOWN = 3  # faults in one line
AGAIN = "run its pipeline again with --refresh register, which keeps it"
RUN = "evidence.run"  # tag of the version: the run of the decision
FILES = {  # stage -> what the verdict rests on of it; what it made of texts stays on its machine
    "check": ("results.json",),
    "split": ("proof.json", ASSIGNMENTS_FILE),
    "render": ("contract.json",),
    "train": ("metrics.jsonl", "summary.json"),
    "prefer": ("metrics.jsonl", "summary.json"),
    "evaluate": ("scores.json",),
    "forgetting": ("general.parquet",),
    "lm_eval": ("general.parquet",),
    "divergence": ("kl.parquet",),
    "judge": ("judged.json", "judged.parquet"),
    "decide": ("constant.parquet",),
}
# Those that the run has in another place, where people look for them.
LOGGED = {"evaluate": ("answers.parquet", "answers/{of}/answers.parquet"), "decide": ("verdict.json", "verdict.json")}


class StageEvidence(BaseModel, frozen=True):
    """The artifact of one stage."""

    stage: str
    of: str  # the contender, where there is one artifact for each
    key: str
    digest: str
    record: dict[str, Any]

    @property
    def name(self) -> str:
        """The stage, and of what."""
        return f"{self.stage} {self.of}".strip()

    def place(self, file: str) -> str:
        """The path of one of its files among the run's artifacts."""
        name, elsewhere = LOGGED.get(self.stage, ("", ""))
        return elsewhere.format(of=self.of) if file == name else str(Path(FOLDER, self.stage, self.of, file))


class EvidenceBundle(Payload, frozen=True):
    """evidence.json: what a version was made of and decided on."""

    FILE = "evidence.json"

    name: str
    identity: str  # of the candidate: of one identity there is one version
    folder: str  # that relative paths of source files start in
    sources: dict[str, str]  # path of a source file -> its sha256
    data_version: int | None
    stages: tuple[StageEvidence, ...]
    settings: dict[str, Any]
    tunewright: str  # version
    commit: str  # of the checkout that the code ran from; empty where it was installed
    code: str  # the hash of all that the pipeline runs
    python: str
    packages: dict[str, str]  # distribution -> version
    files: dict[str, str]  # path among the run's artifacts -> sha256


def keep(client: "MlflowClient", candidate: Candidate, version: "ModelVersion", run_id: str) -> None:
    """Uploads the evidence of a decision to its run, and keeps its digest in a tag of the version and in the home."""
    with tempfile.TemporaryDirectory() as folder:
        digest = write(Path(folder), candidate)
        client.log_artifacts(run_id, folder)
    files.remember(version.name, files.model_id(version), files.EVIDENCE, digest)
    client.set_model_version_tag(version.name, version.version, RUN, run_id)
    client.set_model_version_tag(version.name, version.version, files.EVIDENCE, digest)


def write(folder: Path, candidate: Candidate) -> str:
    """Write the evidence of a candidate to a folder, as its run has it, and return the sha256 of evidence.json."""
    artifacts = tuple(artifacts_of(candidate.run))
    stages, digests = tuple(map(_stage, artifacts)), {}
    for stage, artifact in zip(stages, artifacts, strict=True):
        logged = LOGGED.get(stage.stage, ())[:1]
        for source in filter(Path.is_file, map(artifact.path, (MANIFEST, *FILES.get(stage.stage, ()), *logged))):
            place = stage.place(source.name)
            digests[place] = digest_of(source)
            if source.name not in logged:
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, folder / place)
    evidence = EvidenceBundle(
        name=candidate.name,
        identity=candidate.identity,
        folder=str(Path.cwd()),
        sources=candidate.lineage,
        data_version=candidate.data_version,
        stages=stages,
        settings=candidate.settings.model_dump(mode="json"),
        tunewright=importlib.metadata.version("tunewright"),
        commit=commit(),
        code=pipeline_hash(),
        python=python_version(),
        packages=packages(),
        files=digests,
    )
    evidence.save(folder / FOLDER)
    return digest_of(folder / FOLDER / EvidenceBundle.FILE)


def artifacts_of(run: RunArtifacts) -> Iterator[Artifact]:
    """All artifacts of a run, in the order of the stages."""
    yield from filter(None, (run.base, run.rows, run.rehearsed, run.checked, run.unique, run.splits, run.tokens))
    yield from (*run.before, run.adapter)
    yield from filter(None, (run.prompts, *run.answers, *run.general, run.divergence, run.verdict, run.judged))


def _stage(artifact: Artifact) -> StageEvidence:
    return StageEvidence(
        stage=artifact.stage,
        of=getattr(artifact, "contender", ""),
        key=artifact.key,
        digest=artifact.digest,
        record=artifact.model_dump(mode="json", exclude={"folder"}),
    )


@cache
def packages() -> dict[str, str]:
    """The versions of all distributions that are installed here, read once (it takes half a second)."""
    found = {each["Name"]: each["Version"] for each in map(attrgetter("metadata"), importlib.metadata.distributions())}
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def evidence_of(registry: Registry, number: str | None, local: Path) -> tuple[str, EvidenceBundle]:
    """The version with this number, or that under the alias, and its evidence, whose files are in `local` then.

    Raises ConfigError where there is no such version, TunewrightError as of_version does.
    """
    with release.opened(registry) as client:
        version = release.chosen(client, registry, number)
        return str(version.version), of_version(client, version, local)


def answers_in(evidence: EvidenceBundle, local: Path) -> "dict[str, pa.Table]":
    """The answers of each contender, from the files of the evidence in `local`."""
    import pyarrow.parquet as pq

    return {
        stage.of: pq.read_table(local / stage.place("answers.parquet"))
        for stage in evidence.stages
        if stage.stage == "evaluate"
    }


def of_version(client: "MlflowClient", version: "ModelVersion", local: Path) -> EvidenceBundle:
    """The evidence of a version, whose files are in `local` then.

    Raises TunewrightError where it is missing or was altered.
    """
    digest, run_id = files.expected(version, files.EVIDENCE), version.tags.get(RUN, "")
    if not digest:
        raise TunewrightError(f"{files.uri_of(version)} has no evidence of how it was made: {AGAIN}")
    evidence, faults = fetched(client, run_id, digest, local)
    if evidence is None or faults:
        raise TunewrightError(f"{files.uri_of(version)}: {listed(faults)}; {files.CURE}")
    return evidence


def fetched(client: "MlflowClient", run_id: str, digest: str, local: Path) -> tuple[EvidenceBundle | None, list[str]]:
    """The evidence, with its files in `local`, and what is wrong with them."""
    file = f"{FOLDER}/{EvidenceBundle.FILE}"
    there = {*_paths(client, run_id)}
    if file not in there:
        return None, [f"{file} of run {run_id} is missing"]
    files.download(f"runs:/{run_id}/{file}", local / FOLDER)
    found = next(local.rglob(EvidenceBundle.FILE))
    if files.digest_of(found) != digest:
        return None, [f"{file} of run {run_id} was altered"]
    try:
        evidence = EvidenceBundle.load_from(found.parent)
    except ValidationError:
        return None, [f"{file} of run {run_id} was written by another version of Tunewright, and cannot be read"]
    faults = []
    for name, expected in evidence.files.items():
        if name not in there or ".." in Path(name).parts or Path(name).is_absolute():
            faults.append(f"{name} is missing")
            continue
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        if files.digest_of(files.download(f"runs:/{run_id}/{name}", (local / name).parent)) != expected:
            faults.append(f"{name} was altered")
    return evidence, faults


def _paths(client: "MlflowClient", run_id: str, folder: str = "") -> Iterator[str]:
    for each in client.list_artifacts(run_id, folder):
        if each.is_dir:
            yield from _paths(client, run_id, each.path)
        else:
            yield each.path


def listed(faults: list[str]) -> str:
    """The first faults in one line, and how many more there are."""
    more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more
