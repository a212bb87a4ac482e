"""The scores in an answers.parquet: of each row, and of all of them between their bounds.

And of what always the same answer would score: a base that does not know what answers look like scores next to nothing,
and a model that learnt that, and nothing of the questions, is above it.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import Splits, no_replay
from tunewright.metrics import AnswerShape, describe, row_score
from tunewright.metrics.baseline import baseline
from tunewright.metrics.catalogue import PER_ROW
from tunewright.metrics.intervals import Floats, by_cluster
from tunewright.metrics.labels import closed_set
from tunewright.metrics.rows import RAISE_LIMIT, cut_off, scores
from tunewright.tasks.decide.comparison import Interval

OF_ALL = {"length_ratio"}  # is that of all characters
MEANINGLESS = {"json_valid", "length_ratio"}  # of an answer that is always the same
COMPARED = 40  # training answers, the most frequent, or a sample where none is
FEW, SHARE = 3, 0.02  # rows, and share of them, under which cut off answers change no figure that is shown


def by_row(answers: pa.Table, metric: str) -> dict[str, float]:
    """The score of each row; of perplexity its mean negative log-likelihood in nats per token."""
    return dict(zip(answers.column("row_id").to_pylist(), scores(answers, metric).tolist(), strict=True))


def general_rows(general: pa.Table, metric: str) -> dict[str, float]:
    """The score of each general task or text."""
    rows = general.select(["row_id", "metric", "score"]).to_pylist()
    return {row["row_id"]: row["score"] for row in rows if row["metric"] == metric}


def warnings(answers: pa.Table, metric: str, constant: Mapping[str, float]) -> Iterator[str]:
    """Warn of candidate's answers that make the comparison doubtful.

    Many were cut off before their references end; or `constant`, by row_id the score of always the same answer, is no
    worse.
    """
    number = int(cut_off(answers).sum())
    if number >= max(FEW, SHARE * len(answers)):
        longest = max(answers.column("num_tokens").to_pylist())
        yield (
            f"{number:,} of {len(answers):,} answers were cut off at {longest:,} tokens, before their references end; "
            f"{RAISE_LIMIT}"
        )
    if not constant:
        return
    theirs, own = fmean(constant.values()), fmean(by_row(answers, metric).values())
    if describe(metric).gain(own, theirs) <= 0:
        yield (
            f"the candidate does not beat the {baseline(metric)}: {describe(metric).in_words} {own:.2f}, baseline "
            f"{theirs:.2f}; read its answers, or choose another gate.metric"
        )


def own_intervals(answers: pa.Table, metrics: Sequence[str], confidence: float) -> dict[str, Interval]:
    """Each metric of one contender between its bounds; of perplexity over all tokens, as it is scored.

    A metric with scores that are no finite numbers has none, and one that is not the mean of its rows' scores.
    """
    intervals: dict[str, Interval] = {}
    for metric in metrics:
        of_rows = scores(answers, metric)
        if len(of_rows) and np.isfinite(of_rows).all() and metric not in OF_ALL:
            intervals[metric] = _interval(answers, metric, of_rows, confidence)
    if perplexity := intervals.get("perplexity"):
        low, mean, high = map(math.exp, perplexity)
        intervals["perplexity"] = low, mean, high
    return intervals


def _interval(answers: pa.Table, metric: str, of_rows: Floats, confidence: float) -> Interval:
    clusters, described = answers.column("cluster").to_numpy(), describe(metric)
    weights = np.ones(len(of_rows))
    if metric == "perplexity":
        weights = answers.column("num_reference_tokens").to_numpy().astype(float)
    evidence = by_cluster(of_rows * weights, clusters, weights)
    pair = described.low, described.high
    if not np.isin(of_rows, pair).all():  # graded scores seldom come near both ends
        pair = float(of_rows.min()), float(of_rows.max())
    mean, (low, high) = evidence.mean(), evidence.with_pair(*pair).bounds(confidence)
    return max(described.low, min(low, mean)), mean, min(described.high, max(high, mean))


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
    compared = sorted(given, key=lambda answer: (-given[answer], hashlib.sha256(answer.encode()).digest()))[:COMPARED]
    constant = max(compared, key=lambda answer: sum(given[other] * score(answer, other) for other in compared))
    return {row: float(score(constant, reference)) for row, reference in zip(rows, references, strict=True)}
