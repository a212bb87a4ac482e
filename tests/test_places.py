"""Paths of a deployment file mean the same from every folder: they are relative to the file."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from test_flow import ROWS
from typer.testing import CliRunner

from tunewright import config
from tunewright.artifacts import Base
from tunewright.cli.deployment_file import load, override
from tunewright.cli.main import app
from tunewright.config import called_in, from_here, working_in
from tunewright.modeling.models import identity
from tunewright.store import shared
from tunewright.tasks.base import base
from tunewright.tasks.ingest import ingest, source_files

LINES = [{"instruction": f"Say {word}", "output": word} for word in ("hello", "good bye", "thanks a lot", "welcome")]
FILE = """deployments:
  - name: mine
    entrypoint: tunewright.flows.finetune.finetune
    parameters:
      data: {sources: [{path: ../data/*.jsonl}], max_refused_share: 1}
      model: {base: ../bases/tiny}
"""


@pytest.fixture
def project(tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with data/ and deployments/mine.yaml, which names the data as ../data."""
    for name in ("data", "deployments", "elsewhere", "bases"):
        (tmp_path / "project" / name).mkdir(parents=True)
    shutil.copytree(tiny_base.folder, tmp_path / "project/bases/tiny")
    (tmp_path / "project/data/a.jsonl").write_text("\n".join(map(json.dumps, LINES)))
    (tmp_path / "project/deployments/mine.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def planned(monkeypatch: pytest.MonkeyPatch, folder: Path, file: str, *more: str) -> Any:
    """Return the stages of `plan --json` up to ingest, called in a folder."""
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(app, ["plan", file, "--until", "ingest", "--json", "-q", *more])
    assert done.exit_code == 0, done.output
    assert Path.cwd() == folder
    return json.loads(done.stdout.splitlines()[-1])["stages"]


def test_from_three_folders_a_stage_reads_the_same_files_and_has_the_same_key(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "deployments/mine.yaml"
    called = [(project, "deployments/mine.yaml"), (path.parent, "mine.yaml"), (project / "elsewhere", str(path))]
    assert [planned(monkeypatch, *each)[0]["state"] for each in called] == ["run"] * 3
    monkeypatch.chdir(project)
    data = load(Path("deployments/mine.yaml")).settings.data
    with working_in(Path("deployments")):
        ingest.fn(data=data, files=source_files(data), needs=())
    assert [planned(monkeypatch, *each)[0]["state"] for each in called] == ["cached"] * 3


def test_a_path_of_the_command_line_is_relative_to_where_it_is_called(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "elsewhere/b.jsonl").write_text(json.dumps(LINES[0]))
    monkeypatch.chdir(project / "elsewhere")
    pipeline = load(Path("../deployments/mine.yaml"))

    def sources(*assignments: str) -> list[str]:
        return [source.path for source in override(pipeline, assignments).settings.data.sources]

    assert sources("data.sources=b.jsonl") == ["../elsewhere/b.jsonl"]
    assert sources("data.sources=[{path: sub/*.csv}]") == ["../elsewhere/sub/*.csv"]
    kept = ["s3://bucket/a.jsonl", "hub:org/name", "/data/a.jsonl", "~/a.jsonl"]
    assert sources(f"data.sources={','.join(kept)}") == kept
    changed = override(pipeline, ["model.base=../bases/tiny", "evaluation.json_schema=schema.json"]).settings
    assert (changed.model.base, changed.evaluation.json_schema) == ("../bases/tiny", "../elsewhere/schema.json")
    assert override(pipeline, ["model.base=org/name"]).settings.model.base == "org/name"
    monkeypatch.chdir(project / "deployments")
    assert [s.path for s in override(load(Path("mine.yaml")), ["data.sources=./a.jsonl"]).settings.data.sources] == [
        "./a.jsonl"
    ]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("data: {sources: [{path: data/a.jsonl}]}", "data.sources[0].path=data/a.jsonl: no such file"),
        ("data: {sources: [{path: data/*.jsonl}]}", "data.sources[0].path=data/*.jsonl: no file matches"),
    ],
)
def test_a_path_that_is_there_only_from_the_current_folder_says_what_was_meant(
    project: Path, setting: str, said: str
) -> None:
    Path("deployments/mine.yaml").write_text(FILE.replace("data: {sources: [{path: ../data/*.jsonl}]", setting[:-1]))
    done = CliRunner().invoke(app, ["plan", "deployments/mine.yaml"])
    assert done.exit_code == 2
    meant = said.partition("=")[2].partition(":")[0]
    expected = f"{said}; paths are relative to the deployment file: did you mean ../{meant}?"
    assert done.output.strip() == f"error: deployments/mine.yaml line 5: {expected}"


def test_a_base_that_is_there_only_from_the_current_folder_is_not_taken_for_a_hub_id(project: Path) -> None:
    Path("deployments/mine.yaml").write_text(FILE.replace("../bases/tiny", "bases/tiny"))
    done = CliRunner().invoke(app, ["plan", "deployments/mine.yaml"])
    assert done.exit_code == 2
    assert "model.base=bases/tiny: no such folder" in done.output
    assert done.output.strip().endswith("did you mean ../bases/tiny?")


def test_what_the_environment_names_stays_where_the_command_was_called(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_HOME", "home")
    monkeypatch.setenv("PYTHONPATH", "modules:/else")
    (project / "deployments/of_this_project.py").write_text("")
    with working_in(Path("deployments")):
        assert Path.cwd() == project / "deployments"
        assert config.home() == project / "home"
        assert called_in() == project
        assert from_here(project / "home/a") == Path("home/a")
        assert sys.path[-1] == str(project / "deployments")
    assert Path.cwd() == project
    assert str(project / "deployments") not in sys.path


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "the file is empty; accepted: a file with at least one record"),
        (b"<html></html>", "the file is an HTML page, not data: a download was answered with a web page"),
        (b"\xef\xbb\xbf", "no record in it; accepted: one or more records"),
    ],
)
def test_an_error_about_a_file_names_its_line_its_key_and_its_path_from_here(
    project: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    (project / "data/a.jsonl").write_bytes(content)
    line = next(n for n, text in enumerate(FILE.splitlines(), 1) if "sources" in text)
    path = project / "deployments/mine.yaml"
    here, there = "data/a.jsonl", project / "data/a.jsonl"
    for folder, file, shown in ((project, "deployments/mine.yaml", here), (path.parent, "mine.yaml", there)):
        monkeypatch.chdir(folder)
        done = CliRunner().invoke(app, ["plan", file, "--until", "ingest"])
        assert done.exit_code == 3
        assert done.stderr.splitlines() == [f"error: {file} line {line}: data.sources[0]: {shown}: {said}"]


def test_a_plan_stands_on_the_base_that_is_here_where_the_store_knows_that_of_another_machine(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "store"))
    shared._opened.cache_clear()
    (project / "data/b.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    theirs = shutil.copytree(project / "bases/tiny", tmp_path / "theirs")
    base.fn(reference="../bases/tiny", revision=None, identity=identity(str(theirs)), here=str(theirs))
    shutil.rmtree(theirs)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "another"))
    done = CliRunner().invoke(app, ["plan", "deployments/mine.yaml", "--json", "-q"])
    assert done.exit_code == 0, done.output
    planned = json.loads(done.stdout.splitlines()[-1])
    assert "unknown" not in planned, planned
    stages = {each["stage"]: each for each in planned["stages"]}
    assert stages["base"]["state"] == "run"
    assert stages["check"]["because"] == ["runs after ingest"], (
        "the base's special tokens, which check reads, are known"
    )
