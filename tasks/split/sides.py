"""Which side rows are on before any is drawn: they were on it, they were given to it, or they repeat a row of it.

No two rows that are linked (Links) may stand on two sides. Where sides that are fixed make that impossible, a row
is set aside, never moved: of two fixed rows the one that is further from the test side, since test rows are the measure
of all models before and after; of the others each that would join two sides.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from tunewright.artifacts.placement import NONE, REPEATS, SET_ASIDE, SIDES, TEST, VALIDATION, Because
from tunewright.similarity.sets import Pairs


@dataclass(frozen=True)
class Links:
    """The rows that must not stand on two sides. Those of `pairs.first` are one set, those of a group one group."""

    pairs: Pairs
    group: np.ndarray  # (rows,) the number of the row's group, -1 where it has none

    def clusters(self) -> np.ndarray:
        """(rows,) the cluster of each row, numbered by first appearance: all that is linked, however indirectly."""
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
    """The row of another side for which a row was set aside."""

    row: int
    side: int  # NONE where it is on any
    similarity: float  # nan: of the same group


@dataclass
class Sides:
    """Where each row stands so far."""

    side: np.ndarray  # (rows,) its place in SIDES, NONE where it is set aside or yet to be drawn
    because: np.ndarray  # (rows,) a Because; DRAWN where it is yet to be drawn
    cluster: np.ndarray  # (rows,) numbered by first appearance, NONE where it is set aside
    partners: dict[int, list[Partner]] = field(default_factory=dict)  # of the rows that are set aside

    def set_aside(self, rows: np.ndarray, because: Because) -> None:
        """Takes the rows from their sides and clusters."""
        self.side[rows], self.because[rows], self.cluster[rows] = NONE, because, NONE
        self.number_clusters()

    def number_clusters(self) -> None:
        """Number the clusters of the rows that are not set aside, by first appearance."""
        standing = self.cluster != NONE
        self.cluster[standing] = numbered(self.cluster[standing])


def fix(given: np.ndarray, earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray, frozenset[int]]:
    """The side that each row is fixed to or NONE, why, and the sides that are exactly the rows given to them.

    A row goes where its source says, else where it was. Test and validation sides that are given have no other rows,
    so those that were on them are free; rows that are given to train have a say for themselves only.
    """
    exact = frozenset(side for side in (VALIDATION, TEST) if (given == side).any())
    stays = (earlier != NONE) & ~np.isin(earlier, list(exact))
    side = np.where(given != NONE, given, np.where(stays, earlier, NONE))
    because = np.where(given != NONE, Because.GIVEN, np.where(stays, Because.KEPT, Because.DRAWN))
    return side, because, exact


def settle(
    cluster: np.ndarray,
    side: np.ndarray,
    because: np.ndarray,
    exact: frozenset[int],
    joins_of: Callable[[np.ndarray], Joins],
) -> Sides:
    """Rows join the side that their cluster is fixed to; of clusters that more sides lay claim to, rows are set aside.

    To its rows that are not fixed lay claim: an exact side, so that they keep off it, and each other side. What links
    the rows of such clusters, all of them, is asked of `joins_of(rows)`.
    """
    settled = Sides(side.copy(), because.copy(), cluster.copy())
    sizes, fixed = np.bincount(cluster), np.flatnonzero(side != NONE)
    claims = np.zeros((len(SIDES), len(sizes)), np.bool_)
    claims[side[fixed], cluster[fixed]] = True
    claimed, first_claim = claims.sum(axis=0), claims.argmax(axis=0)
    has_free = np.bincount(cluster[fixed], minlength=len(sizes)) < sizes
    contested = (claimed > 1) | ((claimed == 1) & np.isin(first_claim, list(exact)) & has_free)
    heirs = (side == NONE) & ((claimed == 1) & ~contested)[cluster]
    settled.side[heirs] = first_claim[cluster[heirs]]
    settled.because[heirs] = Because.INHERITED
    rows = np.flatnonzero(contested[cluster])
    if len(rows):
        _settle_contested(settled, rows, exact, joins_of(rows))
    return settled


def _settle_contested(settled: Sides, rows: np.ndarray, exact: frozenset[int], joins: Joins) -> None:
    contest = _Contest(joins, settled.side[rows], settled.because[rows], exact)
    contest.settle()
    settled.side[rows], settled.because[rows] = contest.side, contest.because
    settled.partners |= {
        int(rows[row]): [partner._replace(row=int(rows[partner.row])) for partner in partners]
        for row, partners in contest.partners.items()
    }
    stay = np.flatnonzero(~np.isin(contest.because, SET_ASIDE))
    num_clusters = settled.cluster.max() + 1
    settled.cluster[rows] = NONE
    settled.cluster[rows[stay]] = num_clusters + joins.clusters(stay)
    settled.number_clusters()


class _Contest:
    """Rows of clusters that more than one side lays claim to."""

    def __init__(self, joins: Joins, side: np.ndarray, because: np.ndarray, exact: frozenset[int]) -> None:
        self.joins, self.side, self.because, self.exact = joins, side, because, exact
        self.partners: dict[int, list[Partner]] = {}

    def settle(self) -> None:
        """Set aside the rows that can stand on no side, and let the other free rows join one."""
        for other in (TEST, VALIDATION):  # of two linked rows fixed to two sides the one further from test goes
            self._repeat(other, self._under(other))
        for other in sorted(self.exact, reverse=True):  # a free row linked to one of an exact side can stand nowhere
            self._repeat(other, self._free())
        joined = self.side != NONE  # the others join the side of a row that they are linked to, link by link
        while joined.any():  # no free row is linked to one that joined earlier
            joined = self._heirs_of(joined)

    def _heirs_of(self, rows: np.ndarray) -> np.ndarray:
        """The free rows that join the side of these rows; both are masks.

        A row that is linked to rows of two sides bridges them; so does one that joins a side together with a row that
        it is linked to and that joins another.
        """
        free, sides = self._free(), [side for side in range(len(SIDES)) if side not in self.exact]
        linked = {side: self.joins.linked(free, rows & (self.side == side)) for side in sides}
        reached = np.sum([found.partner != NONE for found in linked.values()], axis=0)
        self._set_aside(reached > 1, Because.BRIDGES_SIDES, linked)
        heirs = reached == 1
        for side, found in linked.items():
            here = heirs & (found.partner != NONE)
            self.side[here], self.because[here] = side, Because.INHERITED
        for other in (TEST, VALIDATION):
            found = self.joins.linked(heirs & self._under(other), heirs & (self.side == other))
            self._set_aside(found.partner != NONE, Because.BRIDGES_SIDES, linked | {other: found})
        return heirs & (self.side != NONE)

    def _free(self) -> np.ndarray:
        return self.because == Because.DRAWN

    def _under(self, side: int) -> np.ndarray:
        return (self.side != NONE) & (self.side < side)

    def _repeat(self, other: int, asked: np.ndarray) -> None:
        """Sets aside those of `asked` that are linked to a row of the other side."""
        found = self.joins.linked(asked, self.side == other)
        self._set_aside(found.partner != NONE, REPEATS[other], {other: found})

    def _set_aside(self, rows: np.ndarray, because: Because, linked: Mapping[int, Linked]) -> None:
        for side, (partner, similarity) in linked.items():
            for row in np.flatnonzero(rows & (partner != NONE)).tolist():
                self.partners.setdefault(row, []).append(Partner(int(partner[row]), side, float(similarity[row])))
        self.side[rows], self.because[rows] = NONE, because


def numbered(labels: np.ndarray) -> np.ndarray:
    """The labels as numbers from 0, in the order in which they first appear."""
    _, first, which = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]
