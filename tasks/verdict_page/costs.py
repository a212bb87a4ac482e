"""What a run took: the seconds of each stage as it was made, and tokens and peak memory where they are known."""

import json
from typing import NamedTuple

from tunewright.artifacts import Adapter, Answers, Artifact, Rows
from tunewright.reports.progress import duration
from tunewright.store.caching import MANIFEST
from tunewright.tasks.verdict_page.case import Case


class Cost(NamedTuple):
    """Of one stage."""

    stage: str
    seconds: float
    time: str  # in words
    said: str


def costs(case: Case) -> list[Cost]:
    """Of each stage, in their order."""
    found = []
    for name, record in case.steps():
        seconds = json.loads(record.path(MANIFEST).read_text(encoding="utf-8"))["seconds"]
        found.append(Cost(name, seconds, duration(seconds) if seconds >= 1 else "under 1 s", _said(case, record)))
    return found


def _said(case: Case, record: Artifact) -> str:
    if isinstance(record, Rows):
        return f"{record.num_read:,} rows read"
    if isinstance(record, Adapter):
        return _of_training(case)
    if isinstance(record, Answers):
        took = json.loads(record.path("seconds.json").read_text(encoding="utf-8"))
        return f"{record.num_rows:,} answers, {took['tokens']:,} tokens"
    return ""


def _of_training(case: Case) -> str:
    steps = case.curves.steps
    tokens = sum(line["tokens_per_second"] * line["seconds"] for line in steps if "tokens_per_second" in line)
    peak = max((line["memory_bytes"] for line in steps if "memory_bytes" in line), default=0)
    computed = [f"{tokens:,.0f} tokens"] if tokens else []
    return ", ".join([f"{len(steps):,} steps", *computed, *([f"at most {peak / 1e9:.2g} GB"] if peak else [])])
