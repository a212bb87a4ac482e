"""How alike two texts are: the exact Jaccard similarity of their word 2-grams, and every pair above a threshold.

Pairs come from prefix filtering: two sets that are alike enough share one of their rarest items (Bayardo et al. 2007,
"Scaling up all pairs similarity search"; Xiao et al. 2008, "PPJoin"). Unlike MinHash it misses no pair, needs no seed,
and every pair it returns was verified.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

APOSTROPHES = "'\u2019\u02bc`"
# Scripts without spaces, a character a word: Thai and Lao, Myanmar, Khmer, kana, Han and its supplements.
SPACELESS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
SEGMENT = re.compile(r"[\r\n]+|(?<=[.!?:])\s+|(?<=[。！？：])")  # noqa: RUF001 full-width stops end sentences too
NUMBER = re.compile(r"[-+*/^<>=×÷]?\s?\d+")  # noqa: RUF001 with the sign before it: 2 + 2 is not 2 * 2
FEWEST_BOILERPLATE_ROWS = 10  # in fewer rows a shared line says that the rows are alike
PRODUCTS_AT_ONCE = 5_000_000  # bounds the memory of one block to some hundred MB
PAIRS_AT_ONCE = 200_000
ROUNDING = 1e-9
BOILERPLATE = "boilerplate.json"  # in the folder of the unique rows: what was left out of the comparison


def normalize(text: str) -> str:
    """NFKC, case folded, runs of white space made one space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _is_spaceless(word: str) -> bool:
    return len(word) == 1 and any(first <= ord(word) <= last for first, last in SPACELESS)


class _Characters(dict[int, str | None]):
    """A table for str.translate, filled as characters turn up: apostrophes go, other punctuation parts words."""

    def __missing__(self, code: int) -> str | None:
        character, category = chr(code), unicodedata.category(chr(code))
        if character in APOSTROPHES or category == "Cf":
            self[code] = None
        elif category[0] in "PSZC":
            self[code] = " "
        else:
            self[code] = f" {character} " if _is_spaceless(character) else character
        return self[code]


_CHARACTERS = _Characters()


def words(text: str) -> list[str]:
    """The words of a text without case and punctuation; of scripts without spaces the characters."""
    return normalize(text).translate(_CHARACTERS).split()


def shingles(text: str) -> set[str]:
    """The word 2-grams of a text, 3-grams of characters where the script has no spaces; never empty.

    Three characters of such a script react to an edited word as two words do. Shorter texts are one shingle as a whole.
    """
    found = words(text)
    if text.isascii():
        grams = {f"{first} {second}" for first, second in pairwise(found)}
    else:
        lengths = [3 if _is_spaceless(word) else 2 for word in found]
        grams = {" ".join(found[i : i + n]) for i, n in enumerate(lengths) if i + n <= len(found)}
    return grams or {" ".join(found) or normalize(text)}


def numbers(text: str) -> tuple[str, ...]:
    """The numbers of a text in their order, each with the sign before it."""
    return tuple("".join(number.split()) for number in NUMBER.findall(unicodedata.normalize("NFKC", text)))


def prompt_text(messages: Sequence[dict[str, Any]]) -> str:
    """All turns before the last answer, a line or more each."""
    return "\n".join(message["content"] for message in messages[:-1])


def segments(text: str) -> list[str]:
    """The sentences of the lines of a text; a colon ends one too, as after "Classify this message:"."""
    return [segment for segment in SEGMENT.split(text) if segment and not segment.isspace()]


def boilerplate(texts: Sequence[str], share: float) -> list[str]:
    """The segments, normalized, that more than `share` of the texts and at least ten have; the most frequent first."""
    counts = Counter(segment for text in texts for segment in {normalize(segment) for segment in segments(text)})
    fewest = max(share * len(texts), FEWEST_BOILERPLATE_ROWS - 1)
    return sorted((s for s, count in counts.items() if count > fewest), key=lambda segment: (-counts[segment], segment))


def without(text: str, left_out: Iterable[str]) -> str:
    """The text without the segments `left_out`; the whole text where nothing would be left."""
    kept = [segment for segment in segments(text) if normalize(segment) not in left_out]
    return "\n".join(kept) or text


@dataclass(frozen=True)
class Pairs:
    """The pairs that are alike, as row numbers. Rows of equal sets are one: the first stands for all of them."""

    first: np.ndarray  # (rows,) the first row with the same set as this row
    left: np.ndarray  # (pairs,) left < right, both the first of their set
    right: np.ndarray
    similarity: np.ndarray  # (pairs,) exact Jaccard


def alike(texts: Sequence[str], threshold: float, kinds: Sequence[Hashable] | None = None) -> Pairs:
    """Every pair of texts with a Jaccard similarity of at least `threshold` (above 0).

    Texts of two different `kinds` are not alike, whatever they say.
    """
    sets = _sets(texts, kinds)
    first = _first(sets)
    distinct = np.flatnonzero(first == np.arange(len(texts)))
    distinct = distinct[np.argsort(np.diff(sets.indptr)[distinct], kind="stable")]
    larger, smaller, similarity = _join(sets[distinct], threshold)
    left = np.minimum(distinct[larger], distinct[smaller])
    right = np.maximum(distinct[larger], distinct[smaller])
    order = np.lexsort((left, right))
    return Pairs(first=first, left=left[order], right=right[order], similarity=similarity[order])


@dataclass(frozen=True)
class Nearest:
    """The most alike pair with one text inside and one outside, and how many pairs were compared to find it."""

    inside: int
    outside: int
    similarity: float
    num_compared: int


def nearest_across(texts: Sequence[str], is_inside: np.ndarray) -> Nearest:
    """Compares each text inside with each text outside that shares a shingle with it; no threshold, no filter."""
    sets = _sets(texts, None)
    inside, outside = np.flatnonzero(is_inside), np.flatnonzero(~is_inside)
    nearest = Nearest(int(inside[0]), int(outside[0]), 0.0, 0)
    sizes = np.diff(sets.indptr)
    for row, column, shared in _products(sets[inside], sets[outside]):
        one, other = inside[row], outside[column]
        similarity = shared / (sizes[one] + sizes[other] - shared)
        best = int(np.argmax(similarity)) if len(similarity) else None
        compared = nearest.num_compared + len(similarity)
        if best is not None and similarity[best] > nearest.similarity:
            nearest = Nearest(int(one[best]), int(other[best]), float(similarity[best]), compared)
        else:
            nearest = replace(nearest, num_compared=compared)
    return nearest


def _sets(texts: Sequence[str], kinds: Sequence[Hashable] | None) -> Any:
    """A sparse matrix texts x shingles of ones, the rarest shingle first; a shingle is another one in another kind."""
    from scipy.sparse import csr_matrix

    vocabulary: dict[str, int] = {}
    ids = [[vocabulary.setdefault(shingle, len(vocabulary)) for shingle in shingles(text)] for text in texts]
    sizes = np.array([len(row) for row in ids], dtype=np.int64)
    items = np.fromiter((item for row in ids for item in row), dtype=np.int64, count=int(sizes.sum()))
    if kinds is not None:
        numbered: dict[Hashable, int] = {}
        kind = np.array([numbered.setdefault(kind, len(numbered)) for kind in kinds], dtype=np.int64)
        items += np.repeat(kind, sizes) * len(vocabulary)
    _, items, counts = np.unique(items, return_inverse=True, return_counts=True)
    rank = np.empty(len(counts), dtype=np.int32)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts), dtype=np.int32)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    sets = csr_matrix((np.ones(len(items), dtype=np.int32), rank[items], indptr), shape=(len(texts), len(counts)))
    sets.sort_indices()
    return sets


def _first(sets: Any) -> np.ndarray:
    """For each row the first row with the same items."""
    seen: dict[bytes, int] = {}
    bounds = zip(sets.indptr, sets.indptr[1:], strict=False)
    return np.array(
        [seen.setdefault(sets.indices[a:b].tobytes(), i) for i, (a, b) in enumerate(bounds)], dtype=np.int64
    )


def _join(sets: Any, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(larger, smaller, similarity) of every pair of `sets`, which stand smallest first, from `threshold` on.

    |x & y| >= t / (1 + t) (|x| + |y|) means that x and y, if |y| <= |x|, share an item of the first |x| - t |x| + 1 of
    x and the first |y| - 2 t / (1 + t) |y| + 1 of y.
    """
    sizes = np.diff(sets.indptr)
    probe = _beginning(sets, sizes - _at_least(threshold * sizes) + 1)
    index = _beginning(sets, sizes - _at_least(2 * threshold / (1 + threshold) * sizes) + 1)
    found = [(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0))]
    for larger, smaller, _ in _products(probe, index):
        possible = (smaller < larger) & (sizes[smaller] >= threshold * sizes[larger] - ROUNDING)
        for pairs in _chunks(np.stack([larger[possible], smaller[possible]])):
            shared = np.asarray(sets[pairs[0]].multiply(sets[pairs[1]]).sum(axis=1)).ravel()
            similarity = shared / (sizes[pairs[0]] + sizes[pairs[1]] - shared)
            close = similarity >= threshold
            found.append((pairs[0][close], pairs[1][close], similarity[close]))
    larger, smaller, similarity = (np.concatenate(part) for part in zip(*found, strict=True))
    return larger, smaller, similarity


def _at_least(overlap: np.ndarray) -> np.ndarray:
    """The smallest whole number that is not under `overlap`, which rounding may have put a hair too high."""
    return np.ceil(overlap - ROUNDING).astype(np.int64)


def _beginning(sets: Any, lengths: np.ndarray) -> Any:
    """Of each row its first `lengths` items only."""
    from scipy.sparse import csr_matrix

    position = np.arange(sets.nnz) - np.repeat(sets.indptr[:-1], np.diff(sets.indptr))
    kept = position < np.repeat(lengths, np.diff(sets.indptr))
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((sets.data[kept], sets.indices[kept], indptr), shape=sets.shape)


def _products(rows: Any, columns: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(row, column, number of shared items) of the pairs that share any, in blocks of rows that fit in memory."""
    transposed = columns.T.tocsr()
    work = np.cumsum(rows @ np.diff(transposed.indptr))
    start = 0
    while start < rows.shape[0]:
        done = work[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(work, done + PRODUCTS_AT_ONCE, side="right")))
        block = (rows[start:end] @ transposed).tocoo()
        yield block.row.astype(np.int64) + start, block.col.astype(np.int64), block.data
        start = end


def _chunks(pairs: np.ndarray) -> Iterator[np.ndarray]:
    return (pairs[:, start : start + PAIRS_AT_ONCE] for start in range(0, pairs.shape[1], PAIRS_AT_ONCE))
