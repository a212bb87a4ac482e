"""The tail of a weighted sum of exponentials is exact, whatever the weights."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from tunewright.metrics.gaffke import probability_not_positive

Weights = st.lists(st.floats(-1, 1).filter(lambda weight: abs(weight) > 1e-6), min_size=2, max_size=40)


def of(*weights: float, counts: tuple[float, ...] | None = None) -> float:
    return probability_not_positive(np.array(weights), np.array(counts or np.ones(len(weights)), float))


@given(st.integers(1, 500), st.integers(1, 500), st.floats(1e-6, 1e6))
def test_equal_wins_and_losses_are_coin_flips(wins: int, losses: int, size: float) -> None:
    """That so many wins come before so many losses, as in a race of two Poisson processes."""
    found = of(size, -size, counts=(wins, losses))
    assert found == pytest.approx(binom.sf(wins - 1, wins + losses - 1, 0.5), rel=1e-9, abs=1e-13)


@pytest.mark.parametrize(
    "weights", [(1.0, -2.0), (0.3, 1.0, -0.5), (1.0, -0.1, -0.2, 0.7), (1e-3, 1.0, -5.0), (1.0, -1e-4)]
)
def test_different_weights_have_a_closed_form(weights: tuple[float, ...]) -> None:
    """The hypoexponential distribution: the sum over positive weights of the products of w / (w - other)."""
    positive = (
        np.prod([weight / (weight - other) for other in weights if other != weight]) for weight in weights if weight > 0
    )
    assert of(*weights) == pytest.approx(1 - sum(positive), abs=1e-10)


@given(st.floats(1, 1e5), st.floats(0.01, 20))
def test_a_nearly_constant_sum_beside_one_large_loss(count: float, total: float) -> None:
    assert of(total / count, -1.0, counts=(count, 1.0)) == pytest.approx((1 + total / count) ** -count, abs=1e-10)


@given(Weights, st.floats(1e-6, 1e6))
def test_neither_order_nor_scale_matters_and_the_rest_is_positive(weights: list[float], scale: float) -> None:
    found = of(*weights)
    assert 0 <= found <= 1 + 1e-12
    assert of(*[scale * weight for weight in reversed(weights)]) == pytest.approx(found, abs=1e-10)
    assert of(*[-weight for weight in weights]) == pytest.approx(1 - found, abs=1e-10)


@given(Weights, st.integers(0, 39), st.floats(0, 1))
def test_a_larger_weight_makes_a_positive_sum_likelier(weights: list[float], place: int, more: float) -> None:
    larger = [weight + more * (position == place % len(weights)) for position, weight in enumerate(weights)]
    assert of(*larger) <= of(*weights) + 1e-10


def test_a_count_is_a_weight_so_many_times() -> None:
    assert of(0.5, -1.0, 0.2, counts=(3, 2, 4)) == pytest.approx(of(*[0.5] * 3, *[-1.0] * 2, *[0.2] * 4), abs=1e-12)
    assert of(0.5, -1.0, counts=(3, 2)) > of(0.5, -1.0, counts=(3.5, 2)) > of(0.5, -1.0, counts=(4, 2))


def test_sums_of_one_sign_are_certain() -> None:
    assert of(1.0, 0.0, 2.0) == 0
    assert of(-1.0, 0.0) == of(0.0, 0.0) == 1


def test_drawn_sums_come_to_the_same() -> None:
    generator = np.random.default_rng(0)
    for weights in (generator.normal(0.1, 0.5, 60), np.append(generator.lognormal(0, 1, 50), -60)):
        drawn = generator.exponential(size=(100_000, len(weights))) @ weights <= 0
        assert of(*weights) == pytest.approx(drawn.mean(), abs=0.005)
