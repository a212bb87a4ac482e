"""The targets of benchmarks/fuzz.py: how each kind of input is read, and what has to hold of it.

A target takes bytes and returns "" where they are accepted, or the reason for which they are refused: an error of ours,
of one line. Any other error is a find, and so is an assertion: an account that does not add up, damage that is not
seen, a decision that the order of the rows changes.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fuzz_inputs as inputs
from fuzz_model_targets import MODEL_TARGETS
from fuzz_outside_targets import OUTSIDE_TARGETS
from fuzz_service_targets import SERVICE_TARGETS
from fuzz_target import Target, home, manifest_of, refusal
from hypothesis import strategies as st

from tunewright.artifacts import Artifact
from tunewright.cli import deployment_file
from tunewright.cli.deployment_file import strict_yaml
from tunewright.config import Data, Gate, Source
from tunewright.errors import TunewrightError
from tunewright.registry.files import Registration
from tunewright.store import data_history, disk, manifest, test_set_uses
from tunewright.store.cache_key import key_of
from tunewright.store.manifest import Damaged
from tunewright.tasks.decide.decision import Decision, Evidence, GuardrailTest, decide_scores
from tunewright.tasks.ingest import source_files
from tunewright.tasks.ingest.held_out import write_held_out
from tunewright.tasks.ingest.parts import columns_of
from tunewright.tasks.ingest.readers import read
from tunewright.tasks.ingest.tables import Tables
from tunewright.tasks.train.trainer import checkpoints

DEMO = Path(__file__).parents[1] / "deployments" / "demo.yaml"
MAX_BYTES = 20_000  # of a record


def ingest(content: bytes, name: str) -> str:
    """Each record of a file is a row or a refusal with its reason."""
    with home() as folder:
        (folder / name).write_bytes(content)
        try:
            (file,) = source_files(Data(sources=(Source(path=str(folder / name)),)))
            with Tables(folder) as tables:
                items = read(file, MAX_BYTES, columns_of(file))
                tally = tables.fill(items, file, MAX_BYTES, ("mojibake", "nfc"))
        except TunewrightError as error:
            return refusal(error)
        assert tally.num_read == tally.num_rows + sum(tally.reasons.values())
        assert tally.reasons.keys() == tally.firsts.keys()
        return "" if tally.num_rows else ", ".join(sorted(tally.reasons)) or "no record"


def held_out(content: bytes) -> str:
    """Each record of an evaluation file says something, or stops the run."""
    with home() as folder:
        (folder / "a.jsonl").write_bytes(content)
        data = Data(sources=(Source(path=str(folder / "a.jsonl")),))
        try:
            tallies = write_held_out(folder, source_files(data), data)
        except TunewrightError as error:
            return refusal(error)
        assert sum(tally.num_rows for tally in tallies.values()) <= content.count(b"\n") + content.count(b"\r") + 1
    return ""


def saved(content: bytes) -> str:
    """The state of a folder that `datasets` wrote."""
    with home() as folder:
        (folder / "state.json").write_bytes(content)
        (folder / "data.arrow").write_bytes(b"ARROW1\0\0")
        try:
            source_files(Data(sources=(Source(path=str(folder)),)))
        except TunewrightError as error:
            return refusal(error)
    return ""


def yaml(content: bytes) -> str:
    """Text as strict YAML."""
    try:
        document = strict_yaml.parse(content.decode("utf-8", "surrogateescape"), "a.yaml")
    except TunewrightError as error:
        return refusal(error)
    assert document.place("a.b[0]").startswith("a.yaml line ")
    return ""


def deployment(content: bytes) -> str:
    """A deployment file, as `plan` and `deploy` load it."""
    with home() as folder:
        (folder / "a.yaml").write_bytes(content)
        try:
            for name in deployment_file.names(deployment_file.read(folder / "a.yaml")):
                deployment_file.effective(deployment_file.load(folder / "a.yaml", name))
        except TunewrightError as error:
            return refusal(error)
    return ""


class Record(Artifact, frozen=True):
    """The artifact that the target `manifest` reads."""

    num_rows: int


def _manifest() -> bytes:
    ingredients = {"data.limit": None, "code tunewright.tasks.split:draw": "a1"}
    record = {"stage": "split", "key": key_of("split", ingredients), "digest": "d", "num_rows": 3}
    with home() as folder:
        (folder / "rows").write_bytes(b"rows")
        files = manifest.files_in(folder)
    written = manifest_of(record, "Record", files, ingredients)
    return written.model_dump_json().encode()


MANIFEST = _manifest()


def artifact(content: bytes) -> str:
    """An artifact whose manifest was altered is damaged, whether a digest of the manifest was kept or not."""
    key = json.loads(MANIFEST)["key"]
    with home():
        folder = manifest.folder_of("split", key)
        folder.mkdir(parents=True)
        (folder / "rows").write_bytes(b"rows")
        (folder / manifest.MANIFEST).write_bytes(MANIFEST)
        manifest.remember(folder, "split", key)
        (folder / manifest.MANIFEST).write_bytes(content)
        try:
            manifest.read(Record, "split", key)
        except Damaged as error:
            refusal(error)
        else:
            assert content == MANIFEST, "an altered manifest was accepted"
        manifest.forget("split", key)
        try:
            manifest.read(Record, "split", key)
        except Damaged as error:
            return refusal(error)
    return ""


PART = {"stage": "split", "key": "k", "digest": "d"}
VERSION = {"number": 1, "seed": 0, "by": "cluster", "accepted": "2026-01-01T00:00:00Z", "run": "a", "parent": ""}
VERSION |= {"rows": PART, "checked": PART, "unique": PART, "splits": PART, "counts": {"rows": 3}, "added": 3}
VERSION |= {"removed": None, "replaced": [{"accepted": "2026", "run": "b", "moved": 1, "known": 2, "splits": "d"}]}
LOOK = {
    "candidate": "c",
    "test": "t",
    "decided": "2026",
    "run": "a",
    "verdict": "keep",
    "seed": 1,
    "sample": ["a", "b"],
}
REGISTERED = {"model_id": "m-1", "covers": "digest.files", "sha256": "d"}
READERS: dict[str, Callable[[Path], list[Any]]] = {
    "number": data_history.read,
    "candidate": test_set_uses.read,
    "model_id": lambda file: disk.read(file, Registration, "is no digest of a version; delete the line"),
}


def histories(content: bytes) -> str:
    """Lines of versions, of looks at test rows, or of registered digests; what was read is written and read again."""
    kind = min(READERS, key=lambda key: (content.find(key.encode()) % (1 << 30), key))
    with home() as folder:
        file = folder / "a.jsonl"
        file.write_bytes(content)
        try:
            found = READERS[kind](file)
        except TunewrightError as error:
            return refusal(error)
        file.unlink()
        if kind == "number":
            data_history.write(file, found)
        else:
            for record in found:
                disk.append(file, record)
        assert READERS[kind](file) == found, "what was written is not what is read"
        if kind == "candidate":
            test_set_uses.next_number(found, 1)
    return ""


def _seal() -> bytes:
    with home() as folder:
        (folder / "weights").write_bytes(b"weights")
        checkpoints.seal(folder, 10)
        return (folder / checkpoints.MANIFEST).read_bytes()


SEAL = _seal()


def checkpoint(content: bytes) -> str:
    """A checkpoint whose seal was altered is valid only where the seal still says the same of every file."""
    with home() as folder:
        for step in (10, 20):
            made = checkpoints.at(folder, step)
            made.mkdir()
            (made / "weights").write_bytes(b"weights")
            (made / checkpoints.MANIFEST).write_bytes(SEAL if step == 10 else content)
        assert checkpoints.newest_sealed(folder) == 20
        fault = checkpoints.fault(made)
        assert len(fault.splitlines()) <= 1, fault
        found, skipped = checkpoints.newest_valid(folder)
        assert found == checkpoints.at(folder, 10 if fault else 20)
        assert bool(fault) == bool(skipped)
        assert found
        checkpoints.prune(found)
        assert found.exists()
    return fault


SCORES = st.sampled_from((0.0, 1.0)) | st.floats(0, 1) | st.floats() | st.sampled_from((math.nan, 1e-300, 1e300))
SOME_SCORES = st.one_of(  # a column of one kind: right or wrong, graded, all the same, or anything
    *(st.lists(kind, max_size=40) for kind in (st.sampled_from((0.0, 1.0)), st.floats(0, 1), st.just(0.5), SCORES))
)
CASES = st.fixed_dictionaries(
    {
        "candidate": SOME_SCORES | st.lists(st.just(1.0), min_size=20, max_size=40),
        "base": SOME_SCORES | st.lists(st.just(0.0), min_size=20, max_size=40),
    },
    optional={"champion": SOME_SCORES, "constant": SOME_SCORES, "8-shot": SOME_SCORES},
)
DECISIONS = st.fixed_dictionaries(
    {
        "scores": CASES,
        "guarded": CASES,
        "clusters": st.integers(1, 40),
        "is_cut": st.booleans() | st.just(True),
        "margin": st.sampled_from((0.0, 0.01, 0.5)),
        "at_least": st.none() | st.floats(0, 1, exclude_max=True),
        "confidence": st.floats(0.5, 1, exclude_min=True, exclude_max=True),
        "metric": st.sampled_from(("exact_match", "token_f1", "perplexity")),
    }
).map(inputs.as_json)


def _evidence(metric: str, columns: dict[str, list[float]], num_clusters: int, *, is_cut: bool) -> Evidence:
    num_rows = min(map(len, columns.values())) if is_cut else None
    scores = {
        name: {f"row{at:03}": value for at, value in enumerate(each[:num_rows])} for name, each in columns.items()
    }
    return Evidence(metric, scores, {row: at % num_clusters for at, row in enumerate(scores["candidate"])})


def _turned(evidence: Evidence) -> Evidence:
    turned = {name: dict([*rows.items()][::-1]) for name, rows in evidence.scores.items()}
    return replace(evidence, scores=turned, clusters=dict([*evidence.clusters.items()][::-1]))


def _holds(decision: Decision, margin: float) -> None:
    assert len(decision.sentence.splitlines()) == 1
    for each in (*decision.comparisons, *decision.guardrails):
        low, mean, high = each.difference
        assert low <= mean <= high, each
        assert all(map(math.isfinite, each.difference)), each
    if decision.decision == "promote":
        to_beat = [each for each in decision.comparisons if each.opponent in ("base", "champion", "constant")]
        assert to_beat
        assert all(each.difference[0] > margin >= 0 for each in to_beat), decision.sentence


def decision(content: bytes) -> str:
    """Any scores give a decision, which is the same whatever the order of the rows; who is promoted is better."""
    case = json.loads(content)
    evidence, guarded = (
        _evidence(metric, case[columns], case["clusters"], is_cut=case["is_cut"])
        for metric, columns in ((case["metric"], "scores"), ("stopped", "guarded"))
    )
    gate = Gate(**{name: case[name] for name in ("metric", "margin", "at_least", "confidence")})
    found = decide_scores(evidence, gate, [GuardrailTest(guarded, 0.05)])
    _holds(found, gate.margin)
    again = decide_scores(_turned(evidence), gate, [GuardrailTest(_turned(guarded), 0.05)])
    assert again == found, "the order of the rows changes the decision"
    return "" if found.decision == "promote" else f"{found.decision} {found.because}".strip()


YAML = inputs.faulty(st.just(DEMO.read_bytes()) | inputs.VALUES.map(inputs.as_json))
DEPLOYMENT = strict_yaml.parse(DEMO.read_text(encoding="utf-8"), DEMO.name).value

TARGETS: dict[str, Target] = {
    "jsonl": Target(inputs.JSONL, partial(ingest, name="a.jsonl")),
    "json": Target(inputs.JSON, partial(ingest, name="a.json")),
    "csv": Target(inputs.CSV, partial(ingest, name="a.csv")),
    "parquet": Target(inputs.PARQUET, partial(ingest, name="a.parquet")),
    "arrow": Target(inputs.ARROW, partial(ingest, name="a.arrow")),
    "archives": Target(inputs.ARCHIVES, partial(ingest, name="a.jsonl.gz")),
    "saved": Target(inputs.json_files({"_data_files": [{"filename": "data.arrow"}], "_split": None}), saved),
    "yaml": Target(YAML, yaml),
    "deployment": Target(inputs.faulty(st.just(DEMO.read_bytes())) | inputs.json_files(DEPLOYMENT), deployment),
    "manifest": Target(inputs.faulty(st.just(MANIFEST)) | inputs.json_files(json.loads(MANIFEST)), artifact),
    "histories": Target(
        inputs.faulty(
            st.sampled_from((VERSION, LOOK, REGISTERED))
            .flatmap(lambda line: st.lists(inputs.altered(line), max_size=3))
            .map(lambda records: b"".join(inputs.as_json(record) + b"\n" for record in records))
        ),
        histories,
    ),
    "checkpoint": Target(inputs.faulty(st.just(SEAL)) | inputs.json_files(json.loads(SEAL)), checkpoint),
    "decision": Target(DECISIONS, decision),
    "held-out": Target(inputs.JSONL, held_out),
    **MODEL_TARGETS,
    **OUTSIDE_TARGETS,
    **SERVICE_TARGETS,
}
