"""Similarity of an answer to its reference, as text or as JSON: a score per row, 0 to 1 (equal)."""

import json
import unicodedata
from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import regex

# Words and numbers; every sign; and every character of a script that puts no spaces between its words: Thai to Tibetan,
# Burmese, Khmer, kana, Han. In regex, unlike in re, the vowel signs of Devanagari or Tamil are part of their word.
SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
TOKEN = regex.compile(rf"[{SPACELESS}]|[^\W{SPACELESS}]+|[^\w\s]")
AROUND = " \t\r\n.,;:!?\"'`*()[]\u2018\u2019\u201c\u201d\u00ab\u00bb\u3002\uff01\uff1f\u300c\u300d"
Field = tuple[str, str]  # a path such as /slots/[] and a value as JSON


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both are equal after Unicode NFC and without the space around them; case and signs count.

    White space before a reference counts too: it is an indentation.
    """
    same = plain(answer) == plain(reference)
    return float(same and (not reference[:1].isspace() or _indentation(answer) == _indentation(reference)))


def normalized_match(answer: str, reference: str) -> float:
    """1.0 where both are equal but for case, the space between words, and signs and quotes around the whole."""
    return float(normalized(answer) == normalized(reference))


def token_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the answer's tokens, as a bag (SQuAD: Rajpurkar et al. 2016, 4.3).

    Unlike SQuAD's, case, signs and articles count, since these answers need not be English or prose; and in a script
    without spaces each character is a token. Two empty texts score 1.0.
    """
    said, wanted = Counter(tokens(answer)), Counter(tokens(reference))
    if not said or not wanted:
        return float(said == wanted)
    return 2 * (said & wanted).total() / (said.total() + wanted.total())


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L: the F1 of the longest common subsequence of tokens (Lin 2004, 3.1, with beta 1), of the whole text.

    The tokens are those of token_f1, so that it holds for any script and needs no stemmer. Two empty texts score 1.0.
    """
    said, wanted = tokens(answer), tokens(reference)
    if not said or not wanted:
        return float(said == wanted)
    return 2 * _common_subsequence(said, wanted) / (len(said) + len(wanted))


def chrf(answer: str, reference: str) -> float:
    """sacrebleu's sentence-level chrF2 (Popović 2015) over 100: of characters, so for any script. Two empty: 1.0."""
    answer, reference = plain(answer), plain(reference)
    if not answer and not reference:
        return 1.0
    return _chrf().sentence_score(answer, [reference]).score / 100


def bleu(answer: str, reference: str) -> float:
    """sacrebleu's sentence-level BLEU (Papineni et al. 2002) over 100, of at most 4 tokens and as many as there are.

    The tokens are those of token_f1. The mean over rows is not corpus BLEU, which has no score a row. Two empty: 1.0.
    """
    said, wanted = tokens(answer), tokens(reference)
    if not said or not wanted:
        return float(said == wanted)
    return min(1.0, _bleu().sentence_score(" ".join(said), [" ".join(wanted)]).score / 100)


def length_ratio(answer: str, reference: str) -> float:
    """Return the characters of the answer divided by those of the reference, both without the blanks around them.

    So an answer of blanks has length 0, as an empty one, and the ratio 0.0, however many blanks it has; a reference of
    blanks is divided by as if it had one character; two texts without any character but blanks have the ratio 1.0.
    """
    answer, reference = plain(answer), plain(reference)
    return len(answer) / max(1, len(reference)) if answer or reference else 1.0


def _indentation(text: str) -> str:
    """The blanks and tabs before the first line that is not empty."""
    before = text[: len(text) - len(text.lstrip())]
    return before[before.rfind("\n") + 1 :]


def plain(text: str) -> str:
    """The text in Unicode NFC, without the space around it."""
    return unicodedata.normalize("NFC", text).strip()


def normalized(text: str) -> str:
    """The text in lower case, with single spaces, and without the signs and quotes around it."""
    return " ".join(unicodedata.normalize("NFC", plain(text).casefold()).strip(AROUND).split())


def tokens(text: str) -> list[str]:
    """Words, numbers, single signs, and single characters of a script without spaces."""
    return TOKEN.findall(plain(text))


def _common_subsequence(one: list[str], other: list[str]) -> int:
    """The length of the longest common subsequence, a word of bits at a time (Hyyrö 2004, "Bit-parallel LCS")."""
    places: dict[str, int] = {}
    for place, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << place
    every = (1 << len(one)) - 1
    rows = every
    for token in other:
        matched = rows & places.get(token, 0)
        rows = (rows + matched | rows - matched) & every
    return len(one) - rows.bit_count()


@cache
def _chrf() -> Any:
    from sacrebleu import CHRF

    return CHRF()


@cache
def _bleu() -> Any:
    from sacrebleu import BLEU

    return BLEU(effective_order=True, tokenize="none")


def parsed(text: str) -> dict[str, Any] | list[Any] | None:
    """The JSON object or array that a text is, or None: no key twice, no NaN or Infinity, no fence around it."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=refuse)
    except (ValueError, RecursionError):  # the second from brackets thousands deep
        return None
    return value if isinstance(value, dict | list) else None


def json_valid(answer: str, reference: str = "") -> float:
    """1.0 where the answer is a JSON object or array and nothing else."""
    return float(parsed(answer) is not None)


def json_field_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the fields: 1.0 where both say the same; 0.0 of what is no JSON.

    A field is a key's value, with the keys that lead to it; and an item of a list, whole and wherever in it it stands.
    """
    said, wanted = parsed(answer), parsed(reference)
    if said is None or wanted is None:
        return 0.0
    try:
        mine, theirs = Counter(_fields(said)), Counter(_fields(wanted))
    except RecursionError:  # from hundreds of levels
        return exact_match(answer, reference)
    return 2 * (mine & theirs).total() / (mine.total() + theirs.total())


def _fields(value: Any, path: str = "") -> Iterator[Field]:
    """An empty object or list is a field itself, so that it differs from none."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _fields(inner, f"{path}/{json.dumps(key)}")
    elif isinstance(value, list) and value:
        for inner in value:
            yield f"{path}/[]", canonical(inner)
    else:
        yield path, canonical(value)


def canonical(value: Any) -> str:
    """A value as JSON that is the same for equal values, whatever the order of their keys."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """With 3.0 as 3, and texts in Unicode NFC without the space around them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return plain(value) if isinstance(value, str) else value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key appears twice")
    return made


def refuse(constant: str) -> None:
    """Raises ValueError: the hook of json.loads for NaN and Infinity."""
    raise ValueError(f"{constant} is not JSON")
