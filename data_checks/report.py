"""The report of a check as one HTML page that loads nothing: what was read, kept and set aside, and why."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from data_checks.suite import Outcome

Record = dict[str, Any]  # a line of a quarantine table: file, line, reason, detail, text

EXAMPLES = 5  # of each reason and of the findings
SOURCES = 15
TEXT_CHARS = 400


@dataclass(frozen=True)
class Lengths:
    """How long the texts of one kind are: bars on a scale of doubling lengths, and three quantiles."""

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


def render(
    frame: pd.DataFrame,
    kept: Sequence[bool],
    outcomes: Sequence[Outcome],
    *,
    refused: Sequence[Record],
    quarantined: Sequence[Record],
    conflicts: Sequence[tuple[str, Sequence[Record]]],
    bounds: tuple[str, str],
) -> str:
    """The page. `refused` never became rows (ingest), `quarantined` are the rows of `frame` that were not kept.

    `conflicts` are prompts with the kept rows that answer them differently; `bounds` says in words what prompts
    and answers may measure.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    num_read = len(frame) + len(refused)
    remaining = frame[list(kept)]
    return environment.get_template("report.html").render(
        num_read=num_read,
        num_kept=len(remaining),
        num_refused=len(refused),
        num_quarantined=len(quarantined),
        reasons=[*_reasons("ingest", refused), *_reasons("check", quarantined)],
        outcomes=[outcome for outcome in outcomes if outcome.severity != "critical"],
        critical=[outcome for outcome in outcomes if outcome.severity == "critical"],
        lengths=[
            _lengths(title, remaining[column].dropna(), bound)
            for title, column, bound in (
                ("Prompt", "prompt_chars", bounds[0]),
                ("Longest answer of a row", "max_answer_chars", bounds[1]),
            )
            if remaining[column].notna().any()
        ],
        sources=_sources(frame, kept),
        examples=_examples([*refused, *quarantined]),
        num_conflicts=len(conflicts),
        conflicts=conflicts[:EXAMPLES],
        num_examples=EXAMPLES,
        text_chars=TEXT_CHARS,
    )


def _reasons(stage: str, records: Sequence[Record]) -> list[tuple[str, str, int]]:
    counts = Counter(record["reason"] for record in records)
    return [(stage, reason, count) for reason, count in counts.most_common()]


def _examples(records: Iterable[Record]) -> dict[str, list[Record]]:
    examples: dict[str, list[Record]] = {}
    for record in records:
        found = examples.setdefault(record["reason"], [])
        if len(found) < EXAMPLES:
            found.append(record)
    return examples


def _sources(frame: pd.DataFrame, kept: Sequence[bool]) -> list[tuple[str, int, int]]:
    """(source, kept, quarantined), the largest first; what is beyond SOURCES in one line."""
    passed = pd.Series(list(kept), index=frame.index)
    grouped = passed.groupby(frame["source"].astype(object)).agg(["sum", "size"]).sort_values("size", ascending=False)
    rows = [(str(name), int(line["sum"]), int(line["size"] - line["sum"])) for name, line in grouped.iterrows()]
    rest = rows[SOURCES:]
    if rest:
        rows[SOURCES:] = [(f"{len(rest)} more", sum(row[1] for row in rest), sum(row[2] for row in rest))]
    return rows


def _lengths(title: str, characters: pd.Series, bounds: str) -> Lengths:
    counts = Counter(int(length).bit_length() for length in characters)
    scale = range(min(counts), max(counts) + 1)
    return Lengths(
        title=title,
        bars=[(_shortest(bits), counts[bits]) for bits in scale],
        median=int(characters.median()),
        percentile_95=int(characters.quantile(0.95)),
        longest=int(characters.max()),
        bounds=bounds,
    )


def _shortest(bits: int) -> int:
    """The shortest of the lengths that have so many binary digits."""
    return 2 ** (bits - 1) if bits else 0
