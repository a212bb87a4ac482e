"""The bill of materials of an exported folder says what the evidence says, by the schema, and in the same bytes."""

import json
import logging
import shutil
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import exporting
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from exporting import refused
from registered import versions

from tunewright.artifacts import Base, Registered
from tunewright.config import Registry
from tunewright.evidence.bundle import EvidenceBundle, StageEvidence
from tunewright.export import bom, signing
from tunewright.registry import files
from tunewright.registry.tracking import connected
from tunewright.store.manifest import digest_of

Make = Callable[..., Registered]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("tunewright"), "handlers", [])


def written(folder: Path) -> dict[str, Any]:
    """The bill of materials in a folder, which the library's own validator accepts."""
    text = (folder / bom.FILE).read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.6")
    return found


def hashes(components: list[dict[str, Any]]) -> dict[str, str]:
    """The sha256 of each file among components."""
    return {each["name"]: each["hashes"][0]["content"] for each in components}


def properties(component: dict[str, Any]) -> dict[str, str]:
    return {each["name"].removeprefix("tunewright:"): each["value"] for each in component["properties"]}


def as_an_artifact(base: Base, folder: Path) -> Base:
    """A base whose files the run made itself, so that the evidence has the digest of each."""
    weights = shutil.copytree(base.weights, folder / "weights")
    listed = {f"weights/{file.name}": {"sha256": digest_of(file)} for file in weights.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"files": listed}))
    return base.model_copy(update={"folder": folder, "location": Path("weights")})


def test_the_bill_of_an_export_says_what_the_evidence_says_in_the_same_bytes(
    register_candidate: Make, tiny_base: Base, tmp_path: Path
) -> None:
    base = as_an_artifact(tiny_base, tmp_path / "base")
    register_candidate(base=base)
    for name in ("out", "again"):
        options = ("--to", "merged", "--bom", "--license", "apache-2.0")
        result = exporting.export(tmp_path / name, *options)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / bom.FILE).read_bytes() == (tmp_path / "again" / bom.FILE).read_bytes()
    found = written(tmp_path / "out")
    assert str(tmp_path) not in json.dumps(found)

    model = found["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "triage", "1")
    assert model["licenses"][0]["license"]["id"] == "Apache-2.0"
    there = {each.name: digest_of(each) for each in (tmp_path / "out").iterdir() if each.name != bom.FILE}
    assert hashes(model["components"]) == there
    (version,) = versions()
    registered = datetime.fromtimestamp(version.creation_timestamp // 1000, UTC)
    assert datetime.fromisoformat(found["metadata"]["timestamp"]) == registered
    assert properties(model) == {"form": "merged", "dtype": "float32"} | {
        tag: version.tags[tag] for tag in (files.FILES, files.EVIDENCE)
    }

    card = model["modelCard"]
    assert card["modelParameters"]["modelArchitecture"] == "LlamaForCausalLM"
    assert properties(card).items() >= {"method.kind": "lora", "training.seed": "0", "verdict": "promote"}.items()
    assert card["considerations"]["technicalLimitations"]

    others = {each["bom-ref"]: each for each in found["components"]}
    assert hashes(others["base"]["components"]) == {file.name: digest_of(file) for file in base.weights.iterdir()}
    assert properties(others["base"]) == {"digest.base": base.weights_digest}
    assert hashes([others["data:1"]]) == {"data.jsonl": "0" * 64}
    assert [each["ref"] for each in card["modelParameters"]["datasets"]] == ["data:1", "data:splits"]
    torch = next(each for each in found["components"] if each["name"] == "torch")
    assert torch["purl"].startswith(f"pkg:pypi/torch@{torch['version'].partition('+')[0]}")
    assert torch["scope"] == "excluded"  # it made the version, and is not in the folder
    (depends,) = (each["dependsOn"] for each in found["dependencies"] if each["ref"] == "model")
    assert depends == ["base", "data:1", "data:splits"]


def test_a_signed_export_has_a_bill_that_names_a_base_of_the_hub_by_its_commit(
    register_candidate: Make, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: tuple[Path, Path]
) -> None:
    snapshot = shutil.copytree(tiny_base.weights, tmp_path / "snapshots" / "abc123")
    monkeypatch.setattr("tunewright.serving.download", lambda *_: snapshot)
    register_candidate(base=tiny_base.model_copy(update={"reference": "org/tiny"}))
    folder = tmp_path / "out"
    result = exporting.export(folder, "--to", "adapter", "--bom", "--sign-with", str(key[0]), "--json")
    assert result.exit_code == 0, result.output
    listed = {each["path"] for each in json.loads(result.stdout.splitlines()[-1])["files"]}
    assert listed == {path.name for path in folder.iterdir()} >= {bom.FILE, signing.FILE}
    found = written(folder)
    base = next(each for each in found["components"] if each["bom-ref"] == "base")
    assert (base["name"], base["version"], base["purl"]) == ("org/tiny", "abc123", "pkg:huggingface/org/tiny@abc123")
    assert found["metadata"]["component"]["pedigree"]["ancestors"][0]["purl"] == base["purl"]
    assert "licenses" not in found["metadata"]["component"]  # none was given
    assert signing.fault(folder, key[1]) == ""
    (folder / bom.FILE).write_text("{}")
    assert "Hash mismatch for 'bom.cdx.json'" in signing.fault(folder, key[1])


def test_a_source_on_the_hub_has_its_commit_and_a_file_its_name_alone() -> None:
    read = StageEvidence(
        stage="ingest", of="", key="", digest="", record={"detected": {"/ours/a.jsonl": "jsonl"}, "given": {}}
    )
    sources = {"/ours/a.jsonl": "a" * 64, "hub:org/set": "b" * 40}
    found: Any = bom._sources(EvidenceBundle.model_construct(stages=(read,), sources=sources))
    local, remote = found
    assert (local.name, local.version, local.description) == ("a.jsonl", None, "jsonl")
    assert [each.content for each in local.hashes] == ["a" * 64]
    assert (remote.name, remote.version, [*remote.hashes]) == ("hub:org/set", "b" * 40, [])


def test_a_version_without_evidence_has_no_bill(register_candidate: Make, home: Path, tmp_path: Path) -> None:
    register_candidate()
    shutil.rmtree(home / "registered")
    with connected(Registry(name="triage")) as client:
        client.delete_model_version_tag("triage", "1", files.EVIDENCE)
    line = refused(exporting.export(tmp_path / "out", "--to", "merged", "--bom"), tmp_path / "out")
    assert "models:/triage/1 has no evidence of how it was made: run its pipeline again with --refresh register" in line


@pytest.mark.parametrize(
    ("missing", "options", "error"),
    [
        ("cyclonedx", ["--bom"], "--bom: cyclonedx is not installed; pip install 'tunewright[bom]'"),
        (
            "model_signing",
            ["--sign-with", "key.pem"],
            "--sign-with: model_signing is not installed; pip install 'tunewright[sign]'",
        ),
    ],
)
def test_an_extra_that_is_not_installed_is_named_before_anything_is_done(
    missing: str, options: list[str], error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, "tunewright.export.signing")
    monkeypatch.delattr("tunewright.export.signing")
    line = refused(exporting.export(tmp_path / "out", "--to", "merged", *options), tmp_path / "out", code=2)
    assert line == f"error: {error}"
