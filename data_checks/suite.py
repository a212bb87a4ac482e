"""Runs the expectations as one suite of Great Expectations, in memory, and says which rows fail which of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.expectations.expectation import Expectation


@dataclass(frozen=True)
class Outcome:
    """What came of one expectation."""

    code: str
    fault: str  # what is wrong where it fails
    severity: str  # critical or warning
    expectation: str
    column: str
    evaluated: int  # values looked at, nulls passed over; 1 for the table as a whole
    failed: int
    rows: np.ndarray[Any, Any] = field(repr=False)  # positions of the failing rows, rising
    error: str = ""  # why it could not be evaluated

    @property
    def share(self) -> float:
        """Of what was looked at, how much failed; 0 to 1."""
        return self.failed / self.evaluated if self.evaluated else 0.0


def run(frame: pd.DataFrame, expectations: Sequence[Expectation]) -> list[Outcome]:
    """Holds `frame`, whose index counts from 0, against all expectations at once; their outcomes in the given order."""
    numbered = [
        expectation.copy(update={"meta": {**(expectation.meta or {}), "number": number}})
        for number, expectation in enumerate(expectations)
    ]
    results = _batch(frame).validate(
        gx.ExpectationSuite(name="rows", expectations=numbered),
        result_format={
            "result_format": "COMPLETE",
            "exclude_unexpected_values": True,
            "return_unexpected_index_query": False,
        },
    )
    by_number = {result.expectation_config.meta["number"]: result for result in results.results}
    return [_outcome(by_number[number]) for number in range(len(numbered))]


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


def _outcome(result: Any) -> Outcome:
    config, found = result.expectation_config, result.result
    rows = np.array(sorted(found.get("unexpected_index_list") or []), dtype=np.int64)
    error = _error(result.exception_info)
    # Some engines name only the first 20 failing rows; a quarantine made from those would let the others through.
    assert error or len(rows) == found.get("unexpected_count", 0), f"{config.type} does not name all failing rows"
    of_rows = "unexpected_count" in found
    return Outcome(
        code=config.meta["code"],
        fault=config.meta["fault"].replace("{value}", str(found.get("observed_value", "{value}"))),
        severity=config.severity.value,
        expectation=config.type,
        column=config.kwargs.get("column", ""),
        evaluated=found["element_count"] - found.get("missing_count", 0) if of_rows else 1,
        failed=found["unexpected_count"] if of_rows else int(not result.success),
        rows=rows,
        error=error,
    )


def _error(exception_info: dict[str, Any]) -> str:
    """The message of an expectation that could not be evaluated: of itself, or of the first of its metrics."""
    infos = [exception_info] if "raised_exception" in exception_info else list(exception_info.values())
    return next((str(info["exception_message"]) for info in infos if info["raised_exception"]), "")
