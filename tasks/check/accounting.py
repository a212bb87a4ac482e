"""Writes the rows that pass and those that do not, each with the first thing that is wrong with it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import FINDINGS_SCHEMA, QUARANTINE_SCHEMA, ROW_SCHEMA, Rows
from tunewright.data_checks.batches import row_batches, rows_at
from tunewright.data_checks.given import RefusedCounts
from tunewright.data_checks.report import EXAMPLES
from tunewright.data_checks.rules import answers_by_prompt, places_of_another_answer
from tunewright.privacy.excerpts import excerpt, in_a_line, masked
from tunewright.reports.pages import counted, located, percent
from tunewright.tasks.check.validate import Mask, ValidatedRows, ValidatedSet, is_replay
from tunewright.tools.conversation import prompt_and_answer, shown_turns

Record = dict[str, Any]  # of QUARANTINE_SCHEMA
Examples = dict[str, list[Record]]


def reasons(validated: ValidatedRows, only: Mask | None = None) -> dict[str, int]:
    """Reason -> rows that are quarantined for it, of all or `only` of some, the most frequent first."""
    counts: Counter[str] = Counter()
    blamed = np.zeros(len(validated.frame), dtype=np.bool_) if only is None else ~only
    for outcome, fails in zip(validated.quarantined, validated.failing(), strict=True):
        counts[outcome.entry.name] += int((fails & ~blamed).sum())
        blamed |= fails
    return {reason: count for reason, count in counts.most_common() if count}


def no_replay_left(validated: ValidatedRows) -> list[str]:
    """Say that there were replay rows and none of them is kept; empty where that is not so."""
    replay = is_replay(validated.frame)
    if not replay.any() or validated.kept()[replay].any():
        return []
    counts, of_replay = reasons(validated, only=replay), int(replay.sum())
    listed = ", ".join(f"{reason} {count:,}" for reason, count in counts.items())
    return [f"all of the {counted(of_replay, 'replay row')} are quarantined ({listed}): no general row trains"]


def stops(validated: ValidatedRows, of_set: ValidatedSet, counts: dict[str, int], limit: float) -> str:
    """Why the run stops, in one line: what is critical, or that too few rows are left. Empty where it goes on."""
    of_rows, of_all = (
        [outcome for outcome in outcomes if outcome.failed and outcome.entry.severity == "critical"]
        for outcomes in (validated.outcomes, of_set.outcomes)
    )
    also = list(dict.fromkeys(outcome.entry.name for outcome in (*of_rows, *of_all)))
    said = "" if of_rows else _too_many(validated, counts, limit)
    if not said and also:
        first = [*of_rows, *of_all][0]
        what = validated.said(first) if of_rows else first.says(of_set.measures[first.column].value)
        said = f"{also.pop(0)}: {what}"
    return f"{said}; also critical: {', '.join(also)}" if also else said


def _too_many(validated: ValidatedRows, counts: dict[str, int], limit: float) -> str:
    num_rows, quarantined = len(validated.frame), sum(counts.values())
    share = quarantined / num_rows
    if share <= limit and share < 1:
        return ""
    first = validated.frame.iloc[int(np.flatnonzero(~validated.kept())[0])]
    over = f"over checks.max_quarantined_share={limit:g}" if share > limit else "none is left"
    listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    place = located(first["file"], first["line"])
    return f"{quarantined} of {num_rows} rows quarantined ({percent(share, 1)}), {over}: {listed}; first: {place}"


def write(file: Path, folder: Path, validated: ValidatedRows) -> Examples:
    """Writes rows.parquet and quarantine.parquet into `folder`, in the order of the row table `file`.

    Returns the first few records of each reason.
    """
    kept, examples, start = validated.kept(), Examples(), 0
    blamed = _blame(validated)
    with (
        pq.ParquetWriter(folder / "rows.parquet", ROW_SCHEMA) as passed,
        pq.ParquetWriter(folder / "quarantine.parquet", QUARANTINE_SCHEMA) as aside,
    ):
        for batch in row_batches(file, ROW_SCHEMA.names):
            here = kept[start : start + len(batch)]
            table = pa.Table.from_batches([batch]).select(ROW_SCHEMA.names).cast(ROW_SCHEMA)
            if here.any():
                passed.write_table(table.filter(pa.array(here)))
            if not here.all():
                records = [record(row, *next(blamed)) for row in table.filter(pa.array(~here)).to_pylist()]
                _keep_examples(examples, records)
                aside.write_table(pa.Table.from_pylist(records, QUARANTINE_SCHEMA))
            start += len(batch)
    return examples


def write_findings(folder: Path, validated: ValidatedRows) -> None:
    """Writes findings.parquet into `folder`: what expectations that only report say of kept rows."""
    with pq.ParquetWriter(folder / "findings.parquet", FINDINGS_SCHEMA) as found:
        for outcome in validated.outcomes:
            if outcome.entry.severity == "info" and len(outcome.rows):
                rows = validated.frame.iloc[outcome.rows]
                values = rows[outcome.column] if outcome.column in rows else [""] * len(rows)
                said = [outcome.says(in_a_line(value)) for value in values]
                if outcome.entry.name == "conflicting_answers":
                    others = places_of_another_answer(rows)
                    ends = [f"; {place} has another" if place else "" for place in others]
                    said = list(map(str.__add__, said, ends))
                columns = {
                    "file": pa.array(rows["file"], pa.string()),
                    "line": pa.array(rows["line"], pa.int64()),
                    "finding": [outcome.entry.name] * len(rows),
                    "detail": said,
                }
                found.write_table(pa.table(columns, schema=FINDINGS_SCHEMA))


def findings(file: Path, validated: ValidatedRows) -> Examples:
    """The first few rows of each expectation that only reports, with what it says of them, by its name and column."""
    wanted: dict[int, list[tuple[str, str]]] = {}
    for outcome in validated.outcomes:
        if outcome.entry.severity == "info" and outcome.entry.name != "conflicting_answers":
            for position in outcome.rows[:EXAMPLES].tolist():
                said = outcome.says(validated.value(outcome, position))
                wanted.setdefault(position, []).append((f"{outcome.entry.name} {outcome.column}", said))
    examples = Examples()
    for position, row in rows_at(file, wanted):
        _keep_examples(examples, [record(row, name, said) for name, said in wanted[position]])
    return examples


def conflicts(file: Path, validated: ValidatedRows) -> list[dict[str, Any]]:
    """The first few prompts with several answers that were kept: each with their number, and the first few of them."""
    conflicting = validated.conflicting()
    prompts = [] if conflicting is None else answers_by_prompt(conflicting, EXAMPLES)
    rows = dict(rows_at(file, (row for answers in prompts for row in answers[:EXAMPLES])))
    found = []
    for answers in prompts:
        prompt, _ = prompt_and_answer(rows[answers[0]]["messages"])
        records = []
        for row in (rows[position] for position in answers[:EXAMPLES]):
            _, answer = prompt_and_answer(row["messages"])
            records.append(record(row, "", "") | {"text": masked((answer or {}).get("content") or "")})
        found.append({"prompt": excerpt(prompt), "num_answers": len(answers), "answers": records})
    return found


def record(row: dict[str, Any], reason: str, detail: str) -> Record:
    """Record a row's place, its fault and the beginning of its text."""
    place = {name: row[name] for name in ("file", "line", "byte", "row_id")}
    return place | {"reason": reason, "detail": detail, "text": excerpt(shown_turns(row))}


def refused(file: Path, splits: Mapping[str, str]) -> tuple[dict[str, int], Examples, dict[str, RefusedCounts]]:
    """The reasons for which ingest refused records, with their numbers; the first few of each; and those of each split.

    `splits` has that of each file which is given to one.
    """
    counts: Counter[str] = Counter()
    examples, of_splits = Examples(), dict[str, RefusedCounts]()
    for batch in row_batches(file):
        records = batch.to_pylist()
        counts.update(each["reason"] for each in records)
        _keep_examples(examples, records)
        for each in records if splits else ():
            if split := splits.get(each["file"]):
                first = located(each["file"], each["line"])
                of_splits.setdefault(split, RefusedCounts(Counter(), first)).reasons[each["reason"]] += 1
    for each in (each for found in examples.values() for each in found):  # ingest's details quote what it refused
        each.update({name: masked(each[name] or "") for name in ("detail", "text")})
    return dict(counts.most_common()), examples, of_splits


def held_out(rows: Rows) -> list[tuple[str, str, int]]:
    """(file, how it was read, records) of each evaluation file, which are no rows."""
    if not rows.num_held_out:
        return []
    files = pq.read_table(rows.path("held_out.parquet"), columns=["file"], read_dictionary=["file"])["file"]
    counts = {str(each["values"]): int(each["counts"]) for each in files.value_counts().to_pylist()}
    return [(file, rows.detected[file], count) for file, count in counts.items()]


def _keep_examples(examples: Examples, records: list[Record]) -> None:
    for each in records:
        found = examples.setdefault(each["reason"], [])
        if len(found) < EXAMPLES:
            found.append(each)


def _blame(validated: ValidatedRows) -> Iterator[tuple[str, str]]:
    """For each row that is quarantined, in order, its reason and a sentence that names the others."""
    failing, outcomes = validated.failing(), validated.quarantined
    for position in np.flatnonzero(failing.any(axis=0)).tolist():
        first, *others = (outcomes[line] for line in np.flatnonzero(failing[:, position]).tolist())
        also = dict.fromkeys(o.entry.name for o in others if o.entry.name != first.entry.name)
        said = first.says(validated.value(first, position))
        yield first.entry.name, f"{said}; also {', '.join(also)}" if also else said
