"""Runs expectations as one suite of Great Expectations, in memory, and says which rows fail which of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import great_expectations as gx
import numpy as np
import numpy.typing as npt
import pandas as pd
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)

from tunewright.data_checks.patterns import stop_on_endless
from tunewright.data_checks.rules import BY_ROW, Expected, columns_of
from tunewright.data_checks.suite import Entry
from tunewright.privacy.excerpts import clipped, masked
from tunewright.reports.pages import percent

OBSERVED_CHARS = 300


@dataclass(frozen=True)
class ExpectationOutcome:
    """Result of one expectation."""

    entry: Entry  # the part of the suite that asked for it
    fault: str  # what is wrong where it fails; {value} stands for what the column has there
    expectation: str
    column: str
    evaluated: int  # values looked at, nulls passed over; 1 for a table as a whole
    failed: int
    rows: npt.NDArray[np.int64] = field(repr=False)  # positions of the failing rows, rising
    of_rows: bool = True  # it looks at one row at a time; a table as a whole has no failing rows
    observed: Any = None  # what a table as a whole has
    error: str = ""  # why it could not be evaluated
    trace: str = field(default="", repr=False)  # where, as Python tells it

    def says(self, value: Any = None) -> str:
        """The fault, with the value that a failing row has; without one, what a table as a whole has."""
        if isinstance(value, float):
            return self.fault.replace("{value:.1%}", percent(value, 1)).format(value=value)
        return self.fault.format(value=_shown(self.observed) if value is None else value)


def run(frame: pd.DataFrame, asked: Sequence[Expected]) -> list[ExpectationOutcome]:
    """Holds `frame`, whose index counts from 0, against all expectations at once; their outcomes in the given order.

    Raises ConfigError where a pattern of the team's would take too long.
    """
    stop_on_endless(frame, asked)
    numbered = [each.expectation.copy(update={"meta": {"number": n}}) for n, each in enumerate(asked)]
    named = [columns_of(each.expectation) for each in asked]
    if all(named) and not any(getattr(each.expectation, "row_condition", None) for each in asked):
        wanted = {column for columns in named for column in columns}  # Great Expectations copies its frame
        frame = frame[[name for name in frame.columns if name in wanted]]
    results = _batch(frame).validate(
        gx.ExpectationSuite(name="rows", expectations=numbered),
        result_format={
            "result_format": "COMPLETE",
            "exclude_unexpected_values": True,
            "return_unexpected_index_query": False,
        },
    )
    by_number = {result.expectation_config.meta["number"]: result for result in results.results}
    return [_outcome(each, by_number[number]) for number, each in enumerate(asked)]


def joined(parts: Sequence[ExpectationOutcome], starts: Sequence[int]) -> ExpectationOutcome:
    """One outcome of those of consecutive batches, which begin at the positions `starts`."""
    return replace(
        parts[0],
        evaluated=sum(part.evaluated for part in parts),
        failed=sum(part.failed for part in parts),
        rows=np.concatenate([part.rows + start for part, start in zip(parts, starts, strict=True)]),
        error=next((part.error for part in parts if part.error), ""),
    )


def _batch(frame: pd.DataFrame) -> Any:
    context = gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(),
            progress_bars=ProgressBarsConfig(globally=False),
            analytics_enabled=False,
        ),
    )
    asset = context.data_sources.add_pandas("rows").add_dataframe_asset("rows")
    return asset.add_batch_definition_whole_dataframe("rows").get_batch({"dataframe": frame})


def _outcome(asked: Expected, result: Any) -> ExpectationOutcome:
    config, found = result.expectation_config, result.result
    of_rows = isinstance(asked.expectation, BY_ROW) and "unexpected_count" in found
    rows = np.array(sorted(found.get("unexpected_index_list") or []) if of_rows else [], dtype=np.int64)
    error, trace = _error(result.exception_info)
    # Some engines name only the first 20 failing rows; a quarantine made from those would let the others through.
    assert not of_rows or len(rows) == found["unexpected_count"], f"{config.type} does not name all failing rows"
    return ExpectationOutcome(
        entry=asked.entry,
        fault=asked.fault,
        expectation=config.type,
        column=getattr(asked.expectation, "column", ""),
        evaluated=found["element_count"] - found.get("missing_count", 0) if of_rows else 1,
        failed=0 if result.success else len(rows) if of_rows else 1,
        rows=rows[:0] if result.success else rows,  # `mostly` lets a share fail
        of_rows=of_rows,
        observed=found.get("observed_value"),
        error=error,
        trace=trace,
    )


def _shown(observed: Any) -> str:
    """Return the observed value of a table, masked and clipped, as it may contain texts of the rows."""
    return clipped(" ".join(masked(str(observed)).split()), OBSERVED_CHARS)


def _error(exception_info: dict[str, Any]) -> tuple[str, str]:
    """The message and the trace of an expectation that could not be evaluated: its own, or its first metric's."""
    infos = [exception_info] if "raised_exception" in exception_info else list(exception_info.values())
    raised = (info for info in infos if info["raised_exception"])
    return next(((str(info["exception_message"]), str(info["exception_traceback"])) for info in raised), ("", ""))
