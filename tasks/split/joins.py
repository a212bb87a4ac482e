"""Answers what splits.py asks of the links of some rows, by comparing again those rows that a question is about.

The rows of a template are all similar: 20,000 of them are 200 million pairs. So only the most similar row of each split
is kept for a row, and memory is that of the sets. 21,000 rows of one template, three splits and 1,000 new rows among
them, take 1.4 s and 10 MB on one core; 105,000 take 23 s, since time grows with their pairs as well.
"""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from tunewright.artifacts.placement import NONE
from tunewright.similarity.engine import Engine
from tunewright.similarity.sets import Sets, prefixes
from tunewright.tasks.split.assignment import Linked, Links

ROWS_AT_ONCE = 1_000  # that a thread looks up


class Joined:
    """The Joins of splits.py for `rows`, by the engine that made the sets of all."""

    def __init__(self, machine: Engine, sets: Any, links: Links, threshold: float, rows: np.ndarray) -> None:
        self.machine, self.sets, self.threshold, self.rows = machine, sets, threshold, rows
        self.group = links.group[rows]
        _, first, self.set = np.unique(links.pairs.first[rows], return_index=True, return_inverse=True)
        self.compared = _Compared(machine.here(sets[rows[first]]), threshold)

    def linked(self, asked: np.ndarray, others: np.ndarray) -> Linked:
        """For each row of `asked` the most similar other row that it is linked to, the first of equals; all masks."""
        found = Linked(np.full(len(asked), NONE), np.full(len(asked), np.nan))
        wanted, chosen = np.flatnonzero(asked), np.flatnonzero(others)
        if len(wanted) and len(chosen):
            sets, which = np.unique(self.set[wanted], return_inverse=True)  # rows of one set are compared once
            _, first = np.unique(self.set[chosen], return_index=True)
            distinct = chosen[np.sort(first)]
            place, similarity = (column[which] for column in self.compared.most_similar(sets, self.set[distinct]))
            first = np.full(int(self.group.max()) + 2, NONE)  # the first row of each group; the last is of no group
            first[self.group[chosen[::-1]]] = chosen[::-1]  # where several are written, the last stays
            first[-1] = NONE
            of_group = first[self.group[wanted]]
            found.partner[wanted] = np.where(place >= 0, distinct[place], of_group)
            found.similarity[wanted] = np.where(place >= 0, similarity, np.nan)
        return found

    def clusters(self, rows: np.ndarray) -> np.ndarray:
        """(rows,) the clusters that these of the rows make with each other."""
        return Links(
            self.machine.similar_pairs(self.sets[self.rows[rows]], self.threshold), self.group[rows]
        ).clusters()


class _Compared:
    """Sets of which the most similar are looked for, some among others, again and again."""

    def __init__(self, sets: Sets, threshold: float) -> None:
        self.sets, self.threshold = sets, threshold
        self.entries, items = prefixes(sets, threshold)
        self.numbers = np.unique(items, return_inverse=True)[1]

    def most_similar(self, asked: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each set of `asked` the place in `others` of the most similar, or -1, and its similarity."""
        from tunewright.similarity.postings import most_similar

        lengths = np.diff(self.entries)[others]
        holders = np.repeat(np.arange(len(others), dtype=np.int32), lengths)
        within = np.arange(len(holders)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        numbers = self.numbers[np.repeat(self.entries[others], lengths) + within]
        counts = np.bincount(numbers, minlength=int(self.numbers.max(initial=-1)) + 1)
        postings, holders = np.concatenate([[0], np.cumsum(counts)]), holders[np.argsort(numbers, kind="stable")]

        def look(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            sets, index = self.sets, (self.entries, self.numbers, others, postings, holders)
            return most_similar(sets.indptr, sets.items, sets.sizes, *index, rows, self.threshold)

        blocks = np.array_split(asked, -(-len(asked) // ROWS_AT_ONCE))
        with ThreadPoolExecutor() as pool:
            partner, similarity = zip(*pool.map(look, blocks), strict=True)
        return np.concatenate(partner), np.concatenate(similarity)
