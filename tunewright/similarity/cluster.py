"""The engine that is a Ray cluster: its workers read, shingle and compare rows (spread.py); some bytes a row come back.

machine/cluster.py has the connection.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from tunewright.machine.cluster import connected, get, on_made, put, run, work_of
from tunewright.similarity import spread
from tunewright.similarity.engine import Engine, pieces
from tunewright.similarity.sets import (
    ENOUGH,
    ItemShare,
    Nearest,
    Pairs,
    Sets,
    buckets_of,
    first_of,
    in_order,
    nearest_of,
    ordered,
    parts_of,
    together,
)
from tunewright.similarity.spread import Facts, SpreadSets

FEWEST_ROWS, MOST_ROWS = 20_000, 200_000  # that one task reads


class Ray(Engine):
    """The engine that is the cluster that this process is connected to."""

    def __init__(self, cores: int) -> None:
        self.parts = max(2, 1 << (cores - 1).bit_length())  # a power of two, one of them or two for each core

    def over_batches(self, file: Path, columns: list[str], function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """References to what the function made, by the workers."""
        work = work_of(function, arguments)
        return [run(spread.on_piece, work, file, columns, piece) for piece in self._pieces(file)]

    def over(self, made: list[Any], function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """References, from references."""
        work = work_of(function, arguments)
        return [run(on_made, work, each) for each in made]

    def instead(self, made: list[Any], function: Callable[..., Any], **arguments: Any) -> list[Any]:
        """As `over`: what nothing refers to is let go."""
        found = self.over(made, function, **arguments)
        made.clear()
        return found

    def collect(self, made: list[Any]) -> list[Any]:
        """Fetch the results of the references to this machine."""
        return get(made)

    def sets(self, shingled: list[Any]) -> SpreadSets:
        """The sets of all rows; their items stay where they were made."""
        facts = [Facts(*(np.empty(0, kind) for kind in (np.int64, np.uint64, np.uint64)))]
        facts += get([run(spread.facts_of, each) for each in shingled])
        starts = np.cumsum([len(each.sizes) for each in facts])
        all_facts = Facts(*(np.concatenate(column) for column in zip(*facts, strict=True)))
        classes = self._rarities(shingled, int(all_facts.sizes.sum()))
        return SpreadSets([run(ordered, each, classes) for each in shingled], starts, all_facts, np.arange(starts[-1]))

    def here(self, sets: SpreadSets) -> Sets:
        """Their items come here."""
        blocks = [run(spread.taken, *of_piece) for of_piece in sets.by_piece(np.arange(len(sets)))]
        return together([block.sets for block in get(blocks)])

    def leaders(self, sets: SpreadSets, threshold: float) -> tuple[np.ndarray, np.ndarray]:
        """Rows of one kind meet, in their order; a kind that most rows are of leaves most of the work to one worker."""
        part_of = parts_of(sets.facts.kinds[sets.rows], self.parts)
        met = [
            run(spread.spread_by_row, piece, rows, numbers, part_of[numbers], self.parts, returns=self.parts)
            for piece, rows, numbers in sets.by_piece(np.arange(len(sets)))
        ]
        found = get([run(spread.leaders_of_part, threshold, *blocks) for blocks in zip(*met, strict=True)])
        partner, similarity = np.full(len(sets), -1, np.int64), np.zeros(len(sets))
        for rows, leading, similar in found:
            partner[rows], similarity[rows] = leading, similar
        return partner, similarity

    def similar_pairs(self, sets: SpreadSets, threshold: float, enough: int = ENOUGH) -> Pairs:
        """Rows that have an item in their prefix meet."""
        numbers = np.arange(len(sets))
        first = first_of(sets.facts.hashes[sets.rows])
        met = self._meet(sets, numbers[first == numbers], numbers, threshold)
        found = get([run(spread.pairs_of_part, part, threshold, enough, *blocks) for part, blocks in met])
        none = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
        return Pairs(first, *in_order(*(np.concatenate(column) for column in zip(*none, *found, strict=True))))

    def nearest_across(self, sets: SpreadSets, splits: np.ndarray, floor: float) -> Nearest:
        """Rows that have an item in their prefix meet, numbered by size, as they are where ties are broken."""
        by_size = np.argsort(sets.facts.sizes[sets.rows], kind="stable")
        rank = np.empty(len(sets), np.int64)
        rank[by_size] = np.arange(len(sets))
        of_ranks = put(splits[by_size])
        met = self._meet(sets, np.arange(len(sets)), rank, floor)
        found = get([run(spread.closest_of_part, part, floor, of_ranks, *blocks) for part, blocks in met])
        return nearest_of([Nearest(-1, -1, 0.0, 0), *found]).named(by_size)

    def _pieces(self, file: Path) -> list[tuple[int, ...]]:
        """Two or more for each core, of a size that a worker has memory for."""
        rows = pq.ParquetFile(file).metadata.num_rows // (2 * self.parts)
        return pieces(file, min(max(rows, FEWEST_ROWS), MOST_ROWS))

    def _meet(
        self, sets: SpreadSets, chosen: np.ndarray, numbers: np.ndarray, threshold: float
    ) -> list[tuple[ItemShare, tuple[Any, ...]]]:
        """Each part of the items, and references to the blocks of `chosen` rows that can be similar by one of them."""
        met = [
            run(spread.spread_by_item, piece, rows, numbers[places], threshold, self.parts, returns=self.parts)
            for piece, rows, places in sets.by_piece(chosen)
        ]
        return [(ItemShare(part, self.parts), blocks) for part, blocks in enumerate(zip(*met, strict=True))]

    def _rarities(self, found: Sequence[Any], num_items: int) -> Any:
        """A reference to how rare the items of each bucket are, in all rows: 128 MiB at most."""
        buckets = max(buckets_of(num_items), self.parts)
        counted = [run(spread.buckets_by_part, shingled, buckets, self.parts, returns=self.parts) for shingled in found]
        width = buckets // self.parts
        ranges = get([run(spread.rarities_of_part, width, *of_part) for of_part in zip(*counted, strict=True)])
        return put(np.concatenate([np.empty(0, np.uint8), *ranges]))


@contextmanager
def ray_engine() -> Iterator[Ray]:
    """The engine for as long as it is connected. Raises ConfigError where there is no cluster to be had."""
    with connected() as cores:
        yield Ray(cores)
