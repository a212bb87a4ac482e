"""Scores of the same rows, row by row: what every comparison with the candidate is made of."""

import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tunewright.artifacts.payloads import Interval
from tunewright.metrics import describe
from tunewright.metrics.catalogue import AT_LEAST
from tunewright.metrics.intervals import ClusterSums, Floats, by_cluster, scores


def by_row(answers: pa.Table, metric: str) -> dict[str, float]:
    """The score of each row; of perplexity its mean negative log-likelihood in nats per token."""
    return dict(zip(answers.column("row_id").to_pylist(), scores(answers, metric).tolist(), strict=True))


class Paired(NamedTuple):
    """Scores of the same rows; all are [rows]."""

    candidate: Floats
    opponent: Floats
    clusters: np.ndarray

    def differences(self, metric: str) -> Floats:
        """Positive where the candidate is better."""
        return describe(metric).gain(self.candidate, self.opponent)

    def interval(self, metric: str, confidence: float) -> Interval:
        """The mean difference between its bounds, each one-sided."""
        return self.evidence(metric).interval(confidence)

    def evidence(self, metric: str, opponent: str = "") -> ClusterSums:
        """The mean difference by cluster, between the largest differences that there can be."""
        described, differences = describe(metric), self.differences(metric)
        ends = described.low, described.high
        if opponent == AT_LEAST:  # which scores the same on each row
            worst, best = sorted(described.gain(end, float(self.opponent[0])) for end in ends)
        else:
            worst, best = ends[0] - ends[1], ends[1] - ends[0]
        if math.isinf(best - worst):  # the largest that was seen, in either direction
            best = float(np.abs(differences).max())
            worst = -best
        return by_cluster(differences, self.clusters, worst, best)
