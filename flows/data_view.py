"""What `tunewright data` looks like in a terminal."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.data_command import Data, counts, stage
from tasks.artifacts import Artifact
from tasks.lineage import MOST_MATCHES, SET_ASIDE, Found

DIGITS = 12  # of a digest, where a person reads it
RULES = {"given": "given by its source", "kept": "kept from earlier", "by_time": "by its time"}


def show_data(console: Console, data: Data, what: str) -> None:
    """The stages and the versions; `what` is the file and its changes, for the command to run next."""
    console.print(Text(data.title, "bold"))
    for file, detected in data.made.rows.detected.items():
        console.print(Text.assemble(f"  {file}  ", (detected, "dim")), soft_wrap=True)
    table = _table("stage", "digest", "rows", "made from", "made", "by run")
    for artifact in data.made:
        made = stage(artifact)
        parents = "\n".join(f"{name} {digest[:DIGITS]}" for name, digest in made["parents"].items())
        when = _clock(made["made"])
        table.add_row(artifact.stage, artifact.digest[:DIGITS], _rows(artifact), parents, when, made["made_by"])
    console.print()
    console.print(table)
    if data.past:
        console.print()
        console.print(_versions(data))
    console.print()
    _show_missing(console, data, what)


def show_row(console: Console, data: Data, row: dict[str, Any], what: str) -> None:
    """A row's life, or the rows that were meant, from `row_json`."""
    if "matches" in row:
        table = _table("row", "file", "line", "text")
        for match in row["matches"]:
            text = " ".join(match["text"].split())
            table.add_row((match["row_id"] or "")[:DIGITS], Text(match["file"]), str(match["line"]), Text(text))
        console.print(table)
        more = f"the first {MOST_MATCHES}; " if row["more"] else ""
        console.print(f"{more}for one of them: --row ROW, or --line FILE:LINE", style="dim")
        return
    identity = f"row {row['row_id'][:DIGITS]}" if row["row_id"] else "never became a row"
    console.print(Text.assemble((f"{row['file']} line {row['line']}", "bold"), f"  {identity}, in {data.title}"))
    console.print(Text(row["text"], "dim"))
    console.print()
    table = _table("stage", "", "")
    for event in row["life"]:
        colour = "yellow" if event["outcome"] in SET_ASIDE else "green"
        table.add_row(event["stage"], Text(event["outcome"], colour), Text(_said(event)))
    console.print(table)
    if row["versions"]:
        console.print()
        for past in row["versions"]:
            because = f"({past['because']})" if past["because"] else "(not there)"
            said = f"in version {past['version']} these messages were on {past['side'] or 'no side'} {because}"
            console.print(said, style="dim")
    if row["missing"] or data.changed:
        _show_missing(console, data, what)


def _rows(artifact: Artifact) -> str:
    shown = ("rows", "train", "validation", "test", "quarantined", "removed")
    found = counts(artifact)
    return ", ".join(f"{found[name]:,} {name}" for name in shown if found.get(name))


def _versions(data: Data) -> Table:
    table = _table(
        "version", "digest", "read", "rows", "new", "gone", "train", "validation", "test", "accepted", "by run"
    )
    for version in data.past:
        here = version == data.version
        sides = [f"{version.counts[name]:,}" for name in ("train", "validation", "test")]
        changes = ["" if change is None else f"{change:,}" for change in (version.added, version.removed)]
        table.add_row(
            *(f"{version.number}{' *' if here else ''}", version.rows.digest[:DIGITS]),
            *(f"{version.counts['read']:,}", f"{version.counts['rows']:,}", *changes, *sides),
            *(_clock(version.accepted), version.run),
        )
    return table


def _said(event: dict[str, Any]) -> str:
    """What an event says in one line beside its outcome."""
    outcome = event["outcome"]
    if outcome in ("refused", "quarantined"):
        return f"{event['reason']}: {event['detail']}"
    if outcome == "removed":
        partner = event["partner"]
        row = partner["row_id"][:DIGITS]
        return f"{event['reason']} of {_line(partner)} (row {row}), similarity {event['similarity']:.2f}"
    if outcome == "read":
        said = {name: event[name] for name in ("source", "byte", "group", "time", "side", "repairs")}
        return ", ".join(f"{name} {value}" for name, value in said.items() if value is not None)
    if outcome == "kept":
        return _named("repeated by", event["duplicates"], event["num_duplicates"])
    if "because" in event:
        source = event["inherited_from"]
        heir = f" from {_line(source)}, which it repeats or shares a group with" if source else ""
        others = _named(" with", event["also_in_cluster"], event["num_in_cluster"] - 1)
        return f"{RULES.get(event['because'], event['because'])}{heir}; cluster {event['cluster']}{others}"
    return ""


def _named(how: str, rows: Sequence[Found], number: int) -> str:
    if not number:
        return ""
    rest = f" and {number - len(rows):,} more" if number > len(rows) else ""
    return f"{how} {', '.join(_line(row) for row in rows)}{rest}"


def _line(row: Found) -> str:
    return f"{row['file']} line {row['line']}"


def _show_missing(console: Console, data: Data, what: str) -> None:
    """Why what is shown is not all there is, and the command that mends it."""
    if data.changed:
        why, until = f"the sources have changed since: {'; '.join(data.changed[:3])}", "split"
    elif data.missing:
        why = f"{data.missing} has not run on these data: {'; '.join(data.because[:3])}"
        until = data.missing if data.missing == "render" else "split"
    else:
        return
    console.print(Text(why, "yellow"), soft_wrap=True)
    console.print(Text(f"next  tunewright run {what} --until {until}"), soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _clock(utc: str) -> str:
    return utc.replace("T", " ").removesuffix("Z")[:16]
