"""The candidate beside one opponent: the paired difference on the same rows, and whether it is above a threshold."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tunewright.artifacts.payloads import Comparison, Interval
from tunewright.metrics import describe
from tunewright.metrics.intervals import Floats, PowerAnalysis, by_cluster, mcnemar, rows_needed

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
        differences = self.differences(metric)
        return _interval(differences, _power_analysis(differences, self.clusters, 0.0, confidence), metric)


def compare(scores: Paired, *, metric: str, opponent: str, threshold: float, confidence: float) -> Comparison:
    """Whether the difference is above the threshold: its lower bound is; below: its upper bound is not; or unclear."""
    differences = scores.differences(metric)
    # A few equal rows do not show that none is better; that a guardrail holds needs no row that differs.
    spread = describe(metric).high - describe(metric).low
    tied = spread if threshold >= 0 and math.isfinite(spread) else 0.0
    analysis = _power_analysis(differences, scores.clusters, threshold, confidence, tied)
    low, mean, high = interval = _interval(differences, analysis, metric)
    finding = "above" if low > threshold else "below" if high <= threshold else "unclear"
    effect, smallest = max(mean - threshold, SMALLEST_EFFECT), analysis.smallest()
    needed = max(rows_needed(effect, analysis.widened.row_variance(), confidence), len(differences) + 1)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(
        metric=metric,
        opponent=opponent,
        threshold=threshold,
        finding=finding,
        difference=interval,
        bootstrap=analysis.evidence.bootstrap(confidence),
        candidate_mean=float(scores.candidate.mean()),
        opponent_mean=float(scores.opponent.mean()),
        num_rows=len(differences),
        wins=wins,
        losses=losses,
        ties=len(differences) - wins - losses,
        p_below=analysis.widened.tails(threshold)[1],
        mcnemar_p=mcnemar(wins, losses) if np.isin([scores.candidate, scores.opponent], (0, 1)).all() else None,
        rows_needed=needed if finding == "unclear" and mean > threshold and describe(metric).more_help else None,
        smallest_visible=smallest if smallest <= spread else None,
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


def _power_analysis(
    differences: Floats, clusters: np.ndarray, threshold: float, confidence: float, tied: float = 0.0
) -> PowerAnalysis:
    """The intervals of the differences, with an imagined pair of rows that differ by the largest difference.

    An outlier, more than twice the root mean square of those that are not 0, would hide what graded scores show, so
    that is the most. `tied` is what the pair differs by where no row does.
    """
    evidence, sizes = by_cluster(differences, clusters), np.abs(differences[differences != 0])
    large = min(float(sizes.max()), 2 * math.sqrt(float((sizes**2).mean()))) if len(sizes) else tied
    return PowerAnalysis(evidence, evidence.with_pseudo_observations(-large, large), threshold, confidence)


def _interval(differences: Floats, analysis: PowerAnalysis, metric: str) -> Interval:
    """The imagined pair draws the interval towards 0, and the mean stays what it is; no end is out of the range."""
    mean, (low, high) = float(differences.mean()), analysis.widened.bounds(analysis.confidence)
    most = describe(metric).high - describe(metric).low
    return min(max(-most, low), mean), mean, max(min(most, high), mean)
