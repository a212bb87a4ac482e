"""What must stand on one side: rows whose prompts are alike, directly or through others, and rows of one group."""

from dataclasses import dataclass

import numpy as np

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


def numbered(labels: np.ndarray) -> np.ndarray:
    """The labels as numbers from 0, in the order in which they first appear."""
    _, first, which = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]
