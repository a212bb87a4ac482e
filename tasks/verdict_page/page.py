"""The verdict page: what was decided and all that it stands on, as one HTML file that loads nothing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.artifacts.payloads import Slice
from tunewright.metrics.baseline import CONSTANT, EXACT, baseline
from tunewright.reports.account import leak_sentence
from tunewright.reports.curves.charts import charts
from tunewright.reports.figures import interval, number
from tunewright.reports.pages import template
from tunewright.reports.progress import duration
from tunewright.tasks.verdict_page.case import Case, title
from tunewright.tasks.verdict_page.costs import costs
from tunewright.tasks.verdict_page.drawing import DrawnInterval, Scale, own_panel, panels, plain, scale_of, words
from tunewright.tasks.verdict_page.forgotten import forgotten
from tunewright.tasks.verdict_page.mistakes import Mistakes
from tunewright.tasks.verdict_page.suggestions import Suggestion
from tunewright.tasks.verdict_page.wins import Shown

STYLES = {"promote": "good", "keep": "bad", "inconclusive": "warn", "invalid": "bad"}
REASONS = 8  # for which most rows were set aside


def render(case: Case, made: Mistakes, shown: Shown, tried: Sequence[Suggestion], run: tuple[str, str]) -> str:
    """The page; every text in it is escaped. `run` is the name and the address of the run that makes it."""
    decided, verdict = case.decided, case.verdict
    name, _, said = verdict.sentence.partition(": ")
    drawn, took = charts(case.curves), costs(case)
    return template(Path(__file__).with_suffix(".html")).render(
        case=case,
        run=run,
        verdict=verdict,
        decided=decided,
        name=name,
        style=STYLES[verdict.decision],
        sentence=_unbroken(said[:1].upper() + said[1:]),
        metric=words(verdict.metric) if verdict.metric else "",
        comparisons=case.comparisons,
        panels=panels(case.comparisons, "{}: the candidate's gain over")
        + panels(decided.guardrails, "guardrail, {}: the candidate's gain over"),
        baselines=_baselines(case),
        notes=_notes(verdict.warnings, tried),
        suggestions=tried,
        own=own_panel(verdict.metric, decided.own),
        contenders=[title(each.contender) for each in case.answers],
        scores=_scores(case),
        shown=shown,
        mistakes=made,
        forgotten=forgotten(case),
        slices=_slices(decided.slices),
        chart=drawn[0] if drawn else None,
        curves=case.curves,
        warnings=case.training_warnings,
        account=case.account,
        reasons=list(case.reasons.items())[:REASONS],
        leaks=leak_sentence(case.proof),
        costs=took,
        total=duration(sum(each.seconds for each in took)),
        title=title,
        words=words,
        number=number,
        interval=interval,
    )


def _baselines(case: Case) -> list[str]:
    """Explain the baseline that always gives the same answer, where the candidate is compared with it."""
    metrics = dict.fromkeys(each.metric for each in case.comparisons if each.opponent == CONSTANT)
    answer = {True: "the most frequent training answer", False: "the one training answer that scores best"}
    return [f"The {baseline(metric)} always gives {answer[metric in EXACT]}." for metric in metrics]


def _notes(warnings: Sequence[str], tried: Sequence[Suggestion]) -> list[str]:
    """The warnings; without the advice that stands among the suggestions."""
    advices = {each.advice.lower() for each in tried}
    parts = [warning.partition("; ") for warning in warnings]
    return [seen if advice.lower() in advices else f"{seen}{mark}{advice}" for seen, mark, advice in parts]


def _unbroken(sentence: str) -> str:
    """With intervals that stay on one line."""
    return re.sub(r" ?\[(\S+), (\S+)\]", "\N{NO-BREAK SPACE}[\\1,\N{NO-BREAK SPACE}\\2]", sentence)


def _scores(case: Case) -> list[dict[str, Any]]:
    """One line a metric, the one that decides first; each with the score and the interval of each contender."""
    measured = dict.fromkeys(metric for each in case.answers for metric in each.scores)
    found = []
    for metric in sorted(measured, key=lambda metric: metric != case.verdict.metric):
        cells = []
        for each in case.answers:
            bounds = case.decided.own.get(each.contender, {}).get(metric)
            score = number(each.scores[metric], 3) if metric in each.scores else ""
            cells.append((score, f"[{number(bounds[0])}, {number(bounds[2])}]" if bounds else ""))
        found.append({"name": metric, "cells": cells, "decides": metric == case.verdict.metric})
    return found


def _slices(slices: Sequence[Slice]) -> list[tuple[Slice, DrawnInterval, float]]:
    """The parts, each with its difference on one scale and the place of 0, the worst of each kind first."""
    if not slices:
        return []
    scale = scale_of(value for each in slices for value in each.difference)
    kinds = list(dict.fromkeys(each.by for each in slices))
    ranked = sorted(slices, key=lambda each: (kinds.index(each.by), each.difference[1]))
    return [(each, _drawn(each, scale), scale.at(0)) for each in ranked]


def _drawn(part: Slice, scale: Scale) -> DrawnInterval:
    difference = part.difference
    said = interval(difference, signed=True) if any(difference) else "no difference"
    return plain(part.name, difference, scale, _style(part))._replace(said=said)


def _style(part: Slice) -> str:
    low, _, high = part.difference
    return "above" if low > 0 else "below" if high < 0 else "unclear"
