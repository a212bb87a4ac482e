"""Rows quarantined from a user-provided test or validation set are reported; a run stops if none is left."""

import json
import logging
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import SPECIAL, changed
from conftest import MakeRows

from tunewright.artifacts import ROW_SCHEMA, CheckedRows
from tunewright.artifacts.payloads import CheckResults
from tunewright.data_checks.report import summary
from tunewright.errors import DataError
from tunewright.tasks.check import check


def rows_on(make_rows: MakeRows, *splits_and_answers: tuple[str | None, str]) -> Any:
    """One row for each split and answer."""
    rows = make_rows([(f"question {n}", answer) for n, (_, answer) in enumerate(splits_and_answers)])
    table = pq.read_table(rows.path("rows.parquet"))
    splits = pa.array([split for split, _ in splits_and_answers], pa.string())
    place = ROW_SCHEMA.get_field_index("use_as")
    return make_rows(table=table.set_column(place, ROW_SCHEMA.field("use_as"), splits))


def checked(make_rows: MakeRows, *splits_and_answers: tuple[str | None, str]) -> CheckedRows:
    return check.fn(rows_on(make_rows, *splits_and_answers), changed(), SPECIAL)


GOLDEN = [("test", "fine"), ("test", " "), ("test", "TODO"), ("test", "TODO"), ("train", ""), (None, "")]
SAID = (
    "3 of the 4 records of the user-provided test set were quarantined, 1 left: placeholder_answer 2, empty_answer 1; "
    "first: data.jsonl line 2"
)


def test_what_a_given_test_split_loses_is_a_finding_in_its_own_words(
    make_rows: MakeRows, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "tunewright"):
        made = checked(make_rows, *GOLDEN)
    assert made.findings["given_test_rows_quarantined"] == 3
    assert made.num_quarantined == 5
    assert f"check: {SAID}" in caplog.messages
    results = CheckResults.load(made)
    assert results.user_provided_splits == (SAID,)
    assert f"**{SAID}**" in summary(results)
    assert SAID in made.path("report.html").read_text()


def test_what_ingest_refused_of_a_given_test_set_counts_among_its_records(make_rows: MakeRows) -> None:
    rows = make_rows(table=pq.read_table(rows_on(make_rows, *GOLDEN).path("rows.parquet")), refused=36)
    made = check.fn(rows.model_copy(update={"given": {"data.jsonl": "test"}}), changed(), SPECIAL)
    assert made.findings["given_test_rows_quarantined"] == 39
    assert json.loads(made.path("results.json").read_text())["user_provided_splits"] == [
        "39 of the 40 records of the user-provided test set were quarantined, 1 left: bad_json 36, "
        "placeholder_answer 2, empty_answer 1; first: data.jsonl line 1000"
    ]


def test_rows_that_stand_twice_in_a_given_test_set_are_told_with_their_places(make_rows: MakeRows) -> None:
    table = pq.read_table(rows_on(make_rows, *[("test", "fine")] * 3, (None, "fine")).path("rows.parquet"))
    made = check.fn(make_rows(table=table.take([0, 1, 0, 2, 1, 3, 3])), changed(), SPECIAL)
    assert made.findings["given_test_rows_repeated"] == 2
    assert json.loads(made.path("results.json").read_text())["user_provided_splits"] == [
        "2 of the 5 records of the user-provided test set repeat an earlier one (the decision counts each once): "
        "data.jsonl line 1 (as line 1), data.jsonl line 2 (as line 2)"
    ]
    assert made.num_quarantined == 0


def test_a_given_split_that_loses_nothing_and_splits_that_nobody_gives_are_no_finding(make_rows: MakeRows) -> None:
    made = checked(make_rows, ("test", "fine"), ("validation", "fine"), ("train", " "), (None, "TODO"), (None, "fine"))
    assert made.num_quarantined == 2
    assert not {name for name in made.findings if name.startswith("given")}


def test_a_given_split_of_which_nothing_is_left_stops_since_another_would_be_drawn(make_rows: MakeRows) -> None:
    rest = [(None, "fine")] * 20
    with pytest.raises(DataError) as caught:
        checked(make_rows, ("validation", "TODO"), ("validation", ""), ("test", "fine"), *rest)
    assert str(caught.value).startswith(
        "2 of the 2 records of the user-provided validation set were quarantined, none left: placeholder_answer 1, "
        "empty_answer 1; first: data.jsonl line 1"
    )
    assert checked(make_rows, ("train", ""), *rest).num_rows == 20
