"""Print a run and its settings in a terminal."""

import re
import shlex
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from tunewright.artifacts.payloads import LeakProof
from tunewright.cli.deployment_file import Pipeline, effective
from tunewright.cli.visible import plain_table
from tunewright.config import Registry, from_here
from tunewright.flows.outcome import UNCHANGED, Outcome, too_few_test_rows, user_provided_splits, worth_a_look
from tunewright.flows.parameters import written
from tunewright.flows.report import mlflow_run, training_sentence
from tunewright.metrics.catalogue import baseline
from tunewright.registry.address import tracking_uri
from tunewright.registry.alias_state import TO_APPROVE, named
from tunewright.registry.tracking import AS_TRAINING, starts_with
from tunewright.reports import curves
from tunewright.reports.account import Account, growth_sentence, leak_sentence

COLOURS = {"ran": "green", "cached": "dim", "run": "yellow", "failed": "red"}


def show_settings(console: Console, pipeline: Pipeline, *, everything: bool) -> None:
    """Show the effective settings with their origin; `everything` includes those at their defaults."""
    rows = effective(pipeline)
    shown = [row for row in rows if everything or row[2] != "default"]
    table = plain_table("setting", "value", "from")
    for key, value, origin in shown:
        table.add_row(key, Text(written(value)), Text(origin, "dim"))
    console.print(table)
    if len(shown) < len(rows):
        console.print(f"{len(rows) - len(shown)} more at their defaults; -v shows them", style="dim")
    console.print()


def show_outcome(console: Console, outcome: Outcome, what: str) -> None:
    """The summary at the end of a run of `what`, the file and its changes: what was done, where to look, what next."""
    console.print()
    table = Table("stage", "", Column("seconds", justify="right"), box=None, pad_edge=False, header_style="bold")
    for step in outcome.steps:
        table.add_row(step.name, Text(step.state, COLOURS[step.state]), f"{step.seconds:.1f}")
    seconds = time.time() - psutil.Process().create_time()
    table.add_row("start, waiting", "", f"{seconds - sum(step.seconds for step in outcome.steps):.1f}")
    table.add_row("in all", "", f"{seconds:.1f}", style="bold")
    console.print(table)
    if outcome.saved:
        console.print(outcome.saved, style="dim")
    if outcome.says_cost:
        console.print(outcome.says_cost, style="dim")
    _show_account(console, outcome)
    for said in outcome.suspected.says() if outcome.suspected else ():
        console.print(Text(said), soft_wrap=True)
    for adapter in outcome.trainings:
        trained = curves.read(adapter.folder)
        console.print(f"\n{training_sentence(adapter, trained)}")
        if trained.too_few and not adapter.warnings:
            console.print(trained.too_few)
        for warning in adapter.warnings:
            console.print(Text(outcome.page.without_opposite(warning) if outcome.page else warning, "yellow"))
    if outcome.examples:
        console.print(f"\n{outcome.examples.says()}")
    if outcome.answers:
        _show_scores(console, outcome)
    for warning in outcome.prompts.warned if outcome.prompts and not outcome.verdict else ():  # which has them
        console.print(Text(warning, "yellow"))
    if outcome.verdict:
        console.print()
        console.print(_verdict(outcome))
        for warning in outcome.verdict.warnings:
            console.print(Text(warning, "yellow"))
    for said in outcome.verdict.beside if outcome.verdict else ():
        console.print(Text(f"{said}."))
    for said in outcome.verdict.says_forgotten() if outcome.verdict else ():
        console.print(Text(f"Forgetting: {said}."))
    if outcome.verdict and outcome.verdict.test_set_uses > 1:
        console.print(Text(f"{outcome.verdict.says_uses()}."))
    if outcome.divergence:
        console.print(Text(f"{outcome.divergence.says()}."))
    for said in outcome.judged.says() if outcome.judged else ():
        console.print(Text(f"{said}."))
    for said in outcome.failed:
        console.print(Text(said, "yellow"))
    console.print()
    _show_links(console, outcome, what)


def show_last_word(console: Console, outcome: Outcome) -> None:
    """The verdict alone; of a run that ends before, how training went or, before that, where the rows went."""
    if outcome.verdict:
        console.print(_verdict(outcome))
    elif outcome.adapter:
        console.print(training_sentence(outcome.adapter, curves.read(outcome.adapter.folder)))
    elif outcome.examples:
        console.print(outcome.examples.says())
    elif account := outcome.account():
        for line in _sums(account):
            console.print(line)


def _verdict(outcome: Outcome) -> Text:
    colour = "bold green" if outcome.name == "Promoted" else "bold yellow"
    name, colon, rest = outcome.said.partition(":")
    before = "" if outcome.is_new else f"{UNCHANGED} since the last run: "
    return Text.assemble(before, (name + colon, colour), rest)


def _sums(account: Account) -> Iterator[str]:
    yield (
        f"{account.begins()} = {account.kept:,} kept + {account.quarantined:,} quarantined "
        f"+ {account.duplicates:,} duplicate{'' if account.duplicates == 1 else 's'}"
    )
    if account.train:
        splits = f"{account.train:,} train + {account.validation:,} validation + {account.test:,} test"
        aside = f" + {account.undesirable:,} with an undesirable answer" if account.undesirable else ""
        yield f"{account.kept:,} kept = {splits}{aside}"


def _show_account(console: Console, outcome: Outcome) -> None:
    account = outcome.account()
    if account is None:
        return
    console.print()
    for line in _sums(account):
        console.print(line)
    if account.train and outcome.rows and "replay" in outcome.rows.given.values():
        console.print(f"{account.replay:,} of the train rows are replay rows")
    if reasons := outcome.reasons():
        counts = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
        console.print(f"quarantined or removed: {counts}", style="dim")
    if outcome.rows and (repaired := outcome.rows.repaired):
        console.print("repaired: " + ", ".join(f"{name} {count:,}" for name, count in repaired.items()), style="dim")
    if findings := worth_a_look(outcome):
        where = " (rows in the data report, below)" if outcome.checked else ""
        lines = [f"findings{where}:", *findings]
        console.print(Text("\n  ".join(lines), "dim"))
    # Before a verdict has measured it, the warning of split has said it of all test rows.
    splits, tokens = outcome.splits, outcome.tokens
    is_less = splits and tokens and tokens.num_test < splits.num_test
    if splits and (outcome.verdict or is_less) and (few := too_few_test_rows(splits, outcome.verdict, tokens)):
        console.print(Text(few, "yellow"))
    for said in user_provided_splits(outcome.checked) if outcome.checked else ():
        console.print(said, style="yellow")
    if outcome.rotation:
        console.print(Text(outcome.rotation, "yellow"))
    if outcome.splits:
        proof = LeakProof.load(outcome.splits)
        console.print(leak_sentence(proof, outcome.unique))
        if grown := growth_sentence(proof):
            console.print(grown)


def _show_scores(console: Console, outcome: Outcome) -> None:
    """One line a metric and one column a contender: the metric that decides first, with its interval.

    Where a contender did not answer all test rows, a line before says how many each answered.
    """
    decisive = outcome.verdict.metric if outcome.verdict else ""
    intervals = outcome.verdict.intervals if outcome.verdict else {}
    measured = dict.fromkeys(metric for answers in outcome.answers.values() for metric in answers.scores)
    table = Table("scores", box=None, pad_edge=False, header_style="bold")
    for name in outcome.answers:
        table.add_column(name, justify="right")
    if any(answers.in_part for answers in outcome.answers.values()):
        table.add_row("test rows", *(each.in_part or f"{each.num_rows:,}" for each in outcome.answers.values()))
    for metric in sorted(measured, key=lambda metric: metric != decisive):
        scores = (answers.scores.get(metric) for answers in outcome.answers.values())
        table.add_row(metric, *("" if score is None else f"{score:.3f}" for score in scores))
        if metric == decisive:
            bounds = (intervals.get(name) for name in outcome.answers)
            table.add_row("", *(f"[{each[0]:.3f}, {each[2]:.3f}]" if each else "" for each in bounds), style="dim")
    console.print()
    console.print(table)
    if (constant := outcome.constant_score) is not None:
        console.print(f"{baseline(decisive)}: {decisive} {constant:.3f}")


def _show_links(console: Console, outcome: Outcome, what: str) -> None:
    looks: list[tuple[str, Any]] = []
    if outcome.page:
        looks.append(("verdict page", outcome.page.path("report.html")))
    if outcome.checked:
        looks.append(("data report", outcome.checked.path("report.html")))
    looks += [("quarantined", place) for place in outcome.quarantines()]
    looks += [("duplicates", outcome.duplicates)] if outcome.duplicates else []
    if outcome.tokens:
        looks.append(("tokens and masks", outcome.tokens.path("report.html")))
    if outcome.suspected:
        looks.append(("label errors", outcome.suspected.path("report.html")))
    if outcome.adapter:
        looks += [(f"curves, {each.stage}", each.path("curves.html")) for each in outcome.trainings[:-1]]
        looks.append(("curves", outcome.adapter.path("curves.html")))
    if outcome.examples:
        looks.append(("examples", outcome.examples.file))
    looks += [(f"answers, {name}", answers.path("answers.parquet")) for name, answers in outcome.answers.items()]
    nexts = [_next_run(outcome, what), *([f"tunewright data {what}"] if outcome.splits else [])]
    if outcome.registered:
        registered = outcome.registered
        looks.append(("model", f"{registered.uri}{' ' if registered.alias else ', '}{outcome.alias}"))
        looks += [("approve in Prefect", registered.asked)] if registered.asked else []
        link = f"{mlflow_run(registered)}?{AS_TRAINING}"
        looks.append(("in MLflow", opened_by(link, tracking_uri(registered))))
        alias = registered.alias or Registry().alias
        there = Registry(name=registered.name, alias=alias, tracking_uri=registered.tracking_uri)
        which = [] if registered.alias else ["--version", registered.version]
        nexts.append(f"tunewright predict {named(there, 'FILE', *which)}          # answers the records of FILE")
        if registered.alias:
            nexts.append(f"tunewright serve {named(there)}          # serves it under the OpenAI API")
        if outcome.name == "Waiting":
            nexts.insert(0, registered.stands.rpartition(TO_APPROVE)[2])
    elif outcome.splits and not outcome.tokens:
        nexts.append(f"tunewright run {what} --until render          # shows the trained tokens")
    else:
        nexts.append(f"tunewright run {what}")
    for name, place in looks:
        shown = str(from_here(place) if isinstance(place, Path) else place)
        console.print(Text.assemble((f"{name:<19} ", "bold"), shown), soft_wrap=True)
    if outcome.page and outcome.page.suggestions:
        console.print(Text.assemble((f"{'to try':<20}", "bold"), f"{outcome.page.suggestions[0]}"), soft_wrap=True)
    show_next(console, nexts)


def _next_run(outcome: Outcome, what: str) -> str:
    """The first line of what comes next: after a verdict that promotes nothing a change, as nothing else would run."""
    if outcome.verdict and outcome.verdict.decision in ("keep", "inconclusive"):
        where = "that the verdict page advises (What to try next)" if outcome.page else "to the settings or the data"
        changed = _with_advised(what, " ".join(outcome.page.suggestions[:1]) if outcome.page else "")
        value = "; NEW: another value than in this run" if changed != what else ""
        return f"tunewright run {changed}          # after a change {where}{value}"
    return f"tunewright plan {what}"


def _with_advised(what: str, advice: str) -> str:
    """The file and its changes, with NEW for the value of each --set of a setting that the advice is to change."""
    named = {*re.findall(r"\w+\.\w+", advice)}
    words = shlex.split(what)
    for at, (word, change) in enumerate(pairwise(words), 1):
        if word == "--set" and (key := change.partition("=")[0]) in named:
            words[at] = f"{key}=NEW"
    return shlex.join(words)


def opened_by(link: str, uri: str) -> str:
    """A link to MLflow's pages, after the command that serves them where no server has them already."""
    command = starts_with(uri)
    return f"{link} (to open it, start: {command})" if command else link


def show_next(console: Console, commands: Sequence[str]) -> None:
    """Commands worth running next, if there are any."""
    if commands:
        console.print(Text("next", "bold"))
    for command in commands:
        console.print(Text(f"  {command}"), soft_wrap=True)
