"""Interim analyses: a contender that is only prompted ends once its comparison with the candidate is settled.

The test rows are answered in blocks, whole clusters in an order that is random, fixed, and equal for all contenders.
After each block but the last, the rows so far are compared as the decision compares them. Settled is what it concludes
of a prompt by a test: that the candidate is at least as good, but for gate.tolerance, or that the prompt is better.

All interim analyses together spend SPENT of alpha in equal parts, and the comparison of all rows has the rest. So a
contender that is ended is misjudged no more often than one test errs, by the union bound (alpha spending: Lan & DeMets
1983, Biometrika 70:659; Gaffke's bound has no joint distribution over the analyses that would take less than a sum).
"""

import hashlib
import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa

from tunewright.artifacts import EndingRule
from tunewright.config.gate import spending
from tunewright.metrics import describe
from tunewright.metrics.intervals import measured
from tunewright.metrics.paired import Paired, by_row

SPENT = 0.2  # share of alpha
FEWEST = 32  # rows, with fewer of which a comparison seldom settles

Places = np.ndarray  # of rows in their table, [rows]


def analysed(num_rows: int) -> list[int]:
    """After how many of the test rows there is an interim analysis: 3/4, 1/2, 1/4, 1/8, ..., the fewest first."""
    numbers = {math.ceil(0.75 * num_rows), *(math.ceil(num_rows / 2**k) for k in range(1, num_rows.bit_length()))}
    return sorted(number for number in numbers if number >= FEWEST)


def blocks(row_ids: Sequence[str], clusters: Sequence[int]) -> list[Places]:
    """The test rows that are answered before each analysis, after those of the block before.

    The order is by the hash of the first row_id of a cluster, so it depends neither on the rows' order nor on other
    clusters.
    """
    first: dict[int, str] = {}
    for row, cluster in zip(row_ids, clusters, strict=True):
        first[cluster] = min(row, first.get(cluster, row))
    drawn = {cluster: hashlib.sha256(row.encode()).hexdigest() for cluster, row in first.items()}
    order = sorted(range(len(row_ids)), key=lambda place: (drawn[clusters[place]], place))
    ends = {0, len(order)}
    for end in analysed(len(order)):  # and to the end of the cluster
        while end < len(order) and clusters[order[end]] == clusters[order[end - 1]]:
            end += 1
        ends.add(end)
    return [np.sort(order[start:end]) for start, end in pairwise(sorted(ends))]


def alpha_shares(num_blocks: int) -> list[float]:
    """The share of alpha of the comparison after each block; all of it where there is one block."""
    num_interim = num_blocks - 1
    return [SPENT / num_interim] * num_interim + [1 - SPENT] if num_interim else [1.0]


def is_settled(answers: pa.Table, candidate: pa.Table, rule: EndingRule, alpha_share: float) -> bool:
    """Whether these rows tell what the decision concludes of a contender that gave `answers`.

    Never by a score without a worst value: its bound is an approximation that needs many rows.
    """
    if rule.metric not in measured(answers):  # which the decision refuses
        return False
    described = describe(rule.metric)
    if math.isinf(described.high - described.low):
        return False
    own, theirs = by_row(candidate, rule.metric), by_row(answers, rule.metric)
    clusters = dict(zip(*(answers.column(name).to_pylist() for name in ("row_id", "cluster")), strict=True))
    both = np.array([(own.get(row, math.nan), theirs[row]) for row in clusters], float)
    if not np.isfinite(both).all():  # of which the decision says that they cannot be compared
        return False
    paired = Paired(both[:, 0], both[:, 1], np.array([*clusters.values()]))
    low, mean, high = paired.interval(rule.metric, spending(rule.confidence, alpha_share))
    return (low > -rule.tolerance and mean >= 0) or high < 0
