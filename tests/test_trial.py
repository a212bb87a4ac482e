"""The team's expectations that can never run are reported before anything runs; those that may run are accepted."""
# pyright: reportPrivateImportUsage=false, reportIncompatibleVariableOverride=false

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import changed
from conftest import MakeRows
from great_expectations import expectations as gxe
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import (
    ColumnMapMetricProvider,
    column_condition_partial,
)

from tunewright.accepted import shown
from tunewright.artifacts import ROW_SCHEMA
from tunewright.data_checks.suite import Entry, SuiteError, suite
from tunewright.data_checks.trial import try_out
from tunewright.errors import ConfigError
from tunewright.tasks.check.validate import validate_rows

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


SAME_LETTERS = "a" * 60 + "!"


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("ExpectColumnValuesToMatchRegex", {"regex": "(a+)+$"}),
        ("ExpectColumnValuesToNotMatchRegexList", {"regex_list": ["b", "(a+)+$"]}),
        ("ExpectColumnValuesToMatchJsonSchema", {"json_schema": {"type": "string", "pattern": "(a+)+$"}}),
    ],
)
@pytest.mark.parametrize("column", ["answer", "source"])
def test_a_pattern_without_end_is_one_line_that_names_the_expectation_and_the_limit(
    name: str, given: dict[str, Any], column: str, make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.data_checks.patterns.SECONDS", 1.0)
    asked = changed({"name": f"{GX}.{name}", "arguments": {"column": column} | given})
    text = json.dumps(SAME_LETTERS)
    table = pq.read_table(make_rows([("Which letter?", text)]).path("rows.parquet"))
    table = table.set_column(table.schema.get_field_index("source"), table.schema.field("source"), pa.array([text]))
    file = make_rows(table=table).path("rows.parquet")
    ((argument, pattern),) = given.items()
    said = (
        f"{argument}={shown(pattern)} takes more than 1 s of processor time on 1,000,000 characters of texts or fewer; "
        "accepted are patterns without a repetition of a repetition"
    )
    with pytest.raises(ConfigError, match=rf"^checks\.expectations\[0\] \(expect_\w+\): {re.escape(said)}"):
        validate_rows(file, suite(asked.expectations), ())


def test_a_schema_of_an_expectation_downloads_nothing() -> None:
    schema = {"$ref": "http://127.0.0.1:9/a.json"}
    said = r"json_schema=.* refers to http://127\.0\.0\.1:9/a\.json, which is not in the file; nothing is downloaded"
    with pytest.raises(ConfigError, match=said):
        tried(f"{GX}.ExpectColumnValuesToMatchJsonSchema", column="answer", json_schema=schema)


@pytest.mark.parametrize(
    "condition",
    [
        "@pd.io.common.os.system('touch {file}') == 0",
        "num_turns.to_csv('{file}') == 0",
        "num_turns == 1 and @pd.io.common.os.system('touch {file}') == 0",
        "file == '`' and @pd.io.common.os.system('touch {file}') == 0 and file == '`'",
        "num_turns == 1 #\u2028@pd.io.common.os.system('touch {file}') == 0",
        "num_turns.__class__ == 1",
        "9 ** 9 ** 9 ** 9 == num_turns",
        {"type": "pass_through", "pass_through_filter": "@pd.io.common.os.system('touch {file}') == 0"},
        {
            "type": "comparison",
            "column": {"name": "'line' == 0 or @pd.io.common.os.system('touch {file}') == 0"},
            "operator": "==",
            "parameter": 1,
        },
        {"type": "comparison", "column": {"name": "line"}, "operator": "==", "parameter": "`' or num_turns == '`"},
        {
            "type": "and",
            "conditions": [
                {"type": "nullity", "is_null": False, "column": {"name": "line"}},
                {
                    "type": "comparison",
                    "column": {"name": "x` == 1 or @pd.io.common.os.system('touch {file}') == `line"},
                    "operator": "==",
                    "parameter": 1,
                },
            ],
        },
    ],
)
def test_a_condition_of_a_form_runs_nothing(condition: Any, tmp_path: Path) -> None:
    file = tmp_path / "touched"
    given = json.loads(json.dumps(condition).replace("{file}", str(file)))
    parser = {"condition_parser": "pandas"} if isinstance(given, str) else {}
    with pytest.raises(SuiteError, match=r"^checks\.expectations\[0\]\.arguments\.row_condition=.* does more than to "):
        tried(f"{GX}.ExpectColumnValuesToBeNull", column="group", row_condition=given, **parser)
    assert not file.exists()


@pytest.mark.parametrize(
    "condition",
    [
        "num_turns > 1 and source in ['a@b', 'c'] or not group.isnull()",
        "(source.str.len() > 1) & source.str.startswith('a')",
        {"type": "comparison", "column": {"name": "num_turns"}, "operator": ">", "parameter": 1},
    ],
)
def test_a_condition_may_compare_columns(condition: Any) -> None:
    parser = {"condition_parser": "pandas"} if isinstance(condition, str) else {}
    tried(f"{GX}.ExpectColumnValuesToBeNull", column="group", row_condition=condition, **parser)


@pytest.mark.parametrize("value", [{"$PARAMETER": "9^9^9^9^9"}, [[{"$PARAMETER.a": 1}]]])
def test_no_value_is_computed_of_a_formula(value: Any) -> None:
    with pytest.raises(SuiteError, match=r"arguments\.max_value=.*; accepted: a value, and no \$PARAMETER$"):
        tried(f"{GX}.ExpectColumnValuesToBeBetween", column="num_turns", max_value=value)
