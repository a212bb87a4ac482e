"""The sets of a table that lie in pieces on several machines: what is done with a piece, and where pieces meet.

Rows that can be similar have to meet. To find leaders, which needs all earlier rows, rows of one kind meet, since no
row is similar to one of another kind. To find pairs, the rows that share an item of their prefixes meet, since similar
rows do (Vernica et al. 2010, "Efficient parallel set-similarity joins using MapReduce"). Where they meet, they are
compared as on one machine (sets.py), so the result is the same.
"""

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tunewright.errors import ConfigError
from tunewright.machine.cluster import BatchWork, on_made
from tunewright.similarity.engine import read_piece
from tunewright.similarity.prompts import Shingles
from tunewright.similarity.sets import (
    ItemShare,
    Nearest,
    Sets,
    closest_of,
    leaders,
    pairs_of,
    parts_of,
    prefixes,
    together,
)

T = TypeVar("T")


class Facts(NamedTuple):
    """Size, hash and kind of each row of a piece, for the driver."""

    sizes: np.ndarray
    hashes: np.ndarray  # uint64, equal for equal sets
    kinds: np.ndarray  # uint64


class Block(NamedTuple):
    """Sets of some rows, and the numbers by which the driver knows them."""

    numbers: np.ndarray
    sets: Sets


@dataclass(frozen=True)
class SpreadSets:
    """Sets whose items lie elsewhere, in pieces; rows of them can be chosen, as of Sets."""

    pieces: list[Any]  # references to the Sets of all rows of a piece
    starts: np.ndarray  # (pieces + 1,) the first row of each piece
    facts: Facts  # of all rows
    rows: np.ndarray  # which of all rows these sets are, rising

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: np.ndarray) -> "SpreadSets":
        return replace(self, rows=self.rows[rows])

    def by_piece(self, chosen: np.ndarray) -> Iterator[tuple[Any, np.ndarray, np.ndarray]]:
        """Yield for each piece that has `chosen` sets (rising): its reference, their rows in it, and the sets."""
        rows = self.rows[chosen]
        bounds = np.searchsorted(rows, self.starts)
        for piece, start, begin, end in zip(self.pieces, self.starts, bounds, bounds[1:], strict=False):
            if begin < end:
                yield piece, rows[begin:end] - start, chosen[begin:end]


def on_piece(work: BatchWork[T], file: Path, columns: list[str], piece: tuple[int, ...]) -> T:
    """Apply the function to a piece of a file; ConfigError where this node does not see it, or has other code."""
    if not file.exists():
        raise ConfigError(
            f"{file}: the Ray node {platform.node()} cannot see it; TUNEWRIGHT_HOME must be a folder that all nodes "
            "share"
        )
    return on_made(work, read_piece(file, columns, piece))


def facts_of(found: Shingles) -> Facts:
    """Return the facts of a piece's shingles that the driver needs."""
    from tunewright.similarity.hashing import hash_sets

    return Facts(np.diff(found.indptr), hash_sets(found.indptr, found.items), found.kinds)


def buckets_by_part(found: Shingles, buckets: int, parts: int) -> list[np.ndarray]:
    """The bucket (uint32) of each item, in `parts` equal ranges of the buckets; both are powers of two."""
    of_items = np.sort((found.items & np.uint64(buckets - 1)).astype(np.uint32))
    return np.split(of_items, np.searchsorted(of_items, np.arange(1, parts) * (buckets // parts)))


def rarities_of_part(width: int, *of_items: np.ndarray) -> np.ndarray:
    """(width,) uint8: how rare the items of each bucket of one range are, from the buckets of all items in it."""
    from tunewright.similarity.postings import count_items, rarities

    counts = np.zeros(width, np.uint16)
    for items in of_items:
        count_items(items, counts)
    return rarities(counts)


def taken(sets: Sets, rows: np.ndarray, numbers: np.ndarray) -> Block:
    """The rows of a piece."""
    return Block(numbers, sets[rows])


def spread_by_row(sets: Sets, rows: np.ndarray, numbers: np.ndarray, part_of: np.ndarray, parts: int) -> list[Block]:
    """For each part the rows that belong to it."""
    chosen = [np.flatnonzero(part_of == part) for part in range(parts)]
    return [Block(numbers[of_part], sets[rows[of_part]]) for of_part in chosen]


def spread_by_item(sets: Sets, rows: np.ndarray, numbers: np.ndarray, threshold: float, parts: int) -> list[Block]:
    """For each part the rows that have an item of it in their prefix: as a rule a row goes to several."""
    sets = sets[rows]
    entries, items = prefixes(sets, threshold)
    held = np.zeros((parts, len(rows)), np.bool_)
    held[parts_of(items, parts), np.repeat(np.arange(len(rows)), np.diff(entries))] = True
    return [Block(numbers[of_part], sets[np.flatnonzero(of_part)]) for of_part in held]


def leaders_of_part(threshold: float, *blocks: Block) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, leader, similarity) of the rows that have one, among the rows of a part."""
    met = _met(blocks)
    partner, similarity = leaders(met.sets, threshold)
    gone = np.flatnonzero(partner >= 0)
    return met.numbers[gone], met.numbers[partner[gone]], similarity[gone]


def pairs_of_part(
    part: ItemShare, threshold: float, enough: int, *blocks: Block
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(left, right, similarity) of the pairs that meet first in this part."""
    met = _by_size(_met(blocks))
    return pairs_of(met.sets, met.numbers, threshold, enough, part)


def closest_of_part(part: ItemShare, floor: float, splits: np.ndarray, *blocks: Block) -> Nearest:
    """The nearest pair of two of the `splits` (by number) in this part. Numbers must rise with the sizes."""
    met = _by_size(_met(blocks))
    return closest_of(met.sets, splits[met.numbers], floor, part).named(met.numbers)


def _met(blocks: Sequence[Block]) -> Block:
    """The blocks as one."""
    return Block(np.concatenate([block.numbers for block in blocks]), together([block.sets for block in blocks]))


def _by_size(block: Block) -> Block:
    order = np.argsort(block.sets.sizes, kind="stable")
    return Block(block.numbers[order], block.sets[order])
