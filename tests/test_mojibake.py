"""Wrongly decoded text is found, told with its repair, and other languages' letters are left in peace."""
# ruff: noqa: RUF001
# Letters of other languages, and what became of them, look like ours.

import random
import re

import ftfy
import pytest
from ftfy.badness import MOJIBAKE_CATEGORIES, is_bad

from tunewright.data_checks.columns import mojibake


@pytest.mark.parametrize("wrong", ["latin-1", "cp1252", "macroman"])
@pytest.mark.parametrize("text", ["Das Café ist schön.", "¿Dónde está el señor?", "Größe: 3 m²", "Où êtes-vous ?"])
def test_utf8_that_was_read_as_something_else_is_found_with_its_repair(text: str, wrong: str) -> None:
    found = mojibake(text.encode().decode(wrong, errors="ignore"))
    assert found
    as_read, _, repaired = found.partition(" for ")
    assert repaired in text
    assert as_read not in text


def test_the_example_is_the_first_word_that_differs() -> None:
    found = mojibake("We met at the cafÃ© near the hÃ´tel.")
    assert found == "cafÃ© for café"


@pytest.mark.parametrize(
    "text",
    [
        *[
            "",
            "plain",
            "Größe, Straße, Übermut",
            "Où êtes-vous, cœur ?",
            "«Да», — сказал он.",
            "¿Qué? ¡Sí!",
            "São João",
        ],
        *[
            "日本語の文章です。",
            "한국어 문장입니다.",
            "Đường đến trường",
            "“quoted” – it’s fine…",
            "price: 5 € or £4",
            "🎉 naïve",
        ],
    ],
)
def test_good_text_is_none(text: str) -> None:
    assert mojibake(text) is None


def test_what_ftfy_calls_bad_is_never_passed_over() -> None:
    letters = [
        chr(n) for n in range(0x3000) if any(re.match(f"[{kind}]", chr(n)) for kind in MOJIBAKE_CATEGORIES.values())
    ]
    drawn = random.Random(0)
    num_bad = 0
    for _ in range(20_000):
        text = "".join(drawn.choice(letters if drawn.random() < 0.7 else "ab Z.") for _ in range(drawn.randint(1, 5)))
        if is_bad(text) and ftfy.fix_encoding(text) != text:
            num_bad += 1
            assert mojibake(text), ascii(text)
    assert num_bad > 500
