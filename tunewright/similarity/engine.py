"""Compare rows on the threads of this machine or on a Ray cluster, with the same result."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.machine import on_all_cores, on_each
from tunewright.machine.cluster import EngineName
from tunewright.similarity.sets import ENOUGH, Nearest, Pairs, Sets, gather, leaders, nearest_across, similar_pairs

T = TypeVar("T")

ROWS_AT_ONCE = 20_000


def over_batches(file: Path, columns: list[str], function: Callable[..., T], **arguments: Any) -> list[T]:
    """function(batch, **arguments) for every batch of the columns, in order; a few batches are in memory at a time."""
    return on_all_cores(lambda piece: function(read_piece(file, columns, piece), **arguments), pieces(file))


class Engine:
    """Compares the rows of a Parquet file on this machine; a subclass does so elsewhere (cluster.py).

    What is made of a batch of rows stays where it was made, so that it is read once. What an engine has for sets has
    len(sets) and sets[rows].
    """

    def over_batches(self, file: Path, columns: list[str], function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """function(batch, **arguments) for every batch of the columns, in order; `function` belongs to a module."""
        return over_batches(file, columns, function, **arguments)

    def over(self, made: list[Any], function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """function(each, **arguments) for each of what was made, which stays in memory for as long as `made` does."""
        return on_all_cores(lambda each: function(each, **arguments), made)

    def instead(self, made: list[Any], function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """As `over`, for the last time: the list is emptied meanwhile."""
        return on_each(made, lambda each: function(each, **arguments))

    def collect(self, made: list[Any]) -> list[Any]:
        """Return the results on this machine."""
        return made

    def sets(self, shingled: list[Any]) -> Any:
        """The sets of the rows, from the Shingles that were made of every batch; the list is emptied meanwhile."""
        return gather(shingled)

    def here(self, sets: Any) -> Sets:
        """The same sets on this machine."""
        return sets

    def leaders(self, sets: Any, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """As leaders of sets.py."""
        return leaders(sets, threshold)

    def similar_pairs(self, sets: Any, threshold: float, enough: int = ENOUGH) -> Pairs:
        """As similar_pairs of sets.py; of the pairs beyond `enough`, others may be listed."""
        return similar_pairs(sets, threshold, enough)

    def nearest_across(self, sets: Any, splits: np.ndarray, floor: float) -> Nearest:
        """As nearest_across of sets.py; another number of pairs may be compared."""
        return nearest_across(sets, splits, floor)


def engine_of(name: EngineName) -> AbstractContextManager[Engine]:
    """The engine that data.engine names, for as long as it is needed."""
    if name == "local":
        return nullcontext(Engine())
    from tunewright.similarity.cluster import ray_engine

    return ray_engine()


def pieces(file: Path, rows_at_once: int = ROWS_AT_ONCE) -> list[tuple[int, ...]]:
    """The row groups of a Parquet file, put together to pieces of about so many rows."""
    metadata = pq.ParquetFile(file).metadata
    found: list[tuple[int, ...]] = []
    rows = rows_at_once
    for group in range(metadata.num_row_groups):
        if rows >= rows_at_once:
            found.append(())
            rows = 0
        found[-1] += (group,)
        rows += metadata.row_group(group).num_rows
    return found


def read_pieces(file: Path, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The pieces of a Parquet file, one at a time."""
    for piece in pieces(file):
        yield read_piece(file, columns, piece)


def read_piece(file: Path, columns: list[str] | None, piece: tuple[int, ...]) -> pa.Table:
    """The rows of a piece."""
    return pq.ParquetFile(file).read_row_groups(list(piece), columns=columns)
