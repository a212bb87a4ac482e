"""Splits for the clusters that are in none yet: test is filled first, then validation; the rest trains.

Clusters take their turn by a hash of their smallest row_id, whatever the order of the rows, and so that the first of
them, taken together, have each stratum's share (systematic sampling with a random start; Cochran 1977, "Sampling
Techniques", chapter 8). In a stratum, clusters of more than a tenth of a split come after the smaller ones: a large one
trains, and fills no test set with one question. The largest come after the clusters of all strata: those of more than a
third of their stratum, or of more than a quarter of the split and more than their stratum's share of it. Where a split
stays empty, test and validation share the clusters that they take in proportion to the rows that they ask for, at least
one each, and the largest cluster trains.

Where rows keep their earlier split, a stratum gives no more to a split than the share of its own rows. The new rows of
one source would otherwise fill a larger test split alone, and none of them would train.

By time the newest cluster comes first, and none is passed over. A cluster is as old as its oldest row, so no test row
is older than the beginning of what trains. By its newest row, old questions that were asked again would be tested.

Replay rows are general ones that train beside the others, so that the model forgets less (split.replay). One that
repeats a row of another source, or is of its group, goes before anything is drawn. Of the others the first by their
row_id stay, so that the same ones are drawn again as data grow.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunewright.artifacts.placement import NONE, SPLITS, TEST, TRAIN, VALIDATION, Because
from tunewright.config import Split
from tunewright.tasks.split.assignment import Assignment, Joins, Partner, numbered
from tunewright.tasks.split.columns import Strata

LARGE_SHARE = 0.1  # of a split: larger clusters come after the smaller ones of their stratum
LAST_SHARE = 0.25  # of a split: larger clusters come last, unless their stratum's share of the split is larger


@dataclass(frozen=True)
class _Clusters:
    """Sort keys of all clusters, by number, that determine the order of the draw."""

    sizes: np.ndarray
    lots: np.ndarray  # uint64, of those that are drawn
    stratum: np.ndarray  # that most of its rows have
    oldest: np.ndarray | None  # the time of its oldest row


def draw(
    assignment: Assignment,
    row_ids: pa.Array,
    strata: Strata,
    times: np.ndarray | None,
    shared: np.ndarray,
    exact: Iterable[int],
    settings: Split,
) -> None:
    """Draw a split for each cluster that has none, by `times` (rows,) if given; `exact` splits get no more rows.

    The shares are of the `shared` rows (a mask), which excludes rows that their source assigns to a split.
    """
    assigned = np.flatnonzero(assignment.cluster != NONE)
    cluster = assignment.cluster[assigned]
    split_of = np.full(cluster.max(initial=-1) + 1, NONE)
    split_of[cluster] = assignment.split[assigned]
    drawn = assigned[split_of[cluster] == NONE]
    oldest = None if times is None else np.full(len(split_of), np.iinfo(np.int64).max)
    if oldest is not None and times is not None:
        np.minimum.at(oldest, cluster, times[assigned])
    clusters = _Clusters(
        sizes=np.bincount(cluster),
        lots=_lots(assignment.cluster[drawn], len(split_of), row_ids.take(pa.array(drawn)), settings.seed),
        stratum=_main_stratum(cluster, strata.of[assigned]),
        oldest=oldest,
    )
    shared = shared & (assignment.cluster != NONE)
    free, is_empty = np.flatnonzero(split_of == NONE), [number not in split_of for number in range(len(SPLITS))]
    wanted = {
        number: getattr(settings, SPLITS[number]) * shared.sum() - (shared & (assignment.split == number)).sum()
        for number in (TEST, VALIDATION)
        if number not in exact
    }

    def in_turn(wanted: dict[int, float]) -> np.ndarray:
        left = np.flatnonzero(split_of == NONE)
        if clusters.oldest is not None:
            return left[np.lexsort((clusters.lots[left], -clusters.oldest[left]))]
        here = shared & np.isin(assignment.split, [*wanted])
        have, want = (np.bincount(strata.of[rows], minlength=len(strata.names)) for rows in (here, shared))
        first = SPLITS[max(wanted)]
        starts = np.array([_lot(f"{settings.seed} {first} {name}") for name in strata.names]) / 2.0**64
        return _in_turn(left, clusters, sum(wanted.values()), have, want, starts)

    has_kept = bool(np.isin(assignment.because[shared], [Because.KEPT, Because.INHERITED]).any())
    main = clusters.stratum[assignment.cluster[shared]]
    for number in wanted:
        order, room = in_turn({number: wanted[number]}), None
        if has_kept and times is None:
            there = main[assignment.split[shared] == number]
            all_rows, have = (np.bincount(each, minlength=len(strata.names)) for each in (main, there))
            room = _Room(getattr(settings, SPLITS[number]) * all_rows - have, clusters.stratum)
        split_of[_fill(order, clusters.sizes, wanted[number], passes_over=times is None, room=room)] = number
    split_of[split_of == NONE] = TRAIN
    if any(number not in split_of for number in (TRAIN, *wanted)) and len(free) >= sum(is_empty):
        split_of[free] = NONE
        least = {number: int(is_empty[number]) for number in wanted}
        shares = _shared(in_turn(wanted), clusters.sizes, wanted, least, passes_over=times is None)
        split_of[free] = TRAIN
        for number, taken in shares.items():
            split_of[taken] = number
    assignment.split[drawn] = split_of[assignment.cluster[drawn]]
    assignment.because[drawn] = Because.DRAWN if times is None else Because.BY_TIME


def apart(
    cluster: np.ndarray, replay: np.ndarray, joins_of: Callable[[np.ndarray], Joins]
) -> tuple[np.ndarray, dict[int, list[Partner]]]:
    """The clusters as they are without the `replay` rows (a mask) that are linked to others; and these, with which.

    Each of them is a cluster of its own. What links the rows of a cluster of both kinds is asked of `joins_of(rows)`.
    """
    num_clusters = int(cluster.max(initial=-1)) + 1
    of_replay, of_others = (np.bincount(cluster[kind], minlength=num_clusters) > 0 for kind in (replay, ~replay))
    rows = np.flatnonzero((of_replay & of_others)[cluster])
    if not len(rows):
        return cluster, {}
    joins = joins_of(rows)
    found = joins.linked(replay[rows], ~replay[rows])
    goes = found.partner != NONE
    apart = cluster.copy()
    apart[rows[~goes]] = num_clusters + joins.clusters(np.flatnonzero(~goes))
    apart[rows[goes]] = num_clusters + len(rows) + np.arange(goes.sum())
    linked = zip(rows[goes].tolist(), rows[found.partner[goes]].tolist(), found.similarity[goes].tolist(), strict=True)
    return numbered(apart), {row: [Partner(other, NONE, similarity)] for row, other, similarity in linked}


def draw_replay(assignment: Assignment, row_ids: pa.Array, replay: np.ndarray, share: float) -> None:
    """Quarantine the `replay` rows (a mask) beyond this share of all training rows."""
    if not replay.any():
        return
    trains = assignment.split == TRAIN
    num_others = int((trains & ~replay).sum())
    rows = np.flatnonzero(trains & replay)
    rows = rows[np.asarray(pc.sort_indices(row_ids.take(pa.array(rows))))]  # pyright: ignore[reportAttributeAccessIssue]
    most = len(rows) if share == 1 else int(share * num_others / (1 - share) + 1e-9)
    assignment.because[rows[:most]] = Because.REPLAY
    assignment.quarantine(rows[most:], Because.NOT_DRAWN)


class _Room(NamedTuple):
    """How many more rows a split may take of each stratum, and the stratum of each cluster."""

    rows: np.ndarray
    stratum: np.ndarray


def _fill(
    order: np.ndarray, sizes: np.ndarray, wanted: float, *, passes_over: bool, room: _Room | None = None
) -> list[int]:
    """Return the first clusters in `order` that bring a split nearer to `wanted` rows, each stratum up to its room.

    The last cluster of a stratum may be more than its room: most of many strata have room for less than one row.
    """
    taken: list[int] = []
    small = max(1.0, LARGE_SHARE * wanted)
    for cluster, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        if room and ((left := room.rows[room.stratum[cluster]]) <= 0 or size > small + 2 * left):
            continue
        if size <= 2 * wanted:
            if room:
                room.rows[room.stratum[cluster]] -= size
            taken.append(cluster)
            wanted -= size
        elif wanted < 0.5 or not passes_over:  # not even a cluster of one row
            break
    return taken


def _shared(
    order: np.ndarray, sizes: np.ndarray, wanted: dict[int, float], least: dict[int, int], *, passes_over: bool
) -> dict[int, list[int]]:
    """Return the clusters of test and validation, in proportion to the rows `wanted`; `least` are those of each split.

    The largest cluster in `order` is left over, by time the last, unless it is needed.
    """
    needed = sum(least.values())
    if len(order) > needed:
        order = np.delete(order, sizes[order].argmax() if passes_over else -1)
    wanted = {number: max(0.0, rows) for number, rows in wanted.items()}
    taken = _fill(order, sizes, sum(wanted.values()), passes_over=passes_over)
    rest = order[~np.isin(order, taken)]
    rest = rest[np.argsort(sizes[rest], kind="stable")] if passes_over else rest
    taken += rest[: max(0, needed - len(taken))].tolist()
    first, *others = wanted
    if not others:
        return {first: taken}
    share = wanted[first] / sum(wanted.values())
    firsts = _fill(np.array(taken, np.int64), sizes, share * sizes[taken].sum(), passes_over=passes_over)
    firsts = (firsts or taken[: least[first]])[: len(taken) - least[others[0]]]
    return {first: firsts, others[0]: [cluster for cluster in taken if cluster not in firsts]}


def _in_turn(
    free: np.ndarray, clusters: _Clusters, wanted: float, have: np.ndarray, want: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Order the free clusters by their place in their stratum, of which `have` rows are in the split already."""
    sizes, stratum, lots = clusters.sizes[free], clusters.stratum[free], clusters.lots[free]
    large = sizes > max(1, LARGE_SHARE * wanted)
    of_split = want * (wanted + have.sum()) / max(1, want.sum())  # rows of each stratum in the split, by its share
    most = np.minimum(np.maximum(LAST_SHARE * wanted, of_split), want / len(SPLITS))
    last = large & (sizes > most[stratum])
    order = np.lexsort((lots, large, last, stratum))
    ahead = np.cumsum(sizes[order]) - sizes[order]
    _, first, which = np.unique(stratum[order], return_index=True, return_inverse=True)
    ahead -= ahead[first][which]
    stratum = stratum[order]
    place = (have[stratum] + ahead + starts[stratum] * sizes[order]) / want[stratum]
    return free[order][np.lexsort((lots[order], place, last[order]))]


def _main_stratum(cluster: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """(clusters,) the stratum that most rows of each cluster are in."""
    num_strata = int(stratum.max(initial=0)) + 1
    found, counts = np.unique(cluster * num_strata + stratum, return_counts=True)
    order = np.lexsort((found, -counts, found // num_strata))
    _, first = np.unique(found[order] // num_strata, return_index=True)
    return found[order][first] % num_strata


def _lots(cluster: np.ndarray, num_clusters: int, row_ids: pa.Array, seed: int) -> np.ndarray:
    """(num_clusters,) uint64: the lot of each cluster's smallest row_id."""
    order = np.asarray(pc.sort_indices(row_ids))  # pyright: ignore[reportAttributeAccessIssue]
    _, first = np.unique(cluster[order], return_index=True)
    smallest = order[first]
    lots = np.zeros(num_clusters, np.uint64)
    lots[cluster[smallest]] = [_lot(f"{seed} {row_ids[row].as_py()}") for row in smallest.tolist()]
    return lots


def _lot(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
