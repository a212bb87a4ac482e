"""Why the candidate was promoted or not, as a page for a person: figures, answers row by row, and what to try next.

case.py reads what the stages handed on, drawing.py draws the intervals, wins.py picks rows, mistakes.py and
suggestions.py say what to try next; page.py and page.html put it together. It decides nothing.
"""

import json
from pathlib import Path

from prefect.runtime import flow_run

from tunewright.artifacts import RunArtifacts, VerdictPage
from tunewright.machine import addresses
from tunewright.store.stage import stage
from tunewright.tasks.verdict_page.case import Case
from tunewright.tasks.verdict_page.mistakes import Mistakes
from tunewright.tasks.verdict_page.page import render
from tunewright.tasks.verdict_page.suggestions import suggestions
from tunewright.tasks.verdict_page.wins import shown

__all__ = ["verdict_page"]


@stage("{run.name}", libraries=("jinja2", "numpy", "pyarrow"), volatile=("report",))
def verdict_page(folder: Path, run: RunArtifacts) -> VerdictPage:
    """report.html, the page of a run, and suggestions.json, what it says to try next.

    The page says how many seconds the stages took when they ran, which is why it is no part of the content hash.
    """
    case = Case.of(run)
    made, picked = Mistakes(case), shown(case)
    tried = suggestions(case, made)
    (folder / "report.html").write_text(render(case, made, picked, tried, _run()), encoding="utf-8")
    said = [each._asdict() for each in tried]
    (folder / "suggestions.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return VerdictPage(num_rows=len(picked.rows), suggestions=tuple(f"{each.advice}: {each.because}" for each in tried))


def _run() -> tuple[str, str]:
    """The name of the run that makes the page, and its address in the pages of `tunewright up`; else empty."""
    is_kept = flow_run.id and addresses.running()
    return (str(flow_run.name), addresses.prefect_run(str(flow_run.id))) if is_kept else ("", "")
