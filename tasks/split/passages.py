"""Passages that texts have in common, looked up by their hashes: what contamination.py goes by.

A passage is 13 words in a row. In scripts without spaces a character is a word to tunewright/similarity, and half a
word here, else six words of Japanese would be a passage.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

import numpy as np
import pyarrow as pa

from tunewright.similarity.folding import fold_messages, fold_texts
from tunewright.similarity.prompts import Runs, segment_words, segments, words

PASSAGE = 26  # half words
MOST_LINES = 25  # of a prompt that is a part of an evaluation text
COMMON = 10  # prompts, or answers: a passage that more of them have is a template
FEWEST_BITS, MOST_BITS = 10, 27
BASE = 0x9E3779B97F4A7C15  # of the polynomial that hashes a run of words, odd
INVERSE = pow(BASE, -1, 1 << 64)

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # hash, whether it lies within the question, number of the text


class Texts(NamedTuple):
    """Texts as words: text i has those from bounds[i] to bounds[i + 1], the first asked[i] of them its question.

    Hashes and sizes are of all words before one, so that those of a run are known from its two ends.
    """

    bounds: np.ndarray
    asked: np.ndarray
    hashes: np.ndarray  # (words + 1,) uint64
    sizes: np.ndarray  # (words + 1,) half words

    @classmethod
    def of(cls, said: Runs, bounds: np.ndarray, asked: np.ndarray) -> Self:
        """The texts that begin and end at `bounds` in these words."""
        from tunewright.similarity.hashing import are_spaceless

        hashes = np.zeros(len(said.hashes) + 1, np.uint64)
        np.cumsum(said.hashes * _powers(BASE, len(said.hashes)), out=hashes[1:])
        sizes = np.concatenate([[0], np.cumsum(2 - are_spaceless(said.hashes).astype(np.int64))])
        return cls(bounds, asked, hashes, sizes)

    def hash_runs(self, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(runs,) uint64: the words from begins[i] to ends[i], the same wherever they stand."""
        return (self.hashes[ends] - self.hashes[begins]) * _powers(INVERSE, len(self.hashes))[begins]

    def passages(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(text, begin, end) of every passage."""
        ends = np.searchsorted(self.sizes, self.sizes[:-1] + PASSAGE)
        text = np.repeat(np.arange(len(self.asked)), np.diff(self.bounds))
        within = np.flatnonzero(ends <= self.bounds[1:][text])
        return text[within], within, ends[within]


class Lines(NamedTuple):
    """Return where lines and answers begin in the words of evaluation texts, without lines that have no words."""

    starts: np.ndarray
    answers: np.ndarray  # (texts,) the end of the text where no answer is known


class Passages(NamedTuple):
    """The different passages, or runs of whole lines, of evaluation texts."""

    hashes: np.ndarray  # uint64, rising
    asked: np.ndarray  # bool: whether it lies within the question of an evaluation text
    text: np.ndarray  # the number of the first text that has it
    maybe: np.ndarray  # upper bits of a hash -> whether any has them, so that few must be looked up in `hashes`

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of `hashes` are among these, and which of these they are."""
        found = np.flatnonzero(self.maybe[_upper_bits(hashes, len(self.maybe))])
        place = np.searchsorted(self.hashes, hashes[found])
        hit = self.hashes[np.minimum(place, len(self.hashes) - 1)] == hashes[found] if len(self.hashes) else place < 0
        return found[hit], place[hit]


class Shared(NamedTuple):
    """The first passage that each of some rows has in common with an evaluation text."""

    rows: np.ndarray  # rising
    texts: np.ndarray
    hashes: np.ndarray  # of the passage; 0 where it is a whole prompt

    def of(self, which: np.ndarray) -> Self:
        """These of them."""
        return type(self)(*(column[which] for column in self))


def conversations(messages: pa.ChunkedArray, left_out: np.ndarray) -> Texts:
    """Conversations, their last answer last, without the segments `left_out` (hashes)."""
    folded = fold_messages(messages)
    prompts, ends = folded.prompts, folded.rows[1:]
    halves = np.stack([prompts[:, 0], prompts[:, 1], prompts[:, 1], ends], axis=1).reshape(-1, 2)
    said = words(folded, segments(folded, halves), left_out)
    return Texts.of(said, said.indptr[::2], np.diff(said.indptr)[::2])


def evaluations(records: pa.Table, left_out: np.ndarray) -> tuple[Texts, Lines]:
    """Records of evaluation files (HELD_OUT_SCHEMA), and their lines.

    Where it is not known what of a record is its question, that is all but the last line, or the only one.
    """
    split = [text.splitlines() for text in records["text"].to_pylist()]
    folded = fold_texts(line for lines in split for line in lines)
    found = segments(folded, folded.prompts)
    said = segment_words(folded, found).of_rows(found.indptr, ~np.isin(found.hashes, left_out))
    first = np.cumsum([0, *map(len, split)])
    bounds, lines = said.indptr[first], said.indptr[:-1][np.diff(said.indptr) > 0]
    last_lines = np.append(lines, 0)[np.searchsorted(lines, bounds[1:]) - 1]
    guessed = np.where(last_lines > bounds[:-1], last_lines, bounds[1:])
    asked = np.asarray(records["asked"].fill_null(-1))
    ends = np.where(asked >= 0, said.indptr[first[:-1] + np.maximum(asked, 0)], guessed)
    answers = said.indptr[first[1:] - np.asarray(records["answered"])]
    return Texts.of(said, bounds, ends - bounds[:-1]), Lines(lines, answers)


def passages_of(texts: Texts, numbers: np.ndarray) -> Found:
    """Each passage of the texts with these numbers."""
    text, begins, ends = texts.passages()
    asked = ends <= texts.bounds[text] + texts.asked[text]
    return texts.hash_runs(begins, ends), asked, numbers[text]


def whole_lines(texts: Texts, lines: Lines, numbers: np.ndarray) -> Iterator[Found]:
    """Yield the lines that may be a whole prompt: each question, and runs of up to MOST_LINES lines outside answers.

    Answers are left out: a short prompt that occurs in an answer is no leak of that prompt.
    """
    asked = np.flatnonzero(texts.asked)
    begins = texts.bounds[asked]
    yield texts.hash_runs(begins, begins + texts.asked[asked]), np.ones(len(asked), np.bool_), numbers[asked]
    starts = lines.starts
    text = np.searchsorted(texts.bounds, starts, side="right") - 1
    ends = np.concatenate([starts, np.full(MOST_LINES + 1, len(texts.sizes) - 1)])
    for num_lines in range(1, MOST_LINES + 1):
        end = ends[num_lines : num_lines + len(starts)]
        whole = (end <= lines.answers[text]) & (end > starts)
        yield texts.hash_runs(starts[whole], end[whole]), np.ones(int(whole.sum()), np.bool_), numbers[text[whole]]


def gather(parts: Iterable[Found]) -> Passages:
    """The passages of all parts."""
    empty = np.empty(0, np.uint64), np.empty(0, np.bool_), np.empty(0, np.int64)
    hashes, asked, text = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    order = np.argsort(hashes, kind="stable")
    hashes, asked, text = hashes[order], asked[order], text[order]
    first = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])) if len(hashes) else np.empty(0, np.int64)
    asked = np.logical_or.reduceat(asked, first) if len(first) else asked
    bits = min(MOST_BITS, max(FEWEST_BITS, (8 * len(first)).bit_length()))
    maybe = np.zeros(1 << bits, np.bool_)
    maybe[_upper_bits(hashes[first], len(maybe))] = True
    return Passages(hashes[first], asked, text[first], maybe)


def first_asked(first: dict[int, int], texts: Texts, numbers: np.ndarray) -> np.ndarray:
    """(texts,) the number of the first text with the same question, word for word; `first` keeps these by hash."""
    hashes = texts.hash_runs(texts.bounds[:-1], texts.bounds[:-1] + texts.asked)
    pairs = zip(hashes.tolist(), numbers.tolist(), strict=True)
    return np.array([first.setdefault(question, number) for question, number in pairs], np.int64)


class Search:
    """Looks through rows for passages of evaluation texts, batch by batch; rows that ask the same are one prompt."""

    def __init__(self, passages: Passages, prompts: Passages) -> None:
        self.passages, self.prompts = passages, prompts
        self.num_seen = np.zeros(len(passages.hashes), np.int32)  # prompts, or answers, that have each passage
        self.found: list[np.ndarray] = []  # (row, passage, is_asked) as far as it is no template yet
        self.whole: list[np.ndarray] = []  # (row, prompt)
        self.again: list[np.ndarray] = []  # (row, first row that asks the same)

    def look(self, texts: Texts, numbers: np.ndarray, first: np.ndarray) -> None:
        """Looks through these rows, whose questions an earlier row may have: `first` (texts,) is the first that has it.

        `numbers` (texts,) rise from call to call.
        """
        is_first = first == numbers
        self.again.append(np.stack([numbers, first])[:, ~is_first])

        text, begins, ends = texts.passages()
        asked = ends <= texts.bounds[text] + texts.asked[text]
        new = np.flatnonzero(is_first[text] | ~asked)
        at, passage = self.passages.find(texts.hash_runs(begins[new], ends[new]))
        text, asked = text[new[at]], asked[new[at]]
        once = np.sort(np.unique(text * len(self.num_seen) + passage, return_index=True)[1])
        text, passage, asked = text[once], passage[once], asked[once]
        np.add.at(self.num_seen, passage, 1)
        kept = (asked | self.passages.asked[passage]) & (self.num_seen[passage] <= COMMON)
        self.found.append(np.stack([numbers[text], passage, asked])[:, kept])

        begins, ends = texts.bounds[:-1], texts.bounds[:-1] + texts.asked
        some = np.flatnonzero((ends > begins) & is_first)
        at, prompt = self.prompts.find(texts.hash_runs(begins[some], ends[some]))
        self.whole.append(np.stack([numbers[some[at]], prompt]))

    def shared(self) -> Shared:
        """Return the passages that the searched rows share with the texts."""
        row, passage, asked = np.concatenate([np.empty((3, 0), np.int64), *self.found], axis=1)
        rare = self.num_seen[passage] <= COMMON
        of_passages = Shared(row, self.passages.text[passage], self.passages.hashes[passage])
        row, prompt = np.concatenate([np.empty((2, 0), np.int64), *self.whole], axis=1)
        of_prompts = Shared(row, self.prompts.text[prompt], np.zeros(len(row), np.uint64))
        of_questions = _by_row(of_passages.of(rare & (asked == 1)), of_prompts)
        row, first = np.concatenate([np.empty((2, 0), np.int64), *self.again], axis=1)
        is_first, place = np.isin(first, of_questions.rows), np.searchsorted(of_questions.rows, first)
        of_same_questions = of_questions.of(place[is_first])._replace(rows=row[is_first])
        return _by_row(of_questions, of_same_questions, of_passages.of(rare & (asked == 0)))


def _by_row(*found: Shared) -> Shared:
    """The first of each row, in the order of the rows."""
    rows, texts, hashes = (np.concatenate(column) for column in zip(*found, strict=True))
    rows, first = np.unique(rows, return_index=True)
    return Shared(rows, texts[first], hashes[first])


def first_place(text: str, passage: int) -> str:
    """Return where the passage with this hash begins in a text: "word 12", or "character 287" without spaces.

    Both are counted from 1. It is empty where the passage is not found.
    """
    from tunewright.similarity.hashing import are_spaceless

    pieces = [*re.finditer(r"\S+", text)]
    found = _words(piece[0] for piece in pieces)
    whole = Texts.of(found, np.array([0, len(found.hashes)]), np.array([0]))
    _, begins, ends = whole.passages()
    at = np.flatnonzero(whole.hash_runs(begins, ends) == np.uint64(passage))
    if not len(at):
        return ""
    begin = int(begins[at[0]])
    number = int(np.searchsorted(found.indptr, begin, side="right"))
    if not are_spaceless(found.hashes[begin : begin + 1])[0]:
        return f"word {number:,}"
    piece, before = pieces[number - 1], begin - int(found.indptr[number - 1])
    lengths = range(len(piece[0]) + 1)
    length = bisect_right(lengths, before, key=lambda length: len(_words([piece[0][:length]]).hashes))
    return f"character {piece.start() + length:,}"


def _words(texts: Iterable[str]) -> Runs:
    folded = fold_texts(texts)
    return words(folded, segments(folded, folded.prompts), np.empty(0, np.uint64))


def _powers(base: int, count: int) -> np.ndarray:
    """(count,) uint64: 1, base, base squared and so on, modulo 2 to the 64th."""
    powers = np.full(count, base, np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)


def _upper_bits(hashes: np.ndarray, size: int) -> np.ndarray:
    return hashes >> np.uint64(64 - (size.bit_length() - 1))
