"""Every row is kept, or set aside once with the first thing that is wrong with it; a broken table stops."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_checks.expectations import row_expectations
from data_checks.suite import run
from tasks.artifacts import QUARANTINE_SCHEMA, ROW_SCHEMA, CheckedRows, Rows
from tasks.check import TEXT_CHARS, check, stop_on_critical
from tasks.config import Checks
from tasks.errors import DataError

SPECIAL = ("<|im_start|>", "<|im_end|>")
BOUNDS = {"max_prompt_chars": 9, "min_answer_chars": 1, "max_answer_chars": 9}
LENIENT = Checks(max_quarantined_share=1)
GOOD = [("Where is my order?", "On its way."), ("Refund me", "Done."), ("Hi", "Hello."), ("Is it open?", "no")]

MakeRows = Callable[..., Rows]
Turn = dict[str, str | None]


def turns(*roles_and_texts: str) -> list[Turn]:
    """ "user", "Hi", "assistant", "Hello" as messages."""
    return [
        {"role": role, "content": text} for role, text in zip(roles_and_texts[::2], roles_and_texts[1::2], strict=True)
    ]


@pytest.fixture
def make_rows(tmp_path: Path, write_rows: Callable[..., pa.Table]) -> MakeRows:
    def make(conversations: Sequence[Any] = (), *, table: pa.Table | None = None, refused: int = 0) -> Rows:
        folder = tmp_path / "rows"
        written = write_rows(folder / "rows.parquet", conversations) if table is None else table
        folder.mkdir(exist_ok=True)
        pq.write_table(written, folder / "rows.parquet")
        lines = [
            {"file": "data.jsonl", "line": 1000 + n, "reason": "bad_json", "detail": "no JSON", "text": "{"}
            for n in range(refused)
        ]
        pq.write_table(pa.Table.from_pylist(lines, QUARANTINE_SCHEMA), folder / "quarantine.parquet")
        return Rows(
            stage="ingest",
            folder=folder,
            digest=hashlib.sha256((folder / "rows.parquet").read_bytes()).hexdigest(),
            num_read=len(written) + refused,
            num_rows=len(written),
            num_quarantined=refused,
            reasons={"bad_json": refused} if refused else {},
            detected={"data.jsonl": "jsonl, messages"},
        )

    return make


def quarantined(checked: CheckedRows) -> list[dict[str, Any]]:
    return pq.read_table(checked.path("quarantine.parquet")).to_pylist()


def test_good_rows_pass_as_they_are_in_their_order(make_rows: MakeRows, capfd: pytest.CaptureFixture[str]) -> None:
    system = turns("system", "Be kind.", "user", "Hi", "assistant", "Hello.", "user", "Bye", "assistant", "0")
    rows = make_rows([*GOOD, system])
    checked = check.fn(rows, Checks(), SPECIAL)
    assert pq.read_table(checked.path("rows.parquet")).equals(pq.read_table(rows.path("rows.parquet")))
    assert pq.read_schema(checked.path("rows.parquet")) == ROW_SCHEMA
    assert (checked.num_rows, checked.num_quarantined, checked.reasons, checked.findings) == (5, 0, {}, {})
    assert capfd.readouterr() == ("", "")


BAD = {
    "roles_out_of_order": turns("user", "Hi", "user", "Hi?", "assistant", "Hello."),
    "last_not_assistant": turns("user", "Hi", "assistant", "Hello.", "user", "Bye"),
    "empty_prompt": turns("user", " \n\u00a0", "assistant", "Hello."),
    "empty_answer": turns("user", "Hi", "assistant", "\t \u200b", "user", "Hi?", "assistant", "Hello."),
    "placeholder_answer": turns("user", "Hi", "assistant", "Tbd"),
    "length_out_of_bounds": turns("user", "Hi", "assistant", "a" * 20_001),
    "special_token": turns("user", "Hi<|im_end|>", "assistant", "Hello."),
    "replacement_character": turns("user", "Hi", "assistant", "Caf\ufffd"),
}


def test_each_reason_is_given_to_the_row_that_has_it(make_rows: MakeRows) -> None:
    codes = list(BAD)[::-1]
    checked = check.fn(make_rows([*(BAD[code] for code in codes), *GOOD]), LENIENT, SPECIAL)
    found = quarantined(checked)
    assert [(row["reason"], row["line"]) for row in found] == [(code, n) for n, code in enumerate(codes, start=1)]
    assert all(row["file"] == "data.jsonl" and "also" not in row["detail"] for row in found)
    assert checked.reasons == dict.fromkeys(BAD, 1)
    assert "<|im_end|>" in found[1]["detail"]
    assert "20001 characters" in found[2]["detail"]


@pytest.mark.parametrize(
    "conversation",
    [
        turns("assistant", "Hello.", "user", "Hi", "assistant", "Hello."),
        turns("user", "Hi", "system", "Be kind.", "assistant", "Hello."),
        turns("system", "Be kind.", "system", "Be brief.", "user", "Hi", "assistant", "Hello."),
        turns("system", "Be kind.", "assistant", "Hello."),
        turns("user", "Hi", "assistant", "Hello.", "assistant", "Hello?"),
        turns("user", "Hi", "tool", "42", "assistant", "Hello."),
    ],
)
def test_roles_begin_with_one_optional_system_and_alternate_from_the_user(
    make_rows: MakeRows, conversation: list[Turn]
) -> None:
    checked = check.fn(make_rows([*GOOD, conversation]), LENIENT, SPECIAL)
    assert checked.reasons == {"roles_out_of_order": 1}


def test_a_row_with_several_faults_is_set_aside_once_with_the_first_configured(make_rows: MakeRows) -> None:
    rows = make_rows([*GOOD, turns("user", " ", "assistant", "TODO", "user", "<|im_end|>")])
    (found,) = quarantined(check.fn(rows, LENIENT, SPECIAL))
    assert found["reason"] == "last_not_assistant"
    assert found["detail"].endswith("; also empty_prompt, placeholder_answer, special_token")
    turned = Checks(expectations=LENIENT.expectations[::-1], max_quarantined_share=1)
    (found,) = quarantined(check.fn(rows, turned, SPECIAL))
    assert found["reason"] == "special_token"
    assert found["detail"].endswith("; also placeholder_answer, empty_prompt, last_not_assistant")


def test_an_expectation_that_is_not_selected_lets_its_rows_through(make_rows: MakeRows) -> None:
    rows = make_rows([*GOOD, *BAD.values()])
    checked = check.fn(rows, Checks(expectations=("empty_answer",), max_quarantined_share=1), SPECIAL)
    assert checked.reasons == {"empty_answer": 1}
    assert check.fn(rows, Checks(expectations=()), SPECIAL).num_rows == len(GOOD) + len(BAD)


def test_rows_kept_and_rows_set_aside_are_all_rows(make_rows: MakeRows) -> None:
    bad = [(f"question {n}", " ") for n in range(60)]
    good = [(f"question {n}", f"answer {n}") for n in range(60, 100)]
    rows = make_rows([row for pair in zip(bad[:40], good, strict=True) for row in pair] + bad[40:], refused=3)
    checked = check.fn(rows, LENIENT, SPECIAL)
    assert (checked.num_rows, checked.num_quarantined) == (40, 60)
    kept = pq.read_table(checked.path("rows.parquet"))["line"].to_pylist()
    assert kept == list(range(2, 81, 2))
    assert sorted([*kept, *(row["line"] for row in quarantined(checked))]) == list(range(1, 101))


def test_the_text_of_a_quarantined_row_shows_its_answer_below_a_long_prompt(make_rows: MakeRows) -> None:
    checked = check.fn(make_rows([*GOOD, ("p" * 10_000, "TODO")]), LENIENT, SPECIAL)
    text = quarantined(checked)[0]["text"]
    assert text.endswith("p…\nassistant: TODO")
    assert len(text) <= TEXT_CHARS


def with_messages(messages: list[Any]) -> pa.Table:
    rows = [
        {"row_id": str(n), "source": "s", "file": "d.jsonl", "line": n, "messages": given}
        for n, given in enumerate(messages, start=1)
    ]
    return pa.Table.from_pylist(rows, ROW_SCHEMA)


FINE = turns("user", "Hi", "assistant", "Hello.")
TABLE = with_messages([FINE, FINE])


@pytest.mark.parametrize(
    ("table", "fault"),
    [
        (TABLE.slice(0, 0), "there are no rows"),
        (TABLE.drop_columns(["line"]), "column line is missing"),
        (TABLE.drop_columns(["messages"]), "column messages is missing"),
        (TABLE.set_column(3, "line", pa.array(["1", "2"])), "column line is string, not int64"),
        (TABLE.set_column(5, "messages", pa.array([["a"], ["b"]])), "column messages is list<item: string>, not list<"),
        (TABLE.set_column(3, "line", pa.array([1, None], pa.int64())), "line is null in 1 of 2 rows; first: d.jsonl"),
        (with_messages([FINE, None]), "messages is null in 1 of 2 rows; first: d.jsonl line 2"),
        (with_messages([FINE, FINE, []]), "messages is an empty list in 1 of 3 rows; first: d.jsonl line 3"),
        (with_messages([[{"role": "user", "content": None}]]), "a message has no role or no content in 1 of 1 rows"),
    ],
)
def test_a_table_that_is_broken_itself_stops_with_one_line(
    make_rows: MakeRows, table: pa.Table, fault: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError) as caught:
        check.fn(make_rows(table=table), Checks(), SPECIAL)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_an_expectation_that_did_not_run_is_no_fault_of_the_data() -> None:
    broken = run(pd.DataFrame({"roles": ["user"]}), row_expectations(("empty_answer",), **BOUNDS))
    with pytest.raises(RuntimeError, match=r"shortest_answer did not run: .*does not exist"):
        stop_on_critical(broken, pd.DataFrame(), Path("rows.parquet"))


def test_too_large_a_share_in_quarantine_stops_and_names_counts_and_the_first_row(make_rows: MakeRows) -> None:
    rows = make_rows([*GOOD, ("Hi", " "), ("Ho", " "), ("Hu", "TODO")])
    with pytest.raises(DataError) as caught:
        check.fn(rows, Checks(), SPECIAL)
    assert str(caught.value) == (
        "3 of 7 rows quarantined (42.9%), over checks.max_quarantined_share=0.2: "
        "2 empty_answer, 1 placeholder_answer; first: data.jsonl line 5"
    )
    assert check.fn(rows, Checks(max_quarantined_share=0.43), SPECIAL).num_rows == 4


def test_a_table_of_which_no_row_is_left_stops_whatever_the_share(make_rows: MakeRows) -> None:
    with pytest.raises(DataError, match=r"2 of 2 rows quarantined .* none is left: 2 empty_answer"):
        check.fn(make_rows([("Hi", " "), ("Ho", " ")]), LENIENT, SPECIAL)


def test_prompts_answered_in_two_ways_are_counted_and_kept(make_rows: MakeRows) -> None:
    rows = make_rows([("Hi", "Hello."), ("Hi", "Go away."), ("Ho", "Hello."), ("Ho", "Hello."), ("Ho", " ")])
    checked = check.fn(rows, LENIENT, SPECIAL)
    assert checked.findings == {"conflicting_answers": 1}
    assert checked.num_rows == 4
    assert "Go away." in checked.path("report.html").read_text()


def test_a_text_of_many_lines_is_one_sentence_in_the_detail(make_rows: MakeRows) -> None:
    (found,) = quarantined(check.fn(make_rows([*GOOD, ("Hi", "Lorem ipsum\ndolor\n" + "sit " * 99)]), LENIENT, SPECIAL))
    assert found["detail"].startswith("an answer is nothing but a placeholder: Lorem ipsum dolor sit")
    assert len(found["detail"]) < 200


def test_the_results_have_every_expectation_with_its_severity_and_counts(make_rows: MakeRows) -> None:
    checked = check.fn(make_rows([*GOOD, BAD["empty_answer"]]), Checks(), SPECIAL)
    results = json.loads(checked.path("results.json").read_text())
    assert (results["rows"], results["kept"], results["quarantined"]) == (5, 4, 1)
    by_code = {(found["code"], found["column"]): found for found in results["expectations"]}
    empty = by_code["empty_answer", "shortest_answer"]
    assert (empty["severity"], empty["evaluated"], empty["failed"], empty["share"]) == ("warning", 5, 1, 0.2)
    assert {found["severity"] for found in results["expectations"] if found["code"] == "table"} == {"critical"}
    assert {found["code"] for found in results["expectations"]} == {"table", *Checks().expectations}


def test_the_report_accounts_for_what_ingest_refused_too(make_rows: MakeRows) -> None:
    checked = check.fn(make_rows([*GOOD, BAD["empty_answer"]], refused=2), Checks(), SPECIAL)
    html = checked.path("report.html").read_text()
    assert "4 of 7 rows kept" in html
    assert "bad_json" in html
    assert "empty_answer" in html
