"""`tunewright verify` finds whatever was altered of a version, and `reproduce` makes it again, byte by byte."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Harness, Once
from test_cli import ROWS, write_files
from trained import done_once, in_this_process, reproduce_here
from typer.testing import CliRunner

from tunewright.artifacts import ASSIGNMENTS_SCHEMA, Base
from tunewright.artifacts.payloads import VerdictDetails
from tunewright.cli.main import app
from tunewright.config import Registry
from tunewright.evidence.bundle import RUN, EvidenceBundle
from tunewright.registry import alias_history, files
from tunewright.registry.tracking import connected
from tunewright.store import shared
from tunewright.store.manifest import digest_of, files_in
from tunewright.tasks.train import stage

TINY = Registry(name="tiny")
Check = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def finished(
    tiny_base: Base,
    prefect_harness: Harness,
    once: Once,
    mlflow_database: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Path]:
    """The folder of a run that registered version 1 of tiny; a person approved it, and took its alias off and on."""
    folder = tmp_path_factory.mktemp("finished")
    write_files(tiny_base, folder)
    (folder / "home").mkdir()
    shutil.copy(mlflow_database, folder / "home")
    with pytest.MonkeyPatch.context() as patched, prefect_harness():
        done_once(once, patched)
        patched.chdir(folder)
        patched.setenv("TUNEWRIGHT_HOME", str(folder / "home"))
        gate = ("--set", "gate.metric=perplexity", "--set", "gate.confidence=0.8", "--set", "gate.approval=true")
        for call in (
            ["run", "tiny.yaml", *gate],
            ["release", "approve", "tiny", "--reason", "looked at it"],
            ["release", "withdraw", "tiny", "--reason", "bad"],
            ["release", "promote", "tiny", "1", "--reason", "good"],
        ):
            result = CliRunner().invoke(app, call)
            assert not result.exit_code, result.output
        yield folder


@pytest.fixture
def check(finished: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """`check(code)` is the state of each check of version 1 of tiny and what it says, in a copy of the run's folder."""
    shutil.copytree(finished, home.parent, dirs_exist_ok=True)
    monkeypatch.chdir(home.parent)

    def call(code: int) -> dict[str, Any]:
        result = CliRunner().invoke(app, ["verify", "tiny", "--json"])
        assert result.exit_code == code, result.output
        found = json.loads(result.stdout)
        return {each["what"]: (each["state"], each["said"]) for each in found["checks"]}

    return call


def altered(found: dict[str, Any]) -> dict[str, str]:
    return {what: said for what, (state, said) in found.items() if state == "altered"}


def version() -> Any:
    with connected(TINY) as client:
        return client.get_model_version("tiny", "1")


def of_run(home: Path, name: str) -> Path:
    """A file among the artifacts of the run of the decision."""
    (file,) = home.glob(f"mlartifacts/**/{version().tags[RUN]}/artifacts/{name}")
    return file


def edit(file: Path, column: str, change: Callable[[Any], Any]) -> None:
    """Changes the value of the first row in a column."""
    table = pq.read_table(file)
    values = table[column].to_pylist()
    changed = pa.array([change(values[0]), *values[1:]], table.schema.field(column).type)
    pq.write_table(table.set_column(table.schema.get_field_index(column), column, changed), file)


def forge(home: Path, **values: Any) -> None:
    """Makes the evidence agree with its files again, in evidence.json, the tag and what this home keeps."""
    file = of_run(home, "evidence/evidence.json")
    evidence = EvidenceBundle.load_from(file.parent)
    root = file.parents[1]
    digests = {name: digest_of(root / name) for name in evidence.files}
    evidence.model_copy(update={"files": digests, **values}).save(file.parent)
    with connected(TINY) as client:
        client.set_model_version_tag("tiny", "1", files.EVIDENCE, digest_of(file))
    files.remember("tiny", files.model_id(version()), files.EVIDENCE, digest_of(file))


def test_a_version_that_nobody_touched_is_verified(check: Check) -> None:
    found = check(0)
    assert {state for state, _ in found.values()} == {"ok"}
    assert [*found] == [
        *("model files", "evidence", "answers", "verdict", "splits", "artifacts", "source files"),
        "history of @champion",
    ]
    assert found["splits"][1].endswith(" validation rows of split"), "which render may have quarantined some of"


def test_a_byte_of_the_adapter_that_was_changed_is_found(check: Check, home: Path) -> None:
    (weights,) = home.glob("mlartifacts/**/artifacts/model/adapter_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert "adapter_model.safetensors" in altered(check(1))["model files"]


@pytest.mark.parametrize(
    ("name", "column"),
    [("answers/candidate/answers.parquet", "answer"), ("evidence/split/sides.parquet", "row_id")],
)
def test_an_answer_or_a_row_that_was_edited_in_the_evidence_is_found(
    check: Check, home: Path, name: str, column: str
) -> None:
    edit(of_run(home, name), column, lambda value: f"{value}.")
    assert altered(check(1))["evidence"] == f"{name} was altered"


def test_an_edited_answer_is_found_by_its_scores_where_every_digest_was_forged(check: Check, home: Path) -> None:
    edit(of_run(home, "answers/candidate/answers.parquet"), "answer", lambda answer: f"{answer} and more")
    forge(home)
    (said,) = altered(check(1)).values()
    assert "of the candidate is not that of its answer in row" in said


def test_an_edited_score_leads_to_another_verdict_where_every_digest_was_forged(check: Check, home: Path) -> None:
    edit(of_run(home, "answers/candidate/answers.parquet"), "nll", lambda nll: nll + 5)
    forge(home)
    assert altered(check(1))["verdict"].startswith("the kept answers do not lead to it: ")


def test_a_verdict_that_spent_more_than_the_gate_allows_is_found(check: Check, home: Path) -> None:
    folder = of_run(home, VerdictDetails.FILE).parent
    VerdictDetails.load_from(folder).model_copy(update={"confidence": 0.6}).save(folder)
    forge(home)
    assert altered(check(1))["verdict"] == "it was decided at confidence 0.6, below gate.confidence"


def test_a_test_row_that_was_made_a_training_row_is_found_where_every_digest_was_forged(
    check: Check, home: Path
) -> None:
    tested = pq.read_table(of_run(home, "answers/base/answers.parquet"))["row_id"][0].as_py()
    sides = of_run(home, "evidence/split/sides.parquet")
    rows = pq.read_table(sides).to_pylist()
    moved = [row | {"side": "train"} if row["row_id"] == tested else row for row in rows]
    pq.write_table(pa.Table.from_pylist(moved, ASSIGNMENTS_SCHEMA), sides)
    forge(home)
    assert altered(check(1)) == {"splits": "not among the test rows: 1 answered row"}


def test_a_training_row_that_was_swapped_in_this_home_is_found(check: Check, home: Path) -> None:
    (file,) = home.glob("artifacts/split/*/train.parquet")
    edit(file, "row_id", lambda row: row[::-1])
    (said,) = altered(check(1)).values()
    assert said.startswith("split: artifact ") and said.endswith("train.parquet was altered")


def test_a_source_file_that_changed_since_is_told_apart(check: Check, home: Path) -> None:
    forge(home, folder=str(Path.cwd()))  # as if the run had been in this copy of its folder
    Path("rows.jsonl").write_text(f"{json.dumps(ROWS[0])}\n")
    found = check(3)
    assert not altered(found)
    assert found["source files"][0] == "changed"
    assert "rows.jsonl was changed since" in found["source files"][1]


def test_a_verdict_by_a_metric_of_the_teams_is_made_again_where_its_module_is_found(
    check: Check, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = of_run(home, VerdictDetails.FILE).parent
    VerdictDetails.load_from(folder).model_copy(update={"metric": "own_of_team:Exact"}).save(folder)
    forge(home)
    state, said = check(1)["verdict"]
    assert state == "unknown"
    assert said.startswith("not decided again: evaluation.metrics=own_of_team:Exact: there is no module own_of_team;")
    assert said.endswith("PYTHONPATH=FOLDER tunewright verify NAME finds it in FOLDER")


def test_what_was_cleaned_up_is_not_checked(check: Check, home: Path) -> None:
    shutil.rmtree(home / "artifacts")
    forge(home, folder=str(home))
    found = check(0)
    assert {what for what, (state, _) in found.items() if state == "unknown"} == {"artifacts", "source files"}


def test_a_version_that_this_home_knows_is_checked_where_the_store_cannot_be_reached(
    check: Check, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forge(home, folder=str(home))
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(home.with_name("store")))
    assert not altered(check(0))
    assert "the last may be missing unnoticed" in caplog.text
    shutil.rmtree(home / "registered")
    result = CliRunner().invoke(app, ["verify", "tiny"])
    assert result.exit_code == 1 and "has no such folder; accepted: a folder that exists" in result.output


def test_evidence_that_is_gone_is_found(check: Check, home: Path) -> None:
    of_run(home, "evidence/train/metrics.jsonl").unlink()
    assert altered(check(1)) == {"evidence": "evidence/train/metrics.jsonl is missing"}
    of_run(home, "evidence/evidence.json").unlink()
    assert altered(check(1))["evidence"].endswith("is missing")


def test_a_tag_that_was_removed_is_found_by_the_home_and_without_it_nothing_is_verified(
    check: Check, home: Path
) -> None:
    with connected(TINY) as client:
        client.delete_model_version_tag("tiny", "1", files.EVIDENCE)
    assert "this machine registered it with" in altered(check(1))["evidence"]
    shutil.rmtree(home / "registered")
    assert check(1)["evidence"][0] == "unknown"


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("is_deleted", [True, False], ids=["deleted", "edited"])
def test_an_entry_of_the_history_that_was_deleted_or_edited_is_found(
    check: Check, home: Path, position: int, is_deleted: bool
) -> None:
    with connected(TINY) as client:
        tags = client.get_registered_model("tiny").tags
        key = sorted(tag for tag in tags if tag.startswith(alias_history.PREFIX))[position]
        if is_deleted:
            client.delete_registered_model_tag("tiny", key)
        else:
            client.set_registered_model_tag("tiny", key, tags[key].replace('"by":"', '"by":"not '))
    assert ("deleted" if is_deleted else "altered") in altered(check(1))["history of @champion"]
    shutil.rmtree(home / "alias_history")  # another machine wrote it, and the last entry is named by none
    assert bool(altered(check(int(position < 2)))) == (position < 2)


@pytest.fixture
def reproduce(check: Check, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`reproduce()` makes version 1 of tiny again, in this process; the result of the command."""
    del check  # which makes the copy
    monkeypatch.setattr(stage, "_attempt", in_this_process)
    reproduce_here(monkeypatch)
    return lambda *options: CliRunner().invoke(app, ["reproduce", "tiny", "--folder", "again", *options])


def test_a_version_is_made_again_with_the_same_bytes(reproduce: Callable[..., Any], home: Path) -> None:
    evidence = EvidenceBundle.load_from(of_run(home, "evidence/evidence.json").parent)
    data = evidence.settings["data"]
    pattern = {"path": "later/*.jsonl"}
    forge(
        home,
        folder=str(Path.cwd()),
        settings=evidence.settings | {"data": data | {"sources": [*data["sources"], pattern]}},
    )
    Path("later").mkdir()
    Path("later/rows.jsonl").write_text('{"prompt": "came later", "completion": "no"}\n')
    before = sorted(home.glob("artifacts/*/*"))
    result = reproduce()
    assert result.exit_code == 0, result.output
    assert re.search(r"Reproduced: version 1 of tiny, \d+ stages with the same bytes", result.output)
    (ours,), (again,) = (folder.glob("artifacts/train/*/model/*.safetensors") for folder in (home, Path("again/home")))
    assert ours.read_bytes() == again.read_bytes()
    assert sorted(home.glob("artifacts/*/*")) == before


def test_nothing_is_taken_from_the_shared_store_instead_of_made_again(
    reproduce: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forge(home, folder=str(Path.cwd()))
    home.with_name("store").mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(home.with_name("store")))
    shared._opened.cache_clear()
    store = shared.shared_store()
    assert store
    train = next(home.glob("artifacts/train/*/"))
    store.put(shared.path_in_home(train), train, files_in(train))
    before = store.objects("")
    result = reproduce()
    assert result.exit_code == 0, result.output
    assert store.objects("") == before, "nor is anything put there"
    assert "in the store" not in result.output


def test_the_first_stage_with_other_bytes_is_named(reproduce: Callable[..., Any], home: Path) -> None:
    evidence = EvidenceBundle.load_from(of_run(home, "evidence/evidence.json").parent)
    stages = [
        each.model_copy(update={"digest": "0" * 64}) if each.stage in ("train", "evaluate") else each
        for each in evidence.stages
    ]
    forge(home, folder=str(Path.cwd()), stages=stages, packages=evidence.packages | {"torch": "1.0"})
    result = reproduce("--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["is_same"] is False, "progress goes to stderr"
    assert "Not reproduced: version 1 of tiny; train is the first stage with other content" in result.output
    assert "what differs here: torch 1.0, here " in result.output


def test_nothing_is_made_again_of_a_source_file_that_changed(reproduce: Callable[..., Any], home: Path) -> None:
    forge(home, folder=str(Path.cwd()))
    Path("rows.jsonl").write_text(f"{json.dumps(ROWS[0])}\n")
    result = reproduce()
    assert result.exit_code == 3
    assert "rows.jsonl was changed since; restore the file that the version was made of" in result.output
    assert not Path("again").exists()


def test_nothing_is_made_again_in_a_folder_with_files(reproduce: Callable[..., Any], home: Path) -> None:
    forge(home, folder=str(Path.cwd()))
    Path("again").mkdir()
    Path("again", "mine.txt").touch()
    result = reproduce()
    assert result.exit_code == 2
    assert "again: is not empty; accepted: a folder that is not there yet, or is empty" in result.output
    assert [file.name for file in Path("again").iterdir()] == ["mine.txt"]
