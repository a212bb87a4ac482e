"""What always the same answer would score: where answers are labels, a model that beats the base may not beat it.

A base that does not know the labels scores nothing, so that one that learnt their names, and nothing else, is above it.
"""

from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.artifacts import Splits, no_replay
from tasks.metrics import Shape, row_score
from tasks.metrics.catalogue import PER_ROW
from tasks.metrics.labels import closed_set
from tasks.metrics.texts import plain

MEANINGLESS = {"json_valid", "length_ratio"}  # of an answer that is always the same


def most_frequent(answers: pa.Table, splits: Splits, metric: str) -> dict[str, float]:
    """By row_id of the answers, the score of the most frequent training answer.

    Empty where the answers are no closed set of labels, or the metric is not of an answer's text alone.
    """
    if metric not in {*PER_ROW, "accuracy"} - MEANINGLESS:
        return {}
    train = pq.read_table(splits.path("train.parquet"), columns=["messages"], filters=no_replay())
    given = Counter(plain(messages[-1]["content"]) for messages in train.column("messages").to_pylist())
    rows, references = (answers.column(name).to_pylist() for name in ("row_id", "reference"))
    labels = closed_set(given.elements(), references)
    if not labels:
        return {}
    score, constant = row_score(metric, Shape(references, labels)), given.most_common(1)[0][0]
    return {row: float(score(constant, reference)) for row, reference in zip(rows, references, strict=True)}
