"""Why the candidate was promoted or not, as a page for a person: figures, answers row by row, and what to try next.

case.py reads what the stages handed on, drawing.py draws the intervals, wins.py picks rows and finds mistakes,
suggestions.py says what to try next; page.html has what is put together here. It decides nothing.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from prefect.runtime import flow_run

from tunewright.artifacts import Adapter, Answers, Artifact, Rehearsed, Rows, RunArtifacts, VerdictPage
from tunewright.artifacts.payloads import OTHER_ROWS, ROWS_OF_A_SLICE, Comparison, LeakProof, Slice
from tunewright.cost_model.money import Price, devices_of, money
from tunewright.machine import addresses
from tunewright.metrics.catalogue import CONSTANT, baseline, constant_answer
from tunewright.metrics.catalogue import general_tables as of_each
from tunewright.privacy.excerpts import ends
from tunewright.reports.account import leak_sentence
from tunewright.reports.curves.charts import charts
from tunewright.reports.pages import counted, in_part, interval, number, percent, template
from tunewright.reports.progress import duration
from tunewright.store.caching import MANIFEST
from tunewright.store.stage import stage
from tunewright.tasks.verdict_page.case import BASE, CANDIDATE, Case, title
from tunewright.tasks.verdict_page.drawing import DrawnInterval, own_panel, panels, plain, scale_of, words
from tunewright.tasks.verdict_page.findings import SLICED_BY
from tunewright.tasks.verdict_page.suggestions import GENTLER, Suggestion, suggestions, with_advice
from tunewright.tasks.verdict_page.wins import Mistakes, Shown, shown
from tunewright.tools.conversation import text_of

__all__ = ["verdict_page"]
STYLES = {"promote": "good", "keep": "bad", "inconclusive": "warn", "invalid": "bad"}
METHODS = {"lora": "LoRA", "qlora": "QLoRA", "full": "Full fine-tuning", "spectrum": "Spectrum", "osf": "OSF"}
PARTS = {  # general tasks whose share is not of right answers
    "harmful": "harmful requests refused",
    "harmless": "harmless requests answered",
}
REASONS = 8  # for which most rows were quarantined
UNBROKEN = "\N{NO-BREAK SPACE}[\\1,\N{NO-BREAK SPACE}\\2]"  # an interval that stays on one line
LOST_TASKS = 10  # that are shown
TASK_CHARS = 300


class StageCosts(NamedTuple):
    """The seconds of each stage as it was made, in their order, what is known of its work, and what it cost."""

    stages: list[dict[str, Any]]
    total: str  # such as "0.12 at 0.40 an hour of cpu"; empty without a price
    answers: list[dict[str, str]]  # tokens of a prompt and an answer, seconds and price of each contender's


@stage("{run.name}", libraries=("jinja2", "numpy", "pyarrow"), volatile=("report",))
def verdict_page(folder: Path, run: RunArtifacts, price: Price | None = None, num_devices: int = 1) -> VerdictPage:
    """report.html, the page of a run, and suggestions.json, what it says to try next.

    The page says how many seconds the stages took when they ran, which is why it is no part of the content hash, and
    with the `price` of an hour what they cost; `num_devices` trained and answered.
    """
    case = Case.of(run)
    made, picked = Mistakes(case), shown(case)
    tried = suggestions(case, made)
    took = _costs(case, price, num_devices)
    (folder / "report.html").write_text(render(case, made, picked, tried, _run(), took), encoding="utf-8")
    said = [each._asdict() for each in tried]
    (folder / "suggestions.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return VerdictPage(
        num_rows=len(picked.rows),
        suggestions=tuple(f"{each.advice}: {each.because}" for each in tried),
        is_gentler=any(each.advice.startswith(GENTLER) for each in tried),
    )


def _run() -> tuple[str, str]:
    """The name of the run that makes the page, and its address in the pages of `tunewright up`; else empty."""
    is_kept = flow_run.id and addresses.running()
    return (str(flow_run.name), addresses.prefect_run(str(flow_run.id))) if is_kept else ("", "")


def render(
    case: Case, made: Mistakes, shown: Shown, tried: Sequence[Suggestion], run: tuple[str, str], took: StageCosts
) -> str:
    """The page; every text in it is escaped. `run` is the name and the address of the run that makes it, or empty."""
    decided, verdict = case.decided, case.verdict
    name, _, said = verdict.sentence.partition(": ")
    drawn = charts(case.curves) if case.trainings else []
    return template(Path(__file__).with_name("page.html")).render(
        case=case,
        run=run,
        verdict=verdict,
        decided=decided,
        name=name,
        style=STYLES[verdict.decision],
        sentence=re.sub(r" ?\[(\S+), (\S+)\]", UNBROKEN, said[:1].upper() + said[1:]),
        metric=words(verdict.metric) if verdict.metric else "",
        comparisons=[*case.comparisons, *decided.beside],
        panels=panels(case.comparisons) + panels(decided.guardrails, "guardrail: "),
        beside=panels(decided.beside, "not used in the decision: "),
        baselines=_baselines(case),
        ties_differ=len({any(each.difference) for each in _compared(case) if each.ties == each.num_rows}) > 1,
        notes=_notes(verdict.warnings, tried),
        suggestions=tried,
        own=own_panel(verdict.metric, decided.own, {each.contender: each.in_part for each in case.answers}),
        contenders=[in_part(title(each.contender), each.in_part) for each in case.answers],
        ended=_ended(case),
        scores=_scores(case),
        shown=shown,
        mistakes=made,
        forgotten=_forgotten(case),
        slices=_slices(decided.slices),
        no_label_slices=_no_label_slices(case),
        chart=drawn[0] if drawn else None,
        curves=case.curves,
        warnings=case.training_warnings,
        account=case.account,
        reasons=list(case.reasons.items())[:REASONS],
        leaks=leak_sentence(LeakProof.load(case.splits), case.unique),
        costs=took.stages,
        total_cost=took.total,
        answer_costs=took.answers,
        method=METHODS.get(case.adapter.method, ""),
        prompt=case.prompt,
        examples=_examples(case),
        trainings=[(each, case.all_curves[each.stage]) for each in case.trainings],
        total=duration(sum(each["seconds"] for each in took.stages)),
        title=title,
        in_part=in_part,
        has_mcnemar=any(each.mcnemar_p is not None for each in (*case.comparisons, *decided.beside)),
        sliced_by=SLICED_BY,
        words=words,
        number=number,
        interval=interval,
    )


def _compared(case: Case) -> tuple[Comparison, ...]:
    return (*case.comparisons, *case.decided.guardrails)


def _ended(case: Case) -> list[str]:
    """Say of each prompt with interim analyses on how many rows it is compared, and at which confidence."""
    said = []
    for each in case.comparisons:
        at = f"at {percent(each.confidence or case.decided.confidence, 2)} confidence"
        if each.in_part:
            said.append(
                f"The {title(each.opponent)} was ended when its comparison was settled: it answered {each.in_part} "
                f"test rows, and is compared with the candidate on these, {at}."
            )
        elif each.confidence not in (None, case.decided.confidence):
            said.append(f"The {title(each.opponent)} could have been ended earlier, so it is compared {at}.")
    return said + [
        f"{each.opponent} was ended when its comparison was settled, or evaluation.api_budget was spent: it answered "
        f"{each.in_part} test rows."
        for each in case.decided.beside
        if each.in_part
    ]


def _baselines(case: Case) -> list[str]:
    """Explain the baseline that always gives the same answer, where the candidate is compared with it."""
    metrics = dict.fromkeys(each.metric for each in case.comparisons if each.opponent == CONSTANT)
    shown = f": “{case.decided.constant_answer}”" if case.decided.constant_answer else ""
    return [f"The {baseline(metric)} always gives {constant_answer(metric)}{shown}." for metric in metrics]


def _notes(warnings: Sequence[str], tried: Sequence[Suggestion]) -> list[str]:
    """The warnings; without the advice that stands among the suggestions."""
    advices = {each.advice.lower() for each in tried}
    parts = {warning: with_advice(warning) for warning in warnings}
    return [seen if advice.lower() in advices else warning for warning, (seen, advice) in parts.items()]


def _scores(case: Case) -> list[dict[str, Any]]:
    """One line a metric, the one that decides first; each with the score and the interval of each contender."""
    measured = dict.fromkeys(metric for each in case.answers for metric in each.scores)
    found = []
    for metric in sorted(measured, key=lambda metric: metric != case.verdict.metric):
        cells = []
        for each in case.answers:
            bounds = case.decided.own.get(each.contender, {}).get(metric)
            score = number(each.scores[metric], 3) if metric in each.scores else ""
            cells.append((score, f"[{number(bounds[0], 3)}, {number(bounds[2], 3)}]" if bounds else ""))
        found.append({"name": metric, "cells": cells, "decides": metric == case.verdict.metric})
    return found


def _no_label_slices(case: Case) -> str:
    """Say why there are no slices by label though the answers are labels; empty where their rows are enough."""
    num_rows, num_labels = len(case.said), len({reference for reference, _ in case.said})
    if not case.labels or num_labels * ROWS_OF_A_SLICE <= num_rows:
        return ""
    few = f"fewer than {ROWS_OF_A_SLICE} rows per label"
    return f"There are none by label: {num_rows:,} test rows have {num_labels:,} labels, {few} on average."


def _examples(case: Case) -> list[list[tuple[str, str]]]:
    """The turns of each example of a few-shot prompt, as role and text; of a retrieval prompt the first few."""
    found = case.prompt.examples[: case.prompt.nearest] if case.prompt else []
    return [[(turn["role"], ends(text_of(turn), TASK_CHARS)) for turn in example] for example in found]


def _slices(slices: Sequence[Slice]) -> list[tuple[Slice, DrawnInterval, float]]:
    """The parts, each with its difference on one scale and the place of 0, the worst of each kind first."""
    if not slices:
        return []
    scale = scale_of(value for each in slices for value in each.difference)
    kinds = list(dict.fromkeys(each.by for each in slices))
    ranked = sorted(slices, key=lambda each: (kinds.index(each.by), each.name == OTHER_ROWS, each.difference[1]))
    drawn = []
    for each in ranked:
        low, _, high = each.difference
        style = "above" if low > 0 else "below" if high < 0 else "unclear"
        said = interval(each.difference, signed=True) if any(each.difference) else "no difference"
        drawn.append((each, plain(each.name, each.difference, scale, style)._replace(said=said), scale.at(0)))
    return drawn


def _forgotten(case: Case) -> dict[str, Any] | None:
    """Scores of general tasks and texts, part by part, and the tasks that only the base does; None without any."""
    tables = {name: table.to_pylist() for name, table in of_each(case.general).items()}
    if not {BASE, CANDIDATE} <= tables.keys():
        return None
    parts = []
    for metric, part in dict.fromkeys((row["metric"], row["part"]) for row in tables[CANDIDATE]):
        of_part = [[row for row in rows if (row["metric"], row["part"]) == (metric, part)] for rows in tables.values()]
        means = [number(sum(row["score"] for row in rows) / len(rows)) for rows in of_part]
        parts.append(
            {"metric": words(metric), "name": PARTS.get(part, part), "num_items": len(of_part[0]), "scores": means}
        )
    pairs = [both for both in zip(tables[BASE], tables[CANDIDATE], strict=True) if both[0]["metric"] != "general_loss"]
    lost = [both for both in pairs if both[0]["score"] > both[1]["score"]]
    shown = [{"prompt": base["prompt"], "base": base["answer"], "candidate": own["answer"]} for base, own in lost]
    return {
        "contenders": [*tables],
        "parts": parts,
        "lost": [{who: ends(text, TASK_CHARS) for who, text in each.items()} for each in shown[:LOST_TASKS]],
        "num_lost": len(lost),
        "num_gained": sum(base["score"] < own["score"] for base, own in pairs),
    }


def _costs(case: Case, price: Price | None, num_devices: int) -> StageCosts:
    found, answers, paid = [], [], 0.0
    for name, record in case.steps():
        seconds = json.loads(record.path(MANIFEST).read_text(encoding="utf-8"))["seconds"]
        time = duration(seconds) if seconds >= 1 else "under 1 s"
        cost = price.of(seconds, devices_of(record, record.stage, num_devices)) if price else 0.0
        paid += cost
        said = {"time": time, "cost": money(cost) if price else "", "said": _work(case, record)}
        found.append({"stage": name, "seconds": seconds} | said)
        if isinstance(record, Answers) and record.num_rows:
            answers.append(_answer_costs(case, record, seconds, cost if price else None))
    return StageCosts(found, f"{money(paid)} at {price.said}" if price else "", answers)


def _answer_costs(case: Case, answers: Answers, seconds: float, cost: float | None) -> dict[str, str]:
    """An answer on average, where all of them took so many `seconds` and this `cost`; of an API what it says itself."""
    each, thousand = seconds / answers.num_rows, None if cost is None else 1000 * cost / answers.num_rows
    if answers.api:
        each, thousand = answers.api.seconds, answers.api.price
    read, written = answers.num_prompt_tokens, case.column(answers.contender, "num_tokens")
    return {
        "contender": in_part(title(answers.contender), answers.in_part),
        "read": "" if read is None else f"{read / answers.num_rows:,.0f}",
        "written": f"{written.mean():,.0f}",
        "seconds": f"{each:.2g}",
        "thousand": "" if thousand is None else money(thousand),
    }


def _work(case: Case, record: Artifact) -> str:
    if isinstance(record, Rehearsed):
        return counted(record.num_general, "general row")
    if isinstance(record, Rows):
        return f"{counted(record.num_read, 'row')} read"
    if isinstance(record, Answers):
        num_tokens = int(case.column(record.contender, "num_tokens").sum())
        return f"{counted(record.num_rows, 'answer')}, {counted(num_tokens, 'token')}"
    if not isinstance(record, Adapter):
        return ""
    steps = case.all_curves[record.stage].steps
    tokens = sum(line["tokens_per_second"] * line["seconds"] for line in steps if "tokens_per_second" in line)
    peak = max((line["memory_bytes"] for line in steps if "memory_bytes" in line), default=0)
    computed = [f"{tokens:,.0f} tokens"] if tokens else []
    return ", ".join([counted(len(steps), "step"), *computed, *([f"at most {peak / 1e9:.2g} GB"] if peak else [])])
