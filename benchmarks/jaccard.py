"""Exact Jaccard similarity of texts, made simply and apart from the code that it judges."""

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.sparse import csr_matrix

SPACELESS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"  # kana and Han: a character a word
WORD = re.compile(rf"[{SPACELESS}]|[^\W_{SPACELESS}]+")
BLOCK_ROWS = 500  # compared with all others at once


def shingles(text: str) -> list[str]:
    """The word 2-grams, 3-grams of characters where the script has no spaces; the whole text where it is shorter."""
    words = WORD.findall(unicodedata.normalize("NFKC", text).casefold().replace("'", "").replace("\u2019", ""))
    if text.isascii():
        grams = {f"{one} {other}" for one, other in pairwise(words)}
    else:
        lengths = [3 if re.match(f"[{SPACELESS}]", word) else 2 for word in words]
        grams = {" ".join(words[i : i + n]) for i, n in enumerate(lengths) if i + n <= len(words)}
    return sorted(grams) or [" ".join(words)]


class Similarities:
    """Exact Jaccard similarities of prompts, by multiplying sparse matrices."""

    def __init__(self, prompts: Sequence[str]) -> None:
        vocabulary: dict[str, int] = {}
        sets = [[vocabulary.setdefault(item, len(vocabulary)) for item in shingles(prompt)] for prompt in prompts]
        self.sizes = np.array([len(items) for items in sets])
        columns = np.fromiter((item for items in sets for item in items), dtype=np.int32, count=self.sizes.sum())
        indptr = np.concatenate([[0], np.cumsum(self.sizes)])
        self.sets = csr_matrix((np.ones(len(columns), np.int32), columns, indptr), (len(sets), len(vocabulary)))

    def of_pairs(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The similarity of each pair of row numbers."""
        shared = np.asarray(self.sets[left].multiply(self.sets[right]).sum(axis=1)).ravel()
        return shared / (self.sizes[left] + self.sizes[right] - shared)

    def largest(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """For each of `rows` its largest similarity to one of `others`."""
        columns = self.sets[others].T.tocsr()
        found = []
        for start in range(0, len(rows), BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            shared = (self.sets[block] @ columns).tocoo()
            total = self.sizes[block][shared.row] + self.sizes[others][shared.col]
            best = np.zeros(len(block))
            np.maximum.at(best, shared.row, shared.data / (total - shared.data))
            found.append(best)
        return np.concatenate(found) if found else np.empty(0)
