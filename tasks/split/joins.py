"""The links of rows on which sides lay claim, compared anew: all of them where these are few, else those that count.

A cluster of a template is all pairs: 20,000 rows have 200 million. Where only an exact side lays claim to it, its rows
are compared with those of that side block by block, and memory is that of a block. Where more sides do, all links are
needed, and more than MOST_PAIRS stop the run before memory is taken for them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.errors import DataError
from tasks.similarity.engine import Engine
from tasks.similarity.sets import Pairs
from tasks.split.clusters import Links

MOST_PAIRS = 30_000_000
SAMPLE = 2_000  # rows, of which the number of pairs is estimated
BLOCK = 1_000  # rows of either kind that are compared at once


@dataclass(frozen=True)
class Joined:
    """The Joins of sides.py, by the engine that made the sets."""

    machine: Engine[Any]
    sets: Any
    links: Links  # what is connected
    threshold: float
    place: Callable[[int], str]  # where a row came from

    def all(self, rows: np.ndarray) -> Links:
        """All links of these rows with each other.

        Raises DataError where there are more than MOST_PAIRS, as estimated from SAMPLE of the rows.
        """
        self._stop_if_too_many(rows)
        return self._links(rows, enough=len(rows))

    def nearest(self, rows: np.ndarray, some: np.ndarray) -> Links:
        """Of each row the link to the most alike of `some` of them (a mask)."""
        best, similarity = np.full(len(rows), -1), np.full(len(rows), -1.0)
        for those in _blocks(np.flatnonzero(some)):
            for others in _blocks(np.flatnonzero(~some)):
                here = np.concatenate([those, others])
                alone = Links(self._links(rows[here], enough=len(here)).pairs, np.full(len(here), -1))
                partner, found = alone.partners(np.arange(len(here)) < len(those))
                closer = len(those) + np.flatnonzero(found[len(those) :] > similarity[others])
                best[here[closer]], similarity[here[closer]] = here[partner[closer]], found[closer]
        linked = np.flatnonzero(best >= 0)
        left, right = np.minimum(linked, best[linked]), np.maximum(linked, best[linked])
        return Links(Pairs(np.arange(len(rows)), left, right, similarity[linked]), self.links.group[rows])

    def connected(self, rows: np.ndarray) -> Links:
        """As many links of these rows as connect what all of them connect."""
        return Links(self.machine.alike(self.sets[rows], self.threshold), self.links.group[rows])

    def _links(self, rows: np.ndarray, enough: int) -> Links:
        return Links(self.machine.alike(self.sets[rows], self.threshold, enough=enough), self.links.group[rows])

    def _stop_if_too_many(self, rows: np.ndarray) -> None:
        different = np.unique(self.links.pairs.first[rows])  # rows of equal sets are compared once
        if _pairs(len(different)) <= MOST_PAIRS:
            return
        sample = np.random.default_rng(0).choice(different, min(SAMPLE, len(different)), replace=False)
        found = len(self._links(np.sort(sample), enough=len(sample)).pairs.left)
        estimate = found * _pairs(len(different)) / _pairs(len(sample))
        if estimate > MOST_PAIRS:
            cluster = self.links.among(rows).clusters()
            largest = np.flatnonzero(cluster == np.bincount(cluster).argmax())
            raise DataError(
                f"split: {len(largest)} rows, {self.place(int(rows[largest[0]]))} among them, are one cluster to which "
                f"two sides lay claim, with about {estimate / 1e6:.0f} million pairs that are alike (accepted are "
                f"{MOST_PAIRS / 1e6:.0f} million); raise split.threshold, leave out what they all say as boilerplate "
                "(dedupe.boilerplate_share), give them groups of one side, or set split.sticky=false"
            )


def _pairs(num_rows: int) -> float:
    return num_rows * (num_rows - 1) / 2


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, max(1, -(-len(rows) // BLOCK)))
