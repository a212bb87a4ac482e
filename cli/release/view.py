"""The output of `tunewright release`, in a terminal and as JSON."""

import os
from dataclasses import asdict
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunewright.artifacts import shown
from tunewright.config import Registry
from tunewright.registry.alias_history import Event
from tunewright.registry.alias_state import SAID, command, named, named_anew
from tunewright.registry.rehearsal import FEW_NEAR_TIES, SAME_ANSWERS
from tunewright.registry.release import History, ReleaseDecision
from tunewright.reports.pages import counted

HISTORY_COLUMNS = ("when (UTC)", "what", "version", "replaced", "by", "why", "verdict", "comparison")
FREE_TEXT = ("by", "why", "verdict")  # which may be folded, to no less than so many characters a line
LEGIBLE = 16
VERSIONS = 20  # listed at most


def show_history(console: Console, registry: Registry, history: History) -> None:
    """Who carries the alias, who waits for it, the versions, and each move and decision, the newest first."""
    console.print(Text(_where(history), "bold"))
    if history.events and history.is_elsewhere:
        console.print(Text("The alias was moved there outside Tunewright; that move is not in this history.", "yellow"))
    for waiting in history.waiting:
        said = waiting.sentence.partition(": ")[2]
        console.print(
            Text(f"\nversion {waiting.version} waits for approval since {_minute(waiting.since)}: {said}", "yellow")
        )
        for warning in waiting.warnings:
            console.print(Text(f"  warning: {warning}", "yellow"))
        console.print(Text(f"  {waiting.page}"), soft_wrap=True)
        for answer in ("", " --reject"):
            approve = command("approve", registry, waiting.version)
            console.print(Text(f"  {approve}{answer}"), soft_wrap=True)
    _show_versions(console, history)
    if not history.events:
        if history.current_version:
            console.print("who moved the alias there, and when, is unknown")
        return
    _show_events(console, history)


def _show_events(console: Console, history: History) -> None:
    """Each move and decision as a row of a table, or line by line where a terminal has no room for one."""
    current = next(
        (event for event in history.events if event.is_move and event.after == history.current_version), None
    )
    rows: list[tuple[str, ...]] = []
    styles: list[str] = []
    for event in history.events:
        gain = event.gain.partition("; ")[0]  # an earlier Tunewright entered one for each opponent
        cells = (_minute(event.when), _what(event), event.version, _replaced(event), event.by, named_anew(event.why))
        rows.append((*cells, shown(event.verdict), gain))
        styles.append("bold green" if event is current else "" if event.is_move else "dim")
    widths = [
        LEGIBLE if name in FREE_TEXT else max(map(cell_len, (name, *cells)))
        for name, *cells in zip(HISTORY_COLUMNS, *rows, strict=True)
    ]
    needed = sum(widths) + 2 * len(widths)
    if not (console.is_terminal or os.environ.get("COLUMNS")):
        console.width = max(console.width, needed)  # of a file
    if needed > console.width:
        for row, style in zip(rows, styles, strict=True):
            named_cells = zip(HISTORY_COLUMNS, row, strict=True)
            console.print()
            console.print(Text("\n".join(f"{name:10}  {cell}" for name, cell in named_cells if cell), style))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in HISTORY_COLUMNS:
        table.add_column(column, overflow="fold", min_width=LEGIBLE if column in FREE_TEXT else None)
    for row, style in zip(rows, styles, strict=True):
        table.add_row(*map(Text, row), style=style)
    console.print()
    console.print(table)


def _show_versions(console: Console, history: History) -> None:
    """The newest versions with their verdicts, whether or not one has the alias."""
    if not history.versions:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("version", "registered (UTC)", "latest verdict", "comparison"):
        table.add_column(column, overflow="fold")
    for each in history.versions[:VERSIONS]:
        is_current = each.version == history.current_version
        stands = f"@{history.alias}" if is_current else "" if each.state == "approved" else each.state
        verdict = "; ".join(filter(None, (shown(each.verdict), stands)))
        cells = (each.version, _minute(each.registered), verdict, each.gain)
        table.add_row(*map(Text, cells), style="bold green" if is_current else "")
    console.print()
    console.print(table)
    if (more := len(history.versions) - VERSIONS) > 0:
        console.print(f"{counted(more, 'earlier version')}: --json lists all", style="dim")


def _where(history: History) -> str:
    """Which version carries the alias."""
    if history.current_version:
        return f"version {history.current_version} of {history.name} is @{history.alias}"
    yet = "" if any(event.is_move for event in history.events) else " yet"
    return f"no version of {history.name} is @{history.alias}{yet}"


def history_json(history: History) -> dict[str, Any]:
    """Return the history as `--json` prints it."""
    return {
        "name": history.name,
        "alias": history.alias,
        "current_version": history.current_version or None,
        "moved_elsewhere": bool(history.events) and history.is_elsewhere,
        "versions": [asdict(version) for version in history.versions],
        "waiting": [asdict(waiting) for waiting in history.waiting],
        "events": [event.model_dump() for event in history.events],
    }


def show_decision(console: Console, registry: Registry, decision: ReleaseDecision) -> None:
    """Print the decision, the version the alias is on now, the verdict, and the commands to run next."""
    event = decision.event
    colour = "bold green" if event.is_move else "bold yellow"
    what = _what(event)
    of = f"{'' if what.endswith(' to') else ':'} version {event.version} of {registry.name}"
    console.print(Text.assemble((f"{what[:1].upper()}{what[1:]}", colour), of))
    if decision.rehearsed:
        rows, ties = counted(decision.rehearsed, "test row"), decision.near_ties
        same = f"{decision.rehearsed - ties:,} of {rows}" if ties else rows
        others = f", and {counted(ties, 'other')} differently from a near tie on" if ties else ""
        console.print(f"reloaded, it answers {same} as it did when measured{others}", soft_wrap=True)
        if ties > FEW_NEAR_TIES:
            console.print(Text(SAME_ANSWERS, "yellow"), soft_wrap=True)
    before = f"version {event.before}" if event.before else "no version"
    if event.is_move:
        after = f"version {event.after}" if event.after else "no version; the next run has no champion to beat"
        console.print(f"@{event.alias}: {before} -> {after}")
    else:
        none = f"no version of {registry.name} is @{event.alias}"
        console.print(f"@{event.alias} stays on {before}" if event.before else none)
    if decision.note:
        console.print(Text(decision.note, "yellow"), soft_wrap=True)
    console.print(Text(f"verdict: {decision.sentence}"), soft_wrap=True)
    console.print(Text(f"by {event.by}: {named_anew(event.why)}"), soft_wrap=True)
    console.print(Text("next", "bold"))
    console.print(Text(f"  tunewright release history {named(registry)}"))
    if event.what == "withdrawn":
        console.print(Text(f"  {command('promote', registry, 'VERSION')}"))
    elif event.is_move and event.before and event.what != "rolled back":
        console.print(Text(f"  {command('rollback', registry)}"))


def _what(event: Event) -> str:
    """Describe the action on the version; "rolled back" alone would be read as the other version's."""
    return SAID.get(event.what, event.what)


def _replaced(event: Event) -> str:
    """The version that had the alias before this one got it; empty where none got it."""
    return event.before or "none" if event.is_move and event.after else ""


def _minute(when: str) -> str:
    return when[:16].replace("T", " ")
