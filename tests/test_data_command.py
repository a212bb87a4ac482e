"""A row's life is what the stages did to it, each named with its reason, and nothing is run to tell it."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer.testing import CliRunner

from tunewright.artifacts import (
    ASSIGNMENTS_SCHEMA,
    FINDINGS_SCHEMA,
    HELD_OUT_SCHEMA,
    QUARANTINE_SCHEMA,
    REMOVED_SCHEMA,
    ROW_SCHEMA,
    SPLIT_SCHEMA,
    Artifact,
    CheckedRows,
    Rows,
    Splits,
    Tokens,
    UniqueRows,
)
from tunewright.cli import data as data_command
from tunewright.cli.data import PipelineData, find, look_up
from tunewright.cli.data import view as data_view
from tunewright.cli.data.as_json import data_json, row_json
from tunewright.cli.main import app
from tunewright.config import STAGES, Model, Registry, Settings, Source, Split, working_in
from tunewright.config import Data as DataSection
from tunewright.errors import ConfigError
from tunewright.flows.calls import Step
from tunewright.similarity.prompts import write_boilerplate
from tunewright.store import lineage
from tunewright.store.caching import cached
from tunewright.store.data_versions import accept, before
from tunewright.tasks.ingest import ingest as ingest_stage
from tunewright.tasks.ingest import source_files
from tunewright.tools.conversation import Conversation, chat_of

FILE = "data/a.jsonl"
Record = dict[str, Any]


@cached()
def ingest(folder: Path, rows: list[Record], refused: list[Record]) -> Rows:
    write(folder / "rows.parquet", rows, ROW_SCHEMA)
    write(folder / "quarantine.parquet", refused, QUARANTINE_SCHEMA)
    write(folder / "held_out.parquet", [], HELD_OUT_SCHEMA)
    return Rows(
        num_read=len(rows) + len(refused),
        num_rows=len(rows),
        num_quarantined=len(refused),
        reasons={},
        detected={FILE: "jsonl, alpaca"},
    )


@cached()
def check(folder: Path, rows: Rows, quarantined: list[Record]) -> CheckedRows:
    write(folder / "quarantine.parquet", quarantined, QUARANTINE_SCHEMA)
    passed = pq.read_table(rows.path("rows.parquet")).to_pylist()
    write(
        folder / "rows.parquet",
        [row for row in passed if row["line"] not in {q["line"] for q in quarantined}],
        ROW_SCHEMA,
    )
    write(folder / "findings.parquet", FOUND, FINDINGS_SCHEMA)
    (folder / "profile.json").write_text("{}")
    left = rows.num_rows - len(quarantined)
    return CheckedRows(num_rows=left, num_quarantined=len(quarantined), reasons={}, findings={})


@cached()
def dedupe(folder: Path, rows: CheckedRows, removed: list[Record]) -> UniqueRows:
    write(folder / "removed.parquet", removed, REMOVED_SCHEMA)
    write_boilerplate(folder, 0.05, {}, {})
    return UniqueRows(num_rows=rows.num_rows - len(removed), num_removed=len(removed), reasons={}, boilerplate=())


@cached()
def split(
    folder: Path,
    rows: UniqueRows,
    splits: dict[str, list[Record]],
    because: dict[str, str],
    quarantined: list[Record],
    earlier: Splits | None,
    twice: tuple[Record, ...] = (),
) -> Splits:
    for split in ("train", "validation", "test"):
        write(folder / f"{split}.parquet", splits.get(split, []), SPLIT_SCHEMA)
    write(folder / "quarantine.parquet", quarantined, QUARANTINE_SCHEMA)
    split_of = {record["row_id"]: split for split, records in splits.items() for record in records}
    known = [{"row_id": key, "side": split_of.get(key, "train"), "because": why} for key, why in because.items()]
    write(folder / "sides.parquet", [*twice, *known], ASSIGNMENTS_SCHEMA)
    return Splits(
        num_train=len(splits.get("train", [])),
        num_validation=len(splits.get("validation", [])),
        num_test=len(splits.get("test", [])),
        num_clusters=1,
        largest_similarity=0.0,
        random_leak_share=0.0,
    )


@cached()
def render(folder: Path, splits: Splits, quarantined: list[Record]) -> Tokens:
    write(folder / "quarantine.parquet", quarantined, QUARANTINE_SCHEMA)
    left = splits.num_train - len(quarantined)
    return Tokens(
        num_train=left,
        num_validation=splits.num_validation,
        num_test=splits.num_test,
        num_quarantined=len(quarantined),
        reasons={},
        num_trained_tokens=0,
        longest=0,
    )


def write(file: Path, rows: list[Record], schema: pa.Schema) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema), file, row_group_size=2)


def row_id(line: int) -> str:
    return f"{line:x}" * 64


def row(line: int, text: str = "", **columns: Any) -> Record:
    messages = [{"role": "user", "content": text or f"question {line}"}, {"role": "assistant", "content": "yes"}]
    where = {"row_id": row_id(line), "source": "a.jsonl", "file": FILE, "line": line, "byte": line * 100}
    return where | {"messages": messages} | columns


def aside(line: int, reason: str, *, row_id: str | None = None, text: str = "") -> Record:
    return {"file": FILE, "line": line, "row_id": row_id, "reason": reason, "detail": f"why {reason}", "text": text}


def repeat(line: int, partner: int, similarity: float) -> Record:
    return {
        "row_id": row_id(line),
        "file": FILE,
        "line": line,
        "reason": "near_duplicate",
        "partner_row_id": row_id(partner),
        "partner_file": FILE,
        "partner_line": partner,
        "similarity": similarity,
        "text": "",
    }


SETTINGS = Settings(
    data=DataSection(sources=(Source(path=FILE),)), model=Model(base="x/y"), registry=Registry(name="triage")
)
AS_GIVEN = (
    {"row_id": row_id(1), "side": None, "because": "repeats_test_row"},
    {"row_id": row_id(1), "side": "test", "because": "given"},
)
REFUSED = [aside(90, "bad_json", text='{"broken": tru')]
FOUND = [
    {"file": FILE, "line": 9, "finding": name, "detail": f"why {name}"} for name in ("cut_off_answer", "personal_data")
]
FIRST = [row(1), row(2)]
ROWS = [
    *FIRST,
    row(3, "A question about\nRED shoes", repairs="mojibake"),
    *(row(4), row(5), row(6), row(7), row(8, use_as="test"), row(9), row(10), row(11)),
]


def first() -> Splits:
    """Version 1: line 1 tests, line 2 trains."""
    rows = ingest(FIRST, [])
    checked = check(rows, [])
    unique = dedupe(checked, [])
    splits = {"train": [row(2, cluster=0)], "test": [row(1, cluster=1)]}
    found = before("triage", rows, Split())
    splits = split(unique, splits, {row_id(1): "drawn", row_id(2): "drawn"}, [], None)
    accept(found, rows, checked, unique, splits)
    return splits


def second(earlier: Splits, *, accepted: bool = True) -> list[Artifact]:
    """Version 2: all that can happen to a row."""
    rows = ingest(ROWS, REFUSED)
    checked = check(rows, [aside(4, "empty_answer", row_id=row_id(4))])
    unique = dedupe(checked, [repeat(5, 2, 0.91), repeat(6, 2, 0.82)])
    splits = {
        "train": [row(2, cluster=0), row(9, cluster=0), row(10, cluster=3), row(11, cluster=4)],
        "validation": [row(3, cluster=2)],
        "test": [row(1, cluster=1), row(8, cluster=5, use_as="test")],
    }
    bridging = [aside(7, "bridges_splits", row_id=row_id(7))]
    because = {
        1: "kept",
        2: "kept",
        3: "by_time",
        7: "bridges_splits",
        8: "given",
        9: "inherited",
        10: "drawn",
        11: "drawn",
    }
    because |= {12: "gone"}
    splits = split(unique, splits, {row_id(line): why for line, why in because.items()}, bridging, earlier)
    tokens = render(splits, [aside(11, "too_many_tokens", row_id=row_id(11))])
    if accepted:
        accept(before("triage", rows, SETTINGS.split), rows, checked, unique, splits)
    return [rows, checked, unique, splits, tokens]


Plan = Callable[[list[Artifact]], None]


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """`planned(artifacts)`: a plan finds these, and would run the stages after them."""

    def given(artifacts: list[Artifact]) -> None:
        there = {artifact.stage: artifact for artifact in artifacts}
        steps = tuple(
            Step(stage=stage, state="cached", record=there[stage])
            if stage in there
            else Step(stage=stage, state="run", because=[f"{stage} changed"])
            for stage in STAGES[: STAGES.index("render") + 1]
            if stage != "rehearse"  # which only training.keep_general has
        )
        monkeypatch.setattr(data_command, "plan", lambda settings, until, refresh: steps)

    return given


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Artifact]]:
    """A home with both versions, all stages run: the one that most tests here start from."""
    home = tmp_path_factory.mktemp("done")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home))
        return home, second(first())


@pytest.fixture
def data(done: tuple[Path, list[Artifact]], home: Path, planned: Plan) -> PipelineData:
    """Version 2 of the data, all stages run, in a copy of its own."""
    shutil.copytree(done[0], home)
    planned(
        [artifact.model_copy(update={"folder": home / artifact.folder.relative_to(done[0])}) for artifact in done[1]]
    )
    return look_up(SETTINGS)


def life(data: PipelineData, line: int) -> dict[str, Any]:
    return row_json(data, find(data, None, f"{FILE}:{line}", None))


def outcomes(data: PipelineData, line: int) -> dict[str, str]:
    return {event["stage"]: event["outcome"] for event in life(data, line)["life"]}


def event(data: PipelineData, line: int, stage: str) -> dict[str, Any]:
    return next(event for event in life(data, line)["life"] if event["stage"] == stage)


def shown(view: Callable[..., None], *arguments: Any) -> str:
    console = Console(file=StringIO(), width=200, highlight=False)
    view(console, *arguments)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as error:
        act()
    return str(error.value)


def test_a_life_ends_where_the_row_was_quarantined(data: PipelineData) -> None:
    read, passed, kept = {"ingest": "read"}, {"check": "passed"}, {"dedupe": "kept"}
    assert outcomes(data, 90) == {"ingest": "refused"}
    assert outcomes(data, 4) == read | {"check": "quarantined"}
    assert outcomes(data, 5) == read | passed | {"dedupe": "removed"}
    assert outcomes(data, 7) == read | passed | kept | {"split": "quarantined"}
    assert outcomes(data, 11) == read | passed | kept | {"split": "train", "render": "quarantined"}
    assert outcomes(data, 1) == read | passed | kept | {"split": "test", "render": "rendered"}


def test_a_row_that_passed_has_its_findings(data: PipelineData) -> None:
    assert event(data, 1, "check")["findings"] == []
    assert [each["finding"] for each in event(data, 9, "check")["findings"]] == ["cut_off_answer", "personal_data"]
    page = shown(data_view.show_row, data, life(data, 9), "x.yaml")
    assert re.search(
        "check +passed +with cut_off_answer: why cut_off_answer; personal_data: why personal_data *\n", page
    )
    assert data.made and data.made.checked
    data.made.checked.path("findings.parquet").unlink()
    assert event(data, 9, "check")["findings"] == [], "an artifact of an earlier release has no such file"


def test_every_record_has_one_life(data: PipelineData) -> None:
    ends = [list(outcomes(data, record["line"]).values())[-1] for record in [*ROWS, *REFUSED]]
    assert {end: ends.count(end) for end in ends} == {"rendered": 6, "quarantined": 3, "removed": 2, "refused": 1}


def test_a_row_that_was_quarantined_has_its_reason(data: PipelineData) -> None:
    (refused,) = life(data, 90)["life"]
    assert refused["in"] == str(next(iter(data.made or ())).path("quarantine.parquet"))
    assert {name: refused[name] for name in ("stage", "outcome", "reason", "detail")} == {
        "stage": "ingest",
        "outcome": "refused",
        "reason": "bad_json",
        "detail": "why bad_json",
    }
    assert event(data, 4, "check")["detail"] == "why empty_answer"
    assert event(data, 7, "split")["reason"] == "bridges_splits"
    removed = event(data, 5, "dedupe")
    assert (removed["reason"], removed["similarity"]) == ("near_duplicate", 0.91)
    assert removed["partner"] == {"file": FILE, "line": 2, "row_id": row_id(2)}


def test_a_row_knows_where_it_came_from_and_what_repeats_it(data: PipelineData) -> None:
    read = event(data, 3, "ingest")
    assert (read["source"], read["byte"], read["repairs"]) == ("a.jsonl", 300, "mojibake")
    kept = event(data, 2, "dedupe")
    assert kept["num_duplicates"] == 2
    assert [(row["line"], row["similarity"]) for row in kept["duplicates"]] == [(5, 0.91), (6, 0.82)]


def test_a_row_knows_why_it_is_on_its_split(data: PipelineData) -> None:
    because = {line: event(data, line, "split")["because"] for line in (1, 3, 8, 9, 10)}
    assert because == {1: "kept", 3: "by_time", 8: "given", 9: "inherited", 10: "drawn"}
    assert event(data, 9, "split")["inherited_from"] == {"file": FILE, "line": 2, "row_id": row_id(2)}
    assert event(data, 10, "split")["inherited_from"] is None


def test_a_row_that_is_nowhere_is_not_explained_away(data: PipelineData) -> None:
    record = {"file": FILE, "line": 1, "row_id": row_id(12)}
    with pytest.raises(ValueError, match=r"data/a.jsonl line 1 is lost"):
        row_json(data, [record])


def test_a_row_knows_its_cluster_and_its_split_in_each_earlier_version(data: PipelineData) -> None:
    placed = event(data, 9, "split")
    assert (placed["outcome"], placed["cluster"], placed["num_in_cluster"]) == ("train", 0, 2)
    assert [other["line"] for other in placed["also_in_cluster"]] == [2]
    assert life(data, 1)["versions"] == [{"version": 1, "split": "test", "because": "drawn"}]
    assert life(data, 9)["versions"] == [{"version": 1, "split": None, "because": None}]
    assert life(data, 90)["versions"] == []
    told = {line: lineage.splits(row_id(line), data.name, data.past)[1] for line in (7, 12)}
    assert told[7] == {"version": 2, "split": None, "because": "bridges_splits"}
    assert told[12] == {"version": 2, "split": None, "because": "gone"}


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({"row": "3"}, [3]),
        ({"row": "3" * 64}, [3]),
        ({"line": "data/a.jsonl:3"}, [3]),
        ({"line": "a.jsonl:90"}, [90]),
        ({"text": "red SHOES about"}, [3]),
        ({"text": "yes 4"}, [4]),
        ({"text": '"BROKEN": tru'}, [90]),
        ({"text": "question 1"}, [1, 10, 11]),
    ],
)
def test_a_row_is_found_by_its_id_its_place_or_its_words(
    data: PipelineData, given: dict[str, str], lines: list[int]
) -> None:
    found = find(data, given.get("row"), given.get("line"), given.get("text"))
    assert [record["line"] for record in found] == lines


def test_a_place_may_begin_in_the_folder_that_the_command_was_called_in(
    data: PipelineData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "team").mkdir()
    monkeypatch.chdir(tmp_path)
    with working_in(Path("team")):
        for line, number in (("team/data/a.jsonl:3", 3), ("./team/data/a.jsonl:90", 90), ("data/a.jsonl:3", 3)):
            assert [record["line"] for record in find(data, None, line, None)] == [number]
        with pytest.raises(ConfigError, match=r"not a file of the current data; files read: data/a\.jsonl"):
            find(data, None, "other/data/a.jsonl:3", None)


def test_of_several_rows_ten_are_listed_and_equal_ones_are_one_row(data: PipelineData) -> None:
    listed = row_json(data, find(data, None, None, "question"))
    assert [match["line"] for match in listed["matches"]] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert listed["more"]
    assert listed["matches"][0]["text"] == "user: question 1\nassistant: yes"
    assert "the first 10" in shown(data_view.show_row, data, listed, "x.yaml")
    twice = [row(1), row(1) | {"line": 2}]
    assert row_json(data, twice)["line"] == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"row": "f" * 64}, "no such record among the 12 records (data of triage: version 2 of 2)"),
        ({"row": "%"}, "--row %"),
        ({"line": "a.jsonl:99"}, "--line a.jsonl:99: no such record"),
        ({"line": "b.jsonl:1"}, "--line b.jsonl:1: not a file of the current data; files read: data/a.jsonl"),
        ({"line": "a.jsonl"}, "accepted: FILE:LINE"),
        ({"line": "a.jsonl:x"}, "accepted: FILE:LINE"),
        ({"text": " "}, "--text: accepted: one word or more"),
        ({"text": "nobody wrote this"}, "--text nobody wrote this: no such record"),
    ],
)
def test_a_row_that_is_not_there_is_one_line(data: PipelineData, given: dict[str, str], said: str) -> None:
    assert said in refusal(lambda: find(data, given.get("row"), given.get("line"), given.get("text")))


def test_line_1_of_a_csv_file_is_its_header(data: PipelineData, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("instruction,output\nSay hello,Hello\n")
    read = DataSection(sources=(Source(path=str(file)),))
    rows = ingest_stage.fn(data=read, files=source_files(read), needs=())
    assert data.made
    of_csv = replace(data, made=replace(data.made, rows=rows), past=())
    assert len(find(of_csv, None, f"{file}:2", None)) == 1
    said = refusal(lambda: find(of_csv, None, f"{file}:1", None))
    assert said.endswith("line 1 of a CSV file is its header row; the first record begins in line 2")


def test_the_stages_name_what_they_were_made_from(data: PipelineData) -> None:
    told = json.loads(json.dumps(data_json(data)))
    stages = {stage["stage"]: stage for stage in told["stages"]}
    assert list(stages) == ["ingest", "check", "dedupe", "split", "render"]
    assert stages["check"]["parents"] == {"ingest": stages["ingest"]["digest"]}
    assert stages["split"]["parents"]["dedupe"] == stages["dedupe"]["digest"]
    assert stages["split"]["parents"]["split"] == told["versions"][0]["splits"]["digest"], "the splits it went on from"
    assert stages["ingest"]["rows"] == {"read": 12, "rows": 11, "quarantined": 1, "held_out": 0, "general": 0}
    assert Path(stages["split"]["artifact"], "manifest.json").is_file()
    assert (told["name"], told["version"], told["missing"]) == ("triage", 2, "")
    assert [(v["number"], v["added"], v["removed"]) for v in told["versions"]] == [(1, 2, 0), (2, 9, 0)]


def test_a_sample_is_called_so_and_where_a_record_is_missing_too(planned: Plan) -> None:
    planned(second(first(), accepted=False))
    data = look_up(SETTINGS.model_copy(update={"data": SETTINGS.data.model_copy(update={"limit": 12})}))
    assert data.title == "data of triage: a sample (data.limit=12), which is not recorded as a version"
    with pytest.raises(ConfigError, match=r"no such record among the 12 records drawn by data\.limit=12"):
        find(data, None, "a.jsonl:99", None)


def test_what_has_not_run_is_named_with_the_command_that_runs_it(planned: Plan) -> None:
    made = second(first(), accepted=False)
    planned(made[:2])
    data = look_up(SETTINGS)
    assert data.title == "data of triage: not recorded as a version yet"
    assert (data.missing, list(data.because)) == ("dedupe", ["dedupe changed"])
    assert life(data, 1)["missing"] == "dedupe"
    assert life(data, 4)["missing"] == "", "its life has ended"
    page = shown(data_view.show_row, data, life(data, 1), "x.yaml --set split.seed=1")
    assert "dedupe has not run on these data: dedupe changed" in page
    assert "tunewright run x.yaml --set split.seed=1 --until split" in page
    planned(made[:4])
    assert "--until render" in shown(data_view.show_data, look_up(SETTINGS), "x.yaml")


def test_the_page_of_duplicates_is_said_to_show_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("")
    said = {}
    for reason in ("exact_duplicate", "near_duplicate"):
        unique = UniqueRows(folder=tmp_path, num_rows=6, num_removed=2, reasons={reason: 2}, boilerplate=())
        said[reason] = shown(data_view._show_duplicates, unique, "x.yaml")
    assert "report.html counts them by reason" in said["exact_duplicate"]
    assert "nearest" not in said["exact_duplicate"]
    assert "report.html shows the pairs nearest to the threshold" in said["near_duplicate"]


def test_where_the_sources_changed_the_version_accepted_last_is_shown(data: PipelineData, planned: Plan) -> None:
    planned([])
    last = look_up(SETTINGS)
    assert last.version == data.version
    assert (last.missing, list(last.changed)) == ("", ["ingest changed"])
    page = shown(data_view.show_data, last, "x.yaml")
    assert "have changed since: ingest changed" in page
    assert "tunewright run x.yaml --until split" in page


def test_a_given_test_row_stands_on_its_split_although_a_row_that_says_the_same_was_quarantined(
    home: Path, planned: Plan
) -> None:
    del home
    same = row(12, use_as="test") | {"row_id": row_id(1)}
    rows = ingest([row(1), row(2), same], [])
    checked = check(rows, [])
    unique = dedupe(checked, [])
    splits = {"train": [row(2, cluster=0)], "test": [same | {"cluster": 1}]}
    splits = split(
        unique, splits, {row_id(2): "drawn"}, [aside(1, "repeats_test_row", row_id=row_id(1))], None, AS_GIVEN
    )
    accept(before("triage", rows, SETTINGS.split), rows, checked, unique, splits)
    planned([rows, checked, unique, splits])
    data = look_up(SETTINGS)
    assert (event(data, 12, "split")["outcome"], event(data, 12, "split")["because"]) == ("test", "given")
    assert event(data, 1, "split")["reason"] == "repeats_test_row"
    assert lineage.splits(row_id(1), data.name, data.past) == [{"version": 1, "split": "test", "because": "given"}]


def test_a_row_that_another_version_has_is_said_to_be_there(data: PipelineData) -> None:
    said = refusal(lambda: find(look_up(SETTINGS, "1"), None, f"{FILE}:9", None))
    assert said.endswith("among the 2 records (data of triage: version 1 of 2); version 2 has it: add --version 2")
    assert "has it" not in refusal(lambda: find(data, None, f"{FILE}:99", None))


def test_an_earlier_version_can_be_looked_at(data: PipelineData) -> None:
    old = look_up(SETTINGS, "1")
    assert old.title == "data of triage: version 1 of 2"
    assert outcomes(old, 2) == {"ingest": "read", "check": "passed", "dedupe": "kept", "split": "train"}
    assert life(old, 2)["versions"] == []
    assert "accepted: 1, 2" in refusal(lambda: look_up(SETTINGS, "3"))
    for number in ("x", "1.5", "-1", ""):
        assert refusal(lambda number=number: look_up(SETTINGS, number)) == f"--version {number}: accepted: a number"


def test_a_version_whose_files_are_gone_is_one_line(data: PipelineData) -> None:
    assert data.version
    (data.past[0].checked.folder / "quarantine.parquet").unlink()
    said = refusal(lambda: look_up(SETTINGS, "1", "my.yaml"))
    assert "version 1 of the data of triage" in said
    assert "is missing or altered (a backup has no artifacts); run tunewright run my.yaml --until split first" in said


def test_before_the_first_run_there_is_nothing_to_show(planned: Plan, home: Path) -> None:
    planned([])
    said = refusal(lambda: look_up(SETTINGS, what="my.yaml"))
    assert "no stage has run on the data of" in said and "next: tunewright run my.yaml --until split" in said


def test_the_command_to_run_first_names_the_given_file(home: Path) -> None:
    done = CliRunner().invoke(app, ["data", "deployments/demo.yaml", "--set", "split.seed=7"])
    assert (done.exit_code, home.exists()) == (2, False)
    assert "next: tunewright run deployments/demo.yaml --set split.seed=7 --until split" in done.stderr
    assert not home.exists()


def test_a_person_reads_the_same(data: PipelineData) -> None:
    page = shown(data_view.show_data, data, "x.yaml")
    assert "data of triage: version 2 of 2" in page
    assert "jsonl, alpaca" in page
    assert "11 rows, 1 quarantined" in page
    assert data.made and data.made.unique
    table = data.made.unique.path("removed.parquet")
    assert f"duplicates: {table} lists all 2 rows, each with the row it repeats\n" in page
    assert "one of them: tunewright data x.yaml --line FILE:LINE\n" in page
    one = shown(data_view.show_row, data, life(data, 9), "x.yaml")
    assert "inherited from data/a.jsonl line 2 (near-duplicate or same group); cluster 0 with" in one
    assert "not in version 1\n" in one
    gone = shown(data_view.show_row, data, life(data, 5), "x.yaml")
    assert "near_duplicate of data/a.jsonl line 2 (row 222222222222), similarity 0.91" in gone
    refused = shown(data_view.show_row, data, life(data, 90), "x.yaml")
    assert "no row, in data of triage: version 2" in refused
    assert all("quarantined" in text and "refused" not in text for text in (page, refused))  # one word for both


def test_text_of_a_row_is_no_markup(data: PipelineData) -> None:
    record = row(1, "[bold]not bold[/nothing]")
    found = {name: record[name] for name in ("file", "line", "row_id", "messages")}
    assert "[bold]not bold[/nothing]" in shown(data_view.show_row, data, row_json(data, [found]), "x.yaml")


def test_a_preference_pair_is_shown_with_its_rejected_answer(home: Path, planned: Plan) -> None:
    pair = row(1, "A long question. " * 40)
    pair["chat"] = chat_of(Conversation(pair["messages"], rejected="a bad answer " * 40))
    planned([ingest([pair, row(2)], [])])
    data = look_up(SETTINGS)
    for named in ((row_id(1), None, None), (None, f"{FILE}:1", None), (None, None, "long")):
        found = row_json(data, find(data, *named))
        said, _, rejected = found["text"].partition("\nrejected: ")
        assert said.startswith("user: A long question. ")
        assert rejected.startswith("a bad answer a bad answer ")
        assert "rejected: a bad answer" in shown(data_view.show_row, data, found, "x.yaml")
    assert "rejected" not in row_json(data, find(data, None, f"{FILE}:2", None))["text"]
