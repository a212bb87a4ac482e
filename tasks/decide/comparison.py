"""The candidate beside one opponent: the paired difference on the same rows, and whether it is above a threshold."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tunewright.artifacts.payloads import Comparison, Interval
from tunewright.metrics import describe
from tunewright.metrics.catalogue import AT_LEAST
from tunewright.metrics.intervals import ClusterSums, Floats, PowerAnalysis, by_cluster, mcnemar

POOR = 0.5  # score under which more is wrong than right
EFFECT = 0.05  # the gain that the power is said of
SMALLEST_EFFECT = 0.01  # over the threshold; nobody collects the rows that a smaller one needs


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
        return _interval(self.evidence(metric), confidence)

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


def compare(scores: Paired, *, metric: str, opponent: str, threshold: float, confidence: float) -> Comparison:
    """Whether the difference is above the threshold: its lower bound is; below: its upper bound is not; or unclear."""
    differences, evidence = scores.differences(metric), scores.evidence(metric, opponent)
    if threshold < 0 and not differences.any():  # equal rows show that nothing got worse, and no gain
        evidence = replace(evidence, worst=0.0, best=0.0)
    analysis = PowerAnalysis(evidence, threshold, confidence)
    low, mean, high = interval = _interval(evidence, confidence)
    finding = "above" if low > threshold else "below" if high <= threshold else "unclear"
    needed = None
    if finding == "unclear" and mean > threshold and describe(metric).more_help:
        needed = max(analysis.rows_needed(max(mean, threshold + SMALLEST_EFFECT)), len(differences) + 1)
    smallest = analysis.smallest()
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(
        metric=metric,
        opponent=opponent,
        threshold=threshold,
        finding=finding,
        difference=interval,
        bootstrap=evidence.bootstrap(confidence),
        candidate_mean=float(scores.candidate.mean()),
        opponent_mean=float(scores.opponent.mean()),
        num_rows=len(differences),
        wins=wins,
        losses=losses,
        ties=len(differences) - wins - losses,
        p_below=evidence.p_not_below(threshold),
        mcnemar_p=mcnemar(wins, losses) if np.isin([scores.candidate, scores.opponent], (0, 1)).all() else None,
        rows_needed=needed,
        smallest_visible=smallest if smallest <= evidence.best else None,
        power=analysis.power(EFFECT),
    )


def is_more_wrong(comparison: Comparison) -> bool:
    """Whether the candidate's score, from 0 to 1, says that it is more often wrong than right."""
    metric = describe(comparison.metric)
    is_share = metric.higher_is_better and (metric.low, metric.high) == (0, 1)
    return is_share and comparison.candidate_mean < POOR


def needs_most(comparisons: Sequence[Comparison]) -> Comparison | None:
    """Return the inconclusive comparison that needs the most rows, since all have to pass; None if there is none."""
    found = (each for each in comparisons if each.rows_to_tell)
    return max(found, key=lambda each: each.rows_to_tell, default=None)


def _interval(evidence: ClusterSums, confidence: float) -> Interval:
    low, high = evidence.bounds(confidence)
    return low, evidence.mean(), high
