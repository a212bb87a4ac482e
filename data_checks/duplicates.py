"""The page of the duplicates that dedupe removed: how many by similarity, and the pairs nearest to the threshold.

Of exact duplicates it has the first pairs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tunewright.reports.pages import template

SHOWN = 10  # pairs of each kind
STEPS = 20  # bars from similarity 0 to 1


class RowShown(NamedTuple):
    """A row of a pair: where it was read, and its masked excerpt."""

    file: str
    line: int
    text: str


class RemovedPair(NamedTuple):
    """A removed row and the kept row that it repeats."""

    similarity: float
    removed: RowShown
    kept: RowShown


class RemovedKind(NamedTuple):
    """The removed rows of one reason, and the pairs nearest to its threshold; of exact duplicates the first pairs."""

    reason: str
    setting: str  # of the threshold; empty where the rows are equal
    threshold: float
    bars: Sequence[tuple[float, float, int]]  # from a similarity to another: rows
    pairs: Sequence[RemovedPair]


def bars(similarities: Sequence[float], threshold: float) -> list[tuple[float, float, int]]:
    """The rows in each twentieth of the similarity, from that of the threshold up."""
    counts = [0] * STEPS
    for similarity in similarities:
        counts[min(int(round(similarity * STEPS, 9)), STEPS - 1)] += 1
    lowest = min(int(round(threshold * STEPS, 9)), STEPS - 1)
    return [(step / STEPS, (step + 1) / STEPS, counts[step]) for step in range(lowest, STEPS)]


def render(read: int, reasons: dict[str, int], kinds: Sequence[RemovedKind]) -> str:
    """The page. Excerpts are masked and made visible already; here they are escaped."""
    page = template(Path(__file__).with_name("duplicates.html"))
    return page.render(read=read, removed=sum(reasons.values()), reasons=reasons, kinds=kinds)
