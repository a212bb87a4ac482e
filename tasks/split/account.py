"""Counts for the proof: where rows stand and why, what was set aside, what came from the version before."""

from collections import Counter

import numpy as np

from tunewright.artifacts.payloads import Decontamination, EarlierRows, TimeSpans
from tunewright.artifacts.placement import NONE, SIDES, TEST, TRAIN, Because
from tunewright.tasks.split.columns import Times
from tunewright.tasks.split.contamination import Contamination
from tunewright.tasks.split.sides import Sides


def rows_of_sides(sides: np.ndarray) -> dict[str, int]:
    """Side -> rows."""
    return {name: int((sides == side).sum()) for side, name in enumerate(SIDES)}


def reasons_of_sides(sides: Sides) -> dict[str, dict[str, int]]:
    """Side -> why rows are on it -> rows."""
    counts = Counter(zip(sides.side.tolist(), sides.because.tolist(), strict=True))
    return {
        name: {reason.name.lower(): counts[side, reason] for reason in Because if (side, reason) in counts}
        for side, name in enumerate(SIDES)
    }


def set_aside(because: np.ndarray) -> dict[str, int]:
    """Reason -> rows that were set aside for it."""
    counts = Counter(Because(reason).name.lower() for reason in because.tolist())
    return dict(sorted(counts.items()))


def cluster_sizes(cluster: np.ndarray) -> dict[str, int]:
    """Size -> clusters of that size, of the rows that stand on a side."""
    sizes = Counter(np.bincount(cluster[cluster != NONE]).tolist())
    return {str(size): sizes[size] for size in sorted(sizes)}


def versions(
    side: np.ndarray,
    given: np.ndarray,
    before: np.ndarray,
    exact: frozenset[int],
    num_gone: int,
    earlier: str | None,
) -> EarlierRows:
    """What became of the rows that the version before had on a side (`before`, or NONE)."""
    known = before != NONE
    return EarlierRows(
        earlier=earlier,
        known_rows=int(known.sum()),
        stayed=int((known & (side == before)).sum()),
        given_elsewhere=int((known & (given != NONE) & (given != before)).sum()),
        freed_by_a_given_side=int((known & (given == NONE) & np.isin(before, list(exact))).sum()),
        gone=num_gone,
        quarantined=int((known & (side == NONE)).sum()),
    )


def in_time(side: np.ndarray, times: Times) -> TimeSpans:
    """When each side begins and ends, and how many training rows are newer than the oldest test row."""
    ranks, values = times
    spans: dict[str, tuple[str, ...]] = {}
    for position, name in enumerate(SIDES):
        known = ranks[(side == position) & (ranks >= 0)]
        spans[name] = tuple(values[int(end)].as_py() for end in (known.min(), known.max())) if len(known) else ()
    tested = ranks[(side == TEST) & (ranks >= 0)]
    newer = int(((side == TRAIN) & (ranks > tested.min())).sum()) if len(tested) else 0
    return TimeSpans(spans=spans, train_rows_newer_than_a_test_row=newer)


def decontamination(side: np.ndarray, found: Contamination, *, removed: bool) -> Decontamination:
    """How many training rows have a passage of which evaluation texts, and which evaluation rows are in records."""
    texts = [text for text, _ in found.training_rows().values()]
    partners = Counter(SIDES[side[text]] if text < found.num_rows else "held_out" for text in texts)
    in_records = Counter(SIDES[row] for row in side[found.evaluation.rows].tolist())
    return Decontamination(
        training_rows=len(texts),
        removed=removed,
        by_partner=dict(sorted(partners.items())),
        held_out_records=found.held_out.num_rows,
        in_held_out=dict(sorted(in_records.items())),
    )
