"""Whether the candidate is better, not better, or nobody can tell yet: a paired decision on the sealed test rows.

Each bound of an interval is one-sided at gate.confidence. The candidate is promoted if the lower bound of its
difference to the base, and to the champion where there is one, is above gate.margin: at 0.95 an equal model is promoted
at most one time in twenty. It is kept back if the upper bound of a difference is not above the margin. Else the test
rows do not tell, and the verdict says how many would.

Higher is better, but for perplexity: there a row's score is its mean negative log-likelihood in nats a token, and a
difference is opponent - candidate, so that a positive one is always in the candidate's favour.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from pydantic import BaseModel, ConfigDict

from tasks.artifacts import Answers, Verdict
from tasks.caching import cached
from tasks.config import Gate, Metric
from tasks.errors import ConfigError, retry_transient
from tasks.intervals import Floats, bounds, by_cluster, mcnemar, rows_needed

SMALLEST_EFFECT = 0.01  # nobody collects the rows that a smaller one needs
NAMES: dict[Metric, str] = {
    "exact_match": "exact match",
    "token_f1": "token F1",
    "chrf": "chrF",
    "json_valid": "JSON validity",
    "perplexity": "loss in nats a token",
}

Interval = tuple[float, float, float]  # low, mean, high


class Comparison(BaseModel):
    """The candidate beside one opponent on the same rows; a positive difference is in the candidate's favour."""

    model_config = ConfigDict(frozen=True)

    opponent: str
    finding: Literal["better", "not better", "unclear"]
    difference: Interval
    opponent_mean: float
    wins: int
    losses: int
    ties: int
    mcnemar_p: float | None  # exact and one-sided; None unless all scores are 0 or 1
    rows_needed: int | None  # None unless the finding is unclear


class Decision(BaseModel):
    """The outcome of all comparisons, and the sentence that says it."""

    model_config = ConfigDict(frozen=True)

    decision: Literal["promote", "keep", "inconclusive"]
    sentence: str
    metric: Metric
    margin: float
    confidence: float  # of each bound
    num_rows: int
    num_clusters: int
    comparisons: tuple[Comparison, ...]
    rows_needed: int | None


def decide_scores(
    candidate: Mapping[str, float],
    opponents: Mapping[str, Mapping[str, float]],
    clusters: Mapping[str, int],
    gate: Gate,
) -> Decision:
    """The decision from the scores by row id, of the candidate and of each opponent by its name.

    Raises ValueError where there is nothing to compare, a score is no finite number, or the rows are not the same.
    """
    _check(candidate, opponents, clusters)
    rows = sorted(candidate)
    own, cluster_of = np.array([candidate[row] for row in rows]), np.array([clusters[row] for row in rows])
    comparisons = tuple(
        _compare(name, own, np.array([scores[row] for row in rows]), cluster_of, gate)
        for name, scores in opponents.items()
    )
    findings = {comparison.finding for comparison in comparisons}
    decision = "keep" if "not better" in findings else "inconclusive" if "unclear" in findings else "promote"
    return Decision(
        decision=decision,
        sentence=_sentence(decision, comparisons, own, gate),
        metric=gate.metric,
        margin=gate.margin,
        confidence=gate.confidence,
        num_rows=len(rows),
        num_clusters=len(np.unique(cluster_of)),
        comparisons=comparisons,
        rows_needed=max(c.rows_needed or 0 for c in comparisons) if decision == "inconclusive" else None,
    )


def _check(
    candidate: Mapping[str, float], opponents: Mapping[str, Mapping[str, float]], clusters: Mapping[str, int]
) -> None:
    if not candidate or not opponents:
        raise ValueError(f"{len(candidate)} rows and {len(opponents)} opponents: there is nothing to compare")
    for name, scores in {"candidate": candidate, **opponents, "clusters": clusters}.items():
        if differing := scores.keys() ^ candidate.keys():
            raise ValueError(f"{name} and candidate differ in {len(differing)} rows, {min(differing)} for one")
        if bad := [row for row in candidate if not math.isfinite(scores[row])]:
            raise ValueError(f"{name} scores {scores[bad[0]]} on row {bad[0]}; a score is a finite number")


def _compare(name: str, candidate: Floats, opponent: Floats, clusters: np.ndarray, gate: Gate) -> Comparison:
    differences = opponent - candidate if gate.metric == "perplexity" else candidate - opponent
    largest = float(np.abs(differences).max())
    evidence = by_cluster(differences, clusters).with_pair(-largest, largest)
    mean, [(low, high)] = float(differences.mean()), bounds([evidence], gate.confidence)
    low, high = min(low, mean), max(high, mean)  # the imagined pair draws the interval towards 0
    finding = "better" if low > gate.margin else "not better" if high <= gate.margin else "unclear"
    effect = max(abs(mean - gate.margin), SMALLEST_EFFECT)
    needed = max(rows_needed(effect, evidence.row_variance(), gate.confidence), len(differences) + 1)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(
        opponent=name,
        finding=finding,
        difference=(low, mean, high),
        opponent_mean=float(opponent.mean()),
        wins=wins,
        losses=losses,
        ties=len(differences) - wins - losses,
        mcnemar_p=mcnemar(wins, losses) if np.isin([candidate, opponent], (0, 1)).all() else None,
        rows_needed=needed if finding == "unclear" else None,
    )


def _sentence(decision: str, comparisons: tuple[Comparison, ...], own: Floats, gate: Gate) -> str:
    metric, than = (NAMES[gate.metric], "better than" if gate.metric == "perplexity" else "above")
    what, on = f"{metric} {_number(float(own.mean()))}", f"on {len(own)} test rows"
    if decision == "promote":
        return f"Promoted: {what} is {' and '.join(f'{_gain(c)} {than} the {c.opponent}' for c in comparisons)} {on}."
    worst = min(
        (c for c in comparisons if c.finding == ("not better" if decision == "keep" else "unclear")),
        key=lambda comparison: (-(comparison.rows_needed or 0), comparison.difference[1]),
    )
    theirs = f"the {worst.opponent}'s {_number(worst.opponent_mean)}"
    by = f" by more than {_number(gate.margin)}" if gate.margin else ""
    if decision == "keep":
        return f"Kept: {what} is not {than} {theirs}{by}: {_gain(worst)} {on}."
    return (
        f"Inconclusive: {what} is not surely {than} {theirs}{by}: {_gain(worst)} {on}; "
        f"about {_rounded_up(worst.rows_needed or 0):,} would be needed."
    )


def _gain(comparison: Comparison) -> str:
    low, mean, high = comparison.difference
    digits = 3 if any(0 < abs(number) < 0.005 for number in comparison.difference) else 2
    return f"{'+' if mean >= 0 else ''}{_number(mean, digits)} [{_number(low, digits)}, {_number(high, digits)}]"


def _number(number: float, digits: int = 2) -> str:
    """.84, -.05, 1.00"""
    return f"{round(number, digits) + 0.0:.{digits}f}".replace("0.", ".", 1) if abs(number) < 1 else f"{number:.2f}"


def _rounded_up(rows: int) -> int:
    """To two digits, since it is no more than an estimate."""
    unit = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // unit) * unit


def by_row(answers: pa.Table, metric: Metric) -> dict[str, float]:
    """The score of each row; of perplexity its mean negative log-likelihood in nats a token.

    Raises ConfigError where the answers have no such score.
    """
    rows = answers.column("row_id").to_pylist()
    if metric == "perplexity":
        pairs = zip(answers.column("nll").to_pylist(), answers.column("num_reference_tokens").to_pylist(), strict=True)
        return dict(zip(rows, (nll / num_tokens for nll, num_tokens in pairs), strict=True))
    if metric not in answers.column_names:
        there = ", ".join(_measured(answers))
        raise ConfigError(f"gate.metric={metric} was not measured on these rows, only {there} (json_valid needs JSON)")
    return dict(zip(rows, answers.column(metric).to_pylist(), strict=True))


def _measured(answers: pa.Table) -> list[Metric]:
    return [metric for metric in get_args(Metric) if metric == "perplexity" or metric in answers.column_names]


def own_intervals(answers: pa.Table, confidence: float) -> dict[Metric, Interval]:
    """Each metric of one contender between its bounds; of perplexity over all tokens, as it is scored."""
    clusters, num_tokens = (answers.column(name).to_numpy() for name in ("cluster", "num_reference_tokens"))
    metrics, evidence = _measured(answers), []
    for metric in metrics:
        scores = np.array([*by_row(answers, metric).values()])
        if metric == "perplexity":
            mean = by_cluster(scores * num_tokens, clusters, num_tokens)
            evidence.append((mean, mean.with_pair(scores.min(), scores.max())))
        else:
            mean = by_cluster(scores, clusters)
            evidence.append((mean, mean.with_pair(0.0, 1.0)))
    found = bounds([widened for _, widened in evidence], confidence)
    intervals: dict[Metric, Interval] = {
        metric: (min(low, mean.mean()), mean.mean(), max(high, mean.mean()))
        for metric, (mean, _), (low, high) in zip(metrics, evidence, found, strict=True)
    }
    low, mean, high = intervals["perplexity"]
    intervals["perplexity"] = (math.exp(low), math.exp(mean), math.exp(high))
    return intervals


@task(
    name="decide",
    task_run_name="decide {gate.metric} margin={gate.margin}",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=retry_transient,
)
@cached(libraries=("numpy", "scipy", "pyarrow"))
def decide(folder: Path, candidate: Answers, base: Answers, champion: Answers | None, gate: Gate) -> Verdict:
    """The verdict on the candidate; verdict.json has all that led to it.

    Raises ConfigError if gate.metric was not measured on these rows.
    """
    given = {"candidate": candidate, "base": base} | ({"champion": champion} if champion else {})
    tables = {name: pq.read_table(answers.path("answers.parquet")) for name, answers in given.items()}
    scores = {name: by_row(table, gate.metric) for name, table in tables.items()}
    rows = tables["candidate"]
    clusters = dict(zip(rows.column("row_id").to_pylist(), rows.column("cluster").to_pylist(), strict=True))
    decision = decide_scores(scores.pop("candidate"), scores, clusters, gate)
    own = {name: own_intervals(table, gate.confidence) for name, table in tables.items()}
    verdict = decision.model_dump(mode="json") | {"own": own}
    (folder / "verdict.json").write_text(json.dumps(verdict, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Verdict(
        decision=decision.decision,
        sentence=decision.sentence,
        metric=gate.metric,
        differences={comparison.opponent: comparison.difference for comparison in decision.comparisons},
        intervals={name: intervals[gate.metric] for name, intervals in own.items()},
        rows_needed=decision.rows_needed,
    )
