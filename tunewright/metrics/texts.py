"""How near an answer is to its reference as text: a score in 0..1 for each row, 1 where both are the same."""

import unicodedata
from collections import Counter
from functools import cache
from re import compile as pattern
from typing import Any

# Words and numbers; every sign; and every character of a script that puts no spaces between its words:
# Thai to Tibetan, Burmese, Khmer, kana, Han.
SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
TOKEN = pattern(rf"[{SPACELESS}]|[^\W{SPACELESS}]+|[^\w\s]")
AROUND = " \t\r\n.,;:!?\"'`*()[]\u2018\u2019\u201c\u201d\u00ab\u00bb\u3002\uff01\uff1f\u300c\u300d"


def exact_match(answer: str, reference: str) -> float:
    """1.0 where both are equal after Unicode NFC and without the space around them; case and signs count."""
    return float(plain(answer) == plain(reference))


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
