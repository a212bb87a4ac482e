"""Replay rows: general ones that train beside the others, so that the model forgets less (split.replay).

They move no other row: one that repeats a row of another source, or is of its group, goes before anything is drawn. Of
those that decontamination leaves the first by their row_id stay, so that as data grow the same ones are drawn again.
"""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunewright.artifacts.placement import NONE, TRAIN, Because
from tunewright.tasks.split.clusters import numbered
from tunewright.tasks.split.sides import Joins, Partner, Sides


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


def draw_replay(sides: Sides, row_ids: pa.Array, replay: np.ndarray, share: float) -> None:
    """Sets those `replay` rows (a mask) aside that would be more than this share of all training rows."""
    if not replay.any():
        return
    trains = sides.side == TRAIN
    num_others = int((trains & ~replay).sum())
    rows = np.flatnonzero(trains & replay)
    rows = rows[np.asarray(pc.sort_indices(row_ids.take(pa.array(rows))))]  # pyright: ignore[reportAttributeAccessIssue]
    most = len(rows) if share == 1 else int(share * num_others / (1 - share) + 1e-9)
    sides.because[rows[:most]] = Because.REPLAY
    sides.set_aside(rows[most:], Because.NOT_DRAWN)
