"""The team's expectations that can never run are reported before anything runs; those that may run are accepted."""
# pyright: reportPrivateImportUsage=false, reportIncompatibleVariableOverride=false

from typing import Any

import pandas as pd
import pytest
from great_expectations import expectations as gxe
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    column_condition_partial,
)

from tunewright.artifacts import ROW_SCHEMA
from tunewright.data_checks.suite import Entry, SuiteError
from tunewright.data_checks.trial import try_out

GX = "great_expectations.expectations"


class ColumnValuesStrict(ColumnMapMetricProvider):
    """Metric of the team's that raises on each unknown value."""

    condition_metric_name = "column_values.strict"

    @column_condition_partial(engine=PandasExecutionEngine)
    def _pandas(cls, column: pd.Series, **_: Any) -> pd.Series:  # noqa: N805
        raise ValueError(f"{column.iloc[0]} is of no team")


class ExpectColumnValuesStrict(ColumnMapExpectation):
    """Made by the team from the ground."""

    column: str = "prompt"
    map_metric = "column_values.strict"


class ExpectShort(gxe.ExpectColumnValueLengthsToBeBetween):
    """An answer is short."""

    column: str = "answr"
    max_value: int = 9


def tried(name: str, **arguments: Any) -> None:
    try_out([Entry(name, "warning", arguments, "checks.expectations[0]")], ROW_SCHEMA)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        (
            f"{GX}.ExpectColumnValuesToNotBeNull",
            {"column": "promt"},
            "arguments.column=promt is not a column of the rows; did you mean prompt? "
            "accepted: prompt, answer, row_id, ",
        ),
        (
            f"{GX}.ExpectCompoundColumnsToBeUnique",
            {"column_list": ["prompt_hash", "answer_hsh"]},
            "arguments.column_list=answer_hsh is not a column of the rows; did you mean answer_hash? accepted: ",
        ),
        (
            f"{GX}.ExpectColumnValuesToNotBeNull",
            {"column": "messages"},
            "arguments.column=messages is not a column of the ",
        ),
        (
            f"{__name__}.ExpectShort",
            {},
            f"name={__name__}.ExpectShort: column=answr is not a column of the rows; did you mean answer? accepted: ",
        ),
        (
            f"{GX}.ExpectColumnValuesToMatchRegex",
            {"column": "prompt", "regex": "["},
            'arguments={"column": "prompt", "regex": "["} of great_expectations.expectations.ExpectColumnValuesToMatch',
        ),
        (
            f"{GX}.ExpectColumnValuesToBeBetween",
            {"column": "num_turns", "min_value": 5, "max_value": 2},
            "cannot be evaluated: min_value cannot be greater than max_value",
        ),
        (
            f"{GX}.ExpectColumnMeanToBeBetween",
            {"column": "roles", "min_value": 1},
            "cannot be evaluated: ",
        ),
        (
            f"{GX}.UnexpectedRowsExpectation",
            {"unexpected_rows_query": "SELECT * FROM {batch}"},
            "cannot be evaluated: No provider found for",
        ),
    ],
)
def test_what_can_never_run_is_told_in_one_line_with_its_key(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(SuiteError) as caught:
        tried(name, **arguments)
    assert str(caught.value).startswith("checks.expectations[0].")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ExpectColumnValuesToBeInSet", {"column": "source", "value_set": ["nothing like it"]}),
        ("ExpectColumnValuesToMatchRegex", {"column": "prompt", "regex": "^nothing$"}),
        ("ExpectColumnValuesToBeBetween", {"column": "num_turns", "max_value": 1}),
        ("ExpectColumnDistinctValuesToBeInSet", {"column": "source", "value_set": ["nothing like it"]}),
        (
            "ExpectColumnValuesToBeNull",
            {"column": "group", "row_condition": "num_turns > 1", "condition_parser": "pandas"},
        ),
        ("ExpectColumnValuesToBeNull", {"column": "secret"}),
        ("ExpectColumnValuesToMatchJsonSchema", {"column": "answer", "json_schema": {"type": "object"}}),
        ("ExpectColumnValuesToBeJsonParseable", {"column": "answer"}),
        ("ExpectColumnValuesToBeUnique", {"column": "prompt_hash"}),
        ("ExpectColumnPairValuesToBeEqual", {"column_A": "prompt_language", "column_B": "answer_language"}),
        ("ExpectCompoundColumnsToBeUnique", {"column_list": ["prompt_hash", "answer_hash"]}),
        ("ExpectColumnStdevToBeBetween", {"column": "max_answer_chars", "min_value": 1}),
        ("ExpectColumnValueZScoresToBeLessThan", {"column": "line", "threshold": 1, "double_sided": True}),
        ("ExpectColumnUniqueValueCountToBeBetween", {"column": "source", "min_value": 2}),
        ("ExpectTableRowCountToBeBetween", {"min_value": 1000}),
    ],
)
def test_what_made_up_rows_fail_may_still_run(name: str, arguments: dict[str, Any]) -> None:
    tried(f"{GX}.{name}", **arguments)


def test_what_the_teams_own_code_raises_on_made_up_rows_proves_nothing() -> None:
    tried(f"{__name__}.ExpectColumnValuesStrict")
    tried(f"{__name__}.ExpectColumnValuesStrict", column="source")


def test_several_are_tried_at_once_and_the_first_wrong_one_is_told() -> None:
    names = ("ExpectColumnValuesToBeUnique", "ExpectColumnValuesToNotBeNull", "ExpectColumnValuesToNotBeNull")
    columns = ("prompt", "lne", "sourc")
    entries = [
        Entry(f"{GX}.{name}", "warning", {"column": column}, f"checks.expectations[{n}]")
        for n, (name, column) in enumerate(zip(names, columns, strict=True))
    ]
    with pytest.raises(SuiteError, match=r"^checks\.expectations\[1\]\.arguments\.column=lne is not a column"):
        try_out(entries, ROW_SCHEMA)
