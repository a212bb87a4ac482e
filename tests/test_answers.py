"""Answers that stop before their end are found, and those that end in their own way are not."""

from collections import Counter

import pytest

from tunewright.data_checks.answers import cut_off, length_cap

PROSE = "The first step is to unplug the device and to wait for a minute. After that you press the button "


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("Here it is:\n```python\nprint(1)", "a code fence is left open"),
        ('{"city": "Bern", "peo', "its JSON is left open"),
        ('{"slots": [{"city": "Bern"}]', "its JSON is left open"),
        ('["a", "b",', "its JSON is left open"),
        (PROSE + "on the split,", "it ends with a comma"),
        (PROSE + "and hold it because", "it ends with because"),
        (PROSE + "on the", "it ends with the"),
        (
            "Zuerst ziehen Sie den Stecker und warten eine Minute lang ab. Danach drücken Sie den Knopf und",
            "it ends with und",
        ),
    ],
)
def test_an_answer_that_stops_in_the_middle_says_why(answer: str, why: str) -> None:
    assert cut_off(answer) == why
    assert cut_off(answer + "\n ") == why


@pytest.mark.parametrize(
    "answer",
    [
        *[
            "",
            " ",
            "card_arrival",
            "42",
            "red, green,",
            "the",
            "rock and",
            "```\ncode\n```",
            '{"city": "Bern"}',
            "[1, 2]",
            "{}",
        ],
        *["[Scene: a bar] Good evening", "{name} is missing", '{"a": 1} is the answer'],
        *[
            PROSE + "on the split",
            PROSE.strip() + ".",
            PROSE + "three times:",
            PROSE + "called Option A",
            PROSE + "#### 72",
        ],
        PROSE + "on the split.\n\nKind regards,\nthe team at the desk",
        "Roses are red. Violets are blue, and so on it goes for quite some time.\nSugar is sweet,\nand so,",
    ],
)
def test_an_answer_that_could_be_meant_is_not_cut_off(answer: str) -> None:
    assert cut_off(answer) is None


def test_a_length_that_many_of_the_longest_answers_have_to_the_character_is_a_cap() -> None:
    natural = Counter(dict.fromkeys(range(20, 500), 3))
    assert length_cap(natural + Counter({500: 60})) == 500
    assert length_cap(natural + Counter({500: 5})) is None
    assert length_cap(natural) is None
    assert length_cap({}) is None
    assert length_cap({12: 1_000}) is None  # all answers are as long: a label


def test_json_that_is_nested_too_deep_to_read_is_passed_over() -> None:
    assert cut_off("[" * 100_000) is None
