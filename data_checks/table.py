"""The schema of a row table: its columns, their types, and which of them may not be null."""
# pyright: reportPrivateImportUsage=false
# Great Expectations does not mark its public names as exported.

from typing import Any

import pyarrow as pa
from great_expectations import expectations as gxe
from great_expectations.core.metric_domain_types import MetricDomainTypes
from great_expectations.execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import BatchExpectation
from great_expectations.expectations.metrics.metric_provider import metric_value
from great_expectations.expectations.metrics.table_metric_provider import TableMetricProvider

from tunewright.data_checks.rules import Expected, Rule, between, expected
from tunewright.data_checks.suite import Arguments, Entry

NULLABLE = ("byte", "group", "time", "use_as", "repairs", "chat")


TABLE = Entry("table", "critical", Arguments())


def schema_expectations(schema: pa.Schema) -> list[Expected]:
    """The columns that a row table must have."""
    types = {name: arrow_type_name(type_) for name, type_ in zip(schema.names, schema.types, strict=True)}
    return expected(TABLE, [Rule("{value}", ExpectTableArrowTypesToBe(types=types))])


def table_expectations(schema: pa.Schema) -> list[Expected]:
    """Return the expectations on the table itself, without which its rows cannot be checked."""
    required = {name: name for name in schema.names if name not in (*NULLABLE, "messages")} | {"messages": "num_turns"}
    return expected(
        TABLE,
        [
            Rule("there are no rows", gxe.ExpectTableRowCountToBeBetween(min_value=1)),
            *(
                Rule(f"{name} is null", gxe.ExpectColumnValuesToNotBeNull(column=column))
                for name, column in required.items()
            ),
            between("messages is an empty list", "num_turns", least=1),
            between("a message has no role or no content", "num_incomplete_turns", most=0),
        ],
    )


class TableArrowTypes(TableMetricProvider):
    """The Arrow types of an Arrow-backed frame, as text, by column."""

    metric_name = "table.arrow_types"

    @metric_value(engine=PandasExecutionEngine)
    def _pandas(cls, execution_engine: PandasExecutionEngine, metric_domain_kwargs: Any, **_: Any) -> dict[str, str]:  # noqa: N805
        frame, _, _ = execution_engine.get_compute_domain(metric_domain_kwargs, domain_type=MetricDomainTypes.TABLE)
        return {str(name): arrow_type_name(type_.pyarrow_dtype) for name, type_ in frame.dtypes.items()}


class ExpectTableArrowTypesToBe(BatchExpectation):
    """Expect an Arrow-backed frame to have these columns, of exactly these types, nested types included."""

    types: dict[str, str]
    metric_dependencies = (TableArrowTypes.metric_name,)
    success_keys = ("types",)

    def _validate(self, metrics: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        observed = metrics[TableArrowTypes.metric_name]
        faults = [
            f"column {name} is {observed[name]}, not {type_}" if name in observed else f"column {name} is missing"
            for name, type_ in self.types.items()
            if observed.get(name) != type_
        ]
        return {"success": not faults, "result": {"observed_value": "; ".join(faults)}}


def arrow_type_name(type_: pa.DataType) -> str:
    """The type as text; Parquet calls a list's items element, which makes it no other type."""
    return str(type_).replace("<element: ", "<item: ")
