"""A check that stops a run gives the reason in one line, and reports every failure."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import BAD, FOUND, GOOD, KEY, LENIENT, SPECIAL, changed, only, turns
from conftest import MakeRows

from tunewright.artifacts import ROW_SCHEMA
from tunewright.config import Checks
from tunewright.errors import DataError
from tunewright.tasks.check import check


def with_messages(messages: list[Any]) -> pa.Table:
    rows = [
        {"row_id": str(n), "source": "s", "file": "d.jsonl", "line": n, "messages": given}
        for n, given in enumerate(messages, start=1)
    ]
    return pa.Table.from_pylist(rows, ROW_SCHEMA)


FINE = turns("user", "Hi", "assistant", "Hello.")


TABLE = with_messages([FINE, FINE])


def with_column(name: str, values: pa.Array) -> pa.Table:
    return TABLE.set_column(TABLE.schema.get_field_index(name), name, values)


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (TABLE.slice(0, 0), "there are no rows"),
        (TABLE.drop_columns(["line"]), "column line is missing"),
        (TABLE.drop_columns(["messages"]), "column messages is missing"),
        (with_column("line", pa.array(["1", "2"])), "column line is string, not int64"),
        (with_column("messages", pa.array([["a"], ["b"]])), "column messages is list<item: string>, not list<"),
        (with_column("line", pa.array([1, None], pa.int64())), "line is null in 1 of 2 rows; first: d.jsonl"),
        (with_messages([FINE, None]), "messages is null in 1 of 2 rows; first: d.jsonl line 2"),
        (with_messages([FINE, FINE, []]), "messages is an empty list in 1 of 3 rows; first: d.jsonl line 3"),
        (with_messages([[{"role": "user", "content": None}]]), "a message has no role or no content in 1 of 1 rows"),
    ],
)
def test_a_table_that_is_broken_itself_stops_with_one_line(
    make_rows: MakeRows, table: pa.Table, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as caught:
        check.fn(make_rows(table=table), only("empty_answer"), SPECIAL)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_too_large_a_share_in_quarantine_stops_and_names_counts_and_the_first_row(make_rows: MakeRows) -> None:
    rows = make_rows([*GOOD, ("Hi", " "), ("Ho", " "), ("Hu", "TODO")])
    two = ("empty_answer", "placeholder_answer")
    with pytest.raises(DataError) as caught:
        check.fn(rows, only(*two, share=0.2), SPECIAL)
    assert str(caught.value).startswith(
        "3 of 7 rows quarantined (42.9 %), over checks.max_quarantined_share=0.2: "
        "2 empty_answer, 1 placeholder_answer; first: data.jsonl line 5; see "
    )
    assert check.fn(rows, only(*two, share=0.43), SPECIAL).num_rows == 4


def test_a_table_of_which_no_row_is_left_stops_whatever_the_share(make_rows: MakeRows) -> None:
    with pytest.raises(DataError, match=r"2 of 2 rows quarantined .* none is left: 2 empty_answer"):
        check.fn(make_rows([("Hi", " "), ("Ho", " ")]), only("empty_answer"), SPECIAL)


def left(home: Path) -> Path:
    """The folder of the one check that stopped."""
    (folder,) = (home / "stopped" / "check").iterdir()
    return folder


def test_a_check_that_stops_leaves_its_report_and_its_rows_and_is_no_artifact(make_rows: MakeRows, home: Path) -> None:
    rows = make_rows([*GOOD, ("Hi", " "), ("Ho", " "), ("Hu", "TODO")], refused=2)
    with pytest.raises(DataError) as caught:
        check.fn(rows, only("empty_answer", "placeholder_answer", share=0.2), SPECIAL)
    place = str(caught.value).rpartition("; see ")[2]
    assert Path(place) == left(home) / "report.html"
    page = Path(place).read_text()
    assert "The run stopped here." in page
    assert "over checks.max_quarantined_share=0.2" in page
    aside = pq.read_table(left(home) / "quarantine.parquet").to_pylist()
    assert [(row["line"], row["reason"]) for row in aside] == [
        *((5, "empty_answer"), (6, "empty_answer"), (7, "placeholder_answer"))
    ]
    found = json.loads((left(home) / "results.json").read_text())
    assert (found["read"], found["kept"], found["quarantined"], found["refused"]) == (9, 4, 3, 2)
    assert not list((home / "artifacts" / "check").glob("*/"))


def test_every_failure_is_evaluated_before_a_critical_one_stops(make_rows: MakeRows, home: Path) -> None:
    rows = make_rows([*GOOD * 9, FOUND["secrets"], FOUND["refusal"], (f"{KEY} is it", " "), BAD["empty_answer"]])
    critical = ({"name": name, "severity": "critical"} for name in ("refusal", "secrets", "duplicate_rows"))
    with pytest.raises(DataError) as caught:
        check.fn(rows, changed(*critical), SPECIAL)
    said = str(caught.value)
    assert said.startswith("secrets: ")
    assert " in 2 of 40 rows; first: data.jsonl line 37; also critical: refusal, duplicate_rows; see " in said
    assert KEY not in said
    aside = pq.read_table(left(home) / "quarantine.parquet").to_pylist()
    assert [row["reason"] for row in aside] == ["secrets", "refusal", "secrets", "empty_answer"]
    assert aside[2]["detail"].endswith("; also empty_answer")
    failed = {each["name"] for each in json.loads((left(home) / "results.json").read_text())["expectations"]}
    assert failed >= {"secrets", "refusal", "duplicate_rows", "length_drift"}
    page = (left(home) / "report.html").read_text()
    assert "equal an earlier one, over max_share" in page
    assert KEY not in page
    assert check.fn(rows, LENIENT, SPECIAL).num_quarantined == 2, "a warning and a finding stop nothing"


def test_a_table_of_which_no_row_is_left_leaves_its_report(make_rows: MakeRows, home: Path) -> None:
    first = check.fn(make_rows(GOOD), Checks(), SPECIAL)
    with pytest.raises(DataError, match="none is left: 2 empty_answer"):
        check.fn(make_rows([("Hi", " "), ("Ho", " ")]), LENIENT, SPECIAL, (), first)
    assert "0 of 2 rows passed" in (left(home) / "report.html").read_text()
