"""Findings that only report are found in the right row, and show no secret or personal data."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import ENGLISH, FOUND, GERMAN, GOOD, KEY, LENIENT, MAIL, SPECIAL, changed, only, quarantined
from conftest import MakeRows

from tunewright.artifacts import QUARANTINE_SCHEMA
from tunewright.artifacts.payloads import CheckResults
from tunewright.config import Checks
from tunewright.data_checks.report import summary
from tunewright.errors import ConfigError, DataError
from tunewright.tasks.check import check


def test_what_only_reports_is_found_in_the_row_that_has_it_and_the_row_is_kept(make_rows: MakeRows) -> None:
    checked = check.fn(make_rows([*GOOD, *FOUND.values()]), Checks(), SPECIAL)
    assert {name: checked.findings.get(name) for name in FOUND} == dict.fromkeys(FOUND, 1)
    assert checked.num_quarantined == 0
    html = checked.path("report.html").read_text()
    assert all(f"<code>data.jsonl</code> line {line}: " in html for line in range(5, 10))
    assert "Rows of these findings were kept. With severity warning they would be quarantined" in html
    assert "Findings of the whole data set" not in html
    found = pq.read_table(checked.path("findings.parquet")).to_pylist()
    lines = {name: line for line, name in enumerate(FOUND, start=len(GOOD) + 1)}
    assert {each["finding"]: each["line"] for each in found if each["finding"] in FOUND} == lines
    assert all(each["detail"] and MAIL not in each["detail"] and KEY not in each["detail"] for each in found)


def test_a_quarantined_row_is_no_finding(make_rows: MakeRows) -> None:
    code = FOUND["cut_off_answer"][1]
    aside = ("Show <|im_end|>.", code)
    checked = check.fn(make_rows([*GOOD, aside, FOUND["cut_off_answer"]]), LENIENT, SPECIAL)
    assert (checked.reasons, checked.findings) == ({"special_token": 1}, {"cut_off_answer": 1})
    found = CheckResults.load(checked)
    (cut_off,) = [each for each in found.expectations if each.name == "cut_off_answer"]
    assert (cut_off.evaluated, cut_off.failed) == (len(GOOD) + 1, 1)
    assert ", 1 row\n" in summary(found)
    page = checked.path("report.html").read_text()
    assert page.count("<code>data.jsonl</code> line 5: ") == 1, "among the quarantined alone"
    assert "No findings." in check.fn(make_rows([*GOOD, aside]), LENIENT, SPECIAL).path("report.html").read_text()


def test_of_one_expectation_that_is_given_twice_only_the_one_that_quarantines_nothing_is_a_finding(
    make_rows: MakeRows,
) -> None:
    bounds = [
        {
            "name": "great_expectations.expectations.ExpectColumnValuesToBeBetween",
            "severity": severity,
            "arguments": {"column": "prompt_chars", "max_value": most},
        }
        for severity, most in (("warning", 30), ("info", 12))
    ]
    checks = changed(*bounds)
    checked = check.fn(make_rows([*GOOD, ("Why is it so long? " * 2, "So.")]), checks, SPECIAL)
    assert checked.num_quarantined == 1
    assert checked.findings == {"expect_column_values_to_be_between": 1}
    assert summary(CheckResults.load(checked)).count("**expect_column_values_to_be_between**") == 1


def test_each_finding_sets_its_row_aside_where_it_is_a_warning_and_stops_where_it_is_critical(
    make_rows: MakeRows,
) -> None:
    rows = make_rows([*GOOD, *FOUND.values()])
    checked = check.fn(rows, only(*FOUND, severity="warning"), SPECIAL)
    assert {row["reason"]: row["line"] for row in quarantined(checked)} == {
        name: line for line, name in enumerate(FOUND, start=len(GOOD) + 1)
    }
    for line, name in enumerate(FOUND, start=len(GOOD) + 1):
        with pytest.raises(DataError, match=rf"^{name}: .* in 1 of 10 rows; first: data.jsonl line {line}; see "):
            check.fn(rows, only(name, severity="critical"), SPECIAL)


def test_answers_of_the_length_at_which_many_stop_are_cut_off(make_rows: MakeRows) -> None:
    answers = ["a" * (90 + 9 * n) for n in range(20)] + [f"{n:03}" + "a" * 297 for n in range(12)]
    rows = make_rows([(f"question {n}", answer) for n, answer in enumerate(answers)])
    checked = check.fn(rows, only("cut_off_answer", severity="warning"), SPECIAL)
    assert [row["line"] for row in quarantined(checked)] == list(range(21, 33))
    assert quarantined(checked)[0]["detail"] == "an answer has 300 characters, the length at which many are cut off"


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


def test_a_finding_of_language_names_the_languages_that_were_found(make_rows: MakeRows) -> None:
    rows = make_rows([*[ENGLISH] * 5, *[(ENGLISH[0], GERMAN[1])] * 2])
    results = CheckResults.load(check.fn(rows, only("language", arguments={"languages": ["en"]}), SPECIAL))
    assert [each.fault for each in results.expectations if each.name == "language"] == [
        "the prompt seems not to be in en",
        "the answer seems not to be in en (de 2)",
    ]


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


def test_an_answer_that_is_no_json_is_found_where_nearly_all_others_are(make_rows: MakeRows) -> None:
    rows = [(f"Extract {number} and {number}", f'{{"number": {number}}}') for number in range(18)]
    broken = ("Extract more of it", '{"number": 4,}'), ("Extract none of it", "There is no number in it.")
    checked = check.fn(make_rows([*rows, *broken]), LENIENT, SPECIAL)
    assert checked.findings["no_json_answer"] == 2
    (found,) = [each for each in CheckResults.load(checked).expectations if each.name == "no_json_answer"]
    assert found.fault == "an answer is no JSON, as nearly all others are"
    refused = check.fn(make_rows([*rows, *broken]), only("no_json_answer", severity="warning"), SPECIAL)
    assert refused.reasons == {"no_json_answer": 2}
    for answer in ('{"number": 4, "number": 5}', '{"number": NaN}', '{"number": ' + "9" * 5_000 + "}"):
        invalid = check.fn(make_rows([*rows, ("Extract what is left", answer)]), LENIENT, SPECIAL)
        assert invalid.findings["no_json_answer"] == 1, "as in the evaluation"
    few = check.fn(make_rows([*rows[:17], *broken]), LENIENT, SPECIAL)  # 17 of 19
    assert "no_json_answer" not in few.findings
