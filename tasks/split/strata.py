"""Stratification by source or label, and the deviation of each split's shares from it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from tunewright.artifacts.payloads import Balance, Deviation, Stratum
from tunewright.artifacts.placement import NONE, SIDES

REPORTED = 50


@dataclass(frozen=True)
class Strata:
    """The stratum of each row, by its place in `names`, which are sorted."""

    of: np.ndarray  # (rows,)
    names: list[str]
    said: list[str]  # each name as it was first said


def strata_of(said: Iterable[str], named: Callable[[str], str] = str) -> Strata:
    """The strata of rows, given what is said of each, and how that is `named`."""
    first: dict[str, tuple[int, str]] = {}
    of = np.fromiter((first.setdefault(named(each), (len(first), each))[0] for each in said), np.int64)
    order = sorted(first)
    rank = np.empty(len(order), np.int64)
    rank[[first[name][0] for name in order]] = np.arange(len(order))
    return Strata(rank[of], order, [first[name][1] for name in order])


def balance(strata: Strata, side: np.ndarray, by: str | None) -> Balance:
    """The share of each stratum in all rows that are on a side and in each side, the largest first; and what differs.

    The largest deviation is that of a stratum's share in one side from its share in all, 0 to 1. A name is masked where
    it holds something secret or personal.
    """
    from tunewright.privacy.excerpts import in_a_line

    on_side, num_strata = side != NONE, len(strata.names)
    counts = np.bincount(side[on_side] * num_strata + strata.of[on_side], minlength=len(SIDES) * num_strata)
    counts = counts.reshape(len(SIDES), num_strata)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    overall = counts.sum(axis=0) / max(int(counts.sum()), 1)
    deviation = np.abs(shares - overall)
    largest = np.unravel_index(int(deviation.argmax()), deviation.shape) if deviation.size else None
    most = Deviation(side=SIDES[largest[0]], stratum=in_a_line(strata.said[largest[1]])) if largest else None
    listed = np.lexsort((np.arange(num_strata), -overall))[:REPORTED].tolist()
    return Balance(
        by=by,
        num_strata=num_strata,
        largest_deviation=round(float(deviation.max(initial=0.0)), 6),
        deviates_most=most,
        strata=tuple(
            Stratum(
                name=in_a_line(strata.said[s]),
                all=round(float(overall[s]), 6),
                **{name: round(float(shares[position, s]), 6) for position, name in enumerate(SIDES)},
            )
            for s in listed
        ),
    )
