"""Every row is kept, or set aside once with the first thing that is wrong with it; a broken table stops."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_checks.batches import Ask, look, row_batches
from data_checks.columns import Columns
from data_checks.excerpts import TEXT_CHARS
from data_checks.suite import BUILT_IN
from tasks.artifacts import QUARANTINE_SCHEMA, ROW_SCHEMA, CheckedRows, Rows
from tasks.check import check, own_expectations
from tasks.check.holding import hold_rows
from tasks.config import Checks
from tasks.errors import ConfigError, DataError

SPECIAL = ("<|im_start|>", "<|im_end|>")
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


def changed(*changes: dict[str, Any], share: float = 1) -> Checks:
    return Checks.model_validate({"expectations": changes, "max_quarantined_share": share})


def only(*names: str, share: float = 1, **change: Any) -> Checks:
    """The suite with these expectations alone, each with the same change."""
    off = [{"name": name, "severity": "skip"} for name in BUILT_IN if name not in names]
    return changed(*({"name": name, **change} for name in names), *off, share=share)


def results(checked: CheckedRows) -> dict[str, Any]:
    return json.loads(checked.path("results.json").read_text())


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
    checked = check.fn(make_rows([*GOOD, conversation]), only("roles_out_of_order"), SPECIAL)
    assert checked.reasons == {"roles_out_of_order": 1}


def test_a_row_with_several_faults_is_set_aside_once_with_the_first_configured(make_rows: MakeRows) -> None:
    rows = make_rows([*GOOD, turns("user", " ", "assistant", "TODO", "user", "<|im_end|>")])
    (found,) = quarantined(check.fn(rows, LENIENT, SPECIAL))
    assert found["reason"] == "last_not_assistant"
    assert found["detail"].endswith("; also empty_prompt, placeholder_answer, special_token")


def test_an_expectation_that_is_off_lets_its_rows_through(make_rows: MakeRows) -> None:
    rows = make_rows([*GOOD, *BAD.values()])
    assert check.fn(rows, only("empty_answer"), SPECIAL).reasons == {"empty_answer": 1}
    assert check.fn(rows, only(), SPECIAL).num_rows == len(GOOD) + len(BAD)


def test_rows_kept_and_rows_set_aside_are_all_rows(make_rows: MakeRows) -> None:
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
    assert str(caught.value) == (
        "3 of 7 rows quarantined (42.9%), over checks.max_quarantined_share=0.2: "
        "2 empty_answer, 1 placeholder_answer; first: data.jsonl line 5"
    )
    assert check.fn(rows, only(*two, share=0.43), SPECIAL).num_rows == 4


def test_a_table_of_which_no_row_is_left_stops_whatever_the_share(make_rows: MakeRows) -> None:
    with pytest.raises(DataError, match=r"2 of 2 rows quarantined .* none is left: 2 empty_answer"):
        check.fn(make_rows([("Hi", " "), ("Ho", " ")]), only("empty_answer"), SPECIAL)


def test_prompts_answered_in_two_ways_are_counted_and_kept(make_rows: MakeRows) -> None:
    rows = make_rows([("Hi", "Hello."), ("Hi", "Go away."), ("Ho", "Hello."), ("Ho", "Hello."), ("Ho", " ")])
    checked = check.fn(rows, LENIENT, SPECIAL)
    assert checked.findings["conflicting_answers"] == 2
    assert results(checked)["conflicting_prompts"] == 1
    assert checked.num_rows == 4
    assert "Go away." in checked.path("report.html").read_text()


def test_prompts_answered_in_more_ways_than_allowed_are_set_aside_where_that_is_a_warning(make_rows: MakeRows) -> None:
    rows = make_rows([*GOOD, ("a", "1"), ("a", "2"), ("b", "1"), ("b", "2"), ("b", "3")])
    checks = only("conflicting_answers", severity="warning", arguments={"max_answers": 2})
    checked = check.fn(rows, checks, SPECIAL)
    assert [(row["reason"], row["line"], row["detail"]) for row in quarantined(checked)] == [
        ("conflicting_answers", line, "the prompt has 3 different answers") for line in (7, 8, 9)
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
    assert "4 of 7 rows kept" in html
    assert "bad_json" in html
    assert "empty_answer" in html


KEY = "AKIA" + "Q7RT2MWZ9XKB4VN6"
MAIL = "maria.lopez@gmail.com"
FOUND = {
    "mojibake": ("What is it?", "A caf\u00c3\u00a9 by the sea, na\u00c3\u00afve."),
    "secrets": (f"Is {KEY} my key?", "It is."),
    "personal_data": ("Who wrote?", f"It was {MAIL} who did."),
    "refusal": ("Tell me a joke.", "I'm sorry, but I can't help with that."),
    "cut_off_answer": ("Show the code.", "```python\nprint(1)\n"),
}


def test_what_only_reports_is_found_in_the_row_that_has_it_and_the_row_is_kept(make_rows: MakeRows) -> None:
    checked = check.fn(make_rows([*GOOD, *FOUND.values()]), Checks(), SPECIAL)
    assert {name: checked.findings.get(name) for name in FOUND} == dict.fromkeys(FOUND, 1)
    assert checked.num_quarantined == 0
    html = checked.path("report.html").read_text()
    assert all(f"<code>data.jsonl</code> line {line}: " in html for line in range(5, 10))


def test_each_finding_sets_its_row_aside_where_it_is_a_warning_and_stops_where_it_is_critical(
    make_rows: MakeRows,
) -> None:
    rows = make_rows([*GOOD, *FOUND.values()])
    checked = check.fn(rows, only(*FOUND, severity="warning"), SPECIAL)
    assert {row["reason"]: row["line"] for row in quarantined(checked)} == {
        name: line for line, name in enumerate(FOUND, start=len(GOOD) + 1)
    }
    for line, name in enumerate(FOUND, start=len(GOOD) + 1):
        with pytest.raises(DataError, match=rf"^{name}: .* in 1 of 9 rows; first: data.jsonl line {line}$"):
            check.fn(rows, only(name, severity="critical"), SPECIAL)


def test_answers_of_the_length_at_which_many_stop_are_cut_off(make_rows: MakeRows) -> None:
    answers = ["a" * (90 + 9 * n) for n in range(20)] + [f"{n:03}" + "a" * 297 for n in range(12)]
    rows = make_rows([(f"question {n}", answer) for n, answer in enumerate(answers)])
    checked = check.fn(rows, only("cut_off_answer", severity="warning"), SPECIAL)
    assert [row["line"] for row in quarantined(checked)] == list(range(21, 33))
    assert quarantined(checked)[0]["detail"] == "an answer has 300 characters, where many are cut off"


@pytest.mark.parametrize(
    ("name", "kind", "other"),
    [("personal_data", "e-mail address", "phone number"), ("secrets", "AWS Access Key", "GitHub Token")],
)
def test_only_the_kinds_that_are_named_count(make_rows: MakeRows, name: str, kind: str, other: str) -> None:
    rows = make_rows([*GOOD, FOUND["personal_data"], FOUND["secrets"]])
    for kinds, number in (([kind, other], 1), ([other], 0)):
        checks = only(name, severity="warning", arguments={"kinds": kinds})
        assert check.fn(rows, checks, SPECIAL).num_quarantined == number
    with pytest.raises(
        ConfigError,
        match=rf"^checks.expectations\[0\].arguments.kinds\[0\]={kind}s is no kind of {name}; did you mean {kind}\?",
    ):
        check.fn(rows, only(name, arguments={"kinds": [f"{kind}s"]}), SPECIAL)


ENGLISH = ("Where can I find the train station in this city?", "The station is at the end of the main street.")
GERMAN = ("Wo finde ich in dieser Stadt den Bahnhof?", "Der Bahnhof liegt am Ende der langen Hauptstrasse.")


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [({}, [4]), ({"languages": ["de"]}, [1, 2, 3]), ({"min_share": 0.1}, []), ({"languages": ["de", "en"]}, [])],
)
def test_a_row_in_another_language_than_is_accepted_fails(
    make_rows: MakeRows, arguments: dict[str, Any], lines: list[int]
) -> None:
    rows = make_rows([*[ENGLISH] * 3, GERMAN])
    given = {"min_share": 0.3} | arguments
    checked = check.fn(rows, only("language", severity="warning", arguments=given), SPECIAL)
    assert [row["line"] for row in quarantined(checked)] == lines


def test_the_most_frequent_language_is_accepted_whatever_share_of_the_texts_has_it(make_rows: MakeRows) -> None:
    rows = make_rows([*[ENGLISH] * 3, GERMAN])
    checked = check.fn(rows, only("language", severity="warning", arguments={"min_share": 0.9}), SPECIAL)
    assert [row["line"] for row in quarantined(checked)] == [4]


def test_what_ingest_quotes_of_a_refused_record_is_masked_in_the_report(make_rows: MakeRows) -> None:
    rows = make_rows(GOOD, refused=1)
    refused = rows.path("quarantine.parquet")
    lines = [line | {"detail": f"no role: {MAIL}", "text": KEY} for line in pq.read_table(refused).to_pylist()]
    pq.write_table(pa.Table.from_pylist(lines, QUARANTINE_SCHEMA), refused)
    html = check.fn(rows, Checks(), SPECIAL).path("report.html").read_text()
    assert "e-mail address" in html
    assert MAIL not in html
    assert KEY not in html


def test_no_secret_and_no_personal_data_stand_in_any_file_but_the_rows(make_rows: MakeRows) -> None:
    rows = [*GOOD, FOUND["secrets"], FOUND["personal_data"], (f"{KEY} {MAIL}", " "), (f"{KEY} {MAIL}", "[insert it]")]
    lorem = ("Say something.", f"lorem ipsum {KEY} {MAIL}")
    same = [(f"Is {KEY} or {MAIL} right?", answer) for answer in (f"{KEY} is.", f"{MAIL} is.")]
    labels = [(f"Which one is number {n}?", MAIL if n % 2 else KEY) for n in range(60)]
    checked = check.fn(make_rows([*rows, lorem, *same, *labels]), LENIENT, SPECIAL)
    assert checked.reasons == {"empty_answer": 1, "placeholder_answer": 2}
    assert json.loads(checked.path("profile.json").read_text())["labels"] is None
    for file in checked.folder.iterdir():
        if file.name != "rows.parquet":
            text = str(pq.read_table(file).to_pylist()) if file.suffix == ".parquet" else file.read_text()
            assert KEY not in text
            assert MAIL not in text


def test_labels_that_are_secrets_are_not_named(make_rows: MakeRows) -> None:
    labels = [(f"Which one is number {n}?", MAIL if n % 2 else KEY) for n in range(60)]
    checked = check.fn(make_rows(labels), only(), SPECIAL)
    profile = checked.path("profile.json").read_text()
    assert list(json.loads(profile)["labels"].values()) == [30, 30]
    assert KEY not in profile
    assert MAIL not in profile


def test_a_secret_does_not_stand_in_the_error_that_stops(make_rows: MakeRows) -> None:
    with pytest.raises(DataError) as caught:
        check.fn(make_rows([*GOOD, FOUND["secrets"]]), only("secrets", severity="critical"), SPECIAL)
    assert KEY not in str(caught.value)
    assert "AKIA" in str(caught.value)


def labelled(shares: dict[str, int], source: str = "a") -> pa.Table:
    rows = [
        {
            "row_id": f"{label} {n}",
            "source": source,
            "file": "d.jsonl",
            "line": n,
            "messages": turns("user", f"Is {label} number {n} what you look for?", "assistant", label),
        }
        for label, number in shares.items()
        for n in range(number)
    ]
    return pa.Table.from_pylist(rows, ROW_SCHEMA)


def both(*tables: pa.Table) -> pa.Table:
    return pa.concat_tables(tables)


@pytest.mark.parametrize(
    ("table", "name", "said"),
    [
        (
            labelled({"yes": 90, "no": 10}),
            "label_balance",
            "one of the answers has 90.0% of the rows, over max_share=0.8",
        ),
        (
            labelled({"yes": 60, "no": 60, "so": 3}),
            "label_balance",
            "one of the answers has only 3 rows, under min_rows=10",
        ),
        (
            both(labelled({"yes": 95}), labelled({"no": 5}, "b")),
            "source_balance",
            "one of several sources has 95.0% of the rows, over max_share=0.9",
        ),
        (
            both(labelled({"yes": 30}), labelled({"yes": 10})),
            "duplicate_rows",
            "25.0% of the rows equal an earlier one, over max_share=0.2",
        ),
    ],
)
def test_a_set_out_of_balance_is_a_finding_and_stops_where_that_is_critical(
    make_rows: MakeRows, table: pa.Table, name: str, said: str
) -> None:
    rows = make_rows(table=table)
    checked = check.fn(rows, only(name), SPECIAL)
    assert checked.findings[name] == 1
    assert checked.num_quarantined == 0
    assert said in checked.path("report.html").read_text()
    with pytest.raises(DataError) as caught:
        check.fn(rows, only(name, severity="critical"), SPECIAL)
    assert str(caught.value) == f"{name}: {said}"


def test_a_balanced_set_passes(make_rows: MakeRows) -> None:
    table = both(labelled({"yes": 30, "no": 30}), labelled({"so": 30}, "b"))
    assert check.fn(make_rows(table=table), Checks(), SPECIAL).findings == {}


DRIFT = {"length_drift", "language_drift", "source_drift", "label_drift", "rows_changed"}


def test_the_same_rows_have_not_drifted_from_the_version_before(make_rows: MakeRows) -> None:
    rows = make_rows(table=labelled({"yes": 60, "no": 60}))
    first = check.fn(rows, only(*DRIFT), SPECIAL)
    again = check.fn(rows, only(*DRIFT), SPECIAL, (), first)
    assert not DRIFT & again.findings.keys()
    since = results(again)["since"]
    assert (since["before"], since["added"], since["removed"]) == (120, 0, 0)
    assert {measure["psi"] for measure in since["drift"].values()} == {0.0}
    assert results(first)["since"] is None


def test_what_drifted_from_the_version_before_is_found(make_rows: MakeRows) -> None:
    first = check.fn(make_rows(table=labelled({"yes": 100, "no": 100})), only(*DRIFT), SPECIAL)
    german = [
        {
            "row_id": f"{n}",
            "source": "b",
            "file": "d.jsonl",
            "line": n,
            "messages": turns("user", f"{GERMAN[0]} {n} " * 9, "assistant", f"{GERMAN[1]} " * (1 + n % 2)),
        }
        for n in range(200)
    ]
    second = check.fn(make_rows(table=pa.Table.from_pylist(german, ROW_SCHEMA)), only(*DRIFT), SPECIAL, (), first)
    assert second.findings.keys() >= DRIFT
    since = results(second)["since"]
    assert (since["before"], since["added"], since["removed"]) == (200, 200, 200)
    assert since["version"] == first.key
    assert first.key in second.path("report.html").read_text()


def test_drift_stops_where_it_is_critical(make_rows: MakeRows) -> None:
    first = check.fn(make_rows(table=labelled({"yes": 100, "no": 100})), only(), SPECIAL)
    rows = make_rows(table=labelled({"yes": 180, "no": 20}))
    with pytest.raises(
        DataError, match=r"^label_drift: answers are not those of the last accepted version: .* over 0\.25"
    ):
        check.fn(rows, only("label_drift", severity="critical"), SPECIAL, (), first)
    check.fn(rows, only("label_drift", severity="critical", arguments={"max_psi": 9}), SPECIAL, (), first)


OWN = "test_suite.ExpectTicketNumber"


def with_own(change: dict[str, Any]) -> Checks:
    """A class of the team's alone."""
    return changed(change, *({"name": name, "severity": "skip"} for name in BUILT_IN))


def test_a_class_of_the_teams_sets_aside_the_rows_that_fail_it(make_rows: MakeRows) -> None:
    rows = make_rows([*GOOD, ("TCK-123", "Fixed."), ("TCK-12", "Fixed.")])
    checks = with_own({"name": OWN})
    checked = check.fn(rows, checks, SPECIAL, own_expectations(checks))
    assert checked.reasons == {"expect_ticket_number": 5}
    assert [row["line"] for row in quarantined(checked)] == [1, 2, 3, 4, 6]
    assert quarantined(checked)[0]["detail"] == "fails: The prompt names a ticket. More is said here"
    other = with_own({"name": OWN, "arguments": {"regex": "TCK-[0-9]+"}})
    assert check.fn(rows, other, SPECIAL).reasons == {"expect_ticket_number": 4}


def test_a_class_that_looks_at_the_table_as_a_whole_sets_nothing_aside_and_is_a_finding_or_stops(
    make_rows: MakeRows,
) -> None:
    rows = make_rows(GOOD)
    given = {
        "name": "great_expectations.expectations.ExpectColumnMeanToBeBetween",
        "arguments": {"column": "num_turns", "min_value": 3, "description": "Conversations are long"},
    }
    checked = check.fn(rows, with_own(given), SPECIAL)
    assert (checked.num_quarantined, checked.findings) == (0, {"expect_column_mean_to_be_between": 1})
    assert "fails: Conversations are long: 2.0" in checked.path("report.html").read_text()
    with pytest.raises(DataError, match=r"^expect_column_mean_to_be_between: fails: Conversations are long: 2\.0$"):
        check.fn(rows, with_own(given | {"severity": "critical"}), SPECIAL)


def test_a_class_that_cannot_look_is_an_error_of_the_settings_with_its_key(make_rows: MakeRows) -> None:
    checks = with_own({"name": OWN, "arguments": {"column": "no_such_column"}})
    with pytest.raises(
        ConfigError, match=r"^checks.expectations\[0\] \(expect_ticket_number\) did not run: .*no_such_column"
    ):
        check.fn(make_rows(GOOD), checks, SPECIAL)


def test_an_edited_class_is_another_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    checks = changed({"name": "team_tickets.ExpectOne"})
    digests = set()
    for source in ("a = 1", "a = 2"):
        (tmp_path / "team_tickets.py").write_text(source)
        digests |= set(own_expectations(checks))
    assert len(digests) == 2
    assert own_expectations(Checks()) == ()


def test_an_edit_beside_the_class_in_its_package_is_another_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "team_of_two" / "lists").mkdir(parents=True)
    (tmp_path / "team_of_two" / "own.py").write_text("from team_of_two.lists import words")
    checks = changed({"name": "team_of_two.own.ExpectOne"})
    digests = []
    for source in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "team_of_two" / "lists" / "words.py").write_text(source)
        digests += own_expectations(checks)
    assert digests[0] != digests[1]
    assert digests[0] == digests[2]


def test_a_class_in_no_module_is_told_before_anything_runs() -> None:
    with pytest.raises(
        ConfigError, match=r"^checks\.expectations\[0\]\.name=no\.such\.Thing: there is no module no\.such"
    ):
        own_expectations(changed({"name": "no.such.Thing"}))


def test_a_name_that_is_not_accepted_is_an_error_of_the_settings() -> None:
    with pytest.raises(ConfigError, match="did you mean empty_answer"):
        own_expectations(changed({"name": "empty_anser"}))


def test_the_number_of_processes_and_batches_changes_nothing(
    make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows([*GOOD, *BAD.values(), *FOUND.values()])
    ask = Ask(frozenset(Columns._fields), SPECIAL)
    (whole,) = look(rows.path("rows.parquet"), ask)
    monkeypatch.setattr("data_checks.batches.BATCH", 3)
    parts = list(look(rows.path("rows.parquet"), ask, processes=2))
    assert len(parts) == 6
    assert pa.concat_tables(part.columns for part in parts).combine_chunks().equals(whole.columns.combine_chunks())


@pytest.mark.parametrize("rows_of_a_group", [1, 7, 64])
def test_rows_of_long_texts_come_few_at_a_time_however_the_table_was_written(
    make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch, rows_of_a_group: int
) -> None:
    monkeypatch.setattr("data_checks.batches.BATCH", 12)
    monkeypatch.setattr("data_checks.batches.BATCH_BYTES", 50_000)
    long = [(f"{n}" + "p" * 10_000, "a") for n in range(20)]
    file = make_rows([*long, *[(f"question {n}", "a") for n in range(30)]]).path("rows.parquet")
    table = pq.read_table(file)
    pq.write_table(table, file, row_group_size=rows_of_a_group)
    batches = list(row_batches(file))
    assert pa.Table.from_batches(batches).combine_chunks().equals(table.combine_chunks())
    assert max(map(len, batches)) <= 12
    assert max(batch.nbytes for batch in batches) <= 50_000
    assert rows_of_a_group > 1 or len(batches) == 7  # five of four long texts or more


def test_no_more_batches_wait_than_there_are_processes_and_one(
    make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    class Pool(contextlib.AbstractContextManager["Pool"]):
        def submit(self, of: Callable[..., Any], batch: pa.RecordBatch) -> Future[Any]:
            given.append(len(batch))
            future: Future[Any] = Future()
            future.set_result(of(batch))
            return future

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("data_checks.batches._pool", lambda _: Pool())
    monkeypatch.setattr("data_checks.batches.BATCH", 1)
    looked = look(make_rows(GOOD * 3).path("rows.parquet"), Ask(frozenset({"num_turns"}), SPECIAL), processes=2)
    assert [len(given) - taken for taken, _ in enumerate(looked)] == [3] * 10 + [2, 1]


def test_texts_are_held_against_a_class_of_the_teams_batch_by_batch(
    make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows([*GOOD, ("TCK-123", "Fixed."), ("TCK-12", "Fixed.")])
    monkeypatch.setattr("data_checks.batches.BATCH", 4)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    checked = check.fn(rows, with_own({"name": OWN}), SPECIAL)
    assert [row["line"] for row in quarantined(checked)] == [1, 2, 3, 4, 6]


def test_costly_columns_are_derived_only_where_something_looks_at_them(make_rows: MakeRows) -> None:
    from data_checks.suite import suite

    file = make_rows(GOOD).path("rows.parquet")
    assert "secret" in hold_rows(file, suite(()), SPECIAL).frame
    off = changed({"name": "secrets", "severity": "skip"})
    assert "secret" not in hold_rows(file, suite(off.expectations), SPECIAL).frame
    named = changed(
        {"name": "secrets", "severity": "skip"},
        {"name": "great_expectations.expectations.ExpectColumnValuesToBeNull", "arguments": {"column": "secret"}},
    )
    assert "secret" in hold_rows(file, suite(named.expectations), SPECIAL).frame
