"""A prompt that is ended is ended by a test that the decision makes as well, whatever the order of the rows."""

import math
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeSplits
from hypothesis import given
from hypothesis import strategies as st
from test_evaluate import ORDERS

from tunewright.artifacts import Answers, Base, Contender, EndingRule, Tokens
from tunewright.config import Evaluation, Gate, Model, Settings
from tunewright.tasks.decide.decision import Evidence, decide_scores
from tunewright.tasks.evaluate import answers as parts
from tunewright.tasks.evaluate import blocks as answering
from tunewright.tasks.evaluate import evaluate, interim
from tunewright.tasks.evaluate.answers import AnswerPart
from tunewright.tasks.evaluate.interim import FEWEST, alpha_shares, analysed, blocks, is_settled
from tunewright.tasks.render import render

CLUSTERS = st.lists(st.integers(0, 90), min_size=1, max_size=250)


@given(CLUSTERS, st.randoms(use_true_random=False))
def test_blocks_have_each_row_once_and_whole_clusters_whatever_the_order_of_the_rows(
    clusters: list[int], random: Random
) -> None:
    rows = [f"row {at}" for at in range(len(clusters))]
    found = blocks(rows, clusters)
    assert sorted(np.concatenate(found).tolist()) == [*range(len(rows))]
    of = [{clusters[at] for at in block} for block in found]
    assert sum(map(len, of)) == len({*clusters})
    assert all(len(block) for block in found)
    order = random.sample(range(len(rows)), len(rows))
    again = blocks([rows[at] for at in order], [clusters[at] + 1000 for at in order])
    assert [{order[at] for at in block} for block in again] == [{*block.tolist()} for block in found]


@pytest.mark.parametrize(
    ("num_rows", "expected"),
    [(41, []), (42, [32]), (100, [50, 75]), (300, [38, 75, 150, 225]), (1000, [32, 63, 125, 250, 500, 750])],
)
def test_a_large_test_set_is_analysed_early_and_a_small_one_once(num_rows: int, expected: list[int]) -> None:
    assert analysed(num_rows) == expected
    shares = alpha_shares(len(expected) + 1)
    assert sum(shares) == pytest.approx(1)
    assert shares[-1] >= 1 - interim.SPENT
    assert all(number >= FEWEST for number in expected)


def table(scores: np.ndarray, metric: str = "exact_match") -> pa.Table:
    columns = {"row_id": [f"{at:03}" for at in range(len(scores))], "cluster": [*range(len(scores))], metric: scores}
    return pa.table(columns)


def rule_of(**changed: object) -> EndingRule:
    whole = {"metric": "exact_match", "tolerance": 0.02, "confidence": 0.975, **changed}
    return EndingRule.model_validate({"candidate": Answers(contender="candidate", num_rows=1, scores={}), **whole})


@pytest.mark.parametrize("ahead", [-0.3, -0.1, 0.0, 0.1, 0.3])
def test_settled_is_what_the_decision_concludes_of_the_same_rows(ahead: float) -> None:
    generator, rule, seen = np.random.default_rng(3), rule_of(), set[bool]()
    for number in (60, 120):
        theirs = (generator.random(number) < 0.5).astype(float)
        own = (generator.random(200) < 0.5 + ahead).astype(float)
        is_ended = is_settled(table(theirs), table(own), rule, 0.1)
        rows = {
            name: {f"{at:03}": score for at, score in enumerate(each)}
            for name, each in (("candidate", own), ("base", np.zeros(200)), ("few_shot", theirs))
        }
        evidence = Evidence(
            "exact_match", rows, {row: at for at, row in enumerate(rows["candidate"])}, {"few_shot": 0.1}
        )
        decision = decide_scores(evidence, Gate(confidence=rule.confidence))
        (compared,) = [each for each in decision.comparisons if each.opponent == "few_shot"]
        assert (compared.num_rows, compared.num_unanswered) == (number, 200 - number)
        assert compared.in_part == f"{number} of 200"
        assert compared.confidence == 1 - 0.1 * (1 - rule.confidence)
        _, mean, high = compared.difference
        assert is_ended == ((compared.finding == "above" and mean >= 0) or high < 0)
        seen.add(is_ended)
    assert seen != {abs(ahead) < 0.2}


def test_scores_without_a_worst_value_or_that_are_no_numbers_end_nothing() -> None:
    behind, ahead = np.zeros(100), np.ones(100)
    assert is_settled(table(behind), table(ahead), rule_of(), 0.1)
    unbounded = (table(each, "length_ratio") for each in (behind, ahead))
    assert not is_settled(next(unbounded), next(unbounded), rule_of(metric="length_ratio"), 0.1)
    assert not is_settled(table(behind), table(ahead), rule_of(metric="chrf"), 0.1)
    assert not is_settled(table(behind), table(np.where(np.arange(100), 1.0, math.nan)), rule_of(), 0.1)


@pytest.fixture
def tokens(make_splits: MakeSplits, tiny_base: Base) -> Tokens:
    splits = make_splits(ORDERS[:2], ORDERS[2:4], ORDERS[4:])
    return render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each answering, of a test set of 14 rows that is analysed after 4, 7 and 11."""
    numbers: list[int] = []
    original = answering.answer_part.build

    def build(folder: Path, contender: Contender, *rest: Any) -> AnswerPart:
        assert contender.prompts
        numbers.append(len(pq.read_table(contender.prompts)))
        return original(folder, contender, *rest)

    monkeypatch.setattr(answering.answer_part, "build", build)
    monkeypatch.setattr(interim, "FEWEST", 4)
    return numbers


def test_two_prompts_of_one_artifact_are_answered_each(tokens: Tokens, tiny_base: Base, tmp_path: Path) -> None:
    rows = pq.read_table(tokens.path("test.parquet"))
    turned = tmp_path / "retrieval.parquet"  # the same rows, each asked as another one
    columns = {name: rows[name].to_pylist() for name in rows.column_names}
    columns |= {name: columns[name][::-1] for name in ("input_ids", "labels", "prompt_length", "reference")}
    pq.write_table(pa.table(columns, rows.schema), turned)

    def asked_so(name: str, prompts: Path) -> list[str]:
        contender = Contender(name=name, base=tiny_base, prompts=prompts, prompts_digest="one")
        answers = evaluate.fn(
            contender=contender, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=4)
        )
        return pq.read_table(answers.path("answers.parquet"))["prompt"].to_pylist()

    few_shot = asked_so("few_shot", tokens.path("test.parquet"))
    assert sorted(asked_so("retrieval", turned)) == sorted(few_shot)
    assert asked_so("retrieval", turned) == few_shot[::-1]


def test_equal_rows_are_answered_once_whatever_else_changed(
    tokens: Tokens, tiny_base: Base, make_splits: MakeSplits, asked: list[int]
) -> None:
    def clusters(tokens: Tokens, **of: object) -> list[int]:
        contender = Contender.model_validate({"name": "base", "base": tiny_base, **of})
        answers = evaluate.fn(
            contender=contender, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=4)
        )
        return pq.read_table(answers.path("answers.parquet"))["cluster"].to_pylist()

    before = clusters(tokens)
    assert asked == [14]
    splits = make_splits([("What is new?", "A new training row"), *ORDERS[:2]], ORDERS[2:4], ORDERS[4:])
    grown = render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))
    test = pq.read_table(grown.path("test.parquet"))
    assert grown.digest != tokens.digest
    assert clusters(grown) == test["cluster"].to_pylist() == [number + 1 for number in before]
    assert asked == [14], "there are more training rows"
    prompts = {"name": "few_shot", "prompts": tokens.path("test.parquet")}
    clusters(tokens, prompts_digest="few_shot, retrieval", **prompts)
    asked.clear()
    clusters(tokens, prompts_digest="few_shot", **prompts)
    assert asked == [], "there are fewer contenders"


def test_a_champion_has_given_its_answers_as_the_candidate(
    tokens: Tokens, tiny_base: Base, tuned: Path, asked: list[int]
) -> None:
    def answers(**of: object) -> Answers:
        weights = {"base": tiny_base, "model": tuned / "model", "model_digest": "tuned"}
        contender = Contender.model_validate(weights | of)
        return evaluate.fn(
            contender=contender, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=4)
        )

    candidate, champion = answers(name="candidate"), answers(name="champion", version="3")
    assert asked == [14]
    assert champion.scores == candidate.scores
    assert (champion.contender, champion.digest == candidate.digest) == ("champion", True)
    answers(name="champion", version="4", model_digest="other")
    assert asked == [14, 14]


def test_a_prompt_that_is_ended_and_completed_answers_only_the_rest(
    tokens: Tokens, tiny_base: Base, asked: list[int]
) -> None:
    def answers(name: str, rule: EndingRule | None = None, **of: object) -> Answers:
        contender = Contender(name=name, base=tiny_base).model_copy(update=of)
        return evaluate.fn(
            contender=contender, tokens=tokens, evaluation=Evaluation(precision="float32", max_new_tokens=4), rule=rule
        )

    def rows(answers: Answers) -> list[dict[str, object]]:
        return pq.read_table(answers.path("answers.parquet")).to_pylist()

    base = answers("base")
    right = pq.read_table(base.path("answers.parquet"))
    right = right.set_column(right.column_names.index("exact_match"), "exact_match", pa.array([1.0] * 14))
    pq.write_table(right, base.path("answers.parquet"))
    prompts = {"prompts": tokens.path("test.parquet"), "prompts_digest": "1"}
    asked.clear()
    rule = EndingRule(candidate=base, metric="exact_match", tolerance=0.02, confidence=0.8)
    ended = answers("few_shot", rule, **prompts)
    assert (ended.num_rows, ended.num_unanswered, ended.in_part) == (7, 7, "7 of 14")
    assert ended.alpha_share == pytest.approx(interim.SPENT / 3)
    assert asked == [4, 3]
    complete = answers("few_shot", **prompts)
    assert (complete.num_rows, complete.in_part, complete.alpha_share) == (14, "", 1.0)
    assert asked == [4, 3, 4, 3]
    test = pq.read_table(tokens.path("test.parquet"))["row_id"].to_pylist()
    assert [row["row_id"] for row in rows(complete)] == test
    whole = {row["row_id"]: row for row in rows(complete)}
    assert rows(ended) == [whole[row] for row in test if row in {each["row_id"] for each in rows(ended)}]
    assert [row["answer"] for row in rows(complete)] == [row["answer"] for row in rows(base)]
    undecided = answers("few_shot", rule.model_copy(update={"confidence": 0.9999}), **prompts)
    assert (undecided.in_part, undecided.alpha_share) == ("", 1 - interim.SPENT)
    assert len({each.digest for each in (ended, complete, undecided)}) == 3
    assert asked == [4, 3, 4, 3]


def test_the_model_of_a_prompt_is_loaded_once_for_all_blocks_and_not_where_all_answers_are_found(
    tokens: Tokens, tiny_base: Base, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    load, hold = parts.load_model, parts.on_devices
    monkeypatch.setattr(
        parts, "load_model", lambda *given, **options: loaded.append("model") or load(*given, **options)
    )
    monkeypatch.setattr(parts, "on_devices", lambda _: loaded.append("device") or hold())
    prompted = Contender(name="few_shot", base=tiny_base, prompts=tokens.path("test.parquet"), prompts_digest="1")
    for metrics in (("exact_match",), ("exact_match", "chrf")):
        evaluate.fn(
            contender=prompted,
            tokens=tokens,
            evaluation=Evaluation(precision="float32", max_new_tokens=4, metrics=metrics),
        )
    assert asked == [4, 3, 4, 3]
    assert loaded == ["device", "model"]


def test_all_rows_are_asked_for_with_prompts_only() -> None:
    with pytest.raises(ValueError, match="complete=true has no effect; accepted with contenders"):
        Evaluation(contenders=(), complete=True)
    settings = Settings.model_construct(evaluation=Evaluation(complete=True), gate=Gate())
    assert not settings.measured().complete
