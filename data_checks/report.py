"""The report of a check, as one HTML page that loads nothing and as a few lines of Markdown."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunewright.artifacts.payloads import CheckResults, ExpectationResult
from tunewright.data_checks.profile import UNKNOWN, Profile
from tunewright.privacy.excerpts import clipped
from tunewright.reports.pages import counted, template

Record = dict[str, Any]  # a line of a quarantine table: file, line, reason, detail, text
Examples = Mapping[str, Sequence[Record]]

EXAMPLES = 5  # of each reason and of each finding
SOURCES = 15
NAMES = 12  # of languages and labels
TEXT_CHARS = 400
REASONS = 10


@dataclass(frozen=True)
class LengthHistogram:
    """The lengths of one kind of texts: bars on a scale of doubling lengths, and three quantiles."""

    title: str
    bars: list[tuple[int, int]]  # (shortest length, rows)
    median: int
    percentile_95: int
    longest: int
    bounds: str

    @property
    def tallest(self) -> int:
        """The rows of the tallest bar."""
        return max(count for _, count in self.bars)

    @staticmethod
    def label(number: int) -> str:
        """A number in a few characters, so that labels of neighbouring bars stay apart: nothing for 0, 12.3k, 1.2M."""
        if number < 10_000:
            return str(number or "")
        return f"{number / 1_000:.3g}k" if number < 999_500 else f"{number / 1_000_000:.3g}M"


@dataclass(frozen=True)
class Shares:
    """The shares of rows by name, beside those of the last accepted version."""

    title: str
    names: list[tuple[str, int, float, float | None]]  # (name, rows, share, share before)
    more: int  # names that are not shown
    wide: bool  # the names are long


def render(
    results: CheckResults,
    profile: Profile,
    earlier: Profile | None,
    *,
    examples: Examples,
    found: Examples,
    conflicts: Sequence[Any],
) -> str:
    """The page of results.json and profile.json. `earlier` is the last accepted version's profile.

    `examples` are the first quarantined records of each reason, `found` those of each finding by its name and
    column, and `conflicts` prompts with several answers. Their texts are masked already (excerpts.py); here they are
    escaped and clipped.
    """
    expectations = results.expectations
    return template(Path(__file__).with_name("report.html")).render(
        clip=partial(clipped, length=TEXT_CHARS),
        results=results,
        reasons=[(stage, *item) for stage, counts in results.reasons.items() for item in counts.items()],
        expectations=[each for each in expectations if each.name != "table"],
        num_of_table=sum(each.name == "table" for each in expectations),
        findings=[each for each in expectations if each.is_finding],
        drifted={each.column for each in expectations if each.failed and each.of_set},
        profile=profile,
        earlier=earlier,
        lengths=list(_lengths(profile, expectations)),
        shares=list(_shares(profile, earlier)),
        examples=examples,
        found=found,
        conflicts=conflicts,
        num_examples=EXAMPLES,
        num_all=results.read + results.general,
        counted=counted,
    )


def _lengths(profile: Profile, expectations: Sequence[ExpectationResult]) -> Iterator[LengthHistogram]:
    named = [each.arguments for each in expectations if each.name == "length_out_of_bounds"]
    bounds = ("", "")
    if named:
        least, most = named[0]["min_answer_chars"], named[0]["max_answer_chars"]
        bounds = f"; allowed up to {named[0]['max_prompt_chars']:,}", f"; allowed {least:,} to {most:,}"
    titles = ("Prompt", "Longest answer of a row")
    for title, field, bound in zip(titles, ("prompt_chars", "answer_chars"), bounds, strict=True):
        found = profile[field]
        if found["bars"]:
            bars = [(int(shortest), count) for shortest, count in found["bars"].items()]
            yield LengthHistogram(title, bars, found["median"], found["percentile_95"], found["longest"], bound)


def _shares(profile: Profile, earlier: Profile | None) -> Iterator[Shares]:
    for title, field in (
        ("Languages of prompts", "prompt_languages"),
        ("Languages of answers", "answer_languages"),
        *([("Sources", "sources")] if earlier else []),
        ("Answers as labels", "labels"),
    ):
        now, then = profile[field] or {}, (earlier or {}).get(field) or {}
        names = sorted({*now, *then}, key=lambda name: (-now.get(name, 0), -then.get(name, 0), name))
        if now and names != [UNKNOWN]:
            share_then = {name: then[name] / earlier["rows"] for name in then} if earlier else {}
            shown = [
                (name, now.get(name, 0), now.get(name, 0) / profile["rows"], share_then.get(name, 0) if then else None)
                for name in names[:NAMES]
            ]
            yield Shares(title, shown, len(names) - len(shown), wide=field in ("sources", "labels"))


def summary(results: CheckResults) -> str:
    """The account, the most frequent reasons, the findings and what changed, as Markdown without raw HTML."""
    made = f" + {counted(results.general, 'general row')} made" if results.general else ""
    lines = [
        f"{counted(results.read, 'record')} read{made} = {results.kept:,} passed + {results.refused:,} quarantined by "
        f"ingest + {results.quarantined:,} quarantined by check"
    ]
    counts = [(count, name, stage) for stage, found in results.reasons.items() for name, count in found.items()]
    counts.sort(key=lambda each: (-each[0], each[1]))
    if counts:
        lines += ["", "| Reason | Stage | Records |", "|---|---|--:|"]
        lines += [f"| {_plain(name)} | {stage} | {count:,} |" for count, name, stage in counts[:REASONS]]
    if findings := [each for each in results.expectations if each.is_finding]:
        lines += ["", "Findings (these rows were kept):", ""]
        lines += [
            f"- **{_plain(each.name)}**{'' if each.severity == 'info' else f' ({each.severity})'}: "
            f"{_plain(each.fault)}" + ("" if each.of_set else f", {each.failed:,} row{'s'[: each.failed != 1]}")
            for each in findings
        ]
    if held_out := results.held_out:
        number = sum(records for _, _, records in held_out)
        lines += [
            "",
            f"Held out: {counted(number, 'record')} of {counted(len(held_out), 'file')}, which no training row may "
            "repeat.",
        ]
    for said in results.user_provided_splits:
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
