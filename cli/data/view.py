"""Print the result of `tunewright data` in a terminal."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunewright.artifacts import Artifact, UniqueRows
from tunewright.cli.data import PipelineData
from tunewright.cli.data.as_json import counts, figures, stage
from tunewright.cli.visible import plain_table
from tunewright.config import from_here
from tunewright.flows.outcome import user_provided_splits
from tunewright.reports.pages import located
from tunewright.store.data_history import Version
from tunewright.store.lineage import OUT_OF_DATA, first_refused, num_refused
from tunewright.store.refusals import StoppedStage
from tunewright.store.row_search import MOST_MATCHES, Found

EXACT = "exact_duplicate"  # the reason of dedupe
DIGITS = 12  # of a digest, where a person reads it
COLUMNS = {"refused": "quarantined by ingest", "quarantined": "quarantined later"}  # of figures, in the table
RULES = {
    "given": "assigned by its source",
    "kept": "kept from the previous version",
    "by_time": "assigned by time",
    "drawn": "randomly assigned",
    "replay": "drawn as replay row",
}


def show_data(console: Console, data: PipelineData, what: str) -> None:
    """The stages and the versions; `what` is the file and its changes, for the command to run next."""
    console.print(Text(data.title, "bold"))
    if data.rotation:
        console.print(Text(data.rotation, "yellow"), soft_wrap=True)
    for file, detected in data.made.all_rows.detected.items() if data.made else ():
        console.print(Text.assemble(f"  {file}  ", (detected, "dim")), soft_wrap=True)
    if data.made:
        console.print()
        _show_stages(console, [stage(artifact) | {"said": _rows(artifact)} for artifact in data.made])
        _show_duplicates(console, data.made.unique, what)
        for said in user_provided_splits(data.made.checked) if data.made.checked else ():
            console.print(said, style="yellow")
    if data.past:
        console.print()
        if not data.is_as_accepted:
            console.print(
                "The versions below were made with earlier settings, the stages above with the current ones.",
                style="yellow",
            )
        console.print(_versions(data))
        for version in data.past:
            for said in _replaced(version):
                console.print(said, style="dim", soft_wrap=True)
    console.print()
    if data.stopped and (records := first_refused(data.stopped)):
        console.print(_refused(records, data.stopped))
        console.print()
    _show_missing(console, data, what)


def _show_stages(console: Console, stages: Sequence[dict[str, Any]]) -> None:
    """Print the output of each stage and the paths of its files."""
    table = plain_table("stage", "digest", "rows", "inputs", "created (UTC)", "by run")
    for made in stages:
        parents = "\n".join(f"{name} {digest[:DIGITS]}" for name, digest in made["parents"].items())
        table.add_row(
            *(made["stage"], made["digest"][:DIGITS], made["said"], parents, _clock(made["made"]), made["made_by"])
        )
    console.print(table)
    console.print()
    width = max(len(made["stage"]) for made in stages) + 1
    for made in stages:
        files = ", ".join(made["files"])
        place = f"{from_here(Path(made['artifact']))}/"
        console.print(Text.assemble((made["stage"].ljust(width), "bold"), place, (f"  {files}", "dim")), soft_wrap=True)


def _show_duplicates(console: Console, unique: UniqueRows | None, what: str) -> None:
    """Print where the removed rows are listed, and a sample of them with the rows that they repeat."""
    if unique is None or not unique.num_removed:
        return
    page, table = unique.path("report.html"), unique.path("removed.parquet")
    nearest = any(reason != EXACT for reason in unique.reasons)  # exact duplicates have no similarity to look at
    shows = "shows the pairs nearest to the threshold" if nearest else "counts them by reason"
    said = [f"duplicates: {from_here(page)} {shows}"] if page.is_file() else []
    rows = "the one row" if unique.num_removed == 1 else f"all {unique.num_removed:,} rows, each"
    said.append(f"duplicates: {from_here(table)} lists {rows} with the row it repeats")
    said.append(f"one of them: tunewright data {what} --line FILE:LINE")
    console.print()
    console.print(Text("\n".join(said)), soft_wrap=True)


def show_row(console: Console, data: PipelineData, row: dict[str, Any], what: str) -> None:
    """A row's life, or the rows that were meant, from `row_json`."""
    if "matches" in row:
        table = plain_table("row", "file", "line", "text")
        for match in row["matches"]:
            text = " ".join(match["text"].split())
            table.add_row((match["row_id"] or "")[:DIGITS], Text(match["file"]), str(match["line"]), Text(text))
        console.print(table)
        more = f"the first {MOST_MATCHES}; " if row["more"] else ""
        console.print(f"{more}show one with --row ROW or --line FILE:LINE", style="dim")
        return
    identity = f"row {row['row_id'][:DIGITS]}" if row["row_id"] else "no row"
    asked = f", which line {row['asked_line']} is part of" if "asked_line" in row else ""
    place = (located(row["file"], row["line"]), "bold")
    stop = data.stop_of_ingest
    is_of_stop = stop and Path(row["life"][0]["in"]).parent == stop.folder
    among = f"what ingest quarantined of {data.name} when it stopped" if is_of_stop else data.title
    console.print(Text.assemble(place, f"{asked}  {identity}, in {among}"))
    console.print(Text(row["text"], "dim"))
    console.print()
    table = plain_table("stage", "", "")
    for event in row["life"]:
        colour = "yellow" if event["outcome"] in OUT_OF_DATA else "green"
        table.add_row(event["stage"], Text(_outcome(event), colour), Text(_said(event)))
    console.print(table)
    console.print(Text.assemble(("stored in  ", "dim"), str(from_here(Path(row["life"][-1]["in"])))), soft_wrap=True)
    if row["versions"]:
        console.print()
        for past in row["versions"]:
            number, because, split = past["version"], past["because"], past["split"] or "no split"
            there = f"version {number}: {split} ({because})"
            console.print(there if because else f"not in version {number}", style="dim")
    if row["missing"] or data.changed or data.stopped:
        _show_missing(console, data, what)


def _rows(artifact: Artifact) -> str:
    shown = ("rows", "train", "validation", "test", "quarantined", "removed")
    found = counts(artifact)
    return ", ".join(f"{found[name]:,} {name}" for name in shown if found.get(name))


def _versions(data: PipelineData) -> Table:
    """Print the records of each version by outcome, with the counts of `figures`."""
    of_versions = [figures(version) for version in data.past]
    names = [name for name in of_versions[0] if name != "general" or any(found[name] for found in of_versions)]
    table = plain_table("version", *(COLUMNS.get(name, name) for name in names), "accepted (UTC)")
    for version, found in zip(data.past, of_versions, strict=True):
        here = " *" if version == data.version else ""
        counts = ["" if found[name] is None else f"{found[name]:,}" for name in names]
        table.add_row(f"{version.number}{here}", *counts, _clock(version.accepted))
    return table


def _replaced(version: Version) -> Iterator[str]:
    """Yield a line for each time a version was accepted again and rows changed split, with their number."""
    then = [*(once.accepted for once in version.replaced[1:]), version.accepted]
    for position, once in enumerate(version.replaced):
        if once.moved == 0:
            continue
        moved = "an unknown number of" if once.moved is None else f"{once.moved:,} of {once.known:,}"
        accepted = "first accepted on" if position == 0 else "accepted again on"
        accepted += f" {_clock(once.accepted)}{f' by {once.run}' if once.run else ''}"
        went = "moved back to their first split" if version.is_back(position) else "moved to another split"
        yield f"version {version.number}, {accepted}: {moved} rows {went} on {_clock(then[position])}"


def _refused(records: Sequence[Found], stopped: StoppedStage) -> Table:
    number, did = num_refused(stopped), "removed" if stopped.stage == "dedupe" else "quarantined"
    first = "the first " if number > len(records) else ""
    table = plain_table(f"{first}{len(records)} of {number:,} that {stopped.stage} {did}", "reason", "")
    for record in records:
        partner = record.get("partner_file")
        said = f"repeats {located(partner, record['partner_line'])}" if partner else record["detail"]
        table.add_row(Text(_line(record)), record["reason"], Text(said))
    return table


def _outcome(event: dict[str, Any]) -> str:
    """Return the outcome of a row; ingest's "refused" is shown as "quarantined"."""
    return "quarantined" if event["outcome"] == "refused" else event["outcome"]


def _said(event: dict[str, Any]) -> str:
    """Describe an event in one line, without its outcome."""
    outcome = event["outcome"]
    if _outcome(event) == "quarantined":
        return f"{event['reason']}: {event['detail']}"
    if outcome == "removed":
        partner = event["partner"]
        row = partner["row_id"][:DIGITS]
        return f"{event['reason']} of {_line(partner)} (row {row}), similarity {event['similarity']:.2f}"
    if outcome == "read":
        said = {name: event[name] for name in ("source", "byte", "group", "time", "repairs")}
        is_replay = event["use_as"] == "replay"
        split = ["a replay row" if is_replay else f"assigned to {event['use_as']}"] if event["use_as"] else []
        return ", ".join([f"{name} {value}" for name, value in said.items() if value is not None] + split)
    if event["stage"] == "label_errors":
        return f"a model that was trained without it answers: {' '.join(event['answer'].split())}"
    if outcome == "held out":
        return "never trained on; split quarantines training rows that share a passage with it"
    if outcome == "passed" and event["findings"]:
        return "with " + "; ".join(f"{each['finding']}: {each['detail']}" for each in event["findings"])
    if outcome == "kept":
        return _named("repeated by", event["duplicates"], event["num_duplicates"])
    if "because" in event:
        source = event["inherited_from"]
        heir = f" from {_line(source)} (near-duplicate or same group)" if source else ""
        others = _named(" with", event["also_in_cluster"], event["num_in_cluster"] - 1)
        return f"{RULES.get(event['because'], event['because'])}{heir}; cluster {event['cluster']}{others}"
    return ""


def _named(how: str, rows: Sequence[Found], number: int) -> str:
    if not number:
        return ""
    rest = f" and {number - len(rows):,} more" if number > len(rows) else ""
    return f"{how} {', '.join(_line(row) for row in rows)}{rest}"


def _line(row: Found) -> str:
    return located(row["file"], row["line"])


def _show_missing(console: Console, data: PipelineData, what: str) -> None:
    """Why what is shown is not all there is, and the command that fixes it."""
    until = "render" if data.missing == "render" else "split"
    command = f"tunewright run {what} --until {until}"
    if data.stopped:
        _show_stop(console, data.stopped, f"changed since: {_some(data.changed)}; " if data.changed else "")
        command = f"fix the data or the setting named above, then  {command}"
    elif data.outdated:
        _show_stop(console, data.outdated, "before the sources changed, ")
    elif data.changed:
        console.print(
            Text(f"the sources or their settings have changed since: {_some(data.changed)}", "yellow"),
            soft_wrap=True,
        )
    elif data.missing:
        because = f": {_some(data.because)}" if data.because else ""
        console.print(Text(f"{data.missing} has not run on these data{because}", "yellow"), soft_wrap=True)
    else:
        return
    console.print(Text(f"next  {command}"), soft_wrap=True)


def _show_stop(console: Console, stopped: StoppedStage, since: str) -> None:
    """Which stage stopped, when, why, and where to look."""
    text = f"{since}{stopped.stage} stopped on {_clock(stopped.when)} in {stopped.run}: {stopped.message}"
    console.print(Text(text, "yellow"), soft_wrap=True)
    for path in stopped.paths:
        console.print(Text(f"see   {from_here(path)}"), soft_wrap=True)
    if not stopped.files:
        console.print(Text(f"{stopped.stage} wrote no file; the line above says all", "dim"))


def _some(causes: Sequence[str]) -> str:
    return "; ".join(causes[:3])


def _clock(utc: str) -> str:
    return utc.replace("T", " ").removesuffix("Z")[:16]
