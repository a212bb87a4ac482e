"""Checks of a registered version against its evidence: its files, its verdict, its data and the history of its alias.

Nothing is loaded and nothing is asked of a model. What is not on this machine, such as artifacts that were cleaned up,
cannot be checked here, and is said to be so.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import ASSIGNMENTS_FILE, Artifact, General, shown
from tunewright.artifacts.payloads import Comparison, Decision, VerdictDetails
from tunewright.config import Gate, Registry
from tunewright.errors import ConfigError, TunewrightError
from tunewright.evidence.bundle import AGAIN, RUN, EvidenceBundle, StageEvidence, answers_in, fetched, listed
from tunewright.metrics import describe
from tunewright.metrics.catalogue import PER_ROW
from tunewright.registry import alias_history, files, release
from tunewright.registry.alias_state import SENTENCE, lasting
from tunewright.reports.pages import counted
from tunewright.store import manifest
from tunewright.store.lineage import NO_SPLIT

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

Decide = Callable[..., tuple[Any, Decision]]  # tasks/decide: decided
State = Literal["ok", "altered", "changed", "unknown"]
CLOSE = 1e-9  # of figures that are computed again


class Check(NamedTuple):
    """One check: what, and what was found."""

    what: str
    state: State  # changed: source files, which a pipeline's owner may change; unknown: not to be checked here
    said: str


class Verification(NamedTuple):
    """All checks of a version."""

    name: str
    version: str
    checks: list[Check]

    @property
    def state(self) -> State:
        """The worst of all checks; without evidence or a verdict it is worse than with source files that changed."""
        states = {check.state for check in self.checks}
        if "altered" in states:
            return "altered"
        if self.unchecked:
            return "unknown"
        return "changed" if "changed" in states else "ok"

    @property
    def unchecked(self) -> list[str]:
        """The evidence or the verdict, where that cannot be checked here; its check says why."""
        needed = [check for check in self.checks if check.what in ("evidence", "verdict")]
        return [f"the {check.what}" for check in needed if check.state == "unknown"]


def verify(registry: Registry, number: str | None, decide: Decide) -> Verification:
    """Checks the version with this number, or without one that under the alias; `decide` makes the decision again.

    Raises ConfigError where there is no such version, TrackingError where MLflow does not answer.
    """
    with release.opened(registry) as client:
        version = release.chosen(client, registry, number)
        checks = [_model_files(client, version), *_evidence(client, version, decide), _history(client, registry)]
        return Verification(registry.name, str(version.version), checks)


def _model_files(client: "MlflowClient", version: "ModelVersion") -> Check:
    try:
        with files.copied(client, version) as copy:
            number = sum(path.is_file() for path in copy.rglob("*"))
    except TunewrightError as error:
        return Check("model files", "altered", str(error))
    return Check("model files", "ok", f"{counted(number, 'file')} of the version as registered")


def _evidence(client: "MlflowClient", version: "ModelVersion", decide: Decide) -> Iterator[Check]:
    try:
        digest = files.expected(version, files.EVIDENCE)
    except TunewrightError as error:
        yield Check("evidence", "altered", str(error))
        return
    if not digest:
        said = f"none: an earlier Tunewright registered it, or the tag {files.EVIDENCE} was removed; {AGAIN}"
        yield Check("evidence", "unknown", said)
        return
    with tempfile.TemporaryDirectory() as folder:
        local, run_id = Path(folder), version.tags.get(RUN, "")
        evidence, faults = fetched(client, run_id, digest, local)
        if evidence is None:
            yield Check("evidence", "altered", faults[0])
            return
        said = f"{counted(len(evidence.files), 'file')} of run {run_id}"
        yield Check("evidence", "altered" if faults else "ok", listed(faults) or f"{said} as they were kept")
        if not any(fault.endswith("missing") for fault in faults):
            yield _answers(evidence, local)
            yield _verdict(evidence, local, version, decide)
            yield _splits(evidence, local)
        yield _artifacts(evidence)
        yield _sources(evidence)


def _answers(evidence: EvidenceBundle, local: Path) -> Check:
    """The scores in the kept answers are those of their texts."""
    faults, number = [], 0
    for name, table in answers_in(evidence, local).items():
        texts = zip(*(table.column(column).to_pylist() for column in ("answer", "reference")), strict=True)
        pairs = list(texts)
        for metric in (each for each in PER_ROW if each in table.column_names):
            kept = table.column(metric).to_pylist()
            again = [PER_ROW[metric](*pair) for pair in pairs]
            number += len(again)
            if wrong := [row for row, (a, b) in enumerate(zip(kept, again, strict=True)) if not _is_close(a, b)]:
                row = table.column("row_id")[wrong[0]].as_py()[:12]
                faults.append(f"{metric} of the {name} is not that of its answer in row {row}")
    said = f"{counted(number, 'score')} of the kept answers computed again, and equal"
    return Check("answers", "altered" if faults else "ok", listed(faults) or said)


def _verdict(evidence: EvidenceBundle, local: Path, version: "ModelVersion", decide: Decide) -> Check:
    """The verdict is what the kept answers lead to, and the version says what it says."""
    stage = next(each for each in evidence.stages if each.stage == "decide")
    details = VerdictDetails.load_from((local / stage.place(VerdictDetails.FILE)).parent)
    records = {each.of: each.record for each in evidence.stages if each.stage == "evaluate"}
    shares = {name: record.get("alpha_share", 1.0) for name, record in records.items()}
    constant = pq.read_table(local / stage.place("constant.parquet"))
    general = tuple(
        General.model_validate(each.record | {"folder": (local / each.place("general.parquet")).parent})
        for each in evidence.stages
        if each.stage in ("forgetting", "lm_eval")
    )
    gate = Gate.model_validate(evidence.settings["gate"])
    try:
        describe(details.metric)
    except ConfigError as error:  # a class of the team's, whose code the evidence does not have
        missing = str(error).partition("; ")[0]
        found = "PYTHONPATH=FOLDER tunewright verify NAME finds it in FOLDER"
        return Check("verdict", "unknown", f"not decided again: {missing}; {found}")
    if details.confidence < gate.confidence - CLOSE:
        return Check("verdict", "altered", f"it was decided at confidence {details.confidence}, below gate.confidence")
    tables = {name: table for name, table in answers_in(evidence, local).items() if not records[name].get("api")}
    _, again = decide(
        tables,
        general,
        dict(zip(constant["row_id"].to_pylist(), constant["score"].to_pylist(), strict=True)),
        gate.model_copy(update={"confidence": details.confidence}),  # of this use of the test rows
        details.metric,
        is_prose=any(record.get("is_prose") for record in records.values()),
        alpha_shares={name: share for name, share in shares.items() if share < 1},
    )
    if fault := _differing(details, again):
        return Check("verdict", "altered", f"the kept answers do not lead to it: {fault}")
    if lasting(version.tags.get(SENTENCE, "")) != lasting(details.sentence):  # an approval has it say that it passed
        return Check("verdict", "altered", f"the version's tag {SENTENCE} is not the sentence of its verdict.json")
    return Check("verdict", "ok", f"decided again from the kept answers: {shown(details.decision)}")


def _differing(kept: Decision, again: Decision) -> str:
    """Return the first figure in which two decisions differ, whatever their words; empty where there is none."""
    for name in ("decision", "because", "metric", "num_rows", "num_clusters"):
        if getattr(kept, name) != getattr(again, name):
            return f"{name} is {getattr(again, name)}, and verdict.json has {getattr(kept, name)}"
    pairs = ((kept.comparisons, again.comparisons), (kept.guardrails, again.guardrails))
    for ours, theirs in pairs:
        if len(ours) != len(theirs):
            return f"there are {len(theirs)} comparisons, and verdict.json has {len(ours)}"
        for one, other in zip(ours, theirs, strict=True):
            if _figures(one) != _figures(other):
                return f"the comparison with {one.opponent} by {one.metric} is another one"
    return ""


def _figures(comparison: Comparison) -> tuple[Any, ...]:
    texts = (comparison.metric, comparison.opponent, comparison.finding)
    counts = (comparison.num_rows, comparison.wins, comparison.losses, comparison.ties)
    means = (comparison.threshold, comparison.candidate_mean, comparison.opponent_mean, *comparison.difference)
    return (*texts, *counts, *(round(value, 6) for value in means))


def _splits(evidence: EvidenceBundle, local: Path) -> Check:
    """The answered rows are test rows, and none of them is a training row."""
    stage = next((each for each in evidence.stages if each.stage == "split"), None)
    file = local / stage.place(ASSIGNMENTS_FILE) if stage else None
    if file is None or not file.is_file():
        return Check("splits", "unknown", f"{ASSIGNMENTS_FILE} is not among the evidence")
    placed = pq.read_table(file).filter(~pc.field("because").isin(NO_SPLIT))
    of = {
        split: {*placed.filter(pc.field("side") == split)["row_id"].to_pylist()}
        for split in ("train", "validation", "test")
    }
    answered = {row for table in answers_in(evidence, local).values() for row in table["row_id"].to_pylist()}
    if elsewhere := answered - of["test"]:
        return Check("splits", "altered", f"not among the test rows: {counted(len(elsewhere), 'answered row')}")
    if both := of["test"] & (of["train"] | of["validation"]):
        return Check("splits", "altered", f"also in another split: {counted(len(both), 'test row')}")
    others = f"{len(of['train']):,} training and {len(of['validation']):,} validation rows of split"
    said = f"{counted(len(answered), 'answered row')} among the test rows, none among the {others}"
    return Check("splits", "ok", said)


def _artifacts(evidence: EvidenceBundle) -> Check:
    """The stages' artifacts that this home still has are those that the version was made of."""
    here, faults = 0, []
    for stage in evidence.stages:
        if manifest.folder_of(stage.stage, stage.key).is_dir():
            here += 1
            faults += filter(None, [_fault(stage)])
    if not here:
        return Check("artifacts", "unknown", "this home has none of its stages: it was made elsewhere, or cleaned up")
    said = f"{here} of {counted(len(evidence.stages), 'stage')} in this home, each file as it was made"
    return Check("artifacts", "altered" if faults else "ok", listed(faults) or said)


def _fault(stage: StageEvidence) -> str:
    try:
        record = manifest.read(Artifact, stage.stage, stage.key).record
    except manifest.Damaged as damage:
        return f"{stage.name}: {damage}"
    if record.digest != stage.digest:
        return f"{stage.name}: artifact {stage.key} was made again since, with other content"
    return ""


def _sources(evidence: EvidenceBundle) -> Check:
    """The source files that are on this machine are those that were read."""
    paths = {name: Path(evidence.folder, name) for name in evidence.sources}
    here = {name: path for name, path in paths.items() if path.is_file()}
    changed = [f"{name} was changed since" for name, path in here.items() if _digest(path) != evidence.sources[name]]
    if changed:
        return Check("source files", "changed", f"{listed(changed)}: the version was made of what it was then")
    if not here:
        return Check("source files", "unknown", f"none of {counted(len(evidence.sources), 'file')} is on this machine")
    number = counted(len(evidence.sources), "file")
    missing = f"; not checked, as not here: {listed([*(paths.keys() - here.keys())])}" if len(here) < len(paths) else ""
    return Check("source files", "ok", f"{len(here)} of {number} on this machine, as read{missing}")


def _digest(path: Path) -> str:
    try:
        return manifest.digest_of(path)
    except OSError as error:
        return str(error)


def _history(client: "MlflowClient", registry: Registry) -> Check:
    what = f"history of @{registry.alias}"
    if faults := alias_history.faults(client, registry):
        return Check(what, "altered", listed(faults))
    return Check(what, "ok", f"entries as written: {len(alias_history.events_of(client, registry))}")


def _is_close(kept: Any, again: float) -> bool:
    return kept is not None and math.isclose(kept, again, rel_tol=CLOSE, abs_tol=CLOSE)
