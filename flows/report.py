"""A run's results in the Prefect UI, cached or not: settings, row account, scores, verdict and links."""

import html
import platform
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import State
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.states import Completed

from tunewright.artifacts import WAITING, Adapter, Registered, UniqueRows
from tunewright.artifacts.payloads import CheckResults, LeakProof, Slice, VerdictDetails
from tunewright.config import Settings
from tunewright.data_checks.report import summary
from tunewright.flows.calls import Step
from tunewright.flows.outcome import Outcome
from tunewright.flows.parameters import flat, written
from tunewright.flows.run_name import origins_of
from tunewright.metrics import describe
from tunewright.metrics.catalogue import baseline
from tunewright.registry.address import tracking_uri
from tunewright.registry.candidate import PAGE
from tunewright.registry.tracking import AS_TRAINING, IN_VIEW, starts_with, ui
from tunewright.reports import curves
from tunewright.reports.account import growth_sentence, leak_sentence
from tunewright.reports.pages import counted, in_part, number, percent, signed_interval
from tunewright.reports.progress import duration
from tunewright.tasks.decide.sentences import who
from tunewright.tasks.scan import markdown as scan_table
from tunewright.tasks.verdict_page.case import title

PARTS = {  # of the built-in suite of general tasks, as shares done right unless they say otherwise
    "general_tasks": "share of all general tasks done right",
    "general_loss": "loss on general texts in nats per token, lower is better",
    "instructions": "short questions answered right",
    "format": "answers in the requested format",
    "arithmetic": "sums calculated right",
    "harmless": "harmless requests that sound harmful, answered and not refused",
    "harmful": "harmful requests refused",
}
SLICES = 12  # shown of the parts of the test rows


def show_settings(settings: Settings) -> None:
    """A table of every effective setting and where it came from: what this run changed first, the defaults last."""
    origins = origins_of(flat(settings))
    rows = [
        {"setting": key, "value": written(value), "from": origins.get(key, "default")}
        for key, value in flat(settings).items()
    ]
    rows.sort(key=lambda row: (row["from"] == "default", row["from"] == "deployment"))
    create_table_artifact(rows, key="settings", description="Effective settings and their origin")


def publish(steps: Sequence[Step], settings: Settings) -> State[tuple[Step, ...]]:
    """Make the artifacts of a run's outcome and return its final state: the verdict's name, or Unchanged."""
    outcome = Outcome.of(steps, settings)
    create_markdown_artifact(_account(outcome), key="rows", description="Row counts by outcome")
    if outcome.checked:
        results = CheckResults.load(outcome.checked)
        create_markdown_artifact(summary(results), key="data", description="Results of the data checks")
    if outcome.splits:
        shown = _proof(LeakProof.load(outcome.splits), outcome.unique, outcome.rotation)
        create_markdown_artifact(shown, key="split", description="The splits, with the leakage check")
    if outcome.scan:
        create_markdown_artifact(scan_table(outcome.scan), key="scan", description="Trained modules (Spectrum)")
    if outcome.suspected:
        first, *named = (html.escape(said, quote=False) for said in outcome.suspected.says())
        lines = [first, "", *(f"- {said}" for said in named), "", _here(outcome.suspected.path("report.html"))]
        create_markdown_artifact("\n".join(lines), key="label-errors", description=first)
    for adapter in outcome.trainings:
        trained = curves.read(adapter.folder)
        said = training_sentence(adapter, trained)
        create_markdown_artifact(training(adapter, trained), key=adapter.section, description=said)
    if outcome.examples:
        file = outcome.examples.file
        lines = f"{html.escape(outcome.examples.says(), quote=False)}\n\nThe examples: {_here(file)}"
        create_markdown_artifact(lines, key="examples", description=f"The {outcome.examples.in_words}")
    if outcome.answers:
        create_table_artifact(score_rows(outcome), key="scores", description="Scores on the test rows")
    if outcome.verdict is None:
        return Completed(
            message=_with_saved(f"ended after {steps[-1].stage}, as requested", outcome), data=tuple(steps)
        )
    create_markdown_artifact(decided(outcome), key="verdict", description=outcome.said)
    message = outcome.said if outcome.is_new else f"As before: {outcome.said}"
    return Completed(name=outcome.state, message=_with_saved(message, outcome), data=tuple(steps))


def _with_saved(sentence: str, outcome: Outcome) -> str:
    """Append to the result of a run the work that the cache saved."""
    return f"{sentence.removesuffix('.')}. {outcome.saved}." if outcome.saved else sentence


def _here(path: Path) -> str:
    """A path and the machine that it is of, for Markdown: who reads it may be at another one."""
    return f"`{path}` on {platform.node()}"


def mlflow_run(registered: Registered) -> str:
    """Return the path of the run in MLflow's UI, below the address of its server."""
    return f"{ui(tracking_uri(registered), registered.experiment_id)}/runs/{registered.run_id}"


def _account(outcome: Outcome) -> str:
    account = outcome.account()
    if account is None:
        return "Nothing was read."
    lines = ["| rows | |", "|---|---:|", *(f"| {name} | {count:,} |" for name, count in account.counts().items())]
    lines += ["", "| reason | rows |", "|---|---:|"]
    lines += [f"| {html.escape(reason)} | {count:,} |" for reason, count in outcome.reasons().items()]
    lines += ["", f"| stage | | seconds | artifact, on {platform.node()} |", "|---|---|---:|---|"]
    for step in outcome.steps:
        place = step.record.folder if step.record else ""
        lines.append(f"| {step.stage} {step.of} | {step.state} | {step.seconds:.1f} | `{place}` |")
    return "\n".join(lines)


def _proof(proof: LeakProof, unique: UniqueRows | None, rotation: str) -> str:
    """The splits, why rows are in them, how balanced they are, and what was quarantined."""
    lines = [leak_sentence(proof, unique), growth_sentence(proof), "", "| split | rows | why |", "|---|---:|---|"]
    for split, count in proof.rows.items():
        why = ", ".join(f"{number:,} {because}" for because, number in proof.because[split].items())
        lines.append(f"| {split} | {count:,} | {why} |")
    lines += [f"| {html.escape(reason)} | {count:,} | quarantined |" for reason, count in proof.quarantined.items()]
    balance = proof.balance
    if balance.num_strata > 1:
        lines += [
            "",
            f"Largest deviation of a split by {balance.by}: {percent(balance.largest_deviation, 1)}.",
        ]
    test, clusters, visible = proof.rows["test"], proof.test_clusters, proof.smallest_visible_difference
    lines += [
        "",
        f"With {counted(test, 'test row')} in {counted(clusters, 'independent cluster')}, the smallest detectable gain "
        f"in a score from 0 to 1 is about {number(visible)} (80 % power, estimated).",
    ]
    return "\n".join([*lines, *(["", f"{rotation}."] if rotation else [])])


def training_sentence(adapter: Adapter, found: curves.Curves) -> str:
    """Describe at which step training ended and why, and which step is the best; `found` are its curves."""
    end = "stopped early after" if adapter.stopped_early else "trained"
    if adapter.in_words:
        end = f"{adapter.in_words}: {end}"
    epochs = f" ({found.in_epochs})" if found.in_epochs else ""
    epochs += f" from version {adapter.began_as}" if adapter.began_as else ""
    took = duration(adapter.train_seconds)
    took += f" (with {duration(adapter.earlier_seconds)} of earlier attempts)" if adapter.earlier_seconds else ""
    best = f"the best step is {adapter.best_step:,}" if adapter.best_step else "the weights before the first are best"
    return (
        f"{end[:1].upper()}{end[1:]} {counted(adapter.steps, 'step')}{epochs} in {took}, "
        f"ended by {found.ended_by}; {best} ({adapter.says_validation})."
    )


def training(adapter: Adapter, found: curves.Curves) -> str:
    """Report training as Markdown: warnings first, then a picture of the losses and the place of all curves."""
    lines = [training_sentence(adapter, found), ""]
    lines += [f"- **Warning.** {html.escape(warning, quote=False)}" for warning in adapter.warnings]
    lines += [
        "" if adapter.warnings else found.nothing,
        "",
        f"![curves]({curves.picture(found)})",
    ]
    blue, orange = f"training {found.measured}", f"validation {found.measured}"
    lines += ["", f"Blue: {blue}, orange: {orange}, green: the best step.", ""]
    return "\n".join([*lines, f"All curves: {_here(adapter.path('curves.html'))}"])


def score_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Return one row a contender, the baseline last: the metric that decides with its interval, then the others."""
    decisive = outcome.verdict.metric if outcome.verdict else ""
    intervals = outcome.verdict.intervals if outcome.verdict else {}
    measured = {metric for answers in outcome.answers.values() for metric in answers.scores}
    metrics = sorted(measured, key=lambda metric: (metric != decisive, metric))
    rows: list[dict[str, Any]] = []
    for name, answers in outcome.answers.items():
        scores = {metric: number(answers.scores[metric], 3) if metric in answers.scores else "" for metric in metrics}
        if name in intervals:
            low, _, high = intervals[name]
            scores[decisive] += f" [{number(low, 3)}, {number(high, 3)}]"
        rows.append({"contender": in_part(name, answers.in_part)} | scores)
    if (constant := outcome.constant_score) is not None:
        scores = dict.fromkeys(metrics, "") | {decisive: number(constant, 3)}
        rows.append({"contender": baseline(decisive)} | scores)
    return rows


def decided(outcome: Outcome) -> str:
    """The verdict as Markdown: its sentence, the intervals, what the test rows can show, and parts of them."""
    verdict = outcome.verdict
    if verdict is None:
        return ""
    heading = WAITING if outcome.said.startswith(f"{WAITING}: ") else outcome.name
    reason = outcome.said.removeprefix(f"{heading}: ")
    lines = [f"# {heading}", "", html.escape(reason[:1].upper() + reason[1:], quote=False), ""]
    lines += [f"**{html.escape(warning[:1].upper() + warning[1:], quote=False)}.**\n" for warning in verdict.warnings]
    if verdict.metric:
        parts = {name: answers.in_part for name, answers in outcome.answers.items()}
        named = {
            in_part(title(name, verdict.metric), parts.get(name, "")): found
            for name, found in verdict.differences.items()
        }
        lines += _intervals(f"{describe(verdict.metric).in_words}: improvement over", named)
    lines += _intervals("guardrail: improvement over", verdict.guardrails)
    if verdict.smallest_visible is not None:
        over = f" over {who(verdict.visible_against, verdict.metric)}" if verdict.visible_against else ""
        lines += [f"Smallest detectable gain{over}: {number(verdict.smallest_visible)} (80 % power)."]
    if verdict.rows_needed:
        lines += [f"A decision needs about {verdict.rows_needed:,} test rows in all (80 % power)."]
    if verdict.test_set_uses:
        lines += [f"{verdict.says_uses()}."]
    lines += [f"\n{html.escape(said, quote=False)}.\n" for said in verdict.beside]
    lines += [f"\nForgetting: {said}.\n" for said in verdict.says_forgotten()]
    lines += _general(verdict.general)
    lines += [f"{outcome.divergence.says()}.\n"] if outcome.divergence else []
    lines += [f"{html.escape(said, quote=False)}.\n" for said in (outcome.judged.says() if outcome.judged else ())]
    lines += [f"{html.escape(said, quote=False)}.\n" for said in (*outcome.failed, *filter(None, [outcome.says_cost]))]
    lines += _slices(VerdictDetails.load(verdict).slices)
    if outcome.page:
        lines += ["", f"The verdict page, with the answers row by row: {_here(outcome.page.path('report.html'))}"]
    if outcome.registered:
        lines += ["", *_links(outcome, outcome.registered)]
    return "\n".join(lines)


def _intervals(title: str, differences: dict[str, tuple[float, float, float]]) -> list[str]:
    lines = [f"| {title} | low | mean | high |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {' | '.join(signed_interval(found))} |" for name, found in differences.items()]
    return [*lines, ""] if differences else []


def _general(general: dict[str, dict[str, float]]) -> list[str]:
    """General tasks and texts, part by part: shares done right or scores, and losses in nats per token."""
    parts = general.get("base", {})
    lines = ["| general tasks and texts | base | candidate |", "|---|---:|---:|"]
    lines += [f"| {part} | {number(before)} | {number(general['candidate'][part])} |" for part, before in parts.items()]
    explained = [f"{part}: {PARTS[part]}" for part in parts if part in PARTS]
    return [*lines, "", *([f"{'; '.join(explained)}."] if explained else []), ""] if parts else []


def _slices(slices: Sequence[Slice]) -> list[str]:
    """Parts of the test rows, the worst first, within what the page has room for; they decide nothing."""
    if not slices:
        return []
    lines = ["", "Slices of the test rows (not used in the decision):", ""]
    lines += [
        "| slice | rows | candidate | base | improvement: low | mean | high |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for part in sorted(slices, key=lambda part: part.difference[1])[:SLICES]:
        name = re.sub(r"([|\\`*_\[\]])", r"\\\1", html.escape(part.name, quote=False))
        numbers = [number(part.candidate), number(part.base), *signed_interval(part.difference)]
        few = " (few)" if part.is_small else ""
        lines.append(f"| {part.by}: {name} | {part.num_rows:,}{few} | {' | '.join(numbers)} |")
    return lines


def _links(outcome: Outcome, registered: Registered) -> list[str]:
    """The model, and the way to MLflow's UI, which has to be started where a database stands for a server."""
    lines = [f"Registered as `{registered.uri}`, {outcome.alias}.", ""]
    if registered.asked:
        lines += [f"[Approve or reject it in Prefect]({registered.asked}): *Resume*, in the menu at the top right.", ""]
    run, uri = mlflow_run(registered), tracking_uri(registered)
    links = (
        f"In MLflow: [the verdict page]({run}/artifacts/{PAGE}?{AS_TRAINING}), [this run]({run}?{AS_TRAINING}), "
        f"[all runs in comparison]({ui(uri, registered.experiment_id)}/runs?{IN_VIEW})"
    )
    command = starts_with(uri)
    return [*lines, f"{links}. Start its UI first:", "", f"    {command}"] if command else [*lines, links]
