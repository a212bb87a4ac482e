"""Curves as SVG: points are scaled here, page.html draws them."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tunewright.reports.curves.reading import SMOOTHED, Curves, number

Series = Sequence[tuple[float, float]]

HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 230, 56, 14, 12, 30  # in units of the viewBox
WIDE, NARROW = 920, 440
MOST_POINTS = 300  # of a line
MOST_HOVERS = 80  # places of a chart that say their value under the pointer

# Figure of metrics.jsonl -> title and unit.
FIGURES = {
    "eval_exact_match": ("Validation exact match", ""),
    "eval_token_f1": ("Validation Token F1", ""),
    "eval_chrf": ("Validation chrF", ""),
    "reward_std": ("Standard deviation of rewards in a group", ""),
    "no_signal_share": ("Share of groups with equal rewards", ""),
    "answer_tokens": ("Length of answers", "tokens"),
    "cut_share": ("Share of answers that were cut", ""),
    "kl": ("KL divergence from the reference", "nats per token"),
    "clipped_share": ("Share of clipped tokens", ""),
    "vllm_gap": ("Distance from the vLLM server's log-likelihoods", "nats per token"),
    "eval_reward_accuracy": ("Validation pairs ranked right", ""),
    "eval_reward_margin": ("Validation reward margin", ""),
    "eval_reward_chosen": ("Validation reward of chosen answers", ""),
    "eval_reward_rejected": ("Validation reward of rejected answers", ""),
    "learning_rate": ("Learning rate", ""),
    "grad_norm": ("Gradient norm, before clipping", ""),
    "tokens_per_second": ("Speed", "tokens/s"),
    "memory_bytes": ("Memory", "GB"),
}

OF_LABELS = {  # of a training on labelled answers, in place of these
    "kl": ("KL divergence from the reference", "nats per answer"),
    "eval_reward_accuracy": ("Validation answers on the right side of the KL divergence", ""),
    "eval_reward_chosen": ("Validation reward of desirable answers", ""),
    "eval_reward_rejected": ("Validation reward of undesirable answers", ""),
}


@dataclass(frozen=True)
class Polyline:
    """A line of a chart: its CSS class, points as SVG wants them, dots with what they say, and a name at its end."""

    style: str
    points: str
    dots: list[tuple[float, float, str]]
    name: str = ""


@dataclass(frozen=True)
class Chart:
    """One chart, scaled to its viewBox."""

    title: str
    unit: str
    width: int
    lines: list[Polyline]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    hovers: list[tuple[float, float, str]]  # left, width, text
    marks: list[tuple[float, str, str]]  # x, CSS class, text

    height = HEIGHT
    left = LEFT
    right = property(lambda self: self.width - RIGHT)
    top = TOP
    bottom = HEIGHT - BOTTOM


class ChartScale:
    """From steps and values to the viewBox; values outside of the range lie on its edge."""

    def __init__(self, width: int, steps: tuple[int, int], values: tuple[float, float]) -> None:
        self.width, self.steps = width, steps
        low, high = values
        margin = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        self.low = max(0.0, low - margin) if low >= 0 else low - margin
        self.high = high + margin

    def x(self, step: float) -> float:
        """Return the position of a step."""
        first, last = self.steps
        return round(LEFT + (step - first) / max(1, last - first) * (self.width - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Return the position of a value."""
        inside = min(max(value, self.low), self.high)
        return round(TOP + (self.high - inside) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM), 1)

    def points(self, series: Series) -> str:
        """The points of a polyline."""
        return " ".join(f"{self.x(step)},{self.y(value)}" for step, value in series)


def charts(curves: Curves) -> list[Chart]:
    """The losses or rewards, then each other figure that there is."""
    found = [_losses(curves)] if curves.steps else []
    for name, (title, unit) in (FIGURES | (OF_LABELS if curves.is_of_labels else {})).items():
        series = curves.series(name)
        if series:
            scaled = [(step, value / 1e9) for step, value in series] if unit == "GB" else series
            found.append(_single(curves, title, unit, scaled, dotted=name.startswith("eval_")))
    return found


def _losses(curves: Curves) -> Chart:
    train, evaluations = curves.series(curves.measured), curves.series(f"eval_{curves.measured}")
    smooth = means(train, SMOOTHED)
    values = [value for _, value in smooth] + [value for _, value in evaluations]
    scale = ChartScale(WIDE, _steps(curves), (min(values), max(values)))
    lines = [
        Polyline("raw", scale.points(thinned(train)), []),
        Polyline("train", scale.points(smooth), []),
        Polyline("look", scale.points(evaluations), _dots(scale, evaluations, f"validation {curves.measured}")),
    ]
    return _chart(
        curves,
        _title(curves),
        "",
        scale,
        lines,
        train,
        f"training {curves.measured}",
    )


def _title(curves: Curves) -> str:
    if curves.is_of_rewards:
        return "Mean reward"
    if curves.is_of_labels:
        return "Loss on labelled answers"
    return "Loss on pairs" if curves.is_of_pairs else "Loss, nats per token"


def _single(curves: Curves, title: str, unit: str, series: Series, *, dotted: bool) -> Chart:
    thin = thinned(series)
    values = sorted(value for _, value in thin)
    # One spike would press all else to the ground; it stays to be seen on the upper edge.
    high = values[-1] if dotted else min(values[-1], 3 * values[math.ceil(0.98 * (len(values) - 1))])
    scale = ChartScale(NARROW, _steps(curves), (values[0], high))
    dots = _dots(scale, series, "") if dotted else []
    lines = [Polyline("look" if dotted else "train", scale.points(thin), dots)]
    return _chart(curves, title, unit, scale, lines, [] if dotted else series, "")


def _chart(
    curves: Curves, title: str, unit: str, scale: ChartScale, lines: list[Polyline], hovered: Series, name: str
) -> Chart:
    marks = [(scale.x(curves.best_step), "best", f"best step {curves.best_step}")]
    if curves.stopped_early:
        last = curves.steps[-1]["step"]
        marks.append((scale.x(last), "stop", f"stopped early at step {last} of {curves.planned}"))
    return Chart(
        title=title,
        unit=unit,
        width=scale.width,
        lines=lines,
        x_ticks=[
            (scale.x(tick), f"{tick:,.0f}") for tick in ticks(*scale.steps, scale.width // 110) if tick == int(tick)
        ],
        y_ticks=[(scale.y(tick), number(tick)) for tick in ticks(scale.low, scale.high, 6)],
        hovers=_hovers(scale, hovered, name, unit),
        marks=marks,
    )


def _steps(curves: Curves) -> tuple[int, int]:
    first = min(line["step"] for line in (curves.steps[0], *curves.evaluations[:1]))
    return first, curves.steps[-1]["step"]


def _dots(scale: ChartScale, series: Series, name: str) -> list[tuple[float, float, str]]:
    return [
        (scale.x(step), scale.y(value), f"step {step:,}: {name} {number(value)}".replace("  ", " "))
        for step, value in series
    ]


def _hovers(scale: ChartScale, series: Series, name: str, unit: str) -> list[tuple[float, float, str]]:
    found = []
    for part in _parts(series, MOST_HOVERS):
        first, last = part[0][0], part[-1][0]
        left, right = scale.x(first - 0.5), scale.x(last + 0.5)
        steps = f"step {first:,}" if first == last else f"steps {first:,} to {last:,}"
        mean = number(statistics.fmean(value for _, value in part))
        found.append((left, round(right - left, 1), " ".join(filter(None, [f"{steps}:", name, mean, unit]))))
    return found


def _parts(series: Series, most: int) -> list[Series]:
    size = max(1, math.ceil(len(series) / most))
    return [series[start : start + size] for start in range(0, len(series), size)]


def means(series: Series, most: int) -> list[tuple[float, float]]:
    """The series as at most so many means of neighbours, each at the middle of its steps."""
    return [
        ((part[0][0] + part[-1][0]) / 2, statistics.fmean(value for _, value in part)) for part in _parts(series, most)
    ]


def thinned(series: Series, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most so many points: of neighbours the lowest and the highest, in their order."""
    if len(series) <= most:
        return list(series)
    found: list[tuple[float, float]] = []
    for part in _parts(series, most // 2):
        low, high = min(part, key=lambda item: item[1]), max(part, key=lambda item: item[1])
        found += sorted({low, high})
    return found


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers within low..high, about so many."""
    if high <= low:
        return [low]
    raw = (high - low) / max(1, about)
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step)
    return [round(at * step, 12) for at in range(first, math.floor(high / step) + 1)]
