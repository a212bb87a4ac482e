"""Every row is kept, or quarantined once with the first thing that is wrong with it."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import BAD, GOOD, LENIENT, SPECIAL, Turn, only, quarantined, results, turns
from conftest import MakeRows

from tunewright.artifacts import ROW_SCHEMA
from tunewright.config import Checks
from tunewright.data_checks.suite import BUILT_IN
from tunewright.privacy.excerpts import TEXT_CHARS
from tunewright.tasks.check import check


def test_good_rows_pass_as_they_are_in_their_order(make_rows: MakeRows, capfd: pytest.CaptureFixture[str]) -> None:
    system = turns("system", "Be kind.", "user", "Hi", "assistant", "Hello.", "user", "Bye", "assistant", "0")
    rows = make_rows([*GOOD, system])
    checked = check.fn(rows, Checks(), SPECIAL)
    assert pq.read_table(checked.path("rows.parquet")).equals(pq.read_table(rows.path("rows.parquet")))
    assert pq.read_schema(checked.path("rows.parquet")) == ROW_SCHEMA
    assert (checked.num_rows, checked.num_quarantined, checked.reasons, checked.findings) == (5, 0, {}, {})
    assert capfd.readouterr() == ("", "")


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
    checked = check.fn(make_rows([*GOOD, conversation]), only("roles_out_of_order"), SPECIAL)
    assert checked.reasons == {"roles_out_of_order": 1}


def test_the_report_counts_rows_by_their_file_and_within_it_by_the_sources_that_they_name(make_rows: MakeRows) -> None:
    table = pq.read_table(make_rows([*GOOD, *GOOD, BAD["empty_answer"]]).path("rows.parquet"))
    kept = len(GOOD)
    columns = {
        "file": ["in/mail.jsonl"] * 2 * kept + ["in/mail.jsonl"],
        "source": ["phone"] * kept + ["web"] * (kept - 1) + ["mail.jsonl"] * 2,
    }
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    checked = check.fn(make_rows(table=table), LENIENT, SPECIAL)
    (file,) = results(checked)["files"]
    assert (file["name"], file["kept"], file["quarantined"]) == ("in/mail.jsonl", 2 * kept, 1)
    assert {each["name"]: (each["kept"], each["quarantined"]) for each in file["sources"]} == {
        "phone": (kept, 0),
        "web": (kept - 1, 0),
        "": (1, 1),
    }
    page = checked.path("report.html").read_text(encoding="utf-8")
    assert "rows without a source" in page
    assert "in/mail.jsonl" in page


def test_rows_that_name_no_source_are_counted_by_their_file_alone(make_rows: MakeRows) -> None:
    checked = check.fn(make_rows([*GOOD, BAD["empty_answer"]]), LENIENT, SPECIAL)
    (file,) = results(checked)["files"]
    assert file == {"name": "data.jsonl", "kept": len(GOOD), "quarantined": 1, "sources": []}


def test_a_row_with_several_faults_is_quarantined_once_with_the_first_configured(make_rows: MakeRows) -> None:
    rows = make_rows([*GOOD, turns("user", " ", "assistant", "TODO", "user", "<|im_end|>")])
    (found,) = quarantined(check.fn(rows, LENIENT, SPECIAL))
    assert found["reason"] == "last_not_assistant"
    assert found["detail"].endswith("; also empty_prompt, placeholder_answer, special_token")


def test_an_expectation_that_is_off_lets_its_rows_through(make_rows: MakeRows) -> None:
    rows = make_rows([*GOOD, *BAD.values()])
    assert check.fn(rows, only("empty_answer"), SPECIAL).reasons == {"empty_answer": 1}
    assert check.fn(rows, only(), SPECIAL).num_rows == len(GOOD) + len(BAD)


def test_rows_kept_and_rows_quarantined_are_all_rows(make_rows: MakeRows) -> None:
    bad = [(f"question {n}", " ") for n in range(60)]
    good = [(f"question {n}", f"answer {n}") for n in range(60, 100)]
    rows = make_rows([row for pair in zip(bad[:40], good, strict=True) for row in pair] + bad[40:], refused=3)
    checked = check.fn(rows, only("empty_answer"), SPECIAL)
    assert (checked.num_rows, checked.num_quarantined) == (40, 60)
    kept = pq.read_table(checked.path("rows.parquet"))["line"].to_pylist()
    assert kept == list(range(2, 81, 2))
    assert sorted([*kept, *(row["line"] for row in quarantined(checked))]) == list(range(1, 101))


def test_the_text_of_a_quarantined_row_shows_both_ends_of_a_long_prompt_and_its_answer(make_rows: MakeRows) -> None:
    prompt = "Answer the question." + "." * 10_000 + "Why?"
    checked = check.fn(make_rows([*GOOD, (prompt, "TODO")]), only("placeholder_answer"), SPECIAL)
    text = quarantined(checked)[0]["text"]
    assert text.startswith("user: Answer the question.")
    assert text.endswith(".Why?\nassistant: TODO")
    assert len(text) <= TEXT_CHARS


def test_prompts_answered_in_two_ways_are_counted_and_kept(make_rows: MakeRows) -> None:
    rows = make_rows([("Hi", "Hello."), ("Hi", "Go away."), ("Ho", "Hello."), ("Ho", "Hello."), ("Ho", " ")])
    checked = check.fn(rows, LENIENT, SPECIAL)
    assert checked.findings["conflicting_answers"] == 2
    assert results(checked)["conflicting_prompts"] == 1
    assert checked.num_rows == 4
    assert "Go away." in checked.path("report.html").read_text()
    found = pq.read_table(checked.path("findings.parquet")).to_pylist()
    assert [(row["line"], row["detail"].partition("; ")[2]) for row in found] == [
        (1, "data.jsonl line 2 has another"),
        (2, "data.jsonl line 1 has another"),
    ]


def test_the_report_says_where_prompts_with_several_answers_are_that_it_does_not_show(make_rows: MakeRows) -> None:
    rows = [(f"Which {number}?", answer) for number in range(8) for answer in ("One.", "Two.")]
    page = check.fn(make_rows(rows), only("conflicting_answers"), SPECIAL).path("report.html").read_text()
    assert "and 3 more prompts: <code>findings.parquet</code>, beside this page, has each row" in page


def test_prompts_answered_in_more_ways_than_allowed_are_quarantined_where_that_is_a_warning(
    make_rows: MakeRows,
) -> None:
    rows = make_rows([*GOOD, ("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("b", "3")])
    checks = only("conflicting_answers", severity="warning", arguments={"max_answers": 2})
    checked = check.fn(rows, checks, SPECIAL)
    assert [(row["reason"], row["line"], row["detail"]) for row in quarantined(checked)] == [
        ("conflicting_answers", line, "the prompt has 3 different answers, more than max_answers=2")
        for line in (7, 8, 9)
    ]


def test_a_text_of_many_lines_is_one_sentence_in_the_detail(make_rows: MakeRows) -> None:
    (found,) = quarantined(
        check.fn(make_rows([*GOOD, ("Hi", "Lorem ipsum\ndolor\n" + "sit " * 99)]), only("placeholder_answer"), SPECIAL)
    )
    assert found["detail"].startswith("an answer is nothing but a placeholder: Lorem ipsum dolor sit")
    assert len(found["detail"]) < 200


def test_the_results_have_every_expectation_with_its_severity_arguments_and_counts(make_rows: MakeRows) -> None:
    found = results(check.fn(make_rows([*GOOD, BAD["empty_answer"]], refused=2), Checks(), SPECIAL))
    account = {name: found[name] for name in ("read", "refused", "rows", "kept", "quarantined")}
    assert account == {"read": 7, "refused": 2, "rows": 5, "kept": 4, "quarantined": 1}
    assert found["reasons"] == {"ingest": {"bad_json": 2}, "check": {"empty_answer": 1}}
    by_column = {(each["name"], each["column"]): each for each in found["expectations"]}
    empty = by_column["empty_answer", "shortest_answer"]
    assert (empty["severity"], empty["evaluated"], empty["failed"], empty["share"]) == ("warning", 5, 1, 0.2)
    assert by_column["length_out_of_bounds", "prompt_chars"]["arguments"]["max_prompt_chars"] == 20_000
    assert {each["severity"] for each in found["expectations"] if each["name"] == "table"} == {"critical"}
    assert {each["name"] for each in found["expectations"]} == {"table", *BUILT_IN}


def test_the_report_accounts_for_what_ingest_refused_too(make_rows: MakeRows) -> None:
    html = (
        check.fn(make_rows([*GOOD, BAD["empty_answer"]], refused=2), Checks(), SPECIAL).path("report.html").read_text()
    )
    assert "4 of 7 rows passed" in html
    assert "1 quarantined by check, 2 quarantined by ingest" in html
    assert "bad_json" in html
    assert "empty_answer" in html
