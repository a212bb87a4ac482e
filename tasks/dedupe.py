"""Rows that repeat an earlier row: exactly, or nearly and verified; each removal names the kept row that it repeats.

Near duplicates have similar prompts, the same numbers in them and the same answer: rows that differ in a number or in
their answer say different things, however alike they look. Answers are the same if they are equal but for case and
white space; similar ones are not, since in slots and labels one word of the answer is all that differs. In a prompt of
under ten words one word can be all that differs too, so all of them must be equal.
"""

import json
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

from tasks.artifacts import REMOVED_SCHEMA, ROW_SCHEMA, CheckedRows, UniqueRows
from tasks.caching import cached
from tasks.config import Dedupe
from tasks.errors import DataError, retry_transient
from tasks.similarity import BOILERPLATE, Pairs, alike, boilerplate, normalize, numbers, prompt_text, without, words

FEWEST_WORDS = 10
REPORTED_BOILERPLATE = 20
REPORTED_CHARS = 200
REMOVED_CHARS = 500


@dataclass(frozen=True)
class Repeat:
    """What a removed row repeats: the number of a kept row that stands earlier, and how alike the two are."""

    reason: str  # exact_duplicate or near_duplicate
    partner: int
    similarity: float


def exact_repeats(conversations: list[list[dict[str, Any]]]) -> dict[int, Repeat]:
    """The rows whose whole conversation an earlier row has, but for case and white space."""
    seen: dict[tuple[tuple[str, str], ...], int] = {}
    repeats: dict[int, Repeat] = {}
    for row, messages in enumerate(conversations):
        first = seen.setdefault(tuple((turn["role"], normalize(turn["content"])) for turn in messages), row)
        if first != row:
            repeats[row] = Repeat("exact_duplicate", first, 1.0)
    return repeats


def near_repeats(keys: list[str], answers: list[str], threshold: float) -> dict[int, Repeat]:
    """The texts that are close to an earlier one that stays, with the same numbers and the same answer."""
    return _leaders(alike(keys, threshold, [_kind(key, answer) for key, answer in zip(keys, answers, strict=True)]))


def _kind(key: str, answer: str) -> tuple[Hashable, ...]:
    """What two rows must have in common, or they are different rows however similar."""
    said = words(key)
    return numbers(key), normalize(answer), tuple(said) if len(said) < FEWEST_WORDS else None


def _leaders(pairs: Pairs) -> dict[int, Repeat]:
    """A row goes only if it is close to a row that stays; the partner is the closest of those, then the earliest."""
    repeats: dict[int, Repeat] = {}
    # Pairs come ordered by their later row, so whether the earlier one stays is settled.
    for left, right, similarity in zip(
        pairs.left.tolist(), pairs.right.tolist(), pairs.similarity.tolist(), strict=True
    ):
        if left not in repeats and (right not in repeats or similarity > repeats[right].similarity):
            repeats[right] = Repeat("near_duplicate", left, similarity)
    for row, first in enumerate(pairs.first.tolist()):
        if row != first:
            repeats[row] = repeats.get(first, Repeat("near_duplicate", first, 1.0))
    return repeats


def find_repeats(conversations: list[list[dict[str, Any]]], settings: Dedupe) -> tuple[dict[int, Repeat], list[str]]:
    """Every row to remove, and the boilerplate that was left out of the comparison (all of it, whole)."""
    repeats = exact_repeats(conversations)
    different = [row for row in range(len(conversations)) if row not in repeats]
    prompts = [prompt_text(conversations[row]) for row in different]
    left_out = boilerplate(prompts, settings.boilerplate_share)
    if settings.near:
        keys = [without(prompt, set(left_out)) for prompt in prompts]
        answers = [conversations[row][-1]["content"] for row in different]
        for position, repeat in near_repeats(keys, answers, settings.threshold).items():
            repeats[different[position]] = Repeat(repeat.reason, different[repeat.partner], repeat.similarity)
    # A row whose exact partner went as a near duplicate repeats what that one repeats.
    return {row: repeats.get(repeat.partner, repeat) for row, repeat in sorted(repeats.items())}, left_out


def _removed(rows: pa.Table, conversations: list[list[dict[str, Any]]], repeats: dict[int, Repeat]) -> pa.Table:
    partners = [repeat.partner for repeat in repeats.values()]
    gone, kept = rows.take(pa.array(list(repeats), pa.int64())), rows.take(pa.array(partners, pa.int64()))
    columns = {
        "row_id": gone["row_id"],
        "file": gone["file"],
        "line": gone["line"],
        "reason": [repeat.reason for repeat in repeats.values()],
        "partner_row_id": kept["row_id"],
        "partner_file": kept["file"],
        "partner_line": kept["line"],
        "similarity": [repeat.similarity for repeat in repeats.values()],
        "text": [prompt_text(conversations[row])[:REMOVED_CHARS] for row in repeats],
    }
    return pa.table(columns, schema=REMOVED_SCHEMA)


def _stop_if_too_many(removed: pa.Table, num_rows: int, settings: Dedupe) -> None:
    if removed.num_rows <= settings.max_removed_share * num_rows:
        return
    first = removed.slice(0, 1).to_pylist()[0]
    raise DataError(
        f"{removed.num_rows} of {num_rows} rows repeat an earlier one, more than dedupe.max_removed_share="
        f"{settings.max_removed_share:g} accepts; the first is {first['file']}:{first['line']}, which repeats "
        f"{first['partner_file']}:{first['partner_line']} (similarity {first['similarity']:.2f})"
    )


@task(
    name="dedupe",
    task_run_name="dedupe threshold={settings.threshold}",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=retry_transient,
)
@cached(libraries=("pyarrow",))
def dedupe(folder: Path, rows: CheckedRows, settings: Dedupe) -> UniqueRows:
    """The rows that repeat no earlier one, in their order, and the removed ones; DataError where too many go."""
    table = pq.read_table(rows.path("rows.parquet"), schema=ROW_SCHEMA)
    conversations = table["messages"].to_pylist()
    repeats, left_out = find_repeats(conversations, settings)
    removed = _removed(table, conversations, repeats)
    _stop_if_too_many(removed, table.num_rows, settings)
    kept = table.filter(pa.array([row not in repeats for row in range(table.num_rows)], pa.bool_()))
    pq.write_table(kept, folder / "rows.parquet")
    pq.write_table(removed, folder / "removed.parquet")
    (folder / BOILERPLATE).write_text(json.dumps(left_out, ensure_ascii=False, indent=1), encoding="utf-8")
    return UniqueRows(
        num_rows=kept.num_rows,
        num_removed=removed.num_rows,
        reasons=dict(sorted(Counter(repeat.reason for repeat in repeats.values()).items())),
        boilerplate=tuple(sorted(segment[:REPORTED_CHARS] for segment in left_out[:REPORTED_BOILERPLATE])),
    )
