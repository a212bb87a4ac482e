"""A comparison as one HTML page that loads nothing, and as Markdown."""

import html
from collections.abc import Sequence
from pathlib import Path

from tunewright.comparison.ranking import Ranked
from tunewright.comparison.trials import in_words
from tunewright.reports.curves.charts import WIDE, Chart, ChartScale, Polyline, number, ticks
from tunewright.reports.pages import template
from tunewright.reports.progress import duration

LEGEND = "± is the standard deviation over seeds; behind is the mean gap to the best over common seeds"
PRUNED = "pruned variants are not ranked: they might have caught up"
APART = 12.0  # units of the viewBox between two numbers of lines, so that both can be read
COLUMNS = ("seeds", "best step", "trainable parameters", "time", "memory")


def write_page(file: Path, ranked: Sequence[Ranked], sentence: str) -> None:
    """Writes the page: the sentence, the variants in their order, and their courses on the validation rows."""
    page = template(Path(__file__).with_suffix(".html")).render(
        sentence=sentence,
        rows=[{"variant": each.variant, "state": each.state, **row(each)} for each in ranked],
        notes=notes(ranked),
        chart=_chart(ranked),
        trials=[trial for each in ranked for trial in each.trials],
    )
    file.write_text(page, encoding="utf-8")


def markdown(ranked: Sequence[Ranked]) -> str:
    """The variants in their order as a table."""
    names = list(row(ranked[0]))
    lines = [f"| variant | {' | '.join(names)} |", f"|---|{'---:|' * len(names)}"]
    lines += [f"| {html.escape(each.variant)} | {' | '.join(row(each).values())} |" for each in ranked]
    return "\n".join([*lines, "", notes(ranked)])


def notes(ranked: Sequence[Ranked]) -> str:
    """Return the notes to the table, or "" if it needs none."""
    said = [LEGEND] if any(each.deviation is not None for each in ranked) else []
    said += [PRUNED] if any(each.state == "pruned" for each in ranked) else []
    return f"{'; '.join(said)}." if said else ""


def row(ranked: Ranked) -> dict[str, str]:
    """Return the table row of a variant, by column head."""
    first, measure = ranked.trials[0], in_words(ranked.trials[0].measure)
    if ranked.state != "finished":
        last = first.looks[-1] if first.looks else None
        seen = f"{number(last.value)} at step {last.step} of {last.planned}" if last else ""
        return {f"validation {measure}": seen, "behind": ranked.state, **dict.fromkeys(COLUMNS, "")}
    spread = "" if ranked.deviation is None else f" ± {ranked.deviation:.2g}"
    told = {True: "", False: ", within noise", None: ""}[ranked.beaten]
    return {
        f"validation {measure}": f"{number(ranked.mean)}{spread}",
        "behind": f"{ranked.behind:.2g}{told}" if ranked.behind else "best",
        "seeds": str(len(ranked.values)),
        "best step": ", ".join(str(trial.best_step) for trial in ranked.trials),
        "trainable parameters": f"{ranked.learning:,}" if ranked.learning else "",
        "time": duration(ranked.seconds),
        "memory": f"{first.peak_bytes / 1e9:.2f} GB" if first.peak_bytes else "",
    }


def _chart(ranked: Sequence[Ranked]) -> Chart | None:
    """The courses on the validation rows, by percent of the planned steps: the best variant's above all others."""
    courses = [(rank, each, trial) for rank, each in enumerate(ranked, 1) for trial in each.trials if trial.looks]
    values = [look.value for _, _, trial in courses for look in trial.looks]
    if not values:
        return None
    scale = ChartScale(WIDE, (0, 100), (min(values), max(values)))
    lines: list[Polyline] = []
    for rank, each, trial in courses:
        style = "best" if each is ranked[0] and each.state == "finished" else each.state
        series = [(100 * look.share, look.value) for look in trial.looks]
        dots = [
            (scale.x(x), scale.y(value), f"{trial.variant}, seed {trial.seed}, step {look.step:,}: {number(value)}")
            for (x, value), look in zip(series, trial.looks, strict=True)
        ]
        end_x, end_y, _ = dots[-1]
        named = [line.dots[-1] for line in lines if line.name]
        is_taken = any(abs(x - end_x) < APART and abs(y - end_y) < APART for x, y, _ in named)
        lines.append(Polyline(style, scale.points(series), dots, "" if is_taken else str(rank)))
    return Chart(
        title=f"Validation {in_words(ranked[0].trials[0].measure)}",
        unit="",
        width=WIDE,
        lines=lines[::-1],
        x_ticks=[(scale.x(tick), f"{tick}%") for tick in range(0, 101, 20)],
        y_ticks=[(scale.y(tick), number(tick)) for tick in ticks(scale.low, scale.high, 6)],
        hovers=[],
        marks=[],
    )
