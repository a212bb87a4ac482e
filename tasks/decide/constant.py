"""What always the same answer would score: a model that beats the base may not beat that.

A base that does not know what answers look like scores next to nothing, and a model that learnt that, and nothing of
the questions, is above it.
"""

import hashlib
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import Splits, no_replay
from tunewright.metrics import AnswerShape, row_score
from tunewright.metrics.catalogue import PER_ROW, RowScore
from tunewright.metrics.labels import closed_set

MEANINGLESS = {"json_valid", "length_ratio"}  # of an answer that is always the same
COMPARED = 40  # training answers, the most frequent, or a sample where none is


def best_constant(answers: pa.Table, splits: Splits, metric: str) -> dict[str, float]:
    """By row_id of the answers, the score of the training answer that scores best for other training answers.

    Where answers are labels it is the most frequent. Empty where there is none, or the metric is not of a text alone.
    """
    if metric not in {*PER_ROW, "accuracy"} - MEANINGLESS:
        return {}
    train = pq.read_table(splits.path("train.parquet"), columns=["messages"], filters=no_replay())
    given = Counter(messages[-1]["content"] for messages in train.column("messages").to_pylist())
    if not given:
        return {}
    rows, references = (answers.column(name).to_pylist() for name in ("row_id", "reference"))
    score = row_score(metric, AnswerShape(references, closed_set(given.elements(), references)))
    constant = _best(given, score)
    return {row: float(score(constant, reference)) for row, reference in zip(rows, references, strict=True)}


def _best(given: Counter[str], score: RowScore) -> str:
    compared = sorted(given, key=lambda answer: (-given[answer], hashlib.sha256(answer.encode()).digest()))[:COMPARED]
    return max(compared, key=lambda answer: sum(given[other] * score(answer, other) for other in compared))
