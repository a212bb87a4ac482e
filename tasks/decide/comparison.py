"""The candidate beside one opponent: the paired difference on the same rows, and whether it is above a threshold."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tunewright.artifacts.payloads import Comparison
from tunewright.metrics import describe
from tunewright.metrics.intervals import PowerAnalysis, mcnemar
from tunewright.metrics.paired import Paired

POOR = 0.5  # score under which more is wrong than right
EFFECT = 0.05  # the gain that the power is said of
SMALLEST_EFFECT = 0.01  # over the threshold; nobody collects the rows that a smaller one needs


def compare(
    scores: Paired,
    *,
    metric: str,
    opponent: str,
    threshold: float,
    confidence: float,
    num_unanswered: int = 0,
    effect: float = EFFECT,
) -> Comparison:
    """Whether the difference is above the threshold: its lower bound is; below: its upper bound is not; or unclear.

    `num_unanswered` is the number of test rows that the opponent did not answer, and that `scores` do not have;
    `effect` is the true difference that the power is of.
    """
    differences, evidence = scores.differences(metric), scores.evidence(metric, opponent)
    if threshold < 0 and not differences.any():  # equal rows show that nothing got worse, and no gain
        evidence = replace(evidence, worst=0.0, best=0.0)
    analysis = PowerAnalysis(evidence, threshold, confidence)
    low, mean, high = interval = evidence.interval(confidence)
    finding = "above" if low > threshold else "below" if high <= threshold else "unclear"
    needed = None
    if finding == "unclear" and mean > threshold and describe(metric).more_help:
        needed = max(analysis.rows_needed(max(mean, threshold + SMALLEST_EFFECT)), len(differences) + 1)
    smallest = analysis.smallest()
    if threshold < 0 and math.isinf(describe(metric).high):  # no single score could make up for what got worse
        analysis = PowerAnalysis(evidence.moved_to(effect), threshold, confidence)
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
        num_unanswered=num_unanswered,
        confidence=confidence,
        wins=wins,
        losses=losses,
        ties=len(differences) - wins - losses,
        p_below=evidence.p_not_below(threshold),
        mcnemar_p=mcnemar(wins, losses) if np.isin([scores.candidate, scores.opponent], (0, 1)).all() else None,
        rows_needed=needed,
        smallest_visible=smallest if smallest <= evidence.best else None,
        power=analysis.power(effect),
        effect=effect,
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
