"""The curves of training as one page, and warnings in plain words."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.reports.curves.advice import TrainingWarning, is_cut_short, is_falling, is_level, warnings
from tunewright.reports.curves.charts import charts
from tunewright.reports.curves.reading import Curves, no_warnings, number, read
from tunewright.reports.pages import template

__all__ = [
    "Curves",
    "TrainingWarning",
    "is_cut_short",
    "is_falling",
    "is_level",
    "no_warnings",
    "picture",
    "read",
    "warnings",
    "write_page",
]

FOLDER = Path(__file__).parent
WORST = 10  # rows behind spikes that are listed


def write_page(file: Path, curves: Curves, warnings: Sequence[TrainingWarning]) -> None:
    """Writes the page: warnings first, then the charts, the evaluations, rows behind spikes, and what was chosen."""
    page = template(FOLDER / "page.html").render(
        curves=curves,
        warnings=warnings,
        charts=charts(curves),
        evaluations=_evaluations(curves),
        worst=curves.worst()[:WORST],
        samples=_samples(curves),
        status=curves.status,
    )
    file.write_text(page, encoding="utf-8")


def _samples(curves: Curves) -> list[tuple[int, dict[str, Any]]]:
    """The answers of the first step, of the best and of the last that drew some, the best rewarded first."""
    found = {line["step"]: line["sample"] for line in curves.steps if "sample" in line}
    shown = []
    for step in sorted({min(found), max(found), *({curves.best_step} & found.keys())} if found else ()):
        by_reward = sorted(zip(found[step]["rewards"], found[step]["answers"], strict=True), key=lambda one: -one[0])
        shown.append((step, {**found[step], "shown": by_reward}))
    return shown


def picture(curves: Curves) -> str:
    """The first chart as a data URI."""
    svg = template(FOLDER / "picture.svg").render(chart=charts(curves)[0])
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _evaluations(curves: Curves) -> list[dict[str, Any]]:
    """The evaluations as a table's rows, with the mean training loss, or reward, since the one before."""
    found, since = [], 0
    for evaluation in curves.evaluations:
        losses = [line[curves.measured] for line in curves.steps if since < line["step"] <= evaluation["step"]]
        since = evaluation["step"]
        metric = evaluation.get(f"eval_{curves.best_by}") if curves.best_by != curves.measured else None
        found.append(
            {
                "step": evaluation["step"],
                "train": number(sum(losses) / len(losses)) if losses else "",
                "validation": number(evaluation[f"eval_{curves.measured}"]),
                "metric": "" if metric is None else number(metric),
                "best": evaluation["step"] == curves.best_step,
            }
        )
    return found
