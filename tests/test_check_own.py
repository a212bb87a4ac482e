"""An expectation class of the team's is held against the rows, and an edit of it is another input."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import GOOD, KEY, SPECIAL, changed, quarantined
from conftest import MakeRows

from tunewright.config import Checks
from tunewright.data_checks.suite import BUILT_IN
from tunewright.errors import ConfigError, DataError
from tunewright.tasks.check import check, own_expectations

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
    with pytest.raises(
        DataError, match=r"^expect_column_mean_to_be_between: fails: Conversations are long: 2\.0; see "
    ):
        check.fn(rows, with_own(given | {"severity": "critical"}), SPECIAL)


def test_a_class_that_cannot_look_is_an_error_of_the_settings_with_its_key(make_rows: MakeRows) -> None:
    checks = with_own({"name": OWN, "arguments": {"column": "no_such_column"}})
    with pytest.raises(
        ConfigError, match=r"^checks.expectations\[0\] \(expect_ticket_number\) did not run: .*no_such_column"
    ):
        check.fn(make_rows(GOOD), checks, SPECIAL)


CLASS = """
from great_expectations import expectations as gxe

class ExpectOne(gxe.ExpectColumnValuesToNotBeNull):
    column: str = "prompt"
"""


def test_an_edited_class_is_another_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    checks = changed({"name": "team_tickets.ExpectOne"})
    digests = set()
    for source in ("a = 1", "a = 2"):
        (tmp_path / "team_tickets.py").write_text(CLASS + source)
        digests |= set(own_expectations(checks))
    assert len(digests) == 2
    assert own_expectations(Checks()) == ()


def test_an_edit_beside_the_class_in_its_package_is_another_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "team_of_two" / "lists").mkdir(parents=True)
    (tmp_path / "team_of_two" / "own.py").write_text(f"from team_of_two.lists import words\n{CLASS}")
    checks = changed({"name": "team_of_two.own.ExpectOne"})
    digests = []
    for source in ("a = 1", "a = 2", "a = 1  # a remark", "a = ", "a == "):
        (tmp_path / "team_of_two" / "lists" / "words.py").write_text(source)
        digests += own_expectations(checks)
    assert digests[0] == digests[2]
    assert len({*digests}) == 4  # also of a file that is no Python


def test_a_class_in_no_module_is_told_before_anything_runs() -> None:
    with pytest.raises(
        ConfigError, match=r"^checks\.expectations\[0\]\.name=no\.such\.Thing: there is no module no; accepted: module"
    ):
        own_expectations(changed({"name": "no.such.Thing"}))


def test_a_column_that_rows_do_not_have_is_told_before_anything_runs() -> None:
    given = {"name": OWN, "arguments": {"column": "promt"}}
    with pytest.raises(
        ConfigError, match=r"\[0\]\.arguments\.column=promt is not a column of the rows; did you mean prompt\?"
    ):
        own_expectations(changed(given))


def test_great_expectations_is_imported_only_where_a_class_of_the_teams_is_named() -> None:
    code = (
        "import sys; from tunewright.tasks.check import own_expectations; from tunewright.config import Checks; "
        "own_expectations(Checks()); print('great_expectations' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_name_that_is_not_accepted_is_an_error_of_the_settings() -> None:
    with pytest.raises(ConfigError, match="did you mean empty_answer"):
        own_expectations(changed({"name": "empty_anser"}))


def test_texts_are_held_against_a_class_of_the_teams_batch_by_batch(
    make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows([*GOOD, ("TCK-123", "Fixed."), ("TCK-12", "Fixed.")])
    monkeypatch.setattr("tunewright.data_checks.batches.BATCH", 4)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    checked = check.fn(rows, with_own({"name": OWN}), SPECIAL)
    assert [row["line"] for row in quarantined(checked)] == [1, 2, 3, 4, 6]


def test_what_a_class_sees_in_a_column_is_masked_where_it_stops(make_rows: MakeRows) -> None:
    rows = make_rows(GOOD)
    table = pq.read_table(rows.path("rows.parquet"))
    sources = pa.array([KEY] * len(GOOD))
    rows = make_rows(table=table.set_column(table.schema.get_field_index("source"), "source", sources))
    given = {
        "name": "great_expectations.expectations.ExpectColumnMostCommonValueToBeInSet",
        "arguments": {"column": "source", "value_set": ["b"]},
        "severity": "critical",
    }
    with pytest.raises(DataError) as caught:
        check.fn(rows, with_own(given), SPECIAL)
    assert "it holds: AWS Access Key" in str(caught.value)
    assert KEY not in str(caught.value)
