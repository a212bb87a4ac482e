"""The benchmark of the decision, with few trials: no kind of scores promotes more equal models than it may."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
        yield importlib.import_module("decision")


@pytest.mark.parametrize("kind", ["skewed", "skewed, clusters of 3", "skewed, unequal clusters"])
def test_few_large_losses_promote_equal_models_by_students_t_and_not_by_the_decision(
    benchmark: ModuleType, kind: str
) -> None:
    line = benchmark.simulate(kind, 60, trials=200, seed=1)
    assert line.promoted <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 200) < line.promoted_by_t


def test_a_better_model_is_seen_as_often_as_the_verdicts_say(benchmark: ModuleType) -> None:
    line = benchmark.simulate("graded with ties", 146, trials=200, seed=1)
    assert line.seen == pytest.approx(line.power, abs=0.03 + 2 * np.sqrt(0.25 / 800))
    assert line.higher_mean > 0.3


def test_of_a_hundred_candidates_on_one_test_set_no_equal_one_is_promoted_more_often_than_of_one(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "CANDIDATES", 30)
    found = benchmark.histories("0/1, 10% differ", 100, trials=40, seed=3, better_every=5)
    assert found.by_spending <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 40) < found.by_confidence


@pytest.mark.parametrize("kind", ["0/1, 30% differ", "0/1, clusters", "skewed"])
def test_a_prompt_that_is_ended_is_misjudged_as_seldom_as_by_one_test(benchmark: ModuleType, kind: str) -> None:
    most = benchmark.FIRST + 2 * np.sqrt(benchmark.FIRST * (1 - benchmark.FIRST) / 200)
    assert benchmark.ended(kind, 300, -benchmark.GATE.tolerance, trials=200, seed=1).matched <= most
    assert benchmark.ended(kind, 300, 0.0, trials=200, seed=1).better <= most


def test_a_prompt_that_is_far_behind_is_ended_early_and_of_one_that_is_near_few_more_are_undecided(
    benchmark: ModuleType,
) -> None:
    far, near = (benchmark.ended("0/1, 30% differ", 300, gain, trials=200, seed=1) for gain in (0.25, 0.08))
    assert far.matched == 1
    assert far.rows < 0.4
    assert near.matched_by_all - near.matched < 0.06
    assert near.rows < 0.95


@pytest.mark.parametrize("kind", ["0/1, 10% differ", "0/1, clusters", "graded", "skewed, clusters"])
def test_the_trials_are_decided_as_a_run_decides_them(benchmark: ModuleType, kind: str) -> None:
    generator, (draw, sizes, metric, _) = np.random.default_rng(2), benchmark.KINDS[kind]
    for _ in range(5):
        clusters = benchmark.clusters_of(sizes(generator, 100), 100)
        scores = draw(generator, clusters, 0.08)
        p = benchmark.Paired(*scores, clusters).evidence(metric).p_not_above(0.0)
        assert (benchmark.decision(clusters, *scores).decision == "promote") == (p < benchmark.LEVEL)
