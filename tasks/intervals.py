"""How sure a mean over test rows is, where near duplicates share a cluster and count as one piece of evidence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
DRAWS = 2**22  # drawn at once: 32 MiB
POWER = 0.8

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sums:
    """A mean as the sums and the sizes of clusters, `sum(sums) / sum(sizes)`; both [clusters]."""

    sums: Floats
    sizes: Floats

    def with_pair(self, worst: float, best: float) -> "Sums":
        """Two imagined clusters more, of average size: in one all rows score `worst`, in the other `best`.

        So three wins and no loss are no proof yet, and no success in 144 rows is not a share of exactly 0. For 0/1
        scores this is the adjustment of Bonett & Price (2012, J. Educ. Behav. Stat. 37:479) to paired shares; without
        it a bootstrap of few differences is too sure.
        """
        size = self.sizes.mean()
        return Sums(np.append(self.sums, [size * worst, size * best]), np.append(self.sizes, [size, size]))

    def mean(self) -> float:
        """The mean itself."""
        return float(self.sums.sum() / self.sizes.sum())

    def row_variance(self) -> float:
        """The variance that one row has for the mean: that of rows, times the design effect of their clusters."""
        residuals = self.sums - self.sizes * self.mean()
        return float((residuals**2).sum() / self.sizes.sum())


def by_cluster(scores: Floats, clusters: np.ndarray, sizes: Floats | None = None) -> Sums:
    """The mean of scores [rows] by cluster; `sizes` [rows] are the weights where the rows are not worth the same."""
    of = np.unique(clusters, return_inverse=True)[1]
    return Sums(np.bincount(of, scores).astype(float), np.bincount(of, sizes).astype(float))


def bounds(means: Sequence[Sums], confidence: float) -> list[tuple[float, float]]:
    """The lower and the upper bound of each mean, each one-sided at `confidence`; all have the same clusters.

    A percentile bootstrap over clusters (Davison & Hinkley 1997, 3.8), always with the same resamples.
    """
    table = np.column_stack([column for mean in means for column in (mean.sums, mean.sizes)])
    num_clusters = len(table)
    generator = np.random.default_rng(0)
    at_once = max(1, DRAWS // num_clusters)
    totals = []
    for start in range(0, RESAMPLES, at_once):
        num = min(at_once, RESAMPLES - start)
        drawn = generator.integers(num_clusters, size=(num, num_clusters)) + num_clusters * np.arange(num)[:, None]
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        totals.append(times.astype(float) @ table)
    resampled = np.concatenate(totals)
    ratios = resampled[:, ::2] / resampled[:, 1::2]
    # Rounded, since a bound of 0 that sums to 1e-17 would be above a margin of 0.
    low, high = np.quantile(ratios, [1 - confidence, confidence], axis=0).round(9)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def mcnemar(wins: int, losses: int) -> float:
    """The exact one-sided p of McNemar's test: of so many wins or more, were a win as likely as a loss."""
    from scipy.stats import binomtest

    return float(binomtest(wins, wins + losses, alternative="greater").pvalue) if wins + losses else 1.0


def rows_needed(effect: float, row_variance: float, confidence: float) -> int:
    """The test rows that see `effect` with a power of 0.8: (z_confidence + z_power)^2 row_variance / effect^2.

    Of a one-sided paired test (Lachin 1981, Controlled Clinical Trials 2:93). For 0/1 scores the variance is the share
    of rows that are scored differently, less effect^2.
    """
    z = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(POWER)
    return math.ceil(z**2 * row_variance / effect**2)
