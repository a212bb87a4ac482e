"""A set of rows is remembered by a few counts, and what differs from them by more than chance has drifted."""

import numpy as np
import pandas as pd
import pytest

from tunewright.data_checks.profile import (
    NAMES,
    REST,
    RowChanges,
    changed_rows,
    counts,
    labels_at,
    lengths,
    measures,
    stability,
)


def test_lengths_are_counted_by_doubling_lengths() -> None:
    found = lengths(pd.Series([0, 1, 2, 3, 4, 7, 8, None]))
    assert found == {"median": 3, "percentile_95": 7, "longest": 8, "bars": {"0": 1, "1": 1, "2": 2, "4": 2, "8": 1}}
    assert lengths(pd.Series([None, None], dtype="Int64"))["bars"] == {}


def test_names_are_in_the_order_of_their_rows_and_what_is_beyond_is_one_sum() -> None:
    names = [f"{n:03}" for n in range(NAMES + 5)]
    found = counts(pd.Series([*names, "z", "z", None]))
    assert list(found)[:3] == ["z", "(unknown)", "000"]
    assert len(found) == NAMES + 1
    assert found[REST] == NAMES + 5 + 2 - NAMES
    assert sum(found.values()) == NAMES + 8


@pytest.mark.parametrize(
    ("answers", "are_labels"),
    [
        ([1, 2] * 10, True),
        ([1] * 20, True),
        ([1] * 9, False),
        ([1, 2] * 5 + [3] * 9, True),  # of which each is given three times on average, as evaluate has it
        ([1, 2, 3, 4] * 2, False),
        ([*range(101)] * 20, True),
        ([*range(176)] * 8, True),
        ([*range(150)] * 10 + [*range(150, 230)], False),  # many are given once, so the next one may be new
        ([*range(1_001)] * 20, False),
        ([], False),
    ],
)
def test_answers_are_labels_where_few_are_given_again_and_again(answers: list[int], are_labels: bool) -> None:
    assert (labels_at(np.array(answers, dtype=np.int64)) is not None) == are_labels


def test_labels_are_known_by_where_they_stand_first() -> None:
    found = labels_at(np.array([7, 5, 7, 7] * 10))
    assert found is not None
    assert dict(zip(found[0].tolist(), found[1].tolist(), strict=True)) == {0: 30, 1: 10}


def test_the_stability_index_is_that_of_the_formula() -> None:
    psi = stability({"a": 50_000, "b": 50_000}, {"a": 80_000, "b": 20_000}).value
    assert psi == pytest.approx(0.3 * np.log(1.6) - 0.3 * np.log(0.4), abs=1e-4)
    assert stability({"a": 5, "b": 9}, {"b": 9, "a": 5}).value == 0
    assert stability({"a": 5}, {"b": 5}).value == stability({"b": 5}, {"a": 5}).value


def test_two_samples_of_the_same_rows_exceed_the_noise_about_once_in_twenty_times() -> None:
    rng = np.random.default_rng(0)
    shares = [0.4, 0.3, 0.2, 0.1]
    exceeded = 0
    for _ in range(400):
        before, now = ({str(n): int(c) for n, c in enumerate(rng.multinomial(500, shares))} for _ in range(2))
        found = stability(before, now)
        exceeded += (found.value or 0) > found.noise
    assert 8 <= exceeded <= 34


def test_rows_changed_are_those_of_which_no_equal_one_was_there() -> None:
    before, now = (pd.Series(list(ids), dtype="string[pyarrow]") for ids in ("aabc", "bccde"))
    assert changed_rows(before, now) == RowChanges(before=3, added=2, removed=1)


def test_there_is_nothing_to_measure_without_labels_other_sources_or_an_earlier_version() -> None:
    now = {
        "rows": 4,
        "duplicate_rows": 1,
        "prompt_chars": {"bars": {}},
        "answer_chars": {"bars": {}},
        "prompt_languages": {"en": 4},
        "answer_languages": {"en": 4},
        "sources": {"a": 4},
        "labels": None,
        "pairs": None,
    }
    found = measures(now, None, None)
    assert {name for name, measure in found.items() if measure.value is not None} == {"duplicate_share"}
    again = measures(now, now, RowChanges(before=8, added=1, removed=1))
    assert again["changed_share"].value == 0.25
    assert again["prompt_language_psi"].value == 0
    assert again["label_psi"].value is None
    assert again["prompt_length_psi"].value is None
