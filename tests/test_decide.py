"""A candidate is promoted for being better than what stands and as good as a prompt, and hardly ever by luck."""

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tunewright import config
from tunewright.artifacts import MESSAGES, Answers, Splits, Verdict
from tunewright.artifacts.payloads import VerdictDetails
from tunewright.config import Gate
from tunewright.errors import ConfigError
from tunewright.metrics import row_score
from tunewright.reports.pages import number
from tunewright.tasks.decide import decide, sentences
from tunewright.tasks.decide.comparison import Comparison
from tunewright.tasks.decide.decision import Decision, Evidence, GuardrailTest, decide_scores
from tunewright.tasks.decide.reading import best_constant, few_calls, kinds, slices

Scores = dict[str, float]


def scores(values: Any) -> Scores:
    return {f"row{position:05}": float(value) for position, value in enumerate(values)}


def evidence(metric: str = "exact_match", clusters: Any = None, **contenders: Any) -> Evidence:
    given = {name: values if isinstance(values, dict) else scores(values) for name, values in contenders.items()}
    alone = {row: position for position, row in enumerate(given.get("candidate", {}))}
    return Evidence(metric, given, alone if clusters is None else clusters)


def against(candidate: Any, base: Any, **gate: Any) -> Decision:
    settings = Gate(**{"metric": "exact_match", **gate})
    return decide_scores(evidence(settings.metric, candidate=candidate, base=base), settings)


def only(decision: Decision) -> Comparison:
    return decision.comparisons[0]


def shares(**counts: int) -> tuple[list[float], list[float]]:
    """Candidate and base with so many rows won, lost, and right or wrong in both."""
    outcomes = {"won": (1, 0), "lost": (0, 1), "right": (1, 1), "wrong": (0, 0)}
    pairs = [outcomes[name] for name, count in counts.items() for _ in range(count)]
    return [float(candidate) for candidate, _ in pairs], [float(base) for _, base in pairs]


def right(num_right: int, of: int = 100) -> list[float]:
    return [1.0] * num_right + [0.0] * (of - num_right)


def test_a_clearly_better_model_is_promoted_in_plain_words() -> None:
    decision = against(*shares(won=118, right=3, wrong=23))
    assert (decision.decision, decision.because) == ("promote", "")
    assert decision.sentence == "Promoted: exact match .84 is +.82 [.75, .87] above the base on 144 test rows."
    assert (only(decision).wins, only(decision).losses, only(decision).ties) == (118, 0, 26)


def test_the_models_of_the_demo_are_decided_on_all_rows() -> None:
    """The candidate has 123 of 146 right; the few-shot prompt 17, and the retrieval prompt 92, 9 of them alone."""
    candidate = right(123, 146)
    few_shot = [1.0] * 17 + [0.0] * 129
    retrieval = [1.0] * 83 + [0.0] * 40 + [1.0] * 9 + [0.0] * 14
    given = evidence(candidate=candidate, base=right(0, 146), few_shot=few_shot, retrieval=retrieval)
    decision = decide_scores(given, Gate(metric="exact_match"))
    assert decision.sentence.startswith("Promoted: exact match .84 is +.84 [.77, .89] above the base, and at least as ")
    assert decision.sentence.endswith("and the retrieval prompt (+.21 [.13, .29], the closest), on 146 test rows.")
    few_shot_low, _, few_shot_high = decision.comparisons[1].difference
    assert (round(few_shot_low, 2), round(few_shot_high, 2)) == (0.65, 0.79)


@pytest.mark.parametrize("metric", ["exact_match", "token_f1"])
def test_many_small_wins_do_not_hide_that_a_large_loss_may_have_been_missed(metric: str) -> None:
    """Sixty rows that gain .03 each are as likely where one row in thirty loses a whole point."""
    assert against([0.53] * 60, [0.5] * 60, metric=metric).decision == "inconclusive"
    assert against([0.60] * 60, [0.5] * 60, metric=metric).decision == "promote"


def test_the_score_asked_for_is_above_where_the_lower_end_of_the_own_interval_is(
    splits: Splits, tmp_path: Path
) -> None:
    candidate, base = answers(tmp_path, "candidate", right(30, 40)), answers(tmp_path, "base", right(0, 40))
    low = verdict_of(splits, candidate, base).intervals["candidate"][0]
    for at_least, expected in ((low - 1e-6, "promote"), (low + 1e-6, "inconclusive")):
        assert verdict_of(splits, candidate, base, at_least=at_least).decision == expected


def test_a_model_that_is_not_better_is_kept_back() -> None:
    decision = against(*shares(won=2, lost=30, right=68))
    assert (decision.decision, decision.because) == ("keep", "worse")
    assert decision.sentence.startswith("Not promoted: exact match .70 is worse than the base's .98: -.28 [-.")


@pytest.mark.parametrize("num_rows", [1, 3, 37, 400])
def test_rows_in_which_nothing_differs_do_not_show_that_nothing_is_better(num_rows: int) -> None:
    same = against([1] * num_rows, [1] * num_rows)
    low, mean, high = only(same).difference
    assert (same.decision, mean, only(same).rows_needed) == ("inconclusive", 0, None)
    assert low < 0 < high <= 1
    assert (high < 0.02) == (num_rows == 400)
    visible = only(same).smallest_visible
    assert (visible is None) == (num_rows < 4) == ("so few rows can show no gain, however large" in same.sentence)
    assert visible is None or visible > high
    assert same.sentence.endswith("; add test rows." if visible is None else "would probably not help.")
    assert only(same).power < 1 or num_rows == 400
    assert only(same).mcnemar_p == 1.0


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 9, 10])
def test_few_test_rows_promote_nothing_or_are_named_in_the_sentence(num_rows: int) -> None:
    for metric, won, lost in (("exact_match", 1.0, 0.0), ("token_f1", 1.0, 0.0), ("perplexity", 0.01, 9.0)):
        decision = against([won] * num_rows, [lost] * num_rows, metric=metric)
        assert decision.decision == ("promote" if num_rows > 4 else "inconclusive")
        warned = f"on only {num_rows} test rows, too few to stand for other prompts."
        assert decision.sentence.endswith(warned) == (4 < num_rows < 10)


def test_a_better_model_that_does_not_reach_the_score_asked_for_is_kept_back() -> None:
    wins = shares(won=30, right=5, wrong=109)
    low = against(*wins, at_least=0.5)
    assert (low.decision, low.because) == ("keep", "too low")
    assert low.sentence == (
        "Not promoted: exact match .24 is not above gate.at_least=.50: -.26 [-.31, -.19] on 144 test rows."
    )
    near = against(*wins, at_least=0.23)
    assert near.decision == "inconclusive"
    assert near.sentence.startswith(
        "Inconclusive: not enough evidence that exact match .24 is above gate.at_least=.23: +.01 [-.0"
    )
    assert near.rows_needed
    reached = against(*wins, at_least=0.1)
    assert reached.sentence == (
        "Promoted: exact match .24 is +.21 [.15, .27] above the base and +.14 [.09, .21] above gate.at_least=.10 (the "
        "closest) on 144 test rows."
    )
    assert [each.opponent for each in reached.comparisons] == ["base", "gate.at_least"]


def test_of_a_loss_at_least_is_at_most() -> None:
    losses = [0.4 + 0.01 * (row % 7) for row in range(100)], [2.0 + 0.01 * (row % 5) for row in range(100)]
    assert against(*losses, metric="perplexity", at_least=0.5).decision == "promote"
    assert against(*losses, metric="perplexity", at_least=0.3).because == "too low"


def test_too_few_rows_are_inconclusive_and_say_what_they_show_and_how_many_would_do() -> None:
    decision = against(*shares(won=13, lost=10, right=100, wrong=21))
    assert decision.decision == "inconclusive"
    assert decision.rows_needed == only(decision).rows_needed
    assert 2_300 < (decision.rows_needed or 0) <= 2_400
    assert decision.sentence == (
        "Inconclusive: not enough evidence that exact match .78 is above the base's .76: +.02 [-.04, .08] on 144 test "
        "rows; the smallest detectable gain is .09 (80 % power); confirming +.02 needs about "
        "2,400 test rows in all (80 % power)."
    )
    assert decision.smallest_visible == pytest.approx(0.0920, abs=0.0001)
    assert only(decision).power == pytest.approx(0.35, abs=0.01)


def test_three_wins_and_no_loss_are_luck() -> None:
    assert against(*shares(won=3, right=97)).decision == "inconclusive"
    assert against(*shares(won=8, right=92)).decision == "promote"


def test_swapping_the_two_flips_the_sign() -> None:
    candidate, base = shares(won=30, lost=11, right=60)
    forth, back = only(against(candidate, base)), only(against(base, candidate))
    assert forth.difference == pytest.approx([-bound for bound in reversed(back.difference)])
    assert (forth.wins, forth.losses) == (back.losses, back.wins)


def test_the_order_of_the_rows_does_not_matter() -> None:
    generator = np.random.default_rng(1)
    candidate, base = scores(generator.random(90)), scores(generator.random(90))
    clusters = {row: position // 2 for position, row in enumerate(candidate)}
    shuffled = {row: candidate[row] for row in generator.permutation([*candidate]).tolist()}
    assert [*shuffled] != [*candidate]
    straight = decide_scores(evidence(clusters=clusters, candidate=candidate, base=base), Gate())
    assert decide_scores(evidence(clusters=clusters, candidate=shuffled, base=base), Gate()) == straight


def test_rows_repeated_within_their_cluster_add_nothing() -> None:
    candidate, base = shares(won=30, lost=15, right=55)
    once = only(against(candidate, base)).difference
    clusters = {row: position % len(candidate) for position, row in enumerate(scores(candidate * 4))}
    repeated = evidence(clusters=clusters, candidate=candidate * 4, base=base * 4)
    assert only(decide_scores(repeated, Gate())).difference == pytest.approx(once)
    naive = only(against(candidate * 4, base * 4)).difference
    assert naive[2] - naive[0] < 0.6 * (once[2] - once[0])


def test_a_gain_within_the_margin_is_not_enough() -> None:
    candidate, base = shares(won=20, lost=2, right=178)
    assert against(candidate, base).decision == "promote"
    assert against(candidate, base, margin=0.06).decision == "inconclusive"
    kept = against(candidate, base, margin=0.2)
    assert kept.decision == "keep"
    assert "above the base's .90 by more than .20: +.09" in kept.sentence


def test_more_confidence_widens_the_interval() -> None:
    candidate, base = shares(won=20, lost=10, right=70)
    usual, sure = only(against(candidate, base)).difference, only(against(candidate, base, confidence=0.999)).difference
    assert sure[0] < usual[0] < usual[1] < usual[2] < sure[2]


@pytest.mark.parametrize(("champion", "expected"), [(10, "promote"), (79, "inconclusive"), (99, "keep")])
def test_the_champion_has_to_be_beaten_too(champion: int, expected: str) -> None:
    given = evidence(candidate=right(80), base=right(0), champion=right(champion)[::-1])
    decision = decide_scores(given, Gate())
    assert decision.decision == expected
    assert only(decision).finding == "above"
    assert "the champion" in decision.sentence


def test_a_lower_perplexity_is_better() -> None:
    high = np.random.default_rng(2).random(60) + 2
    better = against(high - 0.5, high, metric="perplexity")
    assert better.decision == "promote"
    assert "better than the base" in better.sentence
    assert only(better).difference[1] == pytest.approx(0.5)
    assert only(better).mcnemar_p is None
    assert against(high + 0.5, high, metric="perplexity").decision == "keep"


@pytest.mark.parametrize(
    ("few_shot", "retrieval", "expected"),
    [
        (20, 30, "promote"),
        (95, 30, "keep"),  # a prompt that is surely better
        (80, 30, "keep"),  # a prompt of which that is not known, and which scores as high
        (30, 82, "keep"),
        (78, 30, "inconclusive"),  # of which more rows may show that it is worse
        (30, 79, "inconclusive"),
    ],
)
def test_a_model_that_is_not_surely_as_good_as_every_prompt_stays(few_shot: int, retrieval: int, expected: str) -> None:
    given = evidence(
        candidate=right(80), base=right(5), few_shot=right(few_shot)[::-1], retrieval=right(retrieval)[::-1]
    )
    decision = decide_scores(given, Gate())
    assert (decision.decision, decision.because) == (expected, "prompting is enough" if expected == "keep" else "")
    assert {each.opponent: each.threshold for each in decision.comparisons} == {
        "base": 0.0,
        "few_shot": -0.02,
        "retrieval": -0.02,
    }


def test_the_prompt_that_is_enough_is_named_and_by_how_much() -> None:
    def sentence(few_shot: list[float]) -> str:
        given = evidence(candidate=right(80), base=right(5), few_shot=few_shot, retrieval=right(30))
        return decide_scores(given, Gate()).sentence

    assert sentence(right(95)) == (
        "Not promoted: prompting the base does better: exact match .80 is worse than the "
        "few-shot prompt's .95: -.15 [-.22, -.08] on 100 test rows."
    )
    assert sentence(right(80)[::-1]) == (
        "Not promoted: prompting the base may do as well: exact match .80 may still be worse than the few-shot "
        "prompt's .80 by more than .02: +.00 [-.11, .11] on 100 test rows; confirming +.00 needs about "
        "6,300 test rows in all (80 % power)."
    )
    assert sentence(right(78)[::-1]) == (
        "Inconclusive: better than the base, but exact match .80 may still be worse than the few-shot prompt's .78 by "
        "more than .02: +.02 [-.10, .14] on 100 test rows; confirming +.02 needs about "
        "1,700 test rows in all (80 % power)."
    )
    assert sentence(right(20)).endswith(
        ", and at least as good as the few-shot prompt (+.60 [.50, .68]) and the retrieval prompt (+.50 [.40, .59], "
        "the closest), on 100 test rows."
    )


def test_what_decided_or_was_the_closest_is_one_comparison_with_its_name() -> None:
    def gain(few_shot: list[float], stopped: list[float], **gate: Any) -> str:
        given = evidence(candidate=right(80), base=right(5), few_shot=few_shot)
        guardrail = GuardrailTest(evidence("stopped", candidate=stopped, base=right(100)), 0.05)
        return decide_scores(given, Gate(metric="exact_match", **gate), [guardrail]).gain

    assert gain(right(30), right(100)) == "+.50 [.40, .59] exact match against the few-shot prompt"
    assert gain(right(30), right(100), at_least=0.5) == "+.30 [.22, .36] exact match against gate.at_least=.50"
    assert gain(right(95), right(100)) == "-.15 [-.22, -.08] exact match against the few-shot prompt"
    assert (
        gain(right(30), right(60)) == "-.40 [-.49, -.30] share of answers that end with the stop token against the base"
    )
    losses = against([0.4] * 30, [0.5] * 30, metric="perplexity")
    assert losses.gain == "less loss in nats per token: .10 [.08, .10] against the base"
    losses = against([6.0, 5.5] * 15, [0.5] * 30, metric="perplexity")
    assert losses.gain.startswith("more loss in nats per token: 5.25 [4.")
    assert losses.gain.endswith("] against the base")


def test_as_good_is_enough_beside_a_prompt_but_not_beside_the_base() -> None:
    candidate, prompt = shares(right=300, wrong=100)
    given = evidence(candidate=candidate, base=right(0, 400), few_shot=prompt)
    assert decide_scores(given, Gate()).decision == "promote"
    assert against(candidate, prompt).decision == "inconclusive"


def test_where_neither_the_base_nor_a_prompt_is_surely_beaten_the_rows_are_too_few() -> None:
    candidate, base = shares(won=13, lost=10, right=100, wrong=21)
    unsure = evidence(candidate=candidate, base=base, few_shot=base)
    assert decide_scores(unsure, Gate()).decision == "inconclusive"
    beaten = evidence(candidate=candidate, base=base, few_shot=right(144, 144))
    assert decide_scores(beaten, Gate()).because == "prompting is enough"


def test_the_rows_needed_are_those_of_the_comparison_that_takes_most_and_it_is_named() -> None:
    candidate, base = shares(won=14, lost=8, right=100, wrong=21)
    few_shot = right(113, 143)  # nearly as many, of other rows
    decision = decide_scores(evidence(candidate=candidate, base=base, few_shot=few_shot), Gate())
    beside_base, beside_prompt = decision.comparisons
    assert (decision.decision, beside_base.finding, beside_prompt.finding) == ("inconclusive", "unclear", "unclear")
    assert decision.rows_needed == beside_prompt.rows_needed
    assert (beside_prompt.rows_needed or 0) > (beside_base.rows_needed or 0)
    assert "not enough evidence that exact match .80 is above the base's" in decision.sentence
    assert decision.sentence.endswith(
        "; confirming +.01 against the few-shot prompt needs about 1,100 test rows in all (80 % power)."
    )


def test_more_rows_for_a_model_that_is_behind_are_no_promise() -> None:
    decision = against(*shares(won=10, lost=13, right=100, wrong=21))
    assert (decision.decision, decision.rows_needed) == ("inconclusive", None)
    assert decision.sentence.startswith(
        "Inconclusive: exact match .76 is not above the base's .78, and not shown to be worse: -.02 ["
    )
    assert decision.sentence.endswith(" (80 % power); the gain is negative, so more test rows would probably not help.")
    same = against(*shares(won=10, lost=10, right=103, wrong=21))
    assert same.rows_needed is None
    assert same.sentence.endswith(" (80 % power); the gain is about zero, so more test rows would probably not help.")
    close = against(*shares(won=12, lost=10, right=100, wrong=21), margin=0.05)
    assert close.sentence.endswith("; the gain is not above .05, so more test rows would probably not help.")


def test_two_scores_and_their_difference_never_contradict_each_other() -> None:
    champion, candidate = right(964, 1000), right(946, 1000)  # .96, .95 and -.02 to two digits
    sentence = decide_scores(evidence(candidate=candidate, base=right(0, 1000), champion=champion), Gate()).sentence
    assert "exact match .946 is worse than the champion's .964: -.018 [" in sentence
    generator = np.random.default_rng(4)
    for _ in range(60):
        shares_of = generator.integers(0, 1001, 2).tolist()
        said = against(right(shares_of[0], 1000), right(shares_of[1], 1000)).sentence
        if figures := re.search(r"match (\S+) is not above the base's ([^\s,:]+).*?: (\S+) \[", said):
            own, theirs, gain = map(float, figures.groups())
            assert own <= theirs and round(own - theirs, 4) == gain, said


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_of_a_loss_the_sentence_and_its_figure_have_one_direction(margin: float) -> None:
    rising = GuardrailTest(evidence("general_loss", candidate=[7.2, 7.1] * 20, base=[3.5, 3.4] * 20), margin or 0.1)
    kept = decide_scores(evidence(candidate=right(90), base=right(5)), Gate(), [rising])
    assert "loss on general texts 7.15 is worse than the base's 3.45 by more than" in kept.sentence
    figure = re.search(r": (3\.70 \[3\.\d+, 3\.\d+\]) more on 40 general texts", kept.sentence)
    assert figure, kept.sentence
    assert kept.gain == f"more loss on general texts: {figure[1]} against the base"


def test_a_loss_of_thousands_has_its_sentence() -> None:
    sentence = against(np.full(2, 1001.0), np.zeros(2), metric="perplexity").sentence
    assert "loss in nats per token 1,001 is not better than the base's .00, and not shown to be worse" in sentence
    assert sentence.endswith("however large; add test rows.")


def test_the_smallest_detectable_gain_is_that_of_the_comparison_in_the_sentence() -> None:
    candidate, base = shares(won=1, lost=0, wrong=49)
    given = evidence(candidate=candidate, base=base, champion=[0.0] * 44 + [1.0] * 6)
    decision = decide_scores(given, Gate(metric="exact_match"))
    closest, others = decision.closest, [each.smallest_visible for each in decision.comparisons]
    assert closest is not None and len({*others}) > 1
    assert decision.smallest_visible == closest.smallest_visible

    first = against(*shares(won=6, lost=5, wrong=89))
    few = decide_scores(evidence(candidate=right(20), base=right(18), champion=right(1)), Gate())
    for each in (first, few):
        assert f"smallest detectable gain is {number(each.smallest_visible or 0)} " in each.sentence
    assert few.smallest_visible != max(each.smallest_visible or 0 for each in few.comparisons)

    of_prompt = evidence(candidate=right(80), base=right(2), constant=right(30)[::-1], few_shot=right(78)[::-1])
    enough = decide_scores(of_prompt, Gate())
    assert enough.closest and (enough.closest.opponent, enough.visible_against) == ("few_shot", "base")

    cut = GuardrailTest(evidence("stopped", candidate=[0.0] * 20, base=[1.0] * 20), 0.05)  # rows of its own, and fewer
    kept = decide_scores(evidence(candidate=right(20), base=right(18)), Gate(), [cut])
    assert kept.because == "regression"
    assert kept.smallest_visible == only(kept).smallest_visible


def guarded(*guardrails: GuardrailTest, **gate: Any) -> Decision:
    return decide_scores(evidence(candidate=right(80), base=right(40)), Gate(**gate), guardrails)


def test_a_guardrail_that_is_broken_keeps_a_better_model_back() -> None:
    stopped = GuardrailTest(evidence("stopped", candidate=right(80), base=right(100)), margin=0.05)
    decision = guarded(stopped)
    assert (decision.decision, decision.because) == ("keep", "regression")
    assert decision.sentence == (
        "Not promoted: a regression: share of answers that end with the stop token .80 is worse than the base's 1.00 "
        "by more than .05: -.20 [-.28, -.12] on 100 test rows."
    )


def test_a_guardrail_that_fails_besides_is_named_as_well() -> None:
    candidate, base = shares(won=5, lost=30, right=65)
    cut = GuardrailTest(evidence("stopped", candidate=[0.0] * 30 + [1.0] * 70, base=[1.0] * 100), 0.05)
    decision = decide_scores(evidence(candidate=candidate, base=base), Gate(metric="exact_match"), [cut])
    assert decision.because == "worse"
    assert (
        "Also, " in decision.sentence
        and "is worse than the base's 1.00 by more than the allowed .05" in decision.sentence
    )


def test_a_guardrail_that_may_fail_besides_is_not_said_to_be_broken() -> None:
    unclear = GuardrailTest(evidence("stopped", candidate=right(46, 50), base=right(50, 50)), 0.05)
    decision = decide_scores(
        evidence(candidate=right(0, 50), base=right(0, 50)), Gate(metric="exact_match", margin=0.01), [unclear]
    )
    assert decision.guardrails[0].finding == "unclear"
    assert decision.sentence.endswith(
        " Also, share of answers that end with the stop token .92 may be worse than the base's 1.00 by more than "
        ".05 (not enough evidence)."
    )
    beyond = decision.guardrails[0].model_copy(update={"difference": (-0.3, -0.2, -0.1)})
    assert (decision.guardrails[0].is_beyond, beyond.is_beyond) == (False, True)
    assert sentences._also(beyond).endswith(" (not enough evidence among several guardrails).")


def test_a_prompt_that_is_clearly_better_is_named_whatever_else_keeps_the_candidate_back() -> None:
    given = evidence(candidate=right(0, 50), base=right(10, 50), few_shot=right(5, 50), retrieval=right(49, 50))
    cut = GuardrailTest(evidence("stopped", candidate=right(20, 50), base=right(50, 50)), 0.05)
    decision = decide_scores(given, Gate(metric="exact_match"), [cut])
    assert decision.because == "worse"
    assert " on 50 test rows; the retrieval prompt is better by .98. Also, share of " in decision.sentence
    assert "few-shot" not in decision.sentence


def test_a_guardrail_has_to_be_shown_to_hold() -> None:
    assert (
        guarded(GuardrailTest(evidence("stopped", candidate=right(100), base=right(100)), 0.05)).decision == "promote"
    )
    unsure = guarded(GuardrailTest(evidence("stopped", candidate=right(97), base=right(100)), 0.05))
    assert unsure.decision == "inconclusive"
    assert (
        "a regression is not ruled out: share of answers that end with the stop token .97 may be worse"
        in unsure.sentence
    )
    assert unsure.rows_needed == unsure.guardrails[0].rows_needed


def test_of_tasks_that_cannot_be_added_nobody_asks_for_more() -> None:
    unsure = guarded(GuardrailTest(evidence("general_tasks", candidate=right(90), base=right(95)), 0.02))
    assert unsure.decision == "inconclusive"
    assert unsure.sentence.endswith(" on 100 general tasks.")


def test_guardrails_can_be_of_other_rows_and_a_lower_loss_holds() -> None:
    loss = np.random.default_rng(3).random(30) + 1
    other = evidence("perplexity", candidate=scores(loss), base=scores(loss + 0.3))
    assert guarded(GuardrailTest(other, 0.05)).decision == "promote"
    worse = evidence("perplexity", candidate=scores(loss + 0.3), base=scores(loss))
    assert guarded(GuardrailTest(worse, 0.05)).because == "regression"


def test_the_power_of_a_guardrail_is_the_chance_that_it_holds_where_nothing_got_worse() -> None:
    def power(num_rows: int, num_changed: int) -> float:
        wins, losses = num_changed // 2, num_changed - num_changed // 2
        base = right(num_rows - wins, num_rows)
        candidate = [0.0] * losses + [1.0] * (num_rows - losses)
        decision = guarded(GuardrailTest(evidence("stopped", candidate=candidate, base=base), 0.05))
        (guardrail,) = decision.guardrails
        assert guardrail.effect == 0
        return guardrail.power

    assert power(40, 0) == 1, "equal rows show that nothing got worse"
    assert power(100, 10) < 0.5 < power(400, 10), "more rows show it better"
    assert decide_scores(evidence(candidate=right(80), base=right(40)), Gate()).comparisons[0].effect == 0.05


def test_a_score_out_of_the_range_of_its_metric_leaves_the_bounds_in_order() -> None:
    low, mean, high = only(against([-5.0, 1.0], [0.0, 1.0], metric="stopped")).difference
    assert low <= mean == -2.5 <= high


def test_of_many_guardrails_one_is_not_broken_by_luck() -> None:
    """Alone it is broken at the level 0.05; among ten as good as it, that happens once in two times."""
    slightly = GuardrailTest(evidence("stopped", candidate=right(88), base=right(100)), 0.05)
    fine = GuardrailTest(evidence("stopped", candidate=right(100), base=right(100)), 0.05)
    assert guarded(slightly).because == "regression"
    among = guarded(slightly, *[fine] * 9)
    assert among.decision == "inconclusive"
    assert 0.05 < among.guardrails[0].p_below < 0.5
    assert [each.finding for each in among.guardrails] == ["unclear"] + ["above"] * 9


def test_a_guardrail_is_held_against_the_champion_as_well() -> None:
    given = evidence(candidate=right(80), base=right(40), champion=right(50), few_shot=right(1))
    stopped = evidence("stopped", candidate=right(60), base=right(30), champion=right(100), few_shot=right(100))
    decision = decide_scores(given, Gate(), [GuardrailTest(stopped, 0.05)])
    assert decision.because == "regression"
    assert "the champion's 1.00" in decision.sentence
    assert [each.opponent for each in decision.guardrails] == ["base", "champion"]


ROWS = scores([1, 0])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (evidence(candidate={}, base={}), "there are no scores of the candidate"),
        (evidence(candidate=ROWS), "there are no scores of the base"),
        (evidence(candidate=ROWS, base=[1]), "base and candidate differ in 1 row, row00001 for one"),
        (evidence(candidate=[1], base=ROWS), "base and candidate differ in 1 row, row00001 for one"),
        (evidence(candidate=[1, math.nan], base=ROWS), "exact_match of candidate is nan on 1 row, row00001 for one"),
        (evidence(candidate=ROWS, base=[1.4e228, 0]), "exact_match of base is 1.4e+228 on 1 row, row00000 for one"),
        (evidence(candidate=ROWS, base=ROWS, few_shot=[math.inf, 0]), "exact_match of few_shot is inf on 1 row, row0"),
        (evidence(candidate=ROWS, base=ROWS, clusters={}), "clusters and candidate differ in 2 rows"),
    ],
)
def test_what_cannot_be_compared_is_an_invalid_verdict_with_its_reason(given: Evidence, fault: str) -> None:
    decision = decide_scores(given, Gate())
    assert decision.decision == "invalid"
    assert decision.sentence.startswith(f"Invalid: {fault}")
    good = evidence(candidate=right(80), base=right(10))
    assert decide_scores(good, Gate(), [GuardrailTest(given, 0.1)]).decision == "invalid"


LABELS = ("refund", "delivery")
LANGUAGES = ("Where is the parcel that I ordered?", "Wo ist das Paket, das ich bestellt habe?")


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    """Forty test rows: half of them German, half about refunds, the third quarter twice as long."""
    (tmp_path / "splits").mkdir()
    messages = [
        [
            {"role": "user", "content": LANGUAGES[row % 2] * (1 + (20 <= row < 30))},
            {"role": "assistant", "content": LABELS[row >= 20]},
        ]
        for row in range(40)
    ]
    columns = {"row_id": [f"row{row}" for row in range(40)], "source": ["faq"] * 40, "messages": messages}
    pq.write_table(pa.table(columns), tmp_path / "splits" / "test.parquet")
    write_train(tmp_path / "splits", ["an answer of its own"])
    return Splits(
        stage="split",
        folder=tmp_path / "splits",
        digest="s",
        num_train=1,
        num_validation=1,
        num_test=40,
        num_clusters=40,
        largest_similarity=0.1,
        random_leak_share=0.0,
    )


def answers(tmp_path: Path, name: str, scores: list[float], nll: float = 1.0, **changed: Any) -> Answers:
    folder = tmp_path / name
    folder.mkdir()
    columns = {
        "row_id": [f"row{row}" for row in range(40)],
        "cluster": [*range(40)],
        "reference": [LABELS[row >= 20] for row in range(40)],
        "answer": [f"answer {row}" for row in range(40)],
        "stopped": [True] * 40,
        "num_tokens": [3] * 40,
        "exact_match": scores,
        "nll": [nll * 4] * 40,
        "num_reference_tokens": [4] * 40,
    }
    pq.write_table(pa.table({**columns, **changed}), folder / "answers.parquet")
    return Answers(
        stage="evaluate", folder=folder, digest=name, contender=name, num_rows=40, scores={}, metric="exact_match"
    )


def write_train(folder: Path, said: list[str]) -> None:
    messages = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}] for answer in said]
    schema = pa.schema([("messages", MESSAGES), ("chat", pa.string()), ("use_as", pa.string())])
    pq.write_table(pa.table([messages, *2 * [[None] * len(said)]], schema=schema), folder / "train.parquet")


def verdict_of(splits: Splits, *given: Answers, **gate: Any) -> Verdict:
    return decide.fn(answers=given, splits=splits, gate=Gate(**gate))


@pytest.mark.parametrize(("num_right", "expected"), [(12, "keep"), (22, "inconclusive"), (36, "promote")])
def test_labels_learnt_by_name_alone_are_not_enough(
    num_right: int, expected: str, splits: Splits, tmp_path: Path
) -> None:
    write_train(splits.folder, [LABELS[0]] * 60 + [LABELS[1]] * 40)
    given = answers(tmp_path, "candidate", right(num_right, 40)), answers(tmp_path, "base", right(0, 40))
    verdict = verdict_of(splits, *given)
    assert verdict.decision == expected
    assert verdict.differences["constant"][1] == pytest.approx((num_right - 20) / 40)
    if expected == "keep":
        assert "is worse than the majority-class baseline's .50" in verdict.sentence


def test_a_candidate_that_always_gives_one_label_is_not_promoted_where_another_is_the_most_frequent_in_training(
    splits: Splits, tmp_path: Path
) -> None:
    write_train(splits.folder, [LABELS[0]] * 51 + [LABELS[1]] * 49)
    base = answers(tmp_path, "base", right(0, 40))

    def verdict(name: str, num_right: int, said: list[str]) -> Verdict:
        """The verdict on a candidate with these answers; 30 of the 40 references are the rarer label."""
        found = answers(
            tmp_path, name, right(num_right, 40), answer=said, reference=[LABELS[1]] * 30 + [LABELS[0]] * 10
        )
        return verdict_of(splits, base, found.model_copy(update={"contender": "candidate"}))

    constant = verdict("constant", 30, [LABELS[1]] * 40)
    assert constant.decision != "promote"
    assert constant.differences["constant"][1] == 0
    assert "majority-class baseline's .75" in constant.sentence
    mixed = verdict("mixed", 40, [LABELS[1]] * 30 + [LABELS[0]] * 10)
    assert mixed.differences["constant"][1] == pytest.approx(0.25)
    seldom = verdict("seldom", 40, [LABELS[0]] * 20 + [f"answer {row}" for row in range(20)])
    assert seldom.differences["constant"][1] == pytest.approx(0.75), "an answer to half of the rows is none of its own"


def test_answers_learnt_by_their_form_alone_are_not_enough_where_they_are_no_labels(
    splits: Splits, tmp_path: Path
) -> None:
    """One of the five answers is similar to all others, and scores as high as the candidate."""
    said = ["card lost", "card stolen", "card broken", "card", "card expired"]
    write_train(splits.folder, said)
    references, graded = [said[row % 5] for row in range(40)], [0.6 + row % 3 / 10 for row in range(40)]
    columns: dict[str, Any] = {"reference": references, "token_f1": graded}
    candidate = answers(tmp_path, "candidate", right(0, 40), **columns)
    nothing: dict[str, Any] = columns | {"token_f1": [0.0] * 40}
    base = answers(tmp_path, "base", right(0, 40), **nothing)
    verdict = verdict_of(splits, candidate, base, metric="token_f1", guardrails=())
    assert verdict.decision == "inconclusive"
    assert (
        "token F1 .698 is not above the best constant baseline's .733, and not shown to be worse: -.036 ["
        in verdict.sentence
    )


def test_the_constant_answer_is_the_best_of_hundreds(splits: Splits, tmp_path: Path) -> None:
    """Each answer has two of twelve words in common with some others; one has five of the most frequent."""
    drawn = random.Random(3)
    words = [f"word{number}" for number in range(12)]
    said = [f"{' '.join(drawn.choices(words, weights=range(1, 13), k=4))} {row}" for row in range(299)]
    said.insert(150, "word11 word10 word9 word8 300")
    write_train(splits.folder, said)
    columns: dict[str, Any] = {"reference": said[:40], "token_f1": [0.5] * 40}
    found = best_constant(
        pq.read_table(answers(tmp_path, "candidate", right(0, 40), **columns).path("answers.parquet")),
        splits,
        "token_f1",
    )
    score = row_score("token_f1")
    totals = {answer: sum(score(answer, other) for other in said) for answer in said}
    assert totals[found.text] == pytest.approx(max(totals.values()))
    assert [*found.scores.values()] == [score(found.text, reference) for reference in said[:40]]


def test_of_long_texts_a_constant_answer_must_only_not_be_clearly_better(splits: Splits, tmp_path: Path) -> None:
    write_train(splits.folder, [LABELS[0]] * 60 + [LABELS[1]] * 40)
    base = answers(tmp_path, "base", right(0, 40)).model_copy(update={"is_prose": True})

    def verdict(name: str, num_right: int) -> Verdict:
        found = answers(tmp_path, name, right(num_right, 40))
        return verdict_of(splits, base, found.model_copy(update={"contender": "candidate", "is_prose": True}))

    poor = verdict("poor", 18)
    assert (poor.decision, [*poor.differences]) == ("promote", ["base"])
    (warning,) = poor.warnings
    assert warning.startswith(
        "the candidate does not beat the majority-class baseline: exact match 0.45, baseline 0.50; "
    )
    assert verdict("good", 25).warnings == ()
    worse = verdict("worse", 8)
    assert (worse.in_words, [*worse.differences]) == ("keep: not better", ["base", "constant"])
    said = "Not promoted: exact match .20 is worse than the majority-class baseline's .50: -.30 ["
    assert worse.sentence.startswith(said)


def test_a_model_that_never_calls_a_tool_is_not_promoted_for_the_rows_without_a_call(
    splits: Splits, tmp_path: Path
) -> None:
    said = [f"This is the answer to question {row}, in words of its own." for row in range(40)]
    call = '<tool_call>{"name": "search", "arguments": {"query": "hat"}}</tool_call>'
    references = said[:24] + [call] * 16
    write_train(splits.folder, [*said, *[call] * 30])
    never: dict[str, Any] = {"reference": references, "tool_call": right(24, 40)}
    silent: dict[str, Any] = never | {"tool_call": [0.0] * 40}
    given = answers(tmp_path, "candidate", right(0, 40), **never), answers(tmp_path, "base", right(0, 40), **silent)
    prose = [each.model_copy(update={"is_prose": True, "metric": "tool_call"}) for each in given]
    verdict = verdict_of(splits, *prose, guardrails=())
    assert verdict.decision == "inconclusive"
    assert verdict.differences["constant"][1] == 0
    assert verdict.sentence.startswith("Inconclusive: correct tool calls .60 is not above the best constant baseline's")
    kept = json.loads(verdict.path("verdict.json").read_text())["slices"]
    parts = {part["name"]: part["candidate"] for part in kept if part["by"] == "reference"}
    assert parts == {"without a call": 1.0, "with a call": 0.0}
    few = (
        "only 16 of 40 references have a tool call, too few for correct tool calls to say how well tools are called; "
        "add test rows with calls"
    )
    assert few in verdict.warnings
    table = pq.read_table(given[0].path("answers.parquet"))
    assert [*few_calls(table, "needless_call")] == []
    assert [*few_calls(table.slice(24), "tool_call")] == [], "a small test split is warned of by itself"


def test_a_winner_that_is_more_wrong_than_right_is_warned_of_unless_a_score_was_asked_for(
    splits: Splits, tmp_path: Path
) -> None:
    given = answers(tmp_path, "candidate", right(18, 40)), answers(tmp_path, "base", right(0, 40))
    poor = verdict_of(splits, *given)
    assert poor.sentence.endswith(" on 40 test rows; it is wrong more often than right.")
    assert [warning.partition("; ")[0] for warning in poor.warnings] == [
        "the candidate is wrong more often than right, and gate.at_least is not set"
    ]
    asked = verdict_of(splits, *given, at_least=0.2)
    assert (asked.warnings, "wrong" in asked.sentence) == ((), False)
    low = verdict_of(splits, *given, at_least=0.8).sentence
    assert low.startswith("Not promoted: exact match .45 is not above gate.at_")
    better = answers(tmp_path, "better", right(25, 40)).model_copy(update={"contender": "candidate"})
    assert verdict_of(splits, better, given[1]).warnings == ()
    why = "4 of 15 references do not satisfy evaluation.json_schema"
    unmeasured = better.model_copy(update={"digest": "other", "not_measured": {"schema_valid": why}})
    said = f"schema_valid is not measured: {why}; correct these references, or the schema"
    assert verdict_of(splits, unmeasured, given[1]).warnings == (said,)
    faulty = better.model_copy(update={"digest": "another", "faults": ("1 of 40 references are not JSON",)})
    (warning,) = verdict_of(splits, faulty, given[1]).warnings
    assert warning == "1 of 40 references are not JSON, so no answer is right there; correct these references"
    untrained = "2 of 40 references have one of 2 labels that no training row has, such as 'd'"
    rare = better.model_copy(update={"digest": "a third", "untrained": untrained})
    (warning,) = verdict_of(splits, rare, given[1]).warnings
    assert warning == f"{untrained}, so the candidate cannot have learned it; add training rows with it"


def test_the_verdict_has_all_that_led_to_it(splits: Splits, tmp_path: Path) -> None:
    given = answers(tmp_path, "candidate", right(38, 40), nll=0.5), answers(tmp_path, "base", right(0, 40), nll=2.0)
    verdict = verdict_of(splits, *given)
    assert verdict.in_words == "promote"
    assert [*verdict.differences] == ["base", "constant"]
    assert verdict.guardrails == {"stopped/base": (0, 0, 0)}
    low, mean, high = verdict.intervals["base"]
    assert (low, mean) == (0, 0)
    assert 0 < high < 0.15  # no success in 40 rows is no proof that there is none: the rule of three says 3 / 40
    written = json.loads(verdict.path("verdict.json").read_text())
    assert written["sentence"] == verdict.sentence
    assert written["comparisons"][0]["mcnemar_p"] < 1e-9
    assert written["own"]["candidate"]["perplexity"] == pytest.approx([np.exp(0.5)] * 3)
    assert verdict_of(splits, *reversed(given)).sentence == verdict.sentence
    assert verdict_of(splits, *given, metric="auto").decision == "promote"


def test_what_a_person_has_to_approve_has_passed_and_is_not_promoted(splits: Splits, tmp_path: Path) -> None:
    given = answers(tmp_path, "candidate", right(38, 40)), answers(tmp_path, "base", right(0, 40))
    verdict = verdict_of(splits, *given, approval=True)
    assert verdict.decision == "promote"
    assert verdict.sentence.startswith("Waiting for approval: exact match .95 is +.95 [")


@pytest.mark.parametrize(
    ("num_same", "num_of_label", "is_warned"), [(40, 20, True), (36, 20, True), (35, 20, False), (40, 37, False)]
)
def test_a_contender_that_says_the_same_to_nearly_all_rows_is_warned_of(
    num_same: int, num_of_label: int, is_warned: bool, splits: Splits, tmp_path: Path
) -> None:
    said = ["refund"] * num_same + [f"answer {row}" for row in range(40 - num_same)]
    references = [LABELS[row >= num_of_label] for row in range(40)]
    columns: dict[str, Any] = {"answer": said, "reference": references}
    candidate, base = (answers(tmp_path, name, right(20, 40), **columns) for name in ("candidate", "base"))
    found = [each.partition("; ")[0] for each in verdict_of(splits, candidate, base).warnings if "same" in each]
    same = f"gives the same answer to {num_same} of 40 rows, “refund”, while no reference is that of more than"
    little = ", so a gain over the base says little"
    said = [f"the candidate {same} {num_of_label} rows", f"the base {same} {num_of_label} rows{little}"]
    assert found == (said if is_warned else [])


def test_answers_cut_off_where_their_references_go_on_are_a_warning(splits: Splits, tmp_path: Path) -> None:
    base = answers(tmp_path, "base", [0.0] * 40)

    def warned(name: str, num_cut: int, num_tokens: int) -> tuple[str, ...]:
        stopped, lengths = [row >= num_cut for row in range(40)], [num_tokens] * 40
        candidate = answers(tmp_path, name, right(20, 40), stopped=stopped, num_tokens=lengths)
        return verdict_of(splits, base, candidate.model_copy(update={"contender": "candidate"})).warnings

    (warning,) = warned("short", 30, 2)
    said = "30 of 40 answers ran to the limit of 2 tokens, and 30 of these have longer references; raise evaluation"
    assert warning.startswith(said)
    assert warned("few", 2, 2) == ()
    assert warned("long", 30, 4) == ()  # as long as the references: it does not learn to stop, which stopped tells


@pytest.mark.parametrize(("room", "is_warned"), [(2, True), (3, False), (None, False)])
def test_references_longer_than_an_answer_may_be_are_a_warning(
    splits: Splits, tmp_path: Path, room: int | None, is_warned: bool
) -> None:
    base, candidate = answers(tmp_path, "base", right(0, 40)), answers(tmp_path, "candidate", right(20, 40))
    lengths = pq.read_table(base.path("answers.parquet")).column("num_reference_tokens").to_pylist()
    assert {*lengths} == {4}  # the stop token is one of them
    limited = [each.model_copy(update={"max_new_tokens": room}) for each in (base, candidate)]
    said = "40 of 40 references are longer than evaluation.max_new_tokens=2, so no answer equals them; raise evaluation"
    assert [each.startswith(said) for each in verdict_of(splits, *limited).warnings] == [True] * is_warned


def test_an_interval_of_graded_scores_counts_with_rows_at_the_far_end_of_the_scale(
    splits: Splits, tmp_path: Path
) -> None:
    """Forty scores from .2 to .28: the mean could be lower by 3 / 40 of .24, and higher by 3 / 40 of .76."""
    graded = [0.2 + row % 5 / 50 for row in range(40)]
    low, mean, high = verdict_of(
        splits, answers(tmp_path, "candidate", graded), answers(tmp_path, "base", right(0, 40))
    ).intervals["candidate"]
    assert mean - low == pytest.approx(3 / 40 * mean, abs=0.01)
    assert high - mean == pytest.approx(3 / 40 * (1 - mean), abs=0.01)


def test_parts_of_the_rows_are_shown_and_decide_nothing(splits: Splits, tmp_path: Path) -> None:
    given = answers(tmp_path, "candidate", right(20, 40)), answers(tmp_path, "base", [0.0] * 40)
    verdict = verdict_of(splits, *given)
    assert verdict.decision == "promote"
    kept = json.loads(verdict.path("verdict.json").read_text())
    slices = kept["slices"]
    assert list(kept["languages"].values()) == [20, 20]
    shown = {(part["by"], part["name"]): part for part in slices}
    assert {by for by, _ in shown} == {"language", "length", "label"}  # one source is no slice
    assert [part["num_rows"] for part in slices if part["by"] == "language"] == [20, 20]
    assert shown["label", "refund"]["difference"][0] > 0.5
    low, mean, high = shown["label", "delivery"]["difference"]
    assert low < mean == 0 < high, "equal rows of so few are no proof that nothing differs"
    assert sum(part["num_rows"] for part in slices if part["by"] == "length") == 40
    assert all(part["is_small"] for part in slices)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"vi": 20, "en": 17, "unknown": 3}, {"vi": 20, "en": 17, "unknown": 3}),
        ({"vi": 20, "en": 14, "unknown": 3, "th": 2, "de": 1}, {"vi": 20, "en": 14, "all others": 6}),
        ({"vi": 39, "en": 1}, {"vi": 39, "en": 1}),
        ({str(number): 4 for number in range(10)}, {}),
        ({str(number): 1 for number in range(35)} | {"vi": 5}, {"vi": 5, "all others": 35}),
    ],
)
def test_the_slices_of_a_kind_are_all_rows(sizes: dict[str, int], said: dict[str, int]) -> None:
    names = [name for name, size in sizes.items() for _ in range(size)]
    scores = {row: float(row % 2) for row in range(40)}
    of_each = {who: {str(row): score for row, score in scores.items()} for who in ("candidate", "base")}
    evidence = Evidence("exact_match", of_each, {str(row): row for row in range(40)})
    found = slices(evidence, {"language": {str(row): name for row, name in enumerate(names)}}, 0.95)
    assert {each.name: each.num_rows for each in found} == said


def test_slices_go_by_the_own_text_of_a_prompt() -> None:
    """An English instruction of 90 characters in the same paragraph says nothing of a question in German."""
    order = "Read the message of the customer and answer with the name of the team that should get it: "
    asked = {
        "en": ("Where is parcel {} that I ordered last week?", "My parcel number {} has not come yet, why is that?"),
        "de": ("Wo bleibt das Paket {}, das ich bestellt habe?", "Die Sendung {} ist noch nicht angekommen, warum?"),
    }
    texts = [(code, text.format(n)) for n in range(10) for code, those in asked.items() for text in those]
    schema = pa.schema({"row_id": pa.string(), "source": pa.string(), "messages": MESSAGES})
    chats = [(("user", order + text), ("assistant", "team")) for _, text in texts]
    said = [[{"role": role, "content": text} for role, text in turns] for turns in chats]
    rows = [{"row_id": str(at), "source": "a", "messages": turns} for at, turns in enumerate(said)]
    found = kinds(pa.Table.from_pylist(rows, schema), {row["row_id"]: "team" for row in rows})
    assert [*found["language"].values()] == [code for code, _ in texts]
    turns = [{"role": "user", "content": f"{order}12"}, {"role": "assistant", "content": "team"}]
    short = [*rows, {"row_id": "short", "source": "a", "messages": turns}]
    found = kinds(pa.Table.from_pylist(short, schema), {row["row_id"]: "team" for row in short})
    assert found["language"]["short"] == "en", "by the instruction, where nothing else tells it"
    system = {"role": "system", "content": "Beantworte jede Anfrage mit dem Namen der zuständigen Abteilung im Haus."}
    asked_in_german = [
        row | {"messages": [system, *row["messages"]]}
        for row in [*rows, {"row_id": "x", "source": "a", "messages": turns}]
    ]
    asked_in_german[-1]["messages"][1] = {"role": "user", "content": "12"}
    table = pa.Table.from_pylist(asked_in_german, schema)
    found = kinds(table, dict.fromkeys(table["row_id"].to_pylist(), "team"))
    assert found["language"]["x"] == "unknown", "a system message is not the user's"
    longest = max(len(text) for _, text in texts)
    assert all(int(re.findall(r"\d+", name)[0]) <= longest for name in found["length"].values())


def test_every_contender_is_part_of_the_decision(splits: Splits, tmp_path: Path) -> None:
    scored = {"candidate": right(36, 40), "base": right(0, 40), "champion": right(9, 40), "retrieval": right(38, 40)}
    given = {name: answers(tmp_path, name, of_rows) for name, of_rows in scored.items()}
    assert verdict_of(splits, given["base"], given["candidate"]).in_words == "promote"
    assert verdict_of(splits, given["base"], given["champion"], given["candidate"]).in_words == "promote"
    verdict = verdict_of(splits, *given.values())
    assert verdict.in_words == "keep: prompting is enough"
    assert verdict.intervals.keys() == given.keys()


def ended(answers: Answers, num_rows: int) -> Answers:
    """The same contender, ended after its first rows."""
    table = pq.read_table(answers.path("answers.parquet"))
    pq.write_table(table.slice(0, num_rows), answers.path("answers.parquet"))
    changed = {"num_rows": num_rows, "num_unanswered": len(table) - num_rows, "alpha_share": 0.1}
    return answers.model_copy(update=changed)


def test_a_prompt_that_was_ended_is_compared_on_its_rows_and_each_sentence_says_so(
    splits: Splits, tmp_path: Path
) -> None:
    base, own = answers(tmp_path, "base", right(2, 40)), answers(tmp_path, "candidate", right(36, 40))
    behind = ended(answers(tmp_path, "few_shot", right(0, 40)), 20)
    ahead = ended(answers(tmp_path, "retrieval", right(40, 40)), 30)
    promoted = verdict_of(splits, base, behind, own, guardrails=())
    assert promoted.decision == "promote"
    assert re.search(
        r"the few-shot prompt \(\+1.00 \[.*\] on 20 of 40 test rows\), on 40 test rows.", promoted.sentence
    )
    own = answers(tmp_path, "worse", right(12, 40)).model_copy(update={"contender": "candidate"})
    kept = verdict_of(splits, base, ahead, own, guardrails=())
    assert kept.because == "prompting is enough"
    assert re.search(r"the retrieval prompt's 1.00: -.60 \[.*\] on 30 of 40 test rows.", kept.sentence)
    assert kept.gain.endswith("against the retrieval prompt on 30 of 40 test rows")
    (compared,) = [each for each in VerdictDetails.load(kept).comparisons if each.opponent == "retrieval"]
    assert compared.candidate_mean == 12 / 30
    assert compared.confidence == 1 - 0.1 * (1 - Gate().confidence)
    missing = answers(tmp_path, "champion", right(2, 40))
    pq.write_table(pq.read_table(missing.path("answers.parquet")).slice(0, 30), missing.path("answers.parquet"))
    assert verdict_of(splits, base, missing, own).decision == "invalid"


def test_scores_that_are_no_numbers_are_a_verdict_and_no_crash(splits: Splits, tmp_path: Path) -> None:
    given = answers(tmp_path, "candidate", [math.nan] * 40), answers(tmp_path, "base", right(0, 40))
    verdict = verdict_of(splits, *given)
    assert verdict.in_words == "invalid"
    assert verdict.intervals.keys() == {"base"}
    assert verdict_of(splits, given[1]).sentence.startswith("Invalid: there are no scores of the candidate")


@pytest.mark.parametrize(
    "gate", [{"metric": "json_valid"}, {"guardrails": (config.Guardrail(metric="json_valid", margin=0.1),)}]
)
def test_a_metric_that_was_not_measured_cannot_decide(splits: Splits, tmp_path: Path, gate: dict[str, Any]) -> None:
    given = answers(tmp_path, "candidate", right(38, 40)).model_copy(update={"scores": {"macro_f1": 0.9}})
    with pytest.raises(
        ConfigError, match="gate: json_valid was not measured on these rows, only exact_match, macro_f1, pe"
    ):
        verdict_of(splits, given, given, **gate)


def test_a_guardrail_is_measured_or_refused_before_anything_runs() -> None:
    needed: dict[str, Any] = {"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "org/name"}}
    of_bleu = needed | {"gate": {"guardrails": [{"metric": "bleu", "margin": 0.1}]}}
    assert config.Settings.model_validate(of_bleu).measured().metrics == ("auto", "bleu")
    assert config.Settings.model_validate(needed).measured().metrics == ("auto",)
    with pytest.raises(ValueError, match=r"gate\.guardrails: bleu is not in evaluation.metrics, which has exact_match"):
        config.Settings.model_validate(of_bleu | {"evaluation": {"metrics": ["exact_match"]}})
    with pytest.raises(ValueError, match="macro_f1 is one score of all rows"):
        config.Guardrail(metric="macro_f1")
