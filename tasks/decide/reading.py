"""The scores in an answers.parquet: of each row, and of all of them between their bounds."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np
import pyarrow as pa

from tunewright.metrics import describe
from tunewright.metrics.baseline import baseline
from tunewright.metrics.intervals import Floats, by_cluster
from tunewright.metrics.rows import RAISE_LIMIT, cut_off, scores
from tunewright.tasks.decide.comparison import Interval

OF_ALL = {"length_ratio"}  # is that of all characters
FEW, SHARE = 3, 0.02  # rows, and share of them, under which cut off answers change no figure that is shown


def by_row(answers: pa.Table, metric: str) -> dict[str, float]:
    """The score of each row; of perplexity its mean negative log-likelihood in nats per token."""
    return dict(zip(answers.column("row_id").to_pylist(), scores(answers, metric).tolist(), strict=True))


def general_rows(general: pa.Table, metric: str) -> dict[str, float]:
    """The score of each general task or text."""
    rows = general.select(["row_id", "metric", "score"]).to_pylist()
    return {row["row_id"]: row["score"] for row in rows if row["metric"] == metric}


def clusters(answers: pa.Table) -> dict[str, int]:
    """The cluster of each row."""
    return dict(zip(answers.column("row_id").to_pylist(), answers.column("cluster").to_pylist(), strict=True))


def warnings(answers: pa.Table, metric: str, constant: Mapping[str, float]) -> tuple[str, ...]:
    """Warn of candidate's answers that make the comparison doubtful.

    Many were cut off before their references end; or `constant`, by row_id the score of always the same answer, is no
    worse.
    """
    return (*_cut(answers), *_no_better(answers, metric, constant))


def _cut(answers: pa.Table) -> Iterator[str]:
    number = int(cut_off(answers).sum())
    if number >= max(FEW, SHARE * len(answers)):
        longest = max(answers.column("num_tokens").to_pylist())
        yield (
            f"{number:,} of {len(answers):,} answers were cut off at {longest:,} tokens, before their references end; "
            f"{RAISE_LIMIT}"
        )


def _no_better(answers: pa.Table, metric: str, constant: Mapping[str, float]) -> Iterator[str]:
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
    found = {metric: scores(answers, metric) for metric in metrics}
    intervals = {
        metric: _interval(answers, metric, of_rows, confidence)
        for metric, of_rows in found.items()
        if len(of_rows) and np.isfinite(of_rows).all() and metric not in OF_ALL
    }
    if perplexity := intervals.get("perplexity"):
        low, mean, high = map(math.exp, perplexity)
        intervals["perplexity"] = low, mean, high
    return intervals


def _interval(answers: pa.Table, metric: str, of_rows: Floats, confidence: float) -> Interval:
    clusters, described = answers.column("cluster").to_numpy(), describe(metric)
    weights = (
        answers.column("num_reference_tokens").to_numpy().astype(float)
        if metric == "perplexity"
        else np.ones(len(of_rows))
    )
    evidence = by_cluster(of_rows * weights, clusters, weights)
    pair = described.low, described.high
    if not np.isin(of_rows, pair).all():  # graded scores seldom come near both ends
        pair = float(of_rows.min()), float(of_rows.max())
    mean, (low, high) = evidence.mean(), evidence.with_pair(*pair).bounds(confidence)
    return max(described.low, min(low, mean)), mean, min(described.high, max(high, mean))
