"""Which side rows are on before any is drawn: they were on it, they were given to it, or they repeat a row of it.

No two rows that are linked (clusters.py) may stand on two sides. Where sides that are fixed make that impossible, a row
is set aside, never moved: of two fixed rows the one that is further from the test side, since test rows are the measure
of all models before and after; of the others each that would join two sides.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np

from tasks.split.clusters import Links, numbered

SIDES = ("train", "validation", "test")  # a row of an earlier one gives way to a row of a later one
TRAIN, VALIDATION, TEST = range(3)
NONE = -1


class Because(IntEnum):
    """Why a row is on its side, or why it is set aside."""

    DRAWN = 0
    BY_TIME = 1
    KEPT = 2  # it was on this side in the earlier version
    INHERITED = 3  # it repeats a row that is fixed to this side
    GIVEN = 4  # its source is this side's
    BRIDGES_SIDES = 5
    REPEATS_TEST_ROW = 6
    REPEATS_VALIDATION_ROW = 7
    CONTAMINATED = 8


REPEATS = {TEST: Because.REPEATS_TEST_ROW, VALIDATION: Because.REPEATS_VALIDATION_ROW}
SET_ASIDE = tuple(because for because in Because if because >= Because.BRIDGES_SIDES)
LARGE = 1_000  # rows of a cluster of which not all links are asked for where it can be settled without


class Joins(Protocol):
    """What more is asked of the links of some rows; these are numbered by their place in `rows`."""

    def all(self, rows: np.ndarray) -> Links:
        """All their links."""
        ...

    def nearest(self, rows: np.ndarray, some: np.ndarray) -> Links:
        """Of each row the link to the most alike of `some` of them (a mask)."""
        ...

    def connected(self, rows: np.ndarray) -> Links:
        """As many of their links as connect what all of them connect."""
        ...


class Partner(NamedTuple):
    """The row of another side for which a row was set aside."""

    row: int
    side: int
    similarity: float  # nan: of the same group


@dataclass
class Sides:
    """Where each row stands so far."""

    side: np.ndarray  # (rows,) its place in SIDES, NONE where it is set aside or yet to be drawn
    because: np.ndarray  # (rows,) a Because; DRAWN where it is yet to be drawn
    cluster: np.ndarray  # (rows,) numbered by first appearance, NONE where it is set aside
    partners: dict[int, list[Partner]] = field(default_factory=dict)  # of the rows that are set aside


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
    links: Links,
    side: np.ndarray,
    because: np.ndarray,
    exact: frozenset[int],
    joins: Joins,
) -> Sides:
    """Rows join the side that their cluster is fixed to; of clusters that more sides lay claim to, rows are set aside.

    `links` say what is connected. Of a large cluster that only an exact side lays claim to, what is asked of `joins`
    grows with its rows, not with its pairs: there all that counts is which rows repeat a row of that side.
    """
    settled = Sides(side.copy(), because.copy(), links.clusters())
    sizes, fixed = np.bincount(settled.cluster), np.flatnonzero(side != NONE)
    claims = np.zeros((len(SIDES), len(sizes)), np.bool_)
    claims[side[fixed], settled.cluster[fixed]] = True
    claimed, first_claim = claims.sum(axis=0), claims.argmax(axis=0)
    has_free = np.bincount(settled.cluster[fixed], minlength=len(sizes)) < sizes
    contested = (claimed > 1) | ((claimed == 1) & np.isin(first_claim, list(exact)) & has_free)
    heirs = (side == NONE) & ((claimed == 1) & ~contested)[settled.cluster]
    settled.side[heirs] = first_claim[settled.cluster[heirs]]
    settled.because[heirs] = Because.INHERITED
    large = contested & (claimed == 1) & (sizes > LARGE)
    of_large = [np.flatnonzero(settled.cluster == cluster) for cluster in np.flatnonzero(large)]
    rows = np.flatnonzero((contested & ~large)[settled.cluster])
    if len(rows):
        links = joins.all(rows)
        stay = _contest(settled, rows, links, exact)
        _tell_apart(settled, rows[stay], links.among(stay))
    for rows in of_large:
        stay = _contest(settled, rows, joins.nearest(rows, side[rows] != NONE), exact)
        _tell_apart(settled, rows[stay], joins.connected(rows[stay]))
    standing = settled.cluster != NONE
    settled.cluster[standing] = numbered(settled.cluster[standing])
    return settled


def _contest(settled: Sides, rows: np.ndarray, links: Links, exact: frozenset[int]) -> np.ndarray:
    """Settles the clusters of `rows`; the places in them of those that are not set aside."""
    contest = _Contest(links, settled.side[rows], settled.because[rows])
    contest.give_way()
    contest.keep_off(exact)
    while contest.inherit():
        pass
    settled.side[rows], settled.because[rows] = contest.side, contest.because
    settled.partners |= {
        int(rows[row]): [partner._replace(row=int(rows[partner.row])) for partner in partners]
        for row, partners in contest.partners.items()
    }
    stay = ~np.isin(contest.because, SET_ASIDE)
    settled.cluster[rows[~stay]] = NONE
    return np.flatnonzero(stay)


def _tell_apart(settled: Sides, rows: np.ndarray, links: Links) -> None:
    """Gives rows the clusters that their links make, which are no others'."""
    settled.cluster[rows] = settled.cluster.max() + 1 + links.clusters()


class _Contest:
    """Rows of clusters that more than one side lays claim to, with all their links."""

    def __init__(self, links: Links, side: np.ndarray, because: np.ndarray) -> None:
        self.links, self.side, self.because = links, side, because
        self.partners: dict[int, list[Partner]] = {}

    def give_way(self) -> None:
        """Of two linked rows that are fixed to two sides the one further from test is set aside."""
        for other in (TEST, VALIDATION):
            self._set_aside(self._linked(other) & self._under(other), REPEATS[other], (other,))

    def keep_off(self, exact: Iterable[int]) -> None:
        """A free row that is linked to a row of an exact side cannot join it, and cannot stand elsewhere."""
        for other in sorted(exact, reverse=True):
            self._set_aside(self._linked(other) & self._free(), REPEATS[other], (other,))

    def inherit(self) -> bool:
        """Free rows join the side of the rows that they are linked to, one link further; whether any were reached.

        A row that is linked to rows of two sides bridges them; so does one that joins a side together with a row that
        it is linked to and that joins another.
        """
        linked = np.stack([self._linked(side) for side in range(len(SIDES))]) & self._free()
        seen = linked.sum(axis=0)
        self._set_aside(seen > 1, Because.BRIDGES_SIDES, range(len(SIDES)))
        new = seen == 1
        self.side[new], self.because[new] = linked.argmax(axis=0)[new], Because.INHERITED
        for other in (TEST, VALIDATION):
            bridging = new & self._linked(other) & self._under(other)
            self._set_aside(bridging, Because.BRIDGES_SIDES, range(len(SIDES)))
        return bool(seen.any())

    def _free(self) -> np.ndarray:
        return self.because == Because.DRAWN

    def _linked(self, side: int) -> np.ndarray:
        return self.links.linked_to(self.side == side)

    def _under(self, side: int) -> np.ndarray:
        return (self.side != NONE) & (self.side < side)

    def _set_aside(self, rows: np.ndarray, because: Because, sides: Iterable[int]) -> None:
        if not rows.any():
            return
        for side in sides:
            partner, similarity = self.links.partners((self.side == side) & ~rows)
            for row in np.flatnonzero(rows & (partner != NONE)).tolist():
                self.partners.setdefault(row, []).append(Partner(int(partner[row]), side, float(similarity[row])))
        self.side[rows], self.because[rows] = NONE, because
