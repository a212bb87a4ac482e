"""An interval covers what it says, clusters count as one piece of evidence, and its power is what it is said to be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from tunewright.metrics.intervals import ClusterSums, PowerAnalysis, by_cluster, holm, mcnemar, rows_needed


def low(wins: int, losses: int, num_rows: int, confidence: float = 0.95) -> float:
    """The lower bound of the difference of two models with so many wins and losses."""
    differences = np.array([1.0] * wins + [-1.0] * losses + [0.0] * (num_rows - wins - losses))
    return by_cluster(differences, np.arange(num_rows)).with_pseudo_observations(-1, 1).bounds(confidence)[0]


@pytest.mark.parametrize("num_rows", [30, 100, 400])
@pytest.mark.parametrize("differing", [0.02, 0.1, 0.3])
def test_an_equal_model_seems_better_one_time_in_twenty_at_most(num_rows: int, differing: float) -> None:
    """Exactly: over all numbers of differing rows, and of wins among them."""
    chance = 0.0
    for either in range(int(binom.isf(1e-5, num_rows, differing)) + 1):
        least = next((wins for wins in range(either + 1) if low(wins, either - wins, num_rows) > 0), either + 1)
        chance += binom.pmf(either, num_rows, differing) * binom.sf(least - 1, either, 0.5)
    assert chance <= 0.05
    if num_rows * differing > 50:
        assert chance > 0.045  # no more careful than it has to be


def test_a_bound_holds_as_often_as_it_says_whatever_the_scores_and_their_clusters() -> None:
    generator = np.random.default_rng(0)

    def share_over(draw: object, clusters: np.ndarray) -> float:
        trials = [draw(generator) for _ in range(1_000)]  # pyright: ignore[reportCallIssue]
        return float(
            np.mean([by_cluster(t, clusters).with_pseudo_observations(-1, 1).bounds(0.95)[0] > 0 for t in trials])
        )

    alone, pairs = np.arange(100), np.arange(100) // 4
    assert share_over(lambda g: g.normal(0, 0.3, 100).clip(-1, 1), alone) <= 0.064
    assert share_over(lambda g: np.where(g.random(100) < 0.1, g.uniform(-1, 1, 100), 0), alone) <= 0.064
    assert share_over(lambda g: np.repeat(g.normal(0, 0.3, 25), 4), pairs) <= 0.064
    assert share_over(lambda g: np.repeat(g.normal(0, 0.3, 25), 4), alone) > 0.15  # as if they were 100 rows


@pytest.mark.parametrize("num_rows", [100, 400])
def test_a_better_model_is_seen_as_often_as_the_power_says(num_rows: int) -> None:
    generator, seen, said = np.random.default_rng(1), [], []
    for _ in range(1_500):
        drawn = generator.random(num_rows)
        evidence = by_cluster(np.where(drawn < 0.125, 1.0, np.where(drawn < 0.2, -1.0, 0.0)), np.arange(num_rows))
        analysis = PowerAnalysis(evidence, evidence.with_pseudo_observations(-1, 1), 0.0, 0.95)
        seen.append(analysis.widened.bounds(0.95)[0] > 0)
        said.append(analysis.power(0.05))
    assert np.mean(seen) == pytest.approx(np.mean(said), abs=0.03)


@given(
    st.lists(st.tuples(st.sampled_from([-1.0, -0.3, 0.0, 0.5, 1.0]), st.integers(0, 8)), min_size=2, max_size=30),
    st.floats(0, 0.2),
)
def test_the_smallest_visible_gain_has_a_power_of_four_fifths(rows: list[tuple[float, int]], threshold: float) -> None:
    scores, clusters = (np.array(column) for column in zip(*rows, strict=True))
    evidence = by_cluster(scores, clusters)
    analysis = PowerAnalysis(evidence, evidence.with_pseudo_observations(-1, 1), threshold, 0.95)
    smallest = analysis.smallest()
    assert smallest > threshold
    assert analysis.power(smallest + 1e-9) == pytest.approx(0.8, abs=1e-3)


def test_no_smallest_visible_gain_is_below_the_threshold_where_all_rows_tie() -> None:
    tie = by_cluster(np.zeros(40), np.arange(40))
    assert PowerAnalysis(tie, tie.with_pseudo_observations(0, 0), -0.02, 0.95).smallest() == -0.02


@pytest.mark.parametrize("worse", [-0.2, 0.0, 0.3])
def test_a_p_value_is_small_exactly_where_the_bound_is_beyond(worse: float) -> None:
    evidence = by_cluster(np.random.default_rng(2).normal(0.1, 0.5, 60), np.arange(60)).with_pseudo_observations(-1, 1)
    no_more, no_less = evidence.tails(worse)
    assert no_more + no_less == pytest.approx(1)
    for p, confidence in ((no_more, 1 - no_more), (no_less, 1 - no_less)):
        if confidence > 0.5:
            lower, upper = evidence.bounds(confidence)
            assert (lower if p == no_more else upper) == pytest.approx(worse, abs=1e-6)


def test_without_any_spread_the_p_values_are_certain() -> None:
    same = ClusterSums(np.zeros(5), np.ones(5))
    assert same.bounds(0.95) == (0, 0)
    assert same.tails(0.1) == (1, 0)
    assert same.tails(-0.1) == (0, 1)


def test_near_duplicates_need_more_rows() -> None:
    differences = np.repeat([1.0, 0.0, -1.0, 0.0], 5)
    separate = by_cluster(differences, np.arange(20)).row_variance()
    assert separate == pytest.approx(0.5)
    assert by_cluster(differences, np.arange(20) // 5).row_variance() == pytest.approx(5 * separate)


@pytest.mark.parametrize(("differing", "needed"), [(0.1, 242), (0.2, 489), (0.3, 736)])
def test_the_rows_for_five_points(differing: float, needed: int) -> None:
    assert rows_needed(0.05, differing - 0.05**2, 0.95) == needed


def test_mcnemar_is_exact_and_one_sided() -> None:
    assert mcnemar(5, 0) == pytest.approx(1 / 32)
    assert mcnemar(0, 5) == mcnemar(0, 0) == 1.0
    assert mcnemar(8, 2) == pytest.approx((45 + 10 + 1) / 1024)


def test_holm_steps_down_and_never_turns_the_order_around() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]


def test_a_bootstrap_draws_clusters_and_comes_to_the_same_interval_where_there_are_many() -> None:
    differences = np.random.default_rng(3).choice([1.0, 0.0, -1.0], 2_000, p=[0.3, 0.5, 0.2])
    alone = by_cluster(differences, np.arange(2_000))
    assert alone.bootstrap(0.95) == pytest.approx(alone.bounds(0.95), abs=0.003)
    assert alone.bootstrap(0.95) == alone.bootstrap(0.95)
    thrice = by_cluster(np.repeat(differences, 3), np.repeat(np.arange(2_000), 3))
    assert thrice.bootstrap(0.95) == pytest.approx(alone.bootstrap(0.95))
    assert by_cluster(np.ones(3), np.zeros(3)).bootstrap(0.95) == (1.0, 1.0)
