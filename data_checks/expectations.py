"""What rows must satisfy, each point a Great Expectations expectation on a column of the table or of columns.py.

To add one: derive what it looks at in columns.py, write it here, and name its code in checks.expectations
(tasks/config.py). An expectation's meta holds the code and the fault in words, where {value} stands for what a failing
row has in the column.
"""
# pyright: reportPrivateImportUsage=false
# Great Expectations does not mark its public names as exported.

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from great_expectations import expectations as gxe
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnAggregateExpectation
from great_expectations.expectations.metadata_types import FailureSeverity
from great_expectations.expectations.metrics import ColumnAggregateMetricProvider, column_aggregate_value

NULLABLE = ("group",)
ROLES_IN_ORDER = r"^(?:system )?user(?: assistant user)*(?: assistant)?$"
ENDS_WITH_ANSWER = r"(?:^| )assistant$"


def table_expectations(schema: pa.Schema) -> list[gxe.Expectation]:
    """What the table itself must satisfy, else nothing can be said of its rows: severity critical."""
    required = [name for name in schema.names if name not in NULLABLE]
    types = {name: arrow_type_name(type_) for name, type_ in zip(schema.names, schema.types, strict=True)}
    return [
        *[_critical(f"column {name} is missing", gxe.ExpectColumnToExist, column=name) for name in schema.names],
        *[
            _critical(f"column {name} is {{value}}, not {type_}", ExpectColumnArrowTypeToBe, column=name, type_=type_)
            for name, type_ in types.items()
        ],
        _critical("there are no rows", gxe.ExpectTableRowCountToBeBetween, min_value=1),
        *[_critical(f"{name} is null", gxe.ExpectColumnValuesToNotBeNull, column=name) for name in required],
        _critical("messages is an empty list", gxe.ExpectColumnValuesToBeBetween, column="num_turns", min_value=1),
        _critical(
            "a message has no role or no content",
            gxe.ExpectColumnValuesToBeBetween,
            column="num_incomplete_turns",
            max_value=0,
        ),
    ]


def row_expectations(
    codes: Sequence[str], *, max_prompt_chars: int, min_answer_chars: int, max_answer_chars: int
) -> list[gxe.Expectation]:
    """What each row must satisfy, else it is quarantined, in the order of `codes`: severity warning."""
    known = [
        _warning(
            "roles_out_of_order",
            "the roles do not alternate between user and assistant after one optional system: {value}",
            gxe.ExpectColumnValuesToMatchRegex,
            column="roles",
            regex=ROLES_IN_ORDER,
        ),
        _warning(
            "last_not_assistant",
            "the last turn is no answer: {value}",
            gxe.ExpectColumnValuesToMatchRegex,
            column="roles",
            regex=ENDS_WITH_ANSWER,
        ),
        _warning(
            "empty_prompt",
            "a user turn is empty or only white space",
            gxe.ExpectColumnValuesToBeBetween,
            column="shortest_user_turn",
            min_value=1,
        ),
        _warning(
            "empty_answer",
            "an answer is empty or only white space",
            gxe.ExpectColumnValuesToBeBetween,
            column="shortest_answer",
            min_value=1,
        ),
        _warning(
            "placeholder_answer",
            "an answer is nothing but a placeholder: {value}",
            gxe.ExpectColumnValuesToBeNull,
            column="placeholder",
        ),
        _warning(
            "length_out_of_bounds",
            f"{{value}} characters before the last answer, over checks.max_prompt_chars={max_prompt_chars}",
            gxe.ExpectColumnValuesToBeBetween,
            column="prompt_chars",
            max_value=max_prompt_chars,
        ),
        _warning(
            "length_out_of_bounds",
            f"an answer of {{value}} characters, under checks.min_answer_chars={min_answer_chars}",
            gxe.ExpectColumnValuesToBeBetween,
            column="min_answer_chars",
            min_value=min_answer_chars,
        ),
        _warning(
            "length_out_of_bounds",
            f"an answer of {{value}} characters, over checks.max_answer_chars={max_answer_chars}",
            gxe.ExpectColumnValuesToBeBetween,
            column="max_answer_chars",
            max_value=max_answer_chars,
        ),
        _warning(
            "special_token",
            "a text holds a special token of the model: {value}",
            gxe.ExpectColumnValuesToBeNull,
            column="special_token",
        ),
        _warning(
            "replacement_character",
            "replacement characters (U+FFFD) in a text, left by a wrong decoding: {value}",
            gxe.ExpectColumnValuesToBeBetween,
            column="num_replacement_characters",
            max_value=0,
        ),
    ]
    return [expectation for code in codes for expectation in known if (expectation.meta or {})["code"] == code]


def _critical(fault: str, kind: type[gxe.Expectation], **arguments: Any) -> gxe.Expectation:
    return kind(severity=FailureSeverity.CRITICAL, meta={"code": "table", "fault": fault}, **arguments)


def _warning(code: str, fault: str, kind: type[gxe.Expectation], **arguments: Any) -> gxe.Expectation:
    return kind(severity=FailureSeverity.WARNING, meta={"code": code, "fault": fault}, **arguments)


class ColumnArrowType(ColumnAggregateMetricProvider):
    """The Arrow type of a column, as text."""

    metric_name = "column.arrow_type"

    @column_aggregate_value(engine=PandasExecutionEngine, filter_column_isnull=False)
    def _pandas(cls, column: Any, **_: Any) -> str:  # noqa: N805 the decorator makes it a class method
        return arrow_type_name(column.dtype.pyarrow_dtype)


class ExpectColumnArrowTypeToBe(ColumnAggregateExpectation):
    """Expect a column of an Arrow-backed frame to have exactly this type, nested types included."""

    type_: str
    metric_dependencies = (ColumnArrowType.metric_name,)
    success_keys = ("type_",)

    def _validate(self, metrics: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        observed = metrics[ColumnArrowType.metric_name]
        return {"success": observed == self.type_, "result": {"observed_value": observed}}


def arrow_type_name(type_: pa.DataType) -> str:
    """The type as text; Parquet calls a list's items element, which makes it no other type."""
    return str(type_).replace("<element: ", "<item: ")
