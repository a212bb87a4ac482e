"""An interval covers what it says, clusters count as one piece of evidence, and its power is what it is said to be."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from tunewright.metrics.intervals import ClusterSums, PowerAnalysis, by_cluster, holm, mcnemar


def gains(wins: int, losses: int, num_rows: int) -> ClusterSums:
    """The difference of two models with so many wins and losses."""
    differences = np.array([1.0] * wins + [-1.0] * losses + [0.0] * (num_rows - wins - losses))
    return by_cluster(differences, np.arange(num_rows), -1, 1)


@pytest.mark.parametrize(("num_rows", "differing"), [(30, 0.1), (100, 0.1), (200, 0.3)])
def test_an_equal_model_seems_better_one_time_in_twenty_at_most(num_rows: int, differing: float) -> None:
    """Exactly: over all numbers of differing rows, and of wins among them."""
    chance = 0.0
    for either in range(int(binom.isf(1e-5, num_rows, differing)) + 1):
        all_wins = range(either // 2, either + 1)
        least = next((w for w in all_wins if gains(w, either - w, num_rows).p_not_above(0.0) < 0.05), either + 1)
        chance += binom.pmf(either, num_rows, differing) * binom.sf(least - 1, either, 0.5)
    assert chance <= 0.05
    if num_rows * differing > 50:
        assert chance > 0.035  # an exact test of few wins has to be careful


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_of_right_and_wrong_answers_the_p_value_is_that_of_mcnemars_exact_test(
    wins: int, losses: int, ties: int
) -> None:
    evidence = gains(wins, losses, wins + losses + ties + 1)
    assert evidence.p_not_above(0.0) == pytest.approx(mcnemar(wins, losses), rel=1e-9)
    assert evidence.p_not_below(0.0) == pytest.approx(mcnemar(losses, wins), rel=1e-9)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.8, 0.95, 0.999]))
def test_the_bounds_of_a_share_are_those_of_clopper_and_pearson(right: int, wrong: int, confidence: float) -> None:
    num_rows = right + wrong + 1
    low, high = by_cluster(np.repeat([1.0, 0.0], [right, wrong + 1]), np.arange(num_rows), 0, 1).bounds(confidence)
    assert low == pytest.approx(beta.ppf(1 - confidence, right, wrong + 2) if right else 0.0, abs=2e-9)
    assert high == pytest.approx(beta.ppf(confidence, right + 1, wrong + 1), abs=2e-9)


def test_a_bound_is_the_quantile_of_means_with_dirichlet_weights() -> None:
    generator = np.random.default_rng(5)
    sums, sizes = generator.normal(0.2, 0.5, 30).clip(-1, 1), generator.integers(1, 4, 30).astype(float)
    evidence = ClusterSums(sums * sizes, sizes, -1.0, 1.0)
    draws, size = generator.dirichlet(np.ones(31), 100_000), evidence.imagined_size
    sizes = np.append(sizes, size)
    for end, worst in enumerate((-size, size)):
        means = draws @ np.append(evidence.sums, worst) / (draws @ sizes)
        assert evidence.bounds(0.95)[end] == pytest.approx(np.quantile(means, (0.05, 0.95)[end]), abs=0.003)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 8)), min_size=1, max_size=30),
    st.integers(0, 29),
    st.floats(0, 0.5),
)
def test_a_bound_ignores_the_order_and_rises_with_a_score(
    rows: list[tuple[float, int]], place: int, gain: float
) -> None:
    scores, clusters = (np.array(column) for column in zip(*rows, strict=True))
    low, high = by_cluster(scores, clusters, -1, 1).bounds(0.95)
    assert -1 <= low <= scores.mean() + 1e-9 and scores.mean() - 1e-9 <= high <= 1
    assert by_cluster(scores[::-1], clusters[::-1], -1, 1).bounds(0.95) == pytest.approx((low, high), abs=2e-9)
    scores[place % len(scores)] = min(1.0, scores[place % len(scores)] + gain)
    better = by_cluster(scores, clusters, -1, 1).bounds(0.95)
    assert better[0] >= low - 2e-9 and better[1] >= high - 2e-9


def test_a_bound_holds_as_often_as_it_says_whatever_the_scores_and_their_clusters() -> None:
    generator = np.random.default_rng(0)

    def share_over(draw: object, clusters: np.ndarray) -> float:
        trials = [draw(generator) for _ in range(1_000)]  # pyright: ignore[reportCallIssue]
        return float(np.mean([by_cluster(each, clusters, -1, 1).p_not_above(0.0) < 0.05 for each in trials]))

    alone, fours = np.arange(100), np.arange(100) // 4
    assert share_over(lambda g: g.normal(0, 0.3, 100).clip(-1, 1), alone) <= 0.064
    assert share_over(lambda g: np.where(g.random(100) < 0.1, g.uniform(-1, 1, 100), 0), alone) <= 0.064
    assert share_over(lambda g: np.where(g.random(100) < 0.04, -1, 1 / 24), alone) <= 0.064
    assert share_over(lambda g: np.repeat(np.where(g.random(25) < 0.1, -1, 1 / 9), 4), fours) <= 0.064
    assert share_over(lambda g: np.repeat(g.normal(0, 0.3, 25).clip(-1, 1), 4), fours) <= 0.064
    assert share_over(lambda g: np.repeat(g.normal(0, 0.3, 25).clip(-1, 1), 4), alone) > 0.15  # as if of 100 rows


def test_a_scale_without_an_end_ends_at_the_scores_that_were_seen() -> None:
    evidence = by_cluster(np.array([1.0, 3.0, 2.0]), np.arange(3), 0, np.inf)
    assert (evidence.worst, evidence.best) == (1.0, 3.0)
    outside = by_cluster(np.array([-5.0, 0.5]), np.arange(2), 0, 1)
    assert (outside.worst, outside.best) == (-5.0, 1.0)


@pytest.mark.parametrize("num_rows", [100, 400])
def test_a_better_model_is_seen_as_often_as_the_power_says(num_rows: int) -> None:
    generator, seen, said = np.random.default_rng(1), [], []
    for trial in range(1_500):
        drawn = generator.random(num_rows)
        evidence = gains(int((drawn < 0.125).sum()), int((drawn > 0.925).sum()), num_rows)
        seen.append(evidence.p_not_above(0.0) < 0.05)
        if trial % 5 == 0:
            said.append(PowerAnalysis(evidence, 0.0, 0.95).power(0.05))
    assert np.mean(seen) == pytest.approx(np.mean(said), abs=0.03)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1.0, -0.3, 0.0, 0.5, 1.0]), st.integers(0, 8)), min_size=2, max_size=30),
    st.floats(0, 0.2),
)
def test_the_smallest_visible_gain_has_a_power_of_four_fifths(rows: list[tuple[float, int]], threshold: float) -> None:
    scores, clusters = (np.array(column) for column in zip(*rows, strict=True))
    analysis = PowerAnalysis(by_cluster(scores, clusters, -1, 1), threshold, 0.95)
    smallest = analysis.smallest()
    assert smallest > threshold
    if smallest < 0.99:
        assert analysis.power(smallest) == pytest.approx(0.8, abs=1e-3)


def test_no_smallest_visible_gain_is_below_the_threshold_where_all_rows_tie() -> None:
    tie = replace(gains(0, 0, 40), worst=0.0, best=0.0)
    analysis = PowerAnalysis(tie, -0.02, 0.95)
    assert (analysis.smallest(), analysis.power(0.05)) == (-0.02, 1.0)


@pytest.mark.parametrize("worse", [-0.2, 0.0, 0.3])
def test_a_p_value_is_small_exactly_where_the_bound_is_beyond(worse: float) -> None:
    scores = np.random.default_rng(2).normal(0.1, 0.5, 60).clip(-1, 1)
    evidence = by_cluster(scores, np.arange(60) // 2, -1, 1)
    no_more, no_less = evidence.p_not_above(worse), evidence.p_not_below(worse)
    for end, p in enumerate((no_more, no_less)):
        if p < 0.4:
            assert evidence.bounds(1 - p)[end] == pytest.approx(worse, abs=1e-6)


def test_where_nothing_can_differ_the_p_values_are_certain() -> None:
    same = ClusterSums(np.zeros(5), np.ones(5), 0.0, 0.0)
    assert same.bounds(0.95) == (0, 0)
    assert (same.p_not_above(0.1), same.p_not_below(0.1)) == (1, 0)
    assert (same.p_not_above(-0.1), same.p_not_below(-0.1)) == (0, 1)


def test_scores_whose_powers_vanish_are_nothing() -> None:
    tiny = by_cluster(np.array([-5e-324, 0.0]), np.array([0, 1]), -5e-324, 1.0)
    assert (tiny.worst, tiny.mean(), tiny.p_not_above(0.0)) == (0.0, 0.0, 1.0)
    narrow = by_cluster(np.array([0.0, 1e-12]), np.array([0, 1]), 0.0, 1e-12)
    assert narrow.bounds(0.95)[0] == 0.0


def test_near_duplicates_need_more_rows() -> None:
    differences = np.repeat([1.0, 0.0, -1.0, 0.0], 10)
    alone, fives = (by_cluster(differences, np.arange(40) // size, -1, 1) for size in (1, 5))
    needed = [PowerAnalysis(each, 0.0, 0.95).rows_needed(0.05) for each in (alone, fives)]
    assert needed[1] == pytest.approx(5 * needed[0], rel=0.02)


@pytest.mark.parametrize(("differing", "at_least"), [(0.1, 242), (0.2, 489), (0.3, 736)])
def test_the_rows_for_five_points(differing: float, at_least: int) -> None:
    """No fewer than of a normal approximation (Lachin 1981), and such that 80 % of the models are seen."""
    wins, losses = (round(1_000 * (differing + gain) / 2) for gain in (0.05, -0.05))
    needed = PowerAnalysis(gains(wins, losses, 1_000), 0.0, 0.95).rows_needed(0.05)
    assert at_least < needed < 1.2 * at_least
    generator = np.random.default_rng(6)
    counts = generator.multinomial(needed, [wins / 1_000, losses / 1_000, 1 - differing], 2_000)
    seen = np.mean([mcnemar(won, lost) < 0.05 for won, lost, _ in counts.tolist()])
    assert 0.78 < seen < 0.85


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
    alone = by_cluster(differences, np.arange(2_000), -1, 1)
    assert alone.bootstrap(0.95) == pytest.approx(alone.bounds(0.95), abs=0.003)
    assert alone.bootstrap(0.95) == alone.bootstrap(0.95)
    thrice = by_cluster(np.repeat(differences, 3), np.repeat(np.arange(2_000), 3), -1, 1)
    assert thrice.bootstrap(0.95) == pytest.approx(alone.bootstrap(0.95))
    assert by_cluster(np.ones(3), np.zeros(3), -1, 1).bootstrap(0.95) == (1.0, 1.0)
