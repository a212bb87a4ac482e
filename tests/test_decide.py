"""A candidate is promoted for being better, and hardly ever by luck."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import Answers
from tasks.config import Gate
from tasks.decide import Comparison, Decision, decide, decide_scores
from tasks.errors import ConfigError
from tasks.intervals import bounds, by_cluster, mcnemar, rows_needed

Scores = dict[str, float]


def scores(values: Any) -> Scores:
    return {f"row{position:05}": float(value) for position, value in enumerate(values)}


def alone(rows: Scores) -> dict[str, int]:
    return {row: position for position, row in enumerate(rows)}


def against(candidate: Any, base: Any, **gate: Any) -> Decision:
    rows = scores(candidate)
    return decide_scores(rows, {"base": scores(base)}, alone(rows), Gate(**gate))


def only(decision: Decision) -> Comparison:
    return decision.comparisons[0]


def shares(**counts: int) -> tuple[list[float], list[float]]:
    """Candidate and base with so many rows won, lost, and right or wrong in both."""
    outcomes = {"won": (1, 0), "lost": (0, 1), "right": (1, 1), "wrong": (0, 0)}
    pairs = [outcomes[name] for name, count in counts.items() for _ in range(count)]
    return [float(candidate) for candidate, _ in pairs], [float(base) for _, base in pairs]


@pytest.mark.parametrize("differing", [0.02, 0.06, 0.3])
def test_an_equal_model_is_promoted_one_time_in_twenty_at_most(differing: float) -> None:
    drawn = np.random.default_rng(0).random((600, 100))
    trials = [np.where(row < differing / 2, 1.0, np.where(row < differing, -1.0, 0.0)) for row in drawn]
    evidence = [by_cluster(trial, np.arange(100)).with_pair(-1, 1) for trial in trials]
    promoted = [low > 0 for low, _ in bounds(evidence, 0.95)]
    assert np.mean(promoted) <= 0.065  # 0.05 and what 600 trials may be off by
    for trial, expected in zip(trials[:5], promoted[:5], strict=True):
        assert (against(trial, 0 * trial).decision == "promote") == expected


def test_a_clearly_better_model_is_promoted_in_plain_words() -> None:
    decision = against(*shares(won=118, right=3, wrong=23))
    assert decision.decision == "promote"
    assert decision.sentence == "Promoted: exact match .84 is +.82 [.75, .86] above the base on 144 test rows."
    assert (only(decision).wins, only(decision).losses, only(decision).ties) == (118, 0, 26)


def test_a_worse_model_is_kept_back() -> None:
    decision = against(*shares(won=2, lost=30, right=68))
    assert decision.decision == "keep"
    assert decision.sentence.startswith("Kept: exact match .70 is not above the base's .98: -.28 [-.")


def test_too_few_rows_are_inconclusive_and_say_how_many_would_do() -> None:
    decision = against(*shares(won=13, lost=10, right=100, wrong=21))
    assert decision.decision == "inconclusive"
    assert decision.rows_needed == only(decision).rows_needed
    assert decision.sentence.endswith("+.02 [-.03, .08] on 144 test rows; about 2,500 would be needed.")
    assert 2_400 < (decision.rows_needed or 0) <= 2_500


def test_three_wins_and_no_loss_are_luck() -> None:
    assert against(*shares(won=3, right=97)).decision == "inconclusive"
    assert against(*shares(won=8, right=92)).decision == "promote"


def test_the_same_scores_are_kept_back_without_an_interval() -> None:
    decision = against([1, 0, 1], [1, 0, 1])
    assert decision.decision == "keep"
    assert only(decision).difference == (0, 0, 0)
    assert only(decision).mcnemar_p == 1.0


def test_swapping_the_two_flips_the_sign() -> None:
    candidate, base = shares(won=30, lost=11, right=60)
    forth, back = only(against(candidate, base)), only(against(base, candidate))
    assert forth.difference == pytest.approx([-bound for bound in reversed(back.difference)], abs=0.01)
    assert (forth.wins, forth.losses) == (back.losses, back.wins)


def test_the_order_of_the_rows_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    candidate, base = scores(generator.random(90)), scores(generator.random(90))
    clusters = {row: position // 2 for position, row in enumerate(candidate)}
    shuffled = dict(generator.permutation(list(candidate.items())).tolist())
    shuffled = {row: float(score) for row, score in shuffled.items()}
    assert list(shuffled) != list(candidate)
    straight = decide_scores(candidate, {"base": base}, clusters, Gate())
    assert decide_scores(shuffled, {"base": base}, clusters, Gate()) == straight


def test_rows_repeated_within_their_cluster_add_nothing() -> None:
    candidate, base = shares(won=30, lost=15, right=55)
    once = only(against(candidate, base)).difference
    rows = scores(candidate * 4)
    clusters = {row: position % len(candidate) for position, row in enumerate(rows)}
    assert only(decide_scores(rows, {"base": scores(base * 4)}, clusters, Gate())).difference == pytest.approx(once)
    naive = only(decide_scores(rows, {"base": scores(base * 4)}, alone(rows), Gate())).difference
    assert naive[2] - naive[0] < 0.6 * (once[2] - once[0])


def test_a_gain_within_the_margin_is_not_enough() -> None:
    candidate, base = shares(won=20, lost=2, right=178)
    assert against(candidate, base).decision == "promote"
    assert against(candidate, base, margin=0.05).decision == "inconclusive"
    kept = against(candidate, base, margin=0.2)
    assert kept.decision == "keep"
    assert "above the base's .90 by more than .20: +.09" in kept.sentence


def test_more_confidence_widens_the_interval() -> None:
    candidate, base = shares(won=20, lost=10, right=70)
    usual, sure = only(against(candidate, base)).difference, only(against(candidate, base, confidence=0.999)).difference
    assert sure[0] < usual[0] < usual[1] < usual[2] < sure[2]


@pytest.mark.parametrize(("champion_right", "expected"), [(10, "promote"), (79, "inconclusive"), (99, "keep")])
def test_the_champion_has_to_be_beaten_too(champion_right: int, expected: str) -> None:
    candidate = scores([1.0] * 80 + [0.0] * 20)
    champion = scores([0.0] * (100 - champion_right) + [1.0] * champion_right)
    decision = decide_scores(candidate, {"base": scores([0.0] * 100), "champion": champion}, alone(candidate), Gate())
    assert decision.decision == expected
    assert only(decision).finding == "better"
    assert "the champion" in decision.sentence


def test_a_lower_perplexity_is_better() -> None:
    generator = np.random.default_rng(2)
    high = generator.random(60) + 2
    better = against(high - 0.5, high, metric="perplexity")
    assert better.decision == "promote"
    assert only(better).difference[1] == pytest.approx(0.5)
    assert only(better).mcnemar_p is None
    assert against(high + 0.5, high, metric="perplexity").decision == "keep"


@pytest.mark.parametrize(("differing", "needed"), [(0.1, 242), (0.2, 489), (0.3, 736)])
def test_the_rows_for_five_points(differing: float, needed: int) -> None:
    assert rows_needed(0.05, differing - 0.05**2, 0.95) == needed


def test_near_duplicates_need_more_rows() -> None:
    differences = np.repeat([1.0, 0.0, -1.0, 0.0], 5)
    separate = by_cluster(differences, np.arange(20)).row_variance()
    assert separate == pytest.approx(0.5)
    assert by_cluster(differences, np.arange(20) // 5).row_variance() == pytest.approx(5 * separate)


def test_mcnemar_is_exact_and_one_sided() -> None:
    assert mcnemar(5, 0) == pytest.approx(1 / 32)
    assert mcnemar(0, 5) == 1.0
    assert mcnemar(8, 2) == pytest.approx((45 + 10 + 1) / 1024)


def test_what_cannot_be_compared_is_refused() -> None:
    rows = scores([1, 0])
    with pytest.raises(ValueError, match="nothing to compare"):
        decide_scores({}, {"base": {}}, {}, Gate())
    with pytest.raises(ValueError, match="nothing to compare"):
        decide_scores(rows, {}, alone(rows), Gate())
    with pytest.raises(ValueError, match="base and candidate differ in 1 rows, row00001"):
        decide_scores(rows, {"base": scores([1])}, alone(rows), Gate())
    with pytest.raises(ValueError, match="champion scores nan on row row00001"):
        decide_scores(rows, {"base": rows, "champion": scores([0, float("nan")])}, alone(rows), Gate())
    with pytest.raises(ValueError, match="clusters and candidate differ"):
        decide_scores(rows, {"base": rows}, {}, Gate())


def answers(folder: Path, right: list[float], nll: float) -> Answers:
    folder.mkdir()
    num_rows = len(right)
    columns = {
        "row_id": [f"row{position}" for position in range(num_rows)],
        "cluster": list(range(num_rows)),
        "exact_match": right,
        "nll": [nll * 4] * num_rows,
        "num_reference_tokens": [4] * num_rows,
    }
    pq.write_table(pa.table(columns), folder / "answers.parquet")
    return Answers(
        stage="evaluate", folder=folder, digest=folder.name, contender=folder.name, num_rows=num_rows, scores={}
    )


def test_the_verdict_has_all_that_led_to_it(tmp_path: Path) -> None:
    candidate = answers(tmp_path / "candidate", [1.0] * 38 + [0.0] * 2, nll=0.5)
    base = answers(tmp_path / "base", [0.0] * 40, nll=2.0)
    verdict = decide.fn(candidate=candidate, base=base, champion=None, gate=Gate())
    assert verdict.decision == "promote"
    assert list(verdict.differences) == ["base"]
    low, mean, high = verdict.intervals["base"]
    assert (low, mean) == (0, 0)
    assert 0 < high < 0.15  # no success in 40 rows is no proof that there is none: the rule of three says 3 / 40
    written = json.loads(verdict.path("verdict.json").read_text())
    assert written["sentence"] == verdict.sentence
    assert written["comparisons"][0]["mcnemar_p"] < 1e-9
    assert written["own"]["candidate"]["perplexity"] == pytest.approx([np.exp(0.5)] * 3)
    assert decide.fn(candidate=candidate, base=base, champion=None, gate=Gate()) == verdict


def test_a_champion_is_another_decision(tmp_path: Path) -> None:
    candidate, base, champion = (
        answers(tmp_path / name, right, nll=1.0)
        for name, right in (("candidate", [1.0] * 40), ("base", [0.0] * 40), ("champion", [1.0] * 40))
    )
    assert decide.fn(candidate=candidate, base=base, champion=None, gate=Gate()).decision == "promote"
    verdict = decide.fn(candidate=candidate, base=base, champion=champion, gate=Gate())
    assert verdict.decision == "keep"
    assert set(verdict.intervals) == {"candidate", "base", "champion"}


def test_a_metric_that_was_not_measured_cannot_decide(tmp_path: Path) -> None:
    given = answers(tmp_path / "candidate", [1.0], nll=1.0)
    with pytest.raises(ConfigError, match="json_valid was not measured on these rows, only exact_match, perplexity"):
        decide.fn(candidate=given, base=given, champion=None, gate=Gate(metric="json_valid"))
