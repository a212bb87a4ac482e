"""The training rows that are most like a question: by the words that they share (BM25), or by their embeddings."""

import numpy as np
import pyarrow as pa

from tunewright.similarity.embedding import LENGTH, StaticModel
from tunewright.similarity.folding import fold_messages
from tunewright.similarity.prompts import Runs, distinct_segments, find_boilerplate, segments, words
from tunewright.similarity.semantic import prompt_texts

K1, B = 1.5, 0.75  # as Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework", section 3.4
BOILERPLATE_SHARE = 0.05  # of the pool's rows, from which a sentence says nothing of a question
QUESTIONS = 64  # that are compared with the pool at once


def boilerplate(pool: pa.Table) -> np.ndarray:
    """The hashes of the sentences that much of the pool has."""
    folded = fold_messages(pool["messages"])
    hashes, _ = distinct_segments(segments(folded, folded.prompts))
    return np.array(sorted(find_boilerplate(hashes, len(pool), BOILERPLATE_SHARE)), np.uint64)


def nearest(retriever: "BM25 | Embeddings", questions: pa.Table, number: int) -> list[list[int]]:
    """Return the pool's rows most similar to each question, the most similar last; of equal ones the first."""
    found: list[list[int]] = []
    for start in range(0, len(questions), QUESTIONS):
        for scores in retriever.scores(questions.slice(start, QUESTIONS)):
            floor = np.partition(scores, -number)[-number] if number < len(scores) else -np.inf
            some = np.flatnonzero(scores >= floor)
            found.append(some[np.lexsort((some, -scores[some]))][:number][::-1].tolist())
    return found


class BM25:
    """Words that few rows have count most, more where they are repeated, less in long rows."""

    def __init__(self, pool: pa.Table, left_out: np.ndarray) -> None:
        from scipy.sparse import csr_array

        self.left_out = left_out
        found = _words(pool, left_out)
        lengths = np.diff(found.indptr)
        self.known, places = np.unique(found.hashes, return_inverse=True)
        counts = csr_array((np.ones(len(places)), places, found.indptr), (len(pool), len(self.known)))
        counts.sum_duplicates()
        having = np.bincount(counts.indices, minlength=len(self.known))
        rarity = np.log1p((len(pool) - having + 0.5) / (having + 0.5))
        norms = K1 * (1 - B + B * lengths / max(1.0, lengths.mean()))
        often = counts.data * (K1 + 1) / (counts.data + np.repeat(norms, np.diff(counts.indptr)))
        counts.data = often * rarity[counts.indices]
        self.weights = counts.T.tocsr()  # (words, pool)

    def scores(self, questions: pa.Table) -> np.ndarray:
        """(questions, pool) float64: over the different words of each question."""
        from scipy.sparse import csr_array

        found = _words(questions, self.left_out)
        places = np.searchsorted(self.known, found.hashes)
        known = self.known[np.minimum(places, len(self.known) - 1)] == found.hashes
        rows = np.repeat(np.arange(len(questions)), np.diff(found.indptr))
        pairs = np.unique(np.stack([rows[known], places[known]]), axis=1)
        asked = csr_array((np.ones(pairs.shape[1]), (pairs[0], pairs[1])), (len(questions), len(self.known)))
        return (asked @ self.weights).toarray()


class Embeddings:
    """The cosine of a static model's vectors."""

    def __init__(self, pool: pa.Table, left_out: np.ndarray, model: StaticModel) -> None:
        self.left_out, self.model = left_out, model
        self.vectors = model.embed(prompt_texts(pool, left_out))

    def scores(self, questions: pa.Table) -> np.ndarray:
        """(questions, pool) float32."""
        asked = self.model.embed(prompt_texts(questions, self.left_out)).astype(np.float32) / LENGTH
        return asked @ self.vectors.astype(np.float32).T


def _words(rows: pa.Table, left_out: np.ndarray) -> Runs:
    folded = fold_messages(rows["messages"])
    return words(folded, segments(folded, folded.prompts), left_out)
