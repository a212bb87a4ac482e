"""`tunewright data` after a stop, and of records that are no rows: what a user asks of files as they are."""

import json
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from tunewright.artifacts import ASSIGNMENTS_FILE, ASSIGNMENTS_SCHEMA, Artifact, CheckedRows, Rows, Splits, UniqueRows
from tunewright.cli import data as data_command
from tunewright.cli.data import PipelineData, find, look_up
from tunewright.cli.data import view as data_view
from tunewright.cli.data.as_json import data_json, figures, row_json
from tunewright.config import Checks, Expectation, Model, Registry, Settings, Source, Split
from tunewright.config import Data as DataSection
from tunewright.errors import ConfigError, DataError
from tunewright.flows.calls import Plan, Reached, Step
from tunewright.similarity.prompts import write_boilerplate
from tunewright.store import pipelines
from tunewright.store.data_history import Replaced, Version
from tunewright.store.data_versions import accept, before
from tunewright.tasks.check import check
from tunewright.tasks.ingest import ingest, source_files

CSV = """\
question,reply,notes
"How do I
return
the shoes",Send them,fine
Short one?,Yes,"a
b
c"
"Is it open","no
it is not",x
"""
Planned = Callable[..., None]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("faq.csv").write_text(CSV)
    Path("held.txt").write_text("nobody has seen this question before\n")
    Path("golden.jsonl").write_text(f"{json.dumps({'instruction': 'Are you there?', 'output': 'yes'})}\n")


def settings(*sources: Source, **options: Any) -> Settings:
    data = DataSection(sources=sources, held_out=(Source(path="held.txt"),), **options)
    return Settings(data=data, model=Model(base="x/y"), registry=Registry(name="triage"))


FAQ = Source(path="faq.csv", columns={"instruction": "question", "output": "reply"})
GOLDEN = Source(path="golden.jsonl", use_as="test")


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Planned:
    """`planned(artifacts, stopped)`: a plan finds these, and that the stage after them stopped."""

    def given(artifacts: Sequence[Artifact], stopped: Any = None) -> None:
        stages = list(data_command.RECORDS)
        done = [Step(stage=artifact.stage, state="cached", record=artifact) for artifact in artifacts]
        todo = [Step(stage=stage, state="run", because=["x: 1 -> 2"]) for stage in stages[len(done) :]]
        if stopped:
            todo[0] = Step(stage=stopped.stage, state="run", because=["it stopped"], stopped=stopped)
        monkeypatch.setattr(data_command, "plan", lambda *_: (*done, *todo))

    return given


@pytest.fixture
def look(planned: Planned) -> Callable[..., PipelineData]:
    """`look(settings)`: the data after ingest has read them."""

    def given(asked: Settings) -> PipelineData:
        planned([ingest.fn(asked.data, source_files(asked.data))])
        return look_up(asked)

    return given


def ask(data: PipelineData, **given: str) -> dict[str, Any]:
    return row_json(data, find(data, given.get("row"), given.get("line"), given.get("text")))


def shown(view: Callable[..., None], *arguments: Any) -> str:
    console = Console(file=StringIO(), width=200, highlight=False)
    view(console, *arguments)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("line", "record"), [(2, 2), (3, 2), (4, 2), (5, 5), (6, 5), (7, 5), (8, 8), (9, 8), (1, None), (10, None)]
)
def test_every_line_of_a_csv_record_finds_it(look: Callable[..., PipelineData], line: int, record: int | None) -> None:
    data = look(settings(FAQ))
    if record is None:
        said = "line 1 of a CSV file is its header row" if line == 1 else "no such record"
        with pytest.raises(ConfigError, match=f"--line faq.csv:{line}: {said}"):
            ask(data, line=f"faq.csv:{line}")
        return
    found = ask(data, line=f"faq.csv:{line}")
    assert (found["line"], found.get("asked_line", line)) == (record, line)
    says = f"faq.csv line {record}{f', which line {line} is part of' if line != record else ''}  row "
    assert says in shown(data_view.show_row, data, found, "x.yaml")


def test_of_a_sample_only_the_lines_that_its_texts_have_are_sure_to_be_of_a_record(
    look: Callable[..., PipelineData],
) -> None:
    data = look(settings(FAQ, limit=3))
    assert ask(data, line="faq.csv:4")["line"] == 2
    with pytest.raises(ConfigError, match="no such record"):
        ask(data, line="faq.csv:6")  # in a column that is not read


def test_a_line_of_another_file_is_no_part_of_a_record(look: Callable[..., PipelineData]) -> None:
    with pytest.raises(ConfigError, match="no such record"):
        ask(look(settings(FAQ, GOLDEN)), line="golden.jsonl:2")


@pytest.mark.parametrize("given", [{"line": "held.txt:1"}, {"text": "nobody question"}])
def test_a_held_out_record_is_found_and_is_no_row(look: Callable[..., PipelineData], given: dict[str, str]) -> None:
    data = look(settings(FAQ))
    found = ask(data, **given)
    assert (found["file"], found["line"], found["row_id"], found["missing"]) == ("held.txt", 1, None, "")
    (event,) = found["life"]
    assert (event["stage"], event["outcome"]) == ("ingest", "held out")
    page = shown(data_view.show_row, data, found, "x.yaml")
    assert "never trained on" in page
    assert "held_out.parquet" in page


def test_a_row_says_the_split_that_its_source_gives_and_where_it_stands(look: Callable[..., PipelineData]) -> None:
    data = look(settings(GOLDEN))
    page = shown(data_view.show_row, data, ask(data, line="golden.jsonl:1"), "x.yaml")
    assert "assigned to test" in page
    assert data.made
    assert f"stored in  home/artifacts/ingest/{data.made.rows.key}/rows.parquet" in page


def test_where_the_files_of_each_stage_lie_is_shown(look: Callable[..., PipelineData]) -> None:
    data = look(settings(FAQ))
    (told,) = data_json(data)["stages"]
    assert told["files"] == ["held_out.parquet", "quarantine.parquet", "rows.parquet"]
    assert Path(told["artifact"], "rows.parquet").is_file()
    page = shown(data_view.show_data, data, "x.yaml")
    assert f"home/artifacts/ingest/{Path(told['artifact']).name}/  held_out.parquet, quarantine.parquet" in page


@pytest.fixture
def refused(planned: Planned) -> Settings:
    """Settings of data that ingest stopped on."""
    Path("bad.jsonl").write_text('{"broken": tru\n')
    asked = settings(Source(path="bad.jsonl"))
    files = source_files(asked.data)
    with pytest.raises(DataError):
        ingest.fn(asked.data, files)
    planned([], ingest.fn.look_up(asked.data, files).stopped)  # pyright: ignore[reportFunctionMemberAccess]
    return asked


def test_a_stop_of_ingest_is_told_with_its_reason_its_time_and_what_to_look_at(refused: Settings) -> None:
    data = look_up(refused)
    told = json.loads(json.dumps(data_json(data)))
    assert (told["stages"], told["missing"], told["stopped"]["stage"]) == ([], "ingest", "ingest")
    assert told["stopped"]["message"].startswith("1 of 1 records quarantined, over data.max_refused_share=0.1")
    assert [Path(file).name for file in told["stopped"]["files"]] == ["quarantine.parquet"]
    assert told["stopped"]["first"][0]["reason"] == "bad_json"
    page = shown(data_view.show_data, data, "x.yaml")
    assert f"ingest stopped on {told['stopped']['when'][:10]} " in page
    assert "in a call outside a flow: 1 of 1 records quarantined, over data.max_refused_share=0.1" in page
    assert re.search(r"bad\.jsonl line 1 +bad_json", page)
    assert "see   home/stopped/ingest/" in page
    assert "next  fix the data or the setting named above, then  tunewright run x.yaml --until split" in page
    assert "has not run" not in page
    assert "1 of 1 that ingest quarantined" in page
    assert "refused" not in page.replace("max_refused_share", "")


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-9], lambda content: content[:4] + b"\xff" * 90 + content[94:]]
)
def test_a_damaged_table_of_a_stop_is_one_line_and_changes_no_run(
    refused: Settings, damage: Callable[[bytes], bytes]
) -> None:
    stopped = look_up(refused).stopped
    assert stopped
    table, sound = stopped.paths[0], stopped.paths[0].read_bytes()
    table.write_bytes(damage(sound))
    with pytest.raises(ConfigError, match=r"^home/stopped/ingest/\w+: the table there is damaged \("):
        look_up(refused)
    with pytest.raises(ConfigError, match=r"run tunewright run my\.yaml --until split, which writes it again"):
        look_up(refused, what="my.yaml")
    Path("bad.jsonl").write_text('{"broken": tru\n')  # the same data
    with pytest.raises(DataError, match="1 of 1 records quarantined"):
        ingest.fn(refused.data, source_files(refused.data))
    assert table.read_bytes() == sound, "a run reads the sources, and writes the table again"


@pytest.mark.parametrize("given", [{"line": "bad.jsonl:1"}, {"text": "BROKEN tru"}])
def test_a_record_that_ingest_refused_when_it_stopped_is_found_with_its_reason(
    refused: Settings, given: dict[str, str]
) -> None:
    data = look_up(refused)
    found = ask(data, **given)
    (event,) = found["life"]
    assert (event["stage"], event["outcome"], event["reason"]) == ("ingest", "refused", "bad_json")
    assert data.stopped
    assert event["in"] == str(data.stopped.paths[0])
    page = shown(data_view.show_row, data, found, "x.yaml")
    assert "bad.jsonl line 1  no row, in what ingest quarantined of triage when it stopped" in page
    assert re.search(r"ingest +quarantined +bad_json: ", page)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"line": "bad.jsonl:2"}, r"bad\.jsonl:2: line 2 of bad\.jsonl is not among those that ingest quarantined"),
        ({"line": "other.jsonl:1"}, r"not a file of the current data; files read: bad\.jsonl, held\.txt"),
        ({"text": "nobody"}, "--text nobody: no record that ingest quarantined"),
        ({"row": "ab"}, "--row ab: no record that ingest quarantined"),
    ],
)
def test_where_ingest_stopped_what_it_did_not_refuse_names_the_stop_and_where_to_look(
    refused: Settings, given: dict[str, str], said: str
) -> None:
    of_all = (
        r"; ingest stopped, so none of the data of triage was kept: 1 of 1 records quarantined, over "
        r"data\.max_refused_share=0\.1.*; see home/stopped/ingest/\w+/quarantine\.parquet$"
    )
    with pytest.raises(ConfigError, match=said + of_all):
        ask(look_up(refused), **given)


def test_a_good_line_of_data_that_were_refused_is_not_said_to_be_the_fault(planned: Planned) -> None:
    good = json.dumps({"instruction": "Say hello", "output": "Hello"})
    Path("mixed.jsonl").write_text(f"{good}\n{{\n")
    asked = settings(Source(path="mixed.jsonl"))
    files = source_files(asked.data)
    with pytest.raises(DataError):
        ingest.fn(asked.data, files)
    planned([], ingest.fn.look_up(asked.data, files).stopped)  # pyright: ignore[reportFunctionMemberAccess]
    said = r"line 1 of mixed\.jsonl is not among those that ingest quarantined; .* 1 of 2 .*first mixed\.jsonl line 2"
    with pytest.raises(ConfigError, match=said):
        ask(look_up(asked), line="mixed.jsonl:1")
    assert ask(look_up(asked), line="mixed.jsonl:2")["life"][0]["reason"] == "bad_json"


def grow(planned: Planned, appended: str, share: float) -> PipelineData:
    """A version of one row is accepted; then a line is added, or a setting is other, and ingest stops."""
    line = json.dumps({"instruction": "Say hello", "output": "Hello"})
    Path("grow.jsonl").write_text(f"{line}\n{{\n")
    before, after = (settings(Source(path="grow.jsonl"), max_refused_share=most) for most in (0.5, share))
    rows: Rows = ingest.fn(before.data, source_files(before.data))
    accepted(rows)
    Path("grow.jsonl").write_text(f"{line}\n{{\n{appended}")
    files = source_files(after.data)
    with pytest.raises(DataError):
        ingest.fn(after.data, files)
    planned([], ingest.fn.look_up(after.data, files).stopped)  # pyright: ignore[reportFunctionMemberAccess]
    return look_up(after)


@pytest.fixture
def _of_ingest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the parts of an accepted version to ingest's: accepted() stores no others."""
    monkeypatch.setattr(data_command, "_parts", lambda version: (version.rows,))


@pytest.mark.usefixtures("_of_ingest")
def test_a_line_that_ingest_stopped_on_is_found_although_an_accepted_version_is_shown(planned: Planned) -> None:
    data = grow(planned, "[]\n", 0.5)
    assert data.version
    assert ask(data, line="grow.jsonl:3")["life"][0]["reason"] == "not_an_object"
    assert ask(data, line="grow.jsonl:1")["life"][0]["outcome"] == "read"
    with pytest.raises(
        ConfigError,
        match=r"among the 2 records .data of triage: version 1 .*none that ingest quarantined.*; see home/stopped/",
    ):
        ask(data, line="grow.jsonl:4")
    matches = ask(data, text="{")
    assert matches["line"] == 2, "refused then and now, it is one record"
    since = "changed since: data.sources[0]: grow.jsonl changed (1 line appended); ingest stopped on"
    assert since in shown(data_view.show_data, data, "x.yaml")


@pytest.mark.usefixtures("_of_ingest")
def test_where_ingest_stops_because_of_a_setting_that_setting_is_named(planned: Planned) -> None:
    page = shown(data_view.show_data, grow(planned, "", 0.25), "x.yaml")
    assert "data.max_refused_share: 0.5 -> 0.25; ingest stopped on" in page
    assert "data.sources" not in page
    page = shown(data_view.show_data, grow(planned, "[]\n", 0.25), "x.yaml")
    assert "(1 line appended); data.max_refused_share: 0.5 -> 0.25; ingest stopped on" in page


def test_of_many_refused_records_the_first_ten_are_listed_and_all_are_counted(planned: Planned) -> None:
    Path("many.jsonl").write_text("{\n" * 12)
    asked = settings(Source(path="many.jsonl"))
    files = source_files(asked.data)
    with pytest.raises(DataError):
        ingest.fn(asked.data, files)
    planned([], ingest.fn.look_up(asked.data, files).stopped)  # pyright: ignore[reportFunctionMemberAccess]
    data = look_up(asked)
    told = data_json(data)["stopped"]
    assert (told["num_refused"], len(told["first"])) == (12, 10)
    assert "the first 10 of 12 that ingest quarantined" in shown(data_view.show_data, data, "x.yaml")


STRICT = Checks(expectations=(Expectation(name="length_out_of_bounds", arguments={"max_prompt_chars": 1}),))


@pytest.fixture
def look_again(monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], PipelineData]:
    """`look_again(settings)`: the data as a plan of ingest and check sees them."""

    def given(asked: Settings) -> PipelineData:
        plan = Plan(asked, "check")
        with suppress(Reached):
            rows = plan(ingest)(data=asked.data, files=source_files(asked.data))
            plan(check)(rows=rows, checks=asked.checks, special_tokens=())
        monkeypatch.setattr(data_command, "plan", lambda *_: tuple(plan.steps))
        return look_up(asked)

    return given


@pytest.mark.usefixtures("_of_ingest")
@pytest.mark.parametrize("stage", ["ingest", "check"])
def test_a_stop_is_told_until_the_mended_sources_are_run(
    stage: str, look_again: Callable[[Settings], PipelineData]
) -> None:
    asked = settings(Source(path="golden.jsonl")).model_copy(update={"checks": STRICT})
    good = Path("golden.jsonl").read_text()
    if stage == "ingest":
        Path("golden.jsonl").write_text("{\n")
    files = source_files(asked.data)
    pipelines.note("triage", "ingest", ingest.fn.key(asked.data, files))  # pyright: ignore[reportFunctionMemberAccess]
    with pytest.raises(DataError):
        check.fn(ingest.fn(asked.data, files), STRICT, ())
    assert stage == look_again(asked).stopped.stage  # pyright: ignore[reportOptionalMemberAccess]
    Path("golden.jsonl").write_text(good + good)
    data = look_again(asked)
    told = json.loads(json.dumps(data_json(data)))
    assert (told["missing"], told["stopped"], told["outdated"]["stage"]) == ("ingest", None, stage)
    page = shown(data_view.show_data, data, "x.yaml")
    assert f"before the sources changed, {stage} stopped on {told['outdated']['when'][:10]} " in page
    assert f"see   home/stopped/{stage}/" in page
    assert "next  tunewright run x.yaml --until split" in page
    with pytest.raises(ConfigError, match="no row of triage was read: ingest has not run since the sources changed"):
        ask(data, line="golden.jsonl:1")
    with pytest.raises(ConfigError, match="no stage has run"):
        look_again(settings(Source(path="golden.jsonl", layout="alpaca")).model_copy(update={"checks": STRICT}))
    accepted(ingest.fn(asked.data, source_files(asked.data)))
    Path("golden.jsonl").write_text(good + good + good)
    last = look_again(asked)
    assert (last.outdated, bool(last.changed)) == (None, True), "what was accepted since is shown"


def test_a_stop_of_check_is_the_end_of_the_life_of_the_rows_that_it_refused(planned: Planned) -> None:
    asked = settings(FAQ)
    rows: Rows = ingest.fn(asked.data, source_files(asked.data))
    checks = Checks(expectations=(Expectation(name="length_out_of_bounds", arguments={"max_prompt_chars": 10}),))
    with pytest.raises(DataError):
        check.fn(rows, checks, ())
    planned([rows], check.fn.look_up(rows, checks, ()).stopped)  # pyright: ignore[reportFunctionMemberAccess]
    data = look_up(asked)
    told = ask(data, line="faq.csv:2")
    assert [(event["stage"], event["outcome"]) for event in told["life"]] == [
        ("ingest", "read"),
        ("check", "quarantined"),
    ]
    assert "check stopped on " in shown(data_view.show_row, data, told, "x.yaml")
    page = shown(data_view.show_data, data, "x.yaml")
    assert "see   home/stopped/check/" in page
    assert "report.html" in page
    assert re.search(r"faq\.csv line 2 +length_out_of_bounds", page)
    assert [event["stage"] for event in ask(data, line="faq.csv:8")["life"]] == ["ingest"]


def accepted(rows: Rows) -> Version:
    """A version of these rows of which one went in each stage after ingest, as far as the ledger says."""
    one_less, others = rows.num_rows - 1, Path("others")
    shutil.copytree(rows.folder, others, dirs_exist_ok=True)  # a stage writes to no folder of another
    checked = CheckedRows(
        stage="check", digest="a", num_rows=one_less, num_quarantined=1, reasons={}, findings={}, folder=others
    )
    unique = UniqueRows(
        stage="dedupe", digest="a", num_rows=one_less - 1, num_removed=1, reasons={}, boilerplate=(), folder=others
    )
    splits = Splits(
        stage="split",
        digest="a",
        num_train=one_less - 2,
        num_validation=0,
        num_test=0,
        num_clusters=1,
        num_quarantined=1,
        largest_similarity=0,
        random_leak_share=0,
        folder=others,
    )
    pq.write_table(ASSIGNMENTS_SCHEMA.empty_table(), others / ASSIGNMENTS_FILE)
    (others / "profile.json").write_text("{}")
    write_boilerplate(others, 0.05, {}, {})
    found = before("triage", rows, Split(sticky=False))
    version = accept(found, rows, checked, unique, splits)
    assert version
    return version


def test_every_figure_of_the_versions_adds_up_also_where_rows_are_equal() -> None:
    past = []
    for names in ("aabcdd", "aaabce!", "abbxy!!", "abbxyz"):
        records = ["{" if name == "!" else json.dumps({"instruction": name, "output": "yes"}) for name in names]
        Path("rows.jsonl").write_text("".join(f"{record}\n" for record in records))
        data = settings(Source(path="rows.jsonl"), max_refused_share=1).data
        past.append(figures(accepted(ingest.fn(data, source_files(data)))))
    assert [(each["new"], each["gone"]) for each in past] == [(6, 0), (2, 2), (3, 4), (1, 0)]
    for number, each in enumerate(past):
        count = {name: value or 0 for name, value in each.items()}
        rows = past[number - 1]["rows"] if number else 0
        assert count["read"] == count["refused"] + count["rows"]
        assert count["rows"] == (rows or 0) + count["new"] - count["gone"]
        splits = count["train"] + count["validation"] + count["test"]
        assert count["rows"] == count["quarantined"] + count["removed"] + splits
        assert (count["quarantined"], count["removed"]) == (2, 1)


def test_figures_under_other_settings_than_the_accepted_ones_are_told_apart(planned: Planned) -> None:
    asked = settings(FAQ)
    rows: Rows = ingest.fn(asked.data, source_files(asked.data))
    first = accepted(rows)
    planned([rows])
    assert look_up(asked).is_as_accepted
    checked: CheckedRows = check.fn(rows, Checks(), ())
    planned([rows, checked])
    data = look_up(asked)
    assert not data_json(data)["as_accepted"]
    assert data.title == "data of triage: version 1 of 1, with other settings than when it was accepted"
    page = shown(data_view.show_data, data, "x.yaml")
    assert page.index("The versions below were made with earlier settings") > page.index(checked.digest[:12])
    replaced = Replaced(accepted="2026-01-02T03:04:05Z", run="old-fox", moved=3, known=8)
    again = PipelineData(name="triage", made=data.made, past=[first.model_copy(update={"replaced": (replaced,)})])
    page = shown(data_view.show_data, again, "x.yaml")
    now = first.accepted.replace("T", " ")[:16]  # as in the table above it
    said = "version 1, first accepted on 2026-01-02 03:04 by old-fox: 3 of 8 rows moved to another split on"
    assert f"{said} {now}" in page
    assert page.count(now) > 1
    none = replaced.model_copy(update={"moved": 0})
    again = PipelineData(name="triage", made=data.made, past=[first.model_copy(update={"replaced": (none,)})])
    assert "accepted on" not in shown(data_view.show_data, again, "x.yaml")
