"""Sets of shingles and their exact Jaccard similarity: leaders, similar pairs, and the nearest across splits."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tunewright.machine import FREED_AT_ONCE, on_all_cores, on_each, release_memory
from tunewright.similarity.prompts import Shingles

T = TypeVar("T")

ENOUGH = 16  # partners of a row, beyond which only those matter that connect it to more rows
BLOCKS = 16  # of rows that are compared at once; a part has a worker to itself, and one block


@dataclass(frozen=True)
class Sets:
    """Rows of hashed items, the rarest of all rows first; items that only one row has are counted, but left out."""

    indptr: np.ndarray  # (rows + 1,) int64
    items: np.ndarray  # uint64, rising within a row
    sizes: np.ndarray  # (rows,) int64, with what was left out

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, rows: np.ndarray) -> "Sets":
        from tunewright.similarity.join import take_rows

        indptr, items = take_rows(self.indptr, self.items, rows)
        return Sets(indptr, items, self.sizes[rows])


def gather(shingled: list[Shingles]) -> Sets:
    """The sets of the rows of all parts. The list is emptied meanwhile, so that memory holds what is large once."""
    from tunewright.similarity.postings import count_items, rarities

    counts = np.zeros(buckets_of(sum(len(part.items) for part in shingled)), np.uint16)
    for part in shingled:
        count_items(part.items, counts)
    classes = rarities(counts)
    return together(on_each(shingled, lambda part: ordered(part, classes)))


def ordered(part: Shingles, classes: np.ndarray) -> Sets:
    """The sets of a part, in the order that the rarities of all items give."""
    from tunewright.similarity.postings import order_items

    indptr, items = order_items(part.indptr, part.items, classes)
    return Sets(indptr, items, np.diff(part.indptr))


def together(parts: list[Sets]) -> Sets:
    """The sets of all parts. The list is emptied meanwhile, as by gather."""
    indptr = np.cumsum(np.concatenate([[0], *(np.diff(part.indptr) for part in parts)]))
    sizes = np.concatenate([np.empty(0, np.int64), *(part.sizes for part in parts)])
    items, begin = np.empty(indptr[-1], np.uint64), 0
    while parts:
        part = parts.pop(0)
        items[begin : begin + len(part.items)] = part.items
        begin += len(part.items)
        del part
        if len(parts) % FREED_AT_ONCE == 0:
            release_memory()
    return Sets(indptr, items, sizes)


def buckets_of(num_items: int) -> int:
    """The number of buckets that so many items are counted in, a power of two."""
    return 1 << min(27, max(10, 2 * num_items).bit_length())


@dataclass(frozen=True)
class Pairs:
    """The pairs that are similar, as row numbers. Rows of equal sets are one: the first stands for all of them.

    A row with `enough` partners has others only where they connect it to more: what is connected is always the same.
    """

    first: np.ndarray  # (rows,) the first row with the same set as this row
    left: np.ndarray  # (pairs,) left < right, both the first of their set
    right: np.ndarray
    similarity: np.ndarray  # (pairs,) exact Jaccard


@dataclass(frozen=True)
class Nearest:
    """The most similar pair of rows of two splits, -1 and 0.0 if none is over the floor; how many were compared."""

    one: int  # the smaller of the two
    other: int
    similarity: float
    num_compared: int

    def named(self, rows: np.ndarray) -> "Nearest":
        """The same pair by the names that `rows` has for its numbers."""
        if self.one < 0:
            return self
        one, other = sorted((int(rows[self.one]), int(rows[self.other])))
        return Nearest(one, other, self.similarity, self.num_compared)


class ItemShare(NamedTuple):
    """A share of all items. Rows are compared by the items of one part; each pair is found in one part of them all."""

    number: int = 0
    of: int = 1


WHOLE = ItemShare()


def parts_of(hashes: np.ndarray, parts: int) -> np.ndarray:
    """(hashes,) the number of the part that each belongs to."""
    return (hashes % np.uint64(parts)).astype(np.int64)


def leaders(sets: Sets, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """For each row, find the most similar earlier row that stays, or -1, and the similarity; a row with none stays."""
    from tunewright.similarity import join

    entries, groups = _numbered_prefixes(sets, threshold)
    return join.leaders(
        sets.indptr, sets.items, sets.sizes, join.signatures(sets.indptr, sets.items), entries, groups, threshold
    )


def similar_pairs(sets: Sets, threshold: float, enough: int = ENOUGH) -> Pairs:
    """The pairs of sets with a Jaccard similarity of at least `threshold` (above 0)."""
    first = first_equal(sets)
    rows = np.flatnonzero(first == np.arange(len(sets)))
    rows = rows[np.argsort(sets.sizes[rows], kind="stable")]
    return Pairs(first, *pairs_of(sets[rows], rows, threshold, enough))


def pairs_of(
    sets: Sets, numbers: np.ndarray, threshold: float, enough: int, part: ItemShare = WHOLE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(left, right, similarity) of the similar pairs of sets, as the `numbers` of their rows; sizes must rise."""
    from tunewright.similarity import join

    index = _index(sets, threshold, part, np.zeros(len(sets), np.bool_))

    def compare(begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return join.pairs(index.arrays, threshold, begin, end, enough)

    found = _in_blocks(index, compare)
    later, earlier, similarity = (np.concatenate(column) for column in zip(*found, strict=True))
    return in_order(numbers[later], numbers[earlier], similarity)


def in_order(one: np.ndarray, other: np.ndarray, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs (one, other) as (left, right, similarity) in the order of `right`, then of `left`, which is smaller."""
    left, right = np.minimum(one, other), np.maximum(one, other)
    order = np.lexsort((left, right))
    return left[order], right[order], similarity[order]


def nearest_across(sets: Sets, splits: np.ndarray, floor: float) -> Nearest:
    """The most similar pair of rows of two different `splits` (rows,), of all pairs with a similarity over `floor`."""
    rows = np.argsort(sets.sizes, kind="stable")
    return closest_of(sets[rows], splits[rows], floor).named(rows)


def closest_of(sets: Sets, splits: np.ndarray, floor: float, part: ItemShare = WHOLE) -> Nearest:
    """The pair that nearest_across finds; sizes must rise. Of equally close pairs it is the first by (other, one)."""
    from tunewright.similarity import join

    largest = int(np.bincount(splits, minlength=1).argmax())
    index = _index(sets, floor, part, splits == largest)

    def compare(begin: int, end: int) -> Nearest:
        other, one, similarity, compared = join.closest(index.arrays, splits, largest, floor, begin, end)
        return Nearest(one, other, similarity if one >= 0 else 0.0, compared)

    return nearest_of(_in_blocks(index, compare))


def nearest_of(found: Sequence[Nearest]) -> Nearest:
    """The nearest of the pairs that were found in several shares of the rows or of the items."""
    nearest = min(found, key=lambda pair: (-pair.similarity, pair.other, pair.one))
    return replace(nearest, num_compared=sum(pair.num_compared for pair in found))


def first_equal(sets: Sets) -> np.ndarray:
    """(rows,) the first row with the same set; a row with an item of its own has none but itself."""
    from tunewright.similarity.hashing import hash_sequences

    whole = np.flatnonzero(np.diff(sets.indptr) == sets.sizes)
    first = np.arange(len(sets))
    first[whole] = whole[first_of(hash_sequences(sets.indptr, sets.items)[whole])]
    return first


def first_of(hashes: np.ndarray) -> np.ndarray:
    """(hashes,) where each hash stands first."""
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    return first[which]


class _Index(NamedTuple):
    arrays: tuple[Any, ...]  # what pairs and closest of join.py begin with
    work: np.ndarray  # (rows,) about how many rows each row is compared with
    blocks: int


def prefixes(sets: Sets, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The items of each row's prefix: (entries, items), of row i entries[i]..entries[i + 1]."""
    from tunewright.similarity import join, postings

    lengths = join.prefix_lengths(sets.indptr, sets.sizes, threshold)
    entries = np.concatenate([[0], np.cumsum(lengths)])
    return entries, postings.take_first(sets.indptr, sets.items, entries)


def _numbered_prefixes(sets: Sets, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    from tunewright.similarity.postings import numbered

    entries, items = prefixes(sets, threshold)
    return entries, numbered(items)


def _index(sets: Sets, threshold: float, part: ItemShare, last: np.ndarray) -> _Index:
    """Each row's prefix, and which rows hold an item of `part` in theirs; the items of other parts lead to no rows.

    Sizes rise, so that the prefix by which a row is found can be shorter (PPJoin). `last` (rows,) are the rows that
    come last among those that hold an item.
    """
    from tunewright.similarity import join
    from tunewright.similarity.postings import invert

    entries, numbers = _numbered_prefixes(sets, threshold)
    lengths = join.prefix_lengths(sets.indptr, sets.sizes, 2 * threshold / (1 + threshold))
    bits = join.signatures(sets.indptr, sets.items)
    *postings, work = invert(sets.indptr, sets.items, sets.sizes, bits, entries, numbers, lengths, last, *part)
    arrays = (sets.indptr, sets.items, sets.sizes, bits, entries, numbers, *postings)
    return _Index(arrays, work, BLOCKS if part == WHOLE else 1)


def _in_blocks(index: _Index, compare: Callable[[int, int], T]) -> list[T]:
    """The results of compare(begin, end) for blocks of rows with about the same work, at once."""
    done, num_rows = np.cumsum(index.work + 1), len(index.work)
    cuts = np.searchsorted(done, np.linspace(0, done[-1], index.blocks + 1)[1:-1]).tolist() if num_rows else []
    bounds = [0, *sorted({*cuts} - {0, num_rows}), num_rows]
    return on_all_cores(compare, bounds[:-1], bounds[1:])
