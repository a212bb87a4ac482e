"""Why the candidate was promoted or not, as a page for a person: figures, answers row by row, and what to try next.

case.py reads what the stages handed on, drawing.py draws the intervals, wins.py picks rows, mistakes.py and
suggestions.py say what to try next, costs.py what it took; page.py and page.html put it together. It decides nothing.
"""

import json
from pathlib import Path

from prefect.runtime import flow_run

from tasks import addresses
from tasks.artifacts import (
    Adapter,
    Answers,
    Base,
    CheckedRows,
    General,
    Judged,
    Prompts,
    Rows,
    Splits,
    Tokens,
    UniqueRows,
    Verdict,
    VerdictPage,
)
from tasks.stage import stage
from tasks.verdict_page.case import Case
from tasks.verdict_page.mistakes import Mistakes
from tasks.verdict_page.page import render
from tasks.verdict_page.suggestions import suggestions
from tasks.verdict_page.wins import shown

__all__ = ["verdict_page"]


@stage("{name}", libraries=("jinja2", "numpy", "pyarrow"), volatile=("report",))
def verdict_page(
    folder: Path,
    name: str,
    rows: Rows,
    checked: CheckedRows,
    unique: UniqueRows,
    splits: Splits,
    tokens: Tokens,
    base: Base,
    adapter: Adapter,
    answers: tuple[Answers, ...],
    verdict: Verdict,
    looks: int,
    warnings: tuple[str, ...],
    approval: bool = False,
    general: tuple[General, ...] = (),
    prompts: Prompts | None = None,
    judged: Judged | None = None,
) -> VerdictPage:
    """report.html, the page of the pipeline `name`, and suggestions.json, what it says to try next.

    `looks` and `warnings` are the verdict's, for the key: they are counted after decide. `approval` is the gate's:
    whether a person decides on the alias of what is promoted. The page says how many seconds the stages took when they
    ran, which is why it is no part of the content hash.
    """
    seen = verdict.model_copy(update={"looks": looks, "warnings": warnings})
    case = Case(
        name=name,
        rows=rows,
        checked=checked,
        unique=unique,
        splits=splits,
        tokens=tokens,
        base=base,
        adapter=adapter,
        answers=answers,
        verdict=seen,
        asks_person=approval and seen.decision == "promote",
        general=general,
        prompts=prompts,
        judged=judged,
    )
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
