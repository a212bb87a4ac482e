"""What later stages need of rows besides their messages: told when they have been read, not an hour later."""

from collections.abc import Container
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.errors import DataError
from tunewright.metrics import closed_set

Need = Literal["time", "label"]  # of split.by=time, of split.stratify=label


def stop_on_needs(file: Path, needs: Container[Need]) -> None:
    """Raises DataError where the rows of rows.parquet do not have what is needed."""
    if "time" in needs:
        _stop_if_undated(file)
    if "label" in needs:
        closed_set.stop_if_open(*closed_set.count_answers(file))


def _stop_if_undated(file: Path) -> None:
    """A row that its source puts on a side needs no time."""
    num_rows, num_undated, first = 0, 0, ""
    for batch in pq.ParquetFile(file).iter_batches(columns=["time", "side", "file", "line"]):
        undated = np.flatnonzero(pc.and_(pc.is_null(batch["time"]), pc.is_null(batch["side"])))  # pyright: ignore[reportAttributeAccessIssue]
        if len(undated) and not first:
            place = batch.slice(int(undated[0]), 1).to_pylist()[0]
            first = f"{place['file']}:{place['line']}"
        num_rows, num_undated = num_rows + len(batch), num_undated + len(undated)
    if num_undated:
        raise DataError(
            f"split.by=time: {num_undated} of {num_rows} rows have no time, the first is {first}; name the field that "
            "has it, as in data.sources[].columns: {time: created_at}, or set split.by=cluster"
        )
