"""A metric says what a person would say who holds the answer beside its reference."""

import math

import pytest

from tasks import metrics
from tasks.config import Metric

NFC, NFD = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("yes", "yes", 1.0),
        (" yes\n", "yes", 1.0),
        (NFD, NFC, 1.0),
        ("Yes", "yes", 0.0),
        ("yes.", "yes", 0.0),
        ("", "yes", 0.0),
        ("", "", 1.0),
        ("返品したい", "返品したい", 1.0),
    ],
)
def test_only_spelling_and_the_space_around_it_are_forgiven(answer: str, reference: str, score: float) -> None:
    assert metrics.exact_match(answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the red car", "the blue car", 2 / 3),
        ("car red the", "the red car", 1.0),
        ("a a a", "a", 0.5),
        ("The car", "the car", 0.5),
        ("12.50 euros", "12,50 euros", 0.75),
        ("犬が走る", "犬が走った", 6 / 9),
        ("", "car", 0.0),
        ("car", "", 0.0),
        ("", " ", 1.0),
        (NFD, NFC, 1.0),
    ],
)
def test_token_f1_counts_words_signs_and_characters_where_no_spaces_are(
    answer: str, reference: str, score: float
) -> None:
    assert metrics.token_f1(answer, reference) == pytest.approx(score)


def test_chrf_orders_answers_in_any_script() -> None:
    assert metrics.chrf("犬が走る", "犬が走る") == metrics.chrf("a", "a") == metrics.chrf("", "") == pytest.approx(1.0)
    assert 0 < metrics.chrf("猫が歩く", "犬が走る") < metrics.chrf("犬が走った", "犬が走る") < 1
    assert metrics.chrf("", "犬") == metrics.chrf("犬", "") == metrics.chrf("xyz", "abc") == 0.0


@pytest.mark.parametrize("answer", ['{"a": [1, null]}', " [] \n", '{"a": {"b": 1}, "c": {"b": 1}}'])
def test_json_is_valid(answer: str) -> None:
    assert metrics.json_valid(answer) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "",
        '{"a": 1, "a": 2}',
        '[{"a": {"b": 1, "b": 1}}]',
        '{"a": NaN}',
        "[-Infinity]",
        "3",
        '"text"',
        '{"a": 1} and more',
        '```json\n{"a": 1}\n```',
        "{'a': 1}",
        "[" * 100_000,
        "[" + "1" * 10_000 + "]",
    ],
)
def test_json_is_not_valid(answer: str) -> None:
    assert metrics.json_valid(answer) == 0.0


def test_json_validity_is_asked_only_where_every_reference_is_json() -> None:
    names: list[Metric] = ["json_valid", "exact_match"]
    assert metrics.applicable(names, ['{"a": 1}', "[1]"]) == names
    assert metrics.applicable(names, ['{"a": 1}', "no"]) == ["exact_match"]


def test_a_metric_gives_the_mean_and_every_row() -> None:
    result = metrics.load("exact_match").compute(predictions=["a", "b", ""], references=["a", "c", ""])
    assert result == {"exact_match": 2 / 3, "rows": [1.0, 0.0, 1.0]}


def test_perplexity_is_over_all_tokens_and_not_over_rows() -> None:
    result = metrics.load("perplexity").compute(predictions=[1.0, 8.0], references=[1, 2])
    assert result == {"perplexity": pytest.approx(math.exp(3)), "rows": [1.0, 4.0]}


@pytest.mark.parametrize("name", ["exact_match", "token_f1", "chrf", "json_valid", "perplexity"])
def test_no_rows_have_no_score(name: Metric) -> None:
    with pytest.raises(ValueError, match=r"no tokens|at least one"):
        metrics.load(name).compute(predictions=[], references=[])
