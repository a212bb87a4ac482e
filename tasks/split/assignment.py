"""Assign rows to splits before any is drawn: rows of the version before, of sources with use_as, and similar rows.

Linked rows (Links) are never in two splits. Where assigned rows are linked across splits, one is quarantined and none
moves: train gives way to validation and both to test, since all models are measured on the test rows. Any other row
that is linked to two splits is quarantined too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from tunewright.artifacts.placement import NONE, OF_GROUP, QUARANTINES, REPEATS, SPLITS, TEST, VALIDATION, Because
from tunewright.similarity.sets import Pairs


@dataclass(frozen=True)
class Links:
    """Pairs of rows that must be in one split: rows with equal `pairs.first`, similar rows and rows of one group."""

    pairs: Pairs
    group: np.ndarray  # (rows,) the number of the row's group, -1 where it has none

    def clusters(self) -> np.ndarray:
        """Return the cluster of each row (rows,), numbered by first appearance; linked rows share one."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        rows, grouped = len(self.group), np.flatnonzero(self.group >= 0)
        one = np.concatenate([np.arange(rows), self.pairs.left, grouped])
        other = np.concatenate([self.pairs.first, self.pairs.right, rows + self.group[grouped]])
        nodes = rows + int(self.group.max(initial=-1)) + 1
        graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(nodes, nodes))
        return numbered(connected_components(graph, directed=False)[1][:rows])


class Linked(NamedTuple):
    """Which row each row is linked to."""

    partner: np.ndarray  # (rows,) NONE where it is linked to none
    similarity: np.ndarray  # (rows,) nan where they have nothing but a group in common


class Joins(Protocol):
    """Queries on the links between the rows of some clusters, numbered by their place among these."""

    def linked(self, asked: np.ndarray, others: np.ndarray) -> Linked:
        """For each row of `asked` the most similar other row that it is linked to, the first of equals; all masks."""
        ...

    def clusters(self, rows: np.ndarray) -> np.ndarray:
        """(rows,) the clusters that these of the rows make with each other."""
        ...


class Partner(NamedTuple):
    """The row of another split because of which a row was quarantined."""

    row: int
    split: int  # NONE where its split does not matter
    similarity: float  # nan: of the same group


@dataclass
class Assignment:
    """The split of each row so far."""

    split: np.ndarray  # (rows,) its place in SPLITS, NONE where it is quarantined or yet to be drawn
    because: np.ndarray  # (rows,) a Because; DRAWN where it is yet to be drawn
    cluster: np.ndarray  # (rows,) numbered by first appearance, NONE where it is quarantined
    partners: dict[int, list[Partner]] = field(default_factory=dict)  # of the rows that are quarantined

    def quarantine(self, rows: np.ndarray, because: Because) -> None:
        """Take the rows out of their splits and clusters."""
        self.split[rows], self.because[rows], self.cluster[rows] = NONE, because, NONE
        self.number_clusters()

    def number_clusters(self) -> None:
        """Number the clusters of the rows that are not quarantined, by first appearance."""
        assigned = self.cluster != NONE
        self.cluster[assigned] = numbered(self.cluster[assigned])


def fix(given: np.ndarray, earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray, frozenset[int]]:
    """Return each row's assigned split or NONE, why, and the user-provided splits, which take no other rows.

    A row goes where its source says (`given`), else where it was. Rows that were in a split which is now user-provided
    are free. Rows of a source with use_as: train assign themselves only.
    """
    exact = frozenset(split for split in (VALIDATION, TEST) if (given == split).any())
    stays = (earlier != NONE) & ~np.isin(earlier, list(exact))
    split = np.where(given != NONE, given, np.where(stays, earlier, NONE))
    because = np.where(given != NONE, Because.GIVEN, np.where(stays, Because.KEPT, Because.DRAWN))
    return split, because, exact


def settle(
    cluster: np.ndarray,
    split: np.ndarray,
    because: np.ndarray,
    exact: frozenset[int],
    joins_of: Callable[[np.ndarray], Joins],
) -> Assignment:
    """Let free rows join the split of their cluster; where a cluster has rows of several splits, quarantine some.

    A cluster is contested where its assigned rows are in several splits, or in an `exact` one that may take no other
    row. The links inside contested clusters come from `joins_of(rows)`.
    """
    settled = Assignment(split.copy(), because.copy(), cluster.copy())
    sizes, fixed = np.bincount(cluster), np.flatnonzero(split != NONE)
    claims = np.zeros((len(SPLITS), len(sizes)), np.bool_)
    claims[split[fixed], cluster[fixed]] = True
    claimed, first_claim = claims.sum(axis=0), claims.argmax(axis=0)
    has_free = np.bincount(cluster[fixed], minlength=len(sizes)) < sizes
    contested = (claimed > 1) | ((claimed == 1) & np.isin(first_claim, list(exact)) & has_free)
    heirs = (split == NONE) & ((claimed == 1) & ~contested)[cluster]
    settled.split[heirs] = first_claim[cluster[heirs]]
    settled.because[heirs] = Because.INHERITED
    rows = np.flatnonzero(contested[cluster])
    if len(rows):
        _settle_contested(settled, rows, exact, joins_of(rows))
    return settled


def _settle_contested(settled: Assignment, rows: np.ndarray, exact: frozenset[int], joins: Joins) -> None:
    contest = _Contest(joins, settled.split[rows], settled.because[rows], exact)
    contest.settle()
    settled.split[rows], settled.because[rows] = contest.split, contest.because
    settled.partners |= {
        int(rows[row]): [partner._replace(row=int(rows[partner.row])) for partner in partners]
        for row, partners in contest.partners.items()
    }
    stay = np.flatnonzero(~np.isin(contest.because, QUARANTINES))
    num_clusters = settled.cluster.max() + 1
    settled.cluster[rows] = NONE
    settled.cluster[rows[stay]] = num_clusters + joins.clusters(stay)
    settled.number_clusters()


class _Contest:
    """The rows of contested clusters."""

    def __init__(self, joins: Joins, split: np.ndarray, because: np.ndarray, exact: frozenset[int]) -> None:
        self.joins, self.split, self.because, self.exact = joins, split, because, exact
        self.partners: dict[int, list[Partner]] = {}

    def settle(self) -> None:
        """Quarantine the rows that fit in no split, and let the other free rows join one."""
        for other in (TEST, VALIDATION):  # of two linked assigned rows, the one further from test goes
            self._repeat(other, self._under(other))
        for other in sorted(self.exact, reverse=True):  # a free row linked to an exact split fits nowhere
            self._repeat(other, self._free())
        joined = self.split != NONE  # the others join the split of a row that they are linked to, link by link
        while joined.any():  # no free row is linked to one that joined earlier
            joined = self._heirs_of(joined)

    def _heirs_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the free rows that join the split of these rows; both are masks.

        A row that is linked to rows of two splits bridges them; so does one that joins a split together with a row that
        it is linked to and that joins another.
        """
        free, splits = self._free(), [split for split in range(len(SPLITS)) if split not in self.exact]
        linked = {split: self.joins.linked(free, rows & (self.split == split)) for split in splits}
        reached = np.sum([found.partner != NONE for found in linked.values()], axis=0)
        self._quarantine(reached > 1, Because.BRIDGES_SPLITS, linked)
        heirs = reached == 1
        for split, found in linked.items():
            here = heirs & (found.partner != NONE)
            self.split[here], self.because[here] = split, Because.INHERITED
        for other in (TEST, VALIDATION):
            found = self.joins.linked(heirs & self._under(other), heirs & (self.split == other))
            self._quarantine(found.partner != NONE, Because.BRIDGES_SPLITS, linked | {other: found})
        return heirs & (self.split != NONE)

    def _free(self) -> np.ndarray:
        return self.because == Because.DRAWN

    def _under(self, split: int) -> np.ndarray:
        return (self.split != NONE) & (self.split < split)

    def _repeat(self, other: int, asked: np.ndarray) -> None:
        """Quarantine those of `asked` that are linked to a row of the other split, by what they say or by group."""
        found = self.joins.linked(asked, self.split == other)
        linked, only_by_group = found.partner != NONE, np.isnan(found.similarity)
        self._quarantine(linked & ~only_by_group, REPEATS[other], {other: found})
        self._quarantine(linked & only_by_group, OF_GROUP[other], {other: found})

    def _quarantine(self, rows: np.ndarray, because: Because, linked: Mapping[int, Linked]) -> None:
        for split, (partner, similarity) in linked.items():
            for row in np.flatnonzero(rows & (partner != NONE)).tolist():
                self.partners.setdefault(row, []).append(Partner(int(partner[row]), split, float(similarity[row])))
        self.split[rows], self.because[rows] = NONE, because


def numbered(labels: np.ndarray) -> np.ndarray:
    """The labels as numbers from 0, in the order in which they first appear."""
    _, first, which = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]
