"""Reference implementation of tunewright/similarity by definition: text by text, pair by pair."""

import re
import unicodedata
from collections import Counter
from functools import cache

from tunewright.similarity.folding import APOSTROPHES, FULL_STOPS, OPERATORS, SPACELESS_RANGES, VARIANTS
from tunewright.similarity.prompts import FEWEST_BOILERPLATE_ROWS

SEGMENT = re.compile(r"[\r\n]+|(?<=[.!?:])[\t\n\v\f\r\x1c-\x1f ]+")
NUMBER = re.compile(r"[-+*/^<>=]?[\t\n\v\f\r\x1c-\x1f ]?[0-9]+(?:[.,][0-9]+)*")


def folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text if text.isascii() else re.sub(f"(?<=[{FULL_STOPS}])", "\n", text))
    plain = (OPERATORS.get(c, str(unicodedata.decimal(c)) if c.isdecimal() else c) for c in text)
    return "".join(plain).casefold()


def is_spaceless(word: str) -> bool:
    return len(word) == 1 and any(first <= ord(word) <= last for first, last in SPACELESS_RANGES)


def words(text: str) -> list[str]:
    out: list[str] = []
    for character in folded(text):
        category = unicodedata.category(character)
        if category == "Cf" or character in APOSTROPHES + VARIANTS:
            continue
        if category[0] == "S":
            out.append(f" {character} ")
        elif category[0] in "PZC":
            out.append(" ")
        else:
            out.append(f" {character} " if is_spaceless(character) else character)
    return "".join(out).split()


@cache  # a text is compared with each of the others
def shingles(text: str) -> frozenset[tuple[str, ...]]:
    found = words(text)
    lengths = [3 if is_spaceless(word) else 2 for word in found]
    grams = frozenset(tuple(found[i : i + n]) for i, n in enumerate(lengths) if i + n <= len(found))
    return grams or frozenset([("whole", *found)] if found else [("blank", *segments(text))])


def segments(text: str) -> list[str]:
    pieces = (" ".join(piece.split()) for piece in SEGMENT.split(folded(text)))
    return [piece for piece in pieces if piece]


def numbers(text: str) -> list[str]:
    return ["".join(number.split()) for number in NUMBER.findall(folded(text))]


def boilerplate(texts: list[str], share: float) -> dict[str, int]:
    counts = Counter(segment for text in texts for segment in set(segments(text)))
    fewest = max(share * len(texts), FEWEST_BOILERPLATE_ROWS - 1)
    return {segment: count for segment, count in counts.items() if count > fewest}


def without(text: str, left_out: set[str]) -> str:
    kept = [segment for segment in segments(text) if segment not in left_out]
    return "\n".join(kept) or text


def jaccard(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))
