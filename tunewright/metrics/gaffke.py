"""Gaffke's bound of a mean: a test of bounded scores that needs neither many rows nor a symmetric distribution.

The lower bound at confidence c is the quantile 1 - c of the mean with random weights, Dirichlet(1, .., 1) over the
observations and one imagined observation of the worst possible value (Gaffke 2005, Math. Methods Statist. 14:451;
Learned-Miller & Thomas 2019, arXiv:1905.06208). For 0/1 scores it is the bound of Clopper and Pearson, and for a
difference of 0/1 scores the exact McNemar test. That it holds for every bounded score is a conjecture, proven for those
and contradicted by no known simulation.

Weights of Dirichlet(1, .., 1) are exponentials divided by their sum, so that the weighted mean is at most some value
where a weighted sum of exponentials is at most 0. Its probability is an integral, and nothing has to be drawn.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

STEP = 0.1  # of the trapezoidal rule
AT_ONCE, MOST = 16, 400  # nodes
NEGLIGIBLE = 1e-16  # share of the integrand's peak at which the integral ends
HALVINGS = 50  # of the interval that the saddle point is in


def probability_not_positive(weights: Floats, counts: Floats) -> float:
    """Return P(weights_1 G_1 + .. + weights_n G_n <= 0), each G_i a sum of counts_i exponentials, within 1e-9.

    `weights` and `counts` are [terms]; a count need not be whole, G_i is Gamma(counts_i, 1).

    The inversion integral of the characteristic function (Imhof 1961, Biometrika 48:419), along a hyperbola through the
    saddle point (Lugannani & Rice 1980, Adv. Appl. Probab. 12:475) with the curvature of the path of steepest descent,
    so that the integrand hardly oscillates. In steps of u, for a path of sinh(u) upwards, the trapezoidal rule
    converges exponentially, also where few terms let the integrand decay by a power of s alone.
    """
    if weights.max() <= 0:
        return 1.0
    if weights.min() >= 0:
        return 0.0
    weights, of = np.unique(weights / np.abs(weights).max(), return_inverse=True)
    counts = np.bincount(of, counts).astype(float)
    if (counts * weights).sum() < 0:
        return 1 - _small_tail(-weights, counts)
    return _small_tail(weights, counts)


def _small_tail(weights: Floats, counts: Floats) -> float:
    """The probability of a sum whose mean is at least 0: the integral of M(s) / (-2 pi i s) upwards through -saddle.

    M(s) is the product of (1 - s weights_i)^-counts_i, the moment generating function; `second` and `third` are
    derivatives of log(M(s) / -s) at -saddle.
    """
    saddle = _saddle_point(weights, counts)
    tilted = weights / (1 + saddle * weights)
    second = (counts * tilted**2).sum() + saddle**-2
    third = 2 * ((counts * tilted**3).sum() + saddle**-3)
    scale = second**-0.5
    bend = min(max(-scale * third / second / 3, -1.0), 1.0)
    peak = np.exp(-(counts * np.log1p(saddle * weights)).sum()) / saddle
    total = -0.5  # the first node, whose value is 1, counts half
    for start in range(0, MOST, AT_ONCE):
        u = STEP * np.arange(start, start + AT_ONCE)
        path = scale * (1j * np.sinh(u) - bend * (np.cosh(u) - 1))
        speed = np.cosh(u) + 1j * bend * np.sinh(u)
        real, imaginary = 1 - np.outer(path.real, tilted), np.outer(path.imag, tilted)
        log_size = (counts * np.log(real**2 + imaginary**2)).sum(axis=1) / -2
        phase = (counts * np.arctan2(imaginary, real)).sum(axis=1)
        values = np.exp(log_size + 1j * phase) * speed / (1 - path / saddle)
        total += values.real.sum()
        if abs(values[-1]) < NEGLIGIBLE:
            break
    return float(peak * scale * STEP / np.pi * total)


def _saddle_point(weights: Floats, counts: Floats) -> float:
    """The x > 0 at which M(-x) / x is smallest, by bisection."""
    low, high = 0.0, -1 / weights.min()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if (counts * weights / (1 + middle * weights)).sum() + 1 / middle > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
