"""Intervals as lines on a common scale: points are scaled here, to percents of the width, and page.html draws them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tunewright.artifacts.payloads import Comparison, Interval
from tunewright.metrics import describe
from tunewright.metrics.catalogue import AT_LEAST
from tunewright.reports.curves.charts import ticks
from tunewright.reports.pages import estimated_power, exactly, in_part, interval, number
from tunewright.tasks.verdict_page.case import title

MARGIN = 0.05  # of the scale, at both ends
TICKS = 5


class DrawnInterval(NamedTuple):
    """One interval: low, mean, high and the threshold in percents of the width, and how it is said."""

    name: str
    low: float
    mean: float
    high: float
    threshold: float | None  # what the whole interval should be right of
    style: str  # above, below or unclear
    said: str  # ".84 [.78, .88]"
    finding: str  # "above the .01 that it needs"


class Scale(NamedTuple):
    """From values to percents of the width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the position of a value; beyond the ends it is at the end."""
        return round(100 * (min(max(value, self.low), self.high) - self.low) / (self.high - self.low), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Round values and where they lie."""
        return [(self.at(value), number(value)) for value in ticks(self.low, self.high, TICKS)]


class Panel(NamedTuple):
    """Intervals of one metric under each other."""

    title: str
    zero: float | None
    ticks: list[tuple[float, str]]
    intervals: list[DrawnInterval]


def scale_of(values: Iterable[float]) -> Scale:
    """A scale with all of the values on it, and 0."""
    placed = sorted({0.0, *values})
    margin = MARGIN * (placed[-1] - placed[0]) or 1.0
    return Scale(placed[0] - margin, placed[-1] + margin)


def panel(name: str, comparisons: Sequence[Comparison]) -> Panel:
    """Differences to opponents, with the threshold of each."""
    scale = scale_of(value for each in comparisons for value in (*each.difference, each.threshold))
    return Panel(name, scale.at(0), scale.ticks(), [_drawn(each, scale) for each in comparisons])


def _drawn(comparison: Comparison, scale: Scale) -> DrawnInterval:
    low, mean, high = comparison.difference
    return DrawnInterval(
        name=in_part(title(comparison.opponent, comparison.metric), comparison.in_part),
        low=scale.at(low),
        mean=scale.at(mean),
        high=scale.at(high),
        threshold=scale.at(comparison.threshold),
        style=comparison.finding,
        said=interval(comparison.difference, signed=True, digits=comparison.digits),
        finding=_finding(comparison) + _power(comparison),
    )


def _finding(comparison: Comparison) -> str:
    threshold, found = comparison.threshold, comparison.finding
    if threshold < 0:
        if found == "above" and comparison.difference[2] < 0:
            return f"worse, but by less than {exactly(-threshold)}"
        if comparison.is_beyond:
            return f"more than {exactly(-threshold)} worse, but not shown among several guardrails"
        if found == "unclear":
            return f"may be more than {exactly(-threshold)} worse"
        said = {"above": "at least as good", "below": "not as good"}
        return f"{said[found]} (tolerance {exactly(-threshold)})"
    if found == "below" and comparison.difference[2] < 0 and comparison.opponent != AT_LEAST:
        return "worse"
    than = f" by more than {exactly(threshold)}" if threshold else ""
    return {"above": "better", "below": "not better", "unclear": "not enough evidence that it is better"}[found] + than


def _power(comparison: Comparison) -> str:
    """The power of a guardrail, or that it cannot fail; empty where the candidate is shown to be better."""
    if comparison.effect != 0 or comparison.difference[0] > 0:
        return ""
    metric = describe(comparison.metric)
    if comparison.opponent_mean == (metric.low if metric.higher_is_better else metric.high):
        return (
            f"; it cannot be worse than the {title(comparison.opponent, comparison.metric)}, which has the worst score"
        )
    return f"; {estimated_power(comparison.power)} if nothing got worse"


def panels(comparisons: Sequence[Comparison], of: str = "") -> list[Panel]:
    """A panel for each metric that is compared; `of` is what comes before the metric in its title."""
    names = dict.fromkeys(each.metric for each in comparisons)
    return [panel(f"{of}{_change(name)}", [each for each in comparisons if each.metric == name]) for name in names]


def _change(metric: str) -> str:
    """A metric in words, and what right means in its panel."""
    if describe(metric).higher_is_better:
        return f"{words(metric)}; the candidate's gain over"
    return f"{words(metric)}, less is better; the candidate's gain over"


def own_panel(metric: str, own: Mapping[str, Mapping[str, Interval]], parts: Mapping[str, str]) -> Panel | None:
    """Each contender's own score in the metric that decides; `parts` has the rows of those that did not answer all."""
    found = {name: intervals[metric] for name, intervals in own.items() if metric in intervals}
    if not found:
        return None
    scale = scale_of(value for each in found.values() for value in each)
    intervals = [plain(in_part(title(name), parts.get(name, "")), each, scale) for name, each in found.items()]
    title_of = "perplexity" if metric == "perplexity" else words(metric)  # whose words are of its logarithm
    return Panel(title_of, None, scale.ticks(), intervals)


def plain(name: str, found: Sequence[float], scale: Scale, style: str = "unclear") -> DrawnInterval:
    """An interval that is compared with no threshold."""
    low, mean, high = found
    said = interval(found, signed=False)
    return DrawnInterval(name, scale.at(low), scale.at(mean), scale.at(high), None, style, said, "")


def words(metric: str) -> str:
    """A metric in words."""
    return describe(metric).in_words
