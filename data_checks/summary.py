"""A check in a few lines of Markdown, made from its results.json."""

import html

from tunewright.artifacts.payloads import CheckResults

REASONS = 10


def summary(results: CheckResults) -> str:
    """The account, the most frequent reasons, the findings and what changed, as Markdown without raw HTML."""
    lines = [
        f"{results.read:,} records read = {results.kept:,} kept + {results.refused:,} quarantined by ingest "
        f"+ {results.quarantined:,} quarantined by check"
    ]
    counts = [(count, name, stage) for stage, found in results.reasons.items() for name, count in found.items()]
    counts.sort(key=lambda each: (-each[0], each[1]))
    if counts:
        lines += ["", "| Reason | Stage | Records |", "|---|---|--:|"]
        lines += [f"| {_plain(name)} | {stage} | {count:,} |" for count, name, stage in counts[:REASONS]]
    failed = [each for each in results.expectations if each.name in results.findings and each.failed]
    if failed:
        lines += ["", "Findings (these rows were kept):", ""]
        lines += [
            f"- **{_plain(each.name)}**{'' if each.severity == 'info' else f' ({each.severity})'}: "
            f"{_plain(each.fault)}" + ("" if each.of_set else f", {each.failed:,} row{'s'[: each.failed != 1]}")
            for each in failed
        ]
    if held_out := results.held_out:
        number = sum(records for _, _, records in held_out)
        lines += [
            "",
            f"Held out: {number:,} records of {len(held_out)} files, which no training row may repeat.",
        ]
    for said in results.given_sides:
        lines += ["", f"**{_plain(said)}**"]
    if since := results.since:
        lines += [
            "",
            f"Since the last accepted version of {since.before:,} rows: {since.added:,} added, "
            f"{since.removed:,} removed.",
        ]
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return html.escape(text).replace("|", "&#124;").replace("*", "&#42;").replace("`", "&#96;")
