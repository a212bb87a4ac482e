"""Confidence intervals of means over test rows, where near-duplicates share a cluster and count once.

A bound is the mean, less Student's t times its standard error over clusters, with two pseudo-observations added
(`with_pseudo_observations`). For 0/1 scores of single rows this is the interval of Bonett & Price (2012, J. Educ.
Behav. Stat. 37:479) with t for z. A bootstrap over clusters and the exact McNemar test stand beside it and decide
nothing: benchmarks/decision.py shows that the first promotes too many equal models where clusters are few, and that
the second sees fewer of the better ones.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tunewright.errors import ConfigError

POWER = 0.8
ROUNDS = 50
RESAMPLES = 2_000  # of a bootstrap
DRAWN_AT_ONCE = 1_000_000  # clusters

Floats = NDArray[np.float64]
RAISE_LIMIT = "raise evaluation.max_new_tokens first: other findings may follow from it"  # where many are cut off


@dataclass(frozen=True)
class ClusterSums:
    """A mean as the sums and the sizes of clusters, `sum(sums) / sum(sizes)`; both [clusters]."""

    sums: Floats
    sizes: Floats

    def with_pseudo_observations(self, worst: float, best: float) -> "ClusterSums":
        """Two imagined clusters more, of average size: in one all rows score `worst`, in the other `best`.

        So three wins and no loss are no proof yet, and no success in 144 rows is not a share of exactly 0.
        """
        size = self.sizes.mean()
        return ClusterSums(np.append(self.sums, [size * worst, size * best]), np.append(self.sizes, [size, size]))

    def mean(self) -> float:
        """The mean itself."""
        return float(self.sums.sum() / self.sizes.sum())

    def row_variance(self) -> float:
        """The variance that one row has for the mean: that of rows, times the design effect of their clusters."""
        residuals = self.sums - self.sizes * self.mean()
        return float((residuals**2).sum() / self.sizes.sum())

    def error(self, more: float = 0.0) -> float:
        """The standard error of the mean, as of a ratio of sums over clusters (Cochran 1977, 6.4).

        `more` is a variance that each row has on top of its own.
        """
        num_clusters = len(self.sums)
        return math.sqrt((self.row_variance() + more) / self.sizes.sum() * num_clusters / (num_clusters - 1))

    def bounds(self, confidence: float) -> tuple[float, float]:
        """The lower and the upper bound of the mean, each one-sided at `confidence`."""
        half = _t(confidence, len(self.sums)) * self.error()
        # Rounded, since a bound of 0 that sums to 1e-17 would be above a margin of 0.
        return round(self.mean() - half, 9), round(self.mean() + half, 9)

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

    def tails(self, value: float) -> tuple[float, float]:
        """The one-sided p of the mean being no more than `value`, and of it being no less."""
        from scipy.special import stdtr

        error, beyond = self.error(), self.mean() - value
        if error == 0:
            return float(beyond <= 0), float(beyond >= 0)
        below = float(stdtr(len(self.sums) - 1, beyond / error))
        return 1 - below, below


def by_cluster(scores: Floats, clusters: np.ndarray, sizes: Floats | None = None) -> ClusterSums:
    """The mean of scores [rows] by cluster; `sizes` [rows] are the weights where the rows are not worth the same."""
    of = np.unique(clusters, return_inverse=True)[1]
    return ClusterSums(np.bincount(of, scores).astype(float), np.bincount(of, sizes).astype(float))


def _t(confidence: float, num_clusters: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(num_clusters - 1, confidence))


@dataclass(frozen=True)
class PowerAnalysis:
    """Power analysis of the test that a lower bound exceeds `threshold`.

    The bound is that of `widened`, which is `evidence` with pseudo-observations.

    A normal approximation with the evidence's own variance, or that of gains of the largest size on single rows where
    it is more: rows that all tie show no variance, and a gain has some. benchmarks/decision.py compares it with
    simulated trials.
    """

    evidence: ClusterSums
    widened: ClusterSums
    threshold: float
    confidence: float

    def power(self, effect: float) -> float:
        """Return the power to detect a true mean of `effect` over the threshold, 0 to 1."""
        shrunk, spread, least = self._parts(effect)
        if spread == 0:
            return float(effect * shrunk > least)
        return NormalDist().cdf((effect * shrunk - least) / spread)

    def smallest(self) -> float:
        """The smallest true mean that is seen to be over the threshold with a power of 0.8; none is below it."""
        effect = 0.0
        for _ in range(ROUNDS):  # it rises with the variance that it brings itself, and settles
            shrunk, spread, least = self._parts(effect)
            effect = (least + NormalDist().inv_cdf(POWER) * spread) / shrunk
        return max(self.threshold, effect)

    def _parts(self, effect: float) -> tuple[float, float, float]:
        """Return the factor by which pseudo-observations shrink a mean, its standard deviation, and its threshold."""
        own, num_rows, widened = self.evidence.row_variance(), self.evidence.sizes.sum(), self.widened.sizes.sum()
        largest = self.widened.sums[-1] / self.widened.sizes[-1]  # difference: that of the pseudo-observations
        gain = min(abs(effect), largest / 2)  # of which a larger one has no more variance
        variance = max(own, gain * (largest - gain))
        error = self.widened.error(more=(variance - own) * num_rows / widened)
        least = self.threshold + _t(self.confidence, len(self.widened.sums)) * error
        return num_rows / widened, math.sqrt(variance * num_rows) / widened, least


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


def rows_needed(effect: float, row_variance: float, confidence: float) -> int:
    """The test rows that see `effect` with a power of 0.8: (z_confidence + z_power)^2 row_variance / effect^2.

    Of a one-sided paired test (Lachin 1981, Controlled Clinical Trials 2:93). For 0/1 scores the variance is the share
    of rows that are scored differently, less effect^2.
    """
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(POWER)
    return math.ceil(z**2 * row_variance / effect**2)


def measured(answers: pa.Table) -> list[str]:
    """The metrics that the answers have a score a row of."""
    named = [field.name for field in answers.schema if pa.types.is_float64(field.type) and field.name != "nll"]
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


def _numbers(answers: pa.Table, column: str) -> Floats:
    return answers.column(column).to_numpy().astype(float)
