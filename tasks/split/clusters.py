"""What must stand on one side: rows whose prompts are alike, directly or through others, and rows of one group."""

from dataclasses import dataclass

import numpy as np

from tasks.similarity.sets import Pairs


@dataclass(frozen=True)
class Links:
    """The rows that must not stand on two sides. Those of `pairs.first` are one set, those of a group one group."""

    pairs: Pairs
    group: np.ndarray  # (rows,) the number of the row's group, -1 where it has none

    def __len__(self) -> int:
        return len(self.group)

    def among(self, rows: np.ndarray) -> "Links":
        """The links of these rows with each other, numbered by their place in `rows`."""
        pairs, inside = self.pairs, np.full(len(self), -1)
        sets, place, which = np.unique(pairs.first[rows], return_index=True, return_inverse=True)
        inside[sets] = place
        left, right = inside[pairs.left], inside[pairs.right]
        both = (left >= 0) & (right >= 0)
        return Links(
            Pairs(first=place[which], left=left[both], right=right[both], similarity=pairs.similarity[both]),
            self.group[rows],
        )

    def clusters(self) -> np.ndarray:
        """(rows,) the cluster of each row, numbered by first appearance: all that is linked, however indirectly."""
        from scipy.sparse import coo_matrix
        from scipy.sparse.csgraph import connected_components

        grouped, rows = np.flatnonzero(self.group >= 0), len(self)
        one = np.concatenate([np.arange(rows), self.pairs.left, grouped])
        other = np.concatenate([self.pairs.first, self.pairs.right, rows + self.group[grouped]])
        nodes = rows + int(self.group.max(initial=-1)) + 1
        graph = coo_matrix((np.ones(len(one), np.int8), (one, other)), shape=(nodes, nodes))
        return numbered(connected_components(graph, directed=False)[1][:rows])

    def linked_to(self, rows: np.ndarray) -> np.ndarray:
        """(rows,) bool: whether a row is linked directly to one of `rows` (a mask), or is one of them."""
        pairs, of_set = self.pairs, np.zeros(len(self), np.bool_)
        of_set[pairs.first[rows]] = True
        near = of_set.copy()
        near[pairs.left[of_set[pairs.right]]] = True
        near[pairs.right[of_set[pairs.left]]] = True
        of_group = np.zeros(int(self.group.max(initial=-1)) + 2, np.bool_)  # the last stands for no group
        of_group[self.group[rows]] = True
        of_group[-1] = False
        return near[pairs.first] | of_group[self.group]

    def partners(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each row the most alike of `rows` (a mask) that it is linked to, or -1; and the similarity.

        The similarity is nan where they have nothing but a group in common.
        """
        pairs, chosen = self.pairs, np.flatnonzero(rows)[::-1]  # where several are written, the last stays: the first
        of_set, best, similarity = np.full(len(self), -1), np.full(len(self), -1), np.full(len(self), np.nan)
        of_set[pairs.first[chosen]] = chosen
        order = np.argsort(np.tile(pairs.similarity, 2), kind="stable")
        one, other = (np.concatenate(ends)[order] for ends in ((pairs.left, pairs.right), (pairs.right, pairs.left)))
        there = of_set[other] >= 0
        best[one[there]] = of_set[other[there]]
        similarity[one[there]] = np.tile(pairs.similarity, 2)[order][there]
        equal = of_set >= 0
        best[equal], similarity[equal] = of_set[equal], 1.0
        of_group = np.full(int(self.group.max(initial=-1)) + 2, -1)
        of_group[self.group[chosen]] = chosen
        of_group[-1] = -1
        best, similarity = best[pairs.first], similarity[pairs.first]
        return np.where(best >= 0, best, of_group[self.group]), similarity


def numbered(labels: np.ndarray) -> np.ndarray:
    """The labels as numbers from 0, in the order in which they first appear."""
    _, first, which = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]
