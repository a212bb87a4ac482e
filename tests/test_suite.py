"""A team changes the built-in suite by name, adds classes of its own, and is told in one line what is wrong."""
# pyright: reportPrivateImportUsage=false, reportIncompatibleVariableOverride=false

import hashlib
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from great_expectations import expectations as gxe

from tunewright.config import Checks, Expectation
from tunewright.data_checks.expectations import row_expectations
from tunewright.data_checks.own import looks_at_texts, own_expectation
from tunewright.data_checks.suite import BUILT_IN, SuiteError, suite
from tunewright.data_checks.validation import run


class ExpectTicketNumber(gxe.ExpectColumnValuesToMatchRegex):
    """The prompt names a ticket. More is said here."""

    column: str = "prompt"
    regex: str = "TCK-[0-9]{3}"


class ExpectTidy(gxe.ExpectColumnValuesToBeBetween):
    """No {braces} in a fault"""

    column: str = "num_turns"
    max_value: int = 2


def tidy() -> str:
    return f"{__name__}.ExpectTidy"


class NoExpectation:
    """A class that is no expectation."""


OWN = f"{__name__}.ExpectTicketNumber"


def changes(*given: dict[str, Any]) -> tuple[Expectation, ...]:
    return Checks.model_validate({"expectations": given}).expectations


def test_what_is_not_named_stays_as_it_is_built_in() -> None:
    assert [(e.name, e.severity) for e in suite(())] == [(name, b.severity) for name, b in BUILT_IN.items()]


def test_a_change_keeps_the_place_and_what_it_does_not_name() -> None:
    entries = suite(changes({"name": "length_out_of_bounds", "arguments": {"max_answer_chars": 9}}))
    assert [entry.name for entry in entries] == list(BUILT_IN)
    changed = next(entry for entry in entries if entry.name == "length_out_of_bounds")
    assert changed.severity == "warning"
    assert changed.given == {"max_prompt_chars": 20_000, "min_answer_chars": 1, "max_answer_chars": 9}


def test_what_is_off_is_left_out() -> None:
    off = [{"name": name, "severity": "skip"} for name in BUILT_IN]
    assert suite(changes(*off, {"name": OWN, "severity": "skip"})) == []


def test_classes_of_the_teams_come_last_with_severity_warning_and_more_than_once() -> None:
    given = [{"name": OWN}, {"name": "secrets", "severity": "critical"}, {"name": OWN, "arguments": {"regex": "x"}}]
    found = suite(changes(*given))[-2:]
    assert [(entry.name, entry.severity, entry.key) for entry in found] == [
        (OWN, "warning", "checks.expectations[0]"),
        (OWN, "warning", "checks.expectations[2]"),
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"name": "emty_answer"},
            "checks.expectations[0].name=emty_answer is not an expectation; did you mean empty_answer?",
        ),
        ({"name": "zzz"}, "checks.expectations[0].name=zzz is not an expectation; accepted: roles_out_of_order, "),
        (
            {"name": "length_out_of_bounds", "arguments": {"max_answer_char": 9}},
            "checks.expectations[0].arguments.max_answer_char is not an argument of length_out_of_bounds; "
            "did you mean max_answer_chars? accepted: max_prompt_chars, min_answer_chars, max_answer_chars",
        ),
        (
            {"name": "empty_answer", "arguments": {"min": 9}},
            "checks.expectations[0].arguments.min is not accepted: empty_answer has no arguments",
        ),
        (
            {"name": "length_out_of_bounds", "arguments": {"max_answer_chars": "9"}},
            'checks.expectations[0].arguments.max_answer_chars="9"; accepted: a whole number (Of each answer)',
        ),
        (
            {"name": "length_out_of_bounds", "arguments": {"max_answer_chars": True}},
            "checks.expectations[0].arguments.max_answer_chars=true; accepted: a whole number (Of each answer)",
        ),
        (
            {"name": "duplicate_rows", "arguments": {"max_share": 2}},
            "checks.expectations[0].arguments.max_share=2; accepted: 0 to 1 (Largest allowed share of rows",
        ),
        (
            {"name": "language", "arguments": {"languages": ["en", 5]}},
            "checks.expectations[0].arguments.languages[1]=5; accepted: text, in quotes where it looks like a number (",
        ),
        (
            {"name": "language", "arguments": {"languages": ["en", False]}},
            "checks.expectations[0].arguments.languages[1]=false; accepted: text, in quotes since YAML reads on, yes, ",
        ),
        (
            {"name": "language", "arguments": {"languages": "en"}},
            'checks.expectations[0].arguments.languages="en"; accepted: a list: [en] (Accepted ISO 639 codes',
        ),
        (
            {"name": "language", "arguments": {"languages": ["de", "ger"]}},
            "checks.expectations[0].arguments.languages[1]=ger is no detectable language; accepted: ISO",
        ),
        (
            {"name": "language", "arguments": {"languages": ["german", "en", "ger", "en-US"]}},
            "checks.expectations[0].arguments.languages[0]=german is no detectable language; also .languages[2]="
            "ger is no detectable language; also .languages[3]=en-US is no detectable language; did you "
            "mean en? accepted: ISO 639 codes, such as en, de or zh",
        ),
        (
            {"name": "language", "arguments": {"languages": ["de_AT"]}},
            "checks.expectations[0].arguments.languages[0]=de_AT is no detectable language; did you mean de?",
        ),
        (
            {"name": "personal_data", "arguments": {"kinds": ["IBANs"]}},
            "checks.expectations[0].arguments.kinds[0]=IBANs is no kind of personal_data; did you mean IBAN?",
        ),
        (
            {"name": "secrets", "arguments": {"kinds": ["AWS Acces Key"]}},
            "checks.expectations[0].arguments.kinds[0]=AWS Acces Key is no kind of secrets; did you mean AWS Access K",
        ),
        (
            {"name": "length_out_of_bounds", "arguments": {"min_answer_chars": 9, "max_answer_chars": 8}},
            "checks.expectations[0].arguments: min_answer_chars=9 is more than max_answer_chars=8",
        ),
    ],
)
def test_a_change_that_is_not_accepted_is_told_with_its_key_and_what_is(given: dict[str, Any], said: str) -> None:
    with pytest.raises(SuiteError) as caught:
        suite(changes(given))
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


def test_a_built_in_is_changed_once() -> None:
    with pytest.raises(SuiteError, match=r"\[1\]\.name=refusal is named in checks\.expectations\[0\] too"):
        suite(changes({"name": "refusal"}, {"name": "refusal", "severity": "skip"}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "no_such.Thing"}, ": there is no module no_such; accepted: module.Class beside the deployment file"),
        ({"name": "os.path"}, "=os.path is a module; accepted: module.Class, a class in it"),
        (
            {"name": f"great_expectations.{__name__}"},
            f": great_expectations has no {__name__}; accepted: an expectation",
        ),
        (
            {"name": "xml.sax"},
            "=xml.sax is a module; accepted: module.Class, a class in it",
        ),  # not imported by its parent
        ({"name": f"{__name__}.ExpectTicketNumbers"}, f"; did you mean {OWN}? accepted: an expectation class in it"),
        ({"name": f"{__name__}.NoExpectation"}, "is not an expectation; accepted: a subclass of "),
        (
            {"name": OWN, "arguments": {"regx": "a"}},
            ".arguments.regx is not an argument of ExpectTicketNumber; "
            "did you mean regex? accepted: description, column, ",
        ),
        ({"name": OWN, "arguments": {"column": None}}, ".arguments.column=null: none is not an allowed value"),
        ({"name": tidy(), "arguments": {"max_value": "many"}}, '.arguments.max_value="many": value is not a valid '),
        (
            {"name": "great_expectations.expectations.ExpectColumnValuesToBeBetween", "arguments": {"min_value": 2}},
            ".arguments.column: field required",
        ),
        (
            {"name": "great_expectations.expectations.ExpectColumnMeanToBeBetween", "arguments": {"column": "answer"}},
            "sums up a column of texts; accepted on prompt and answer is what looks row by row",
        ),
        ({"name": OWN, "arguments": {"mostly": 0.9}}, "has mostly=0.9; accepted on prompt and answer is 1"),
    ],
)
def test_a_class_that_cannot_be_used_is_told_in_one_line(given: dict[str, Any], said: str) -> None:
    (entry,) = [entry for entry in suite(changes(given)) if entry.own]
    with pytest.raises(SuiteError) as caught:
        own_expectation(entry)
    assert str(caught.value).startswith("checks.expectations[0].")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import nothing_like_it", "cannot be imported: ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def (", "cannot be imported: SyntaxError: "),
        ("raise SystemExit('not a\\nlibrary')", "cannot be imported: SystemExit: not a library"),
    ],
)
def test_a_module_that_does_not_load_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, said: str
) -> None:
    name = f"broken_{hashlib.sha256(content.encode()).hexdigest()[:8]}"
    (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    (entry,) = own_suite({"name": f"{name}.ExpectOne"})
    with pytest.raises(SuiteError, match=r"there is no module .* in a folder on PYTHONPATH"):
        own_expectation(entry)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SuiteError) as caught:
        own_expectation(entry)
    assert str(caught.value).startswith(f"checks.expectations[0].name={name}.ExpectOne {said}")
    assert "\n" not in str(caught.value)


def test_a_class_of_the_teams_looks_at_texts_only_where_it_names_them() -> None:
    of_prompt, of_turns = (own_expectation(entry) for entry in own_suite({"name": OWN}, {"name": tidy()}))
    assert looks_at_texts(of_prompt)
    assert not looks_at_texts(of_turns)
    assert (of_prompt.entry.name, of_prompt.fault) == (
        "expect_ticket_number",
        "fails: The prompt names a ticket. More is said here",
    )


def own_suite(*given: dict[str, Any]) -> list[Any]:
    return [entry for entry in suite(changes(*given)) if entry.own]


def test_braces_in_what_a_class_says_are_braces() -> None:
    frame = pd.DataFrame({"num_turns": [2, 4]})
    (outcome,) = run(frame, row_expectations(own_suite({"name": tidy()}), frame))
    assert (outcome.rows.tolist(), outcome.says(4)) == ([1], "fails: No {braces} in a fault: 4")


def test_a_share_that_a_class_lets_fail_is_not_quarantined() -> None:
    frame = pd.DataFrame({"num_turns": [2, 2, 2, 4]})
    given = {"name": tidy(), "arguments": {"mostly": 0.7}}
    (outcome,) = run(frame, row_expectations(own_suite(given), frame))
    assert (outcome.failed, len(outcome.rows)) == (0, 0)


def test_a_condition_may_name_any_column_and_leaves_the_other_rows_out() -> None:
    frame = pd.DataFrame({"num_turns": [2, 4, 4], "source": ["a", "a", "b"]})
    given = {"name": tidy(), "arguments": {"row_condition": 'source == "b"', "condition_parser": "pandas"}}
    (outcome,) = run(frame, row_expectations(own_suite(given), frame))
    assert (outcome.rows.tolist(), outcome.evaluated) == ([2], 1)


def test_what_sums_up_a_column_has_no_failing_rows_and_shows_no_secret() -> None:
    key = "AKIA" + "Q7RT2MWZ9XKB4VN6"
    frame = pd.DataFrame({"source": ["a", key]})
    name = "great_expectations.expectations.ExpectColumnDistinctValuesToBeInSet"
    entries = own_suite({"name": name, "arguments": {"column": "source", "value_set": ["a"]}})
    (outcome,) = run(frame, row_expectations(entries, frame))
    assert (outcome.failed, len(outcome.rows), outcome.of_rows) == (1, 0, False)
    assert key not in outcome.says()


def test_the_docs_list_each_built_in_with_its_severity_and_arguments() -> None:
    page = (Path(__file__).parents[1] / "docs" / "your-data.md").read_text(encoding="utf-8")
    found = re.findall(r"^\| `(\w+)` \| .+ \| (critical|warning|info|skip) \| (.*)\|$", page, re.M)
    fields = {name: built_in.arguments.model_fields for name, built_in in BUILT_IN.items()}
    expected = [
        (
            name,
            built_in.severity,
            ", ".join(
                f"`{key}: {field.default if field.default != () else []}`" for key, field in fields[name].items()
            ),
        )
        for name, built_in in BUILT_IN.items()
    ]
    assert [(name, severity, arguments.strip()) for name, severity, arguments in found] == expected
