"""Confidence intervals of means over test rows, where near-duplicates share a cluster and count once.

The bounds are Gaffke's (gaffke.py), of clusters. A bootstrap over clusters and the exact McNemar test stand beside them
and decide nothing: benchmarks/decision.py shows that the first promotes too many equal models, and the second is for
scores of 0 and 1 of single rows, without a margin.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tunewright.errors import ConfigError
from tunewright.metrics.gaffke import Floats, probability_not_positive

POWER = 0.8
RESAMPLES = 2_000  # of a bootstrap
DRAWN_AT_ONCE = 1_000_000  # clusters
SELDOM = 1e-3  # the weight of a cluster of the worst or the best scores in a power analysis
STEEPEST = 500.0  # tilt of a power analysis, over the largest deviation
EXACT = 1e-11  # error of a root, as a share of the interval that it is in
DIGITS = 9  # behind the point, of a bound
ROUNDED = 10.0**-DIGITS
NOTHING = 1e-100  # a score, under which sums of its powers vanish

RAISE_LIMIT = "raise evaluation.max_new_tokens first: other findings may follow from it"  # where many are cut off


@dataclass(frozen=True)
class ClusterSums:
    """A mean as the sums and the sizes of clusters, `sum(sums) / sum(sizes)`; both [clusters].

    `worst` and `best` are the lowest and the highest score that a row can have.
    """

    sums: Floats
    sizes: Floats
    worst: float
    best: float

    def mean(self) -> float:
        """The mean itself."""
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def imagined_size(self) -> float:
        """The size of the imagined cluster of a bound: the root mean square size.

        Where few clusters have most of the rows, one of the mean size lets too many equal models pass; one of the
        largest size lets hardly any better model pass.
        """
        return float(np.sqrt((self.sizes**2).mean()))

    def p_not_above(self, value: float, counts: Floats | None = None) -> float:
        """The p value of a true mean of at most `value`, each cluster counted `counts` [clusters] times, or once."""
        deviations = np.append(self.sums - value * self.sizes, self.imagined_size * (self.worst - value))
        return probability_not_positive(deviations, np.append(np.ones(len(self.sums)) if counts is None else counts, 1))

    def p_not_below(self, value: float) -> float:
        """The p value of a true mean of at least `value`."""
        return self._mirrored().p_not_above(-value)

    def bounds(self, confidence: float) -> tuple[float, float]:
        """The lower and the upper bound of the mean, each one-sided at `confidence`."""
        return self.lower_bound(confidence), -self._mirrored().lower_bound(confidence)

    def interval(self, confidence: float) -> tuple[float, float, float]:
        """The mean between its bounds, each one-sided at `confidence`."""
        low, high = self.bounds(confidence)
        return low, self.mean(), high

    def lower_bound(self, confidence: float) -> float:
        """The lower bound of the mean at `confidence`."""
        highest = float((self.sums / self.sizes).max())
        if highest - self.worst < ROUNDED:
            return min(self.worst, self.mean())
        at = _root(lambda value: _log_odds(self.p_not_above(value)) - _log_odds(1 - confidence), self.worst, highest)
        # Rounded, since a bound of 0 that is found as 1e-11 would be above a margin of 0.
        return min(round(at, DIGITS), self.mean())

    def _mirrored(self) -> "ClusterSums":
        return ClusterSums(-self.sums, self.sizes, -self.best, -self.worst)

    def moved_to(self, mean: float) -> "ClusterSums":
        """The same clusters, moved to another mean; their scores are on a scale without ends."""
        sums = self.sums + (mean - self.mean()) * self.sizes
        most = float(np.abs(sums / self.sizes).max())
        return ClusterSums(sums, self.sizes, -most, most)

    def bootstrap(self, confidence: float) -> tuple[float, float]:
        """The bounds by resampling clusters (Efron's percentile method), each one-sided; the same for the same sums."""
        from scipy import stats

        if len(self.sums) == 1:
            return self.mean(), self.mean()
        found = stats.bootstrap(
            (self.sums, self.sizes),
            lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
            paired=True,
            n_resamples=RESAMPLES,
            batch=max(1, DRAWN_AT_ONCE // len(self.sums)),
            confidence_level=2 * confidence - 1,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        low, high = found.confidence_interval
        return float(low), float(high)


def by_cluster(
    scores: Floats, clusters: np.ndarray, worst: float, best: float, weights: Floats | None = None
) -> ClusterSums:
    """The mean of scores [rows] by cluster; `weights` [rows] where the rows are not worth the same.

    `worst` and `best` are the ends of the scale. Where it has no end, the lowest and the highest score that was seen
    take their place, and the bounds are an approximation.
    """
    of, worth = np.unique(clusters, return_inverse=True)[1], np.ones(len(scores)) if weights is None else weights
    ends = (worst, best) if math.isfinite(best - worst) else ()
    scores, seen = _visible(scores), _visible(np.array([scores.min(), scores.max(), *ends]))
    sums, sizes = (np.bincount(of, each).astype(float) for each in (scores * worth, worth))
    return ClusterSums(sums, sizes, float(seen.min()), float(seen.max()))


def _visible(scores: Floats) -> Floats:
    """The scores, of which those are 0 whose powers vanish."""
    return np.where(np.abs(scores) < NOTHING, 0.0, scores)


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that rises from below 0 at `low` to above 0 at `high` is 0."""
    from scipy.optimize import brentq

    found: Any = brentq(rising, low, high, xtol=EXACT * (high - low))
    return float(found)


def _log_odds(p: float) -> float:
    return math.log(max(p, 1e-300)) - math.log(max(1 - p, 1e-16))


class _Tilted(NamedTuple):
    """Clusters as they are where the true mean is `mean`."""

    counts: Floats  # [clusters]
    mean: float
    error: float  # the standard error of a measured mean


@dataclass(frozen=True)
class PowerAnalysis:
    """Power analysis of the test that a lower bound exceeds `threshold`.

    Where the true mean is another one, the clusters are those of the evidence with exponentially tilted weights (Efron
    1981, Canad. J. Statist. 9:139): wins are more frequent, and losses less. A cluster of the worst scores and one of
    the best are among them with a small weight, since where all rows tie there is no win to be more frequent. The
    measured mean is taken to be normal around the true one. benchmarks/decision.py compares the power with simulated
    trials.
    """

    evidence: ClusterSums
    threshold: float
    confidence: float

    def power(self, effect: float) -> float:
        """Return the power to detect a true mean of `effect`, 0 to 1."""
        error = self._with_mean(effect).error
        if error == 0 or math.isinf(self._least):
            return float(effect > self._least)
        return NormalDist(self._least, error).cdf(effect)

    def smallest(self) -> float:
        """The smallest true mean that is seen to be over the threshold with a power of 0.8; inf where none is."""

        def beyond(tilt: float) -> float:
            tilted = self._tilted(tilt)
            return tilted.mean - NormalDist().inv_cdf(POWER) * tilted.error - self._least

        if math.isinf(self._least):
            return max(self.threshold, self._least)
        return self._tilted(_root(beyond, *self._tilts)).mean

    def rows_needed(self, effect: float) -> int:
        """Return the test rows that see a true mean of `effect` with a power of 0.8.

        So many that their gain over the threshold is the loss of the imagined cluster and z_confidence + z_power
        standard deviations: those of a paired test (Lachin 1981, Controlled Clinical Trials 2:93), where the imagined
        cluster is part of the first.
        """
        z, z_power = NormalDist().inv_cdf(self.confidence), NormalDist().inv_cdf(POWER)
        tilted, gain = self._with_mean(effect), effect - self.threshold
        variance = tilted.error**2 * float(tilted.counts @ self._support.sizes)  # of one row
        loss = self.evidence.imagined_size * (self.threshold - self.evidence.worst)

        def beyond(rows: float) -> float:
            spread = z * math.sqrt(rows * variance + loss**2) + z_power * math.sqrt(rows * variance)
            return rows * gain - loss - spread

        most = (2 * (z + z_power) ** 2 * variance / gain + (1 + z) * loss) * 2 / gain
        return math.ceil(_root(beyond, 0.0, most)) if most else 1

    @cached_property
    def _support(self) -> ClusterSums:
        """The clusters of the evidence, one of the worst scores, and one of the best."""
        evidence, size = self.evidence, self.evidence.imagined_size
        sums = np.append(evidence.sums, [size * evidence.worst, size * evidence.best])
        return replace(evidence, sums=sums, sizes=np.append(evidence.sizes, [size, size]))

    @property
    def _tilts(self) -> tuple[float, float]:
        most = STEEPEST / (self.evidence.best - self.evidence.worst or 1.0)
        return -most, most

    @cached_property
    def _least(self) -> float:
        """The measured mean whose bound is at the threshold; infinite where the bounds of all are above it, or none."""

        def beyond(tilt: float) -> float:
            p = self._support.p_not_above(self.threshold, self._tilted(tilt).counts)
            return _log_odds(1 - self.confidence) - _log_odds(p)

        low, high = self._tilts
        if beyond(low) > 0:
            return -math.inf
        return self._tilted(_root(beyond, low, high)).mean if beyond(high) > 0 else math.inf

    def _with_mean(self, mean: float) -> _Tilted:
        """The clusters where the true mean is `mean`, or as near to it as they can be."""
        low, high = self._tilts
        if self._tilted(low).mean >= mean:
            return self._tilted(low)
        if self._tilted(high).mean <= mean:
            return self._tilted(high)
        return self._tilted(_root(lambda tilt: self._tilted(tilt).mean - mean, low, high))

    def _tilted(self, tilt: float) -> _Tilted:
        exponents, num_clusters = tilt * self._support.sums / self._support.sizes, len(self.evidence.sums)
        weights = np.exp(exponents - exponents.max())
        weights[num_clusters:] *= SELDOM
        counts = weights * num_clusters / weights.sum()
        num_rows = counts @ self._support.sizes
        mean = float(counts @ self._support.sums / num_rows)
        residuals = self._support.sums - mean * self._support.sizes
        return _Tilted(counts, mean, math.sqrt(counts @ residuals**2) / float(num_rows))


def mcnemar(wins: int, losses: int) -> float:
    """The exact one-sided p of McNemar's test: of so many wins or more, were a win as likely as a loss."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, alternative="greater").pvalue) if wins + losses else 1.0


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given: with them as many tests as there are err as seldom as one (Holm 1979)."""
    order = np.argsort(ps, kind="stable")
    steps = np.asarray(ps, float)[order] * np.arange(len(ps), 0, -1)
    adjusted = np.empty(len(ps))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted.tolist()


def measured(answers: pa.Table) -> list[str]:
    """The metrics that the answers have a score a row of."""
    scored = [field.name for field in answers.schema if pa.types.is_float64(field.type)]
    named = [name for name in scored if name not in ("nll", "margin")]  # of which metrics are made
    return sorted({*named, "perplexity", "stopped"})


def require_measured(answers: pa.Table, metrics: Iterable[str], scored: Iterable[str]) -> None:
    """Raises ConfigError where the answers have no score a row of a metric; `scored` are those that they have one of.

    The last defence: metrics/shape.py says it before anything is trained.
    """
    there = measured(answers)
    for metric in metrics:
        if metric not in there:
            known = ", ".join(sorted({*there, *scored}))
            raise ConfigError(f"gate: {metric or 'auto'} was not measured on these rows, only {known}")


def scores(answers: pa.Table, metric: str) -> Floats:
    """The score of each row [rows], in the rows' order."""
    if metric == "perplexity":
        return _numbers(answers, "nll") / _numbers(answers, "num_reference_tokens")
    return _numbers(answers, metric)


def cut_off(answers: pa.Table) -> np.ndarray:
    """Whether each row's answer [rows] was cut off while its reference goes on: only beginnings are compared there."""
    stopped, lengths, wanted = (
        answers.column(name).to_numpy() for name in ("stopped", "num_tokens", "num_reference_tokens")
    )
    return ~stopped & (lengths < wanted)


def cut_off_in_words(answers: pa.Table) -> str:
    """How many answers ran to the limit, and how many of these have references beyond it."""
    limited, cut = len(answers) - int(answers.column("stopped").to_numpy().sum()), int(cut_off(answers).sum())
    limit, has = (
        max(answers.column("num_tokens").to_pylist()),
        "has a longer reference" if cut == 1 else "have longer references",
    )
    return f"{limited:,} of {len(answers):,} answers ran to the limit of {limit:,} tokens, and {cut:,} of these {has}"


def _numbers(answers: pa.Table, column: str) -> Floats:
    return answers.column(column).to_numpy().astype(float)
