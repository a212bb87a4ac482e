"""Estimate the computed tokens, from rows of optimizer steps in their micro-batches, drawn at random.

Render's rows are counted exactly, a sample of steps for the whole; before render has run, rows of a guessed length
stand for them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from zlib import crc32

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel

from tunewright.artifacts import IGNORED
from tunewright.cost_model.memory import Load
from tunewright.modeling.micro_batching import Layout, Row, cut, num_tokens, shared_prefix, side_by_side
from tunewright.modeling.pairs import as_row, last_answer
from tunewright.tools.conversation import Message, conversation_of

# Counted; estimated from some of the rows that a stage made, or that the files have; or the longest there can be.
Source = Literal["render", "split", "ingest", "sample", "settings"]

MOST_ROWS = 20_000  # that are read
SAMPLE = 2_000  # of them, that steps are drawn from
DRAWN = 1_000  # rows of the steps that are drawn, and at least four steps
MARKERS = 8  # tokens of a template around a message, of which the last ends it
BYTES_A_TOKEN = 4  # of text: what a vocabulary of about 50,000 takes of English


class EpochWork(BaseModel, frozen=True):
    """The tokens computed in an epoch. Figures per row are means."""

    source: Source
    num_rows: int
    row_tokens: float  # that a row has, exactly where render's rows were counted
    computed_tokens: float  # that are computed for a row
    scored: float  # labelled positions of a row
    longest: int


def tokens_of_render(file: Path) -> int:
    """Return the number of tokens of render's rows, without reading them: none of its rows is empty."""
    metadata = pq.ParquetFile(file).metadata
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    columns = [group.column(at) for group in groups for at in range(group.num_columns)]
    return sum(column.num_values for column in columns if column.path_in_schema.startswith("input_ids."))


def rows_of_render(file: Path) -> tuple[int, list[Row]]:
    """Return the number of rows of render, and some drawn from all over the file: input_ids and labels."""
    return pq.ParquetFile(file).metadata.num_rows, _some_of(file, ["input_ids", "labels", "prompt_length", "replay"])


def _some_of(file: Path, columns: list[str]) -> list[Row]:
    """Rows that are drawn from all over the file."""
    parquet = pq.ParquetFile(file)
    num_groups = parquet.num_row_groups
    few = min(num_groups, max(1, MOST_ROWS * num_groups // max(1, parquet.metadata.num_rows)))
    groups = [at * num_groups // few for at in range(few)]
    table = parquet.read_row_groups(groups, columns=columns)
    num_read = min(len(table), MOST_ROWS)
    drawn = np.random.default_rng(0).choice(num_read, min(num_read, SAMPLE), replace=False)
    return table.take(np.sort(drawn)).to_pylist()


def pairs_of_render(file: Path) -> list[Row]:
    """Return the preference pairs of render, each as one row with its prompt and both answers."""
    return pairs_of(_some_of(file, ["input_ids", "labels", "prompt_length", "rejected_ids"]))


def pairs_of(rows: Sequence[Row]) -> list[Row]:
    """Those of the rows that are preference pairs, each as one row with its prompt and both answers."""
    return [as_row(row, branches=True) for row in rows if row.get("rejected_ids") is not None]


def mismatched(rows: Sequence[Row]) -> list[Row]:
    """The rows, each as one with its own last answer and that of the next one."""
    following = [*rows[1:], *rows[:1]]
    return [
        as_row({**row, "rejected_ids": last_answer(other)}, branches=True)
        for row, other in zip(rows, following, strict=True)
    ]


def conversations_in(file: Path) -> tuple[int, list[list[Message]]]:
    """Return the number of rows of a row table, and the messages of the first."""
    parquet = pq.ParquetFile(file)
    first = next(parquet.iter_batches(1_000, columns=["messages", "chat"]))
    return parquet.metadata.num_rows, [*map(conversation_of, first.to_pylist())]


def guessed(messages: Sequence[Mapping[str, str]]) -> Row:
    """About what a conversation is as tokens: rows that begin with the same text begin with the same ids."""
    row: Row = {"input_ids": [], "labels": []}
    for message in messages:
        text, role = (message["content"] or "").encode(), message["role"]
        pieces = [text[at : at + BYTES_A_TOKEN] for at in range(0, len(text), BYTES_A_TOKEN)]
        ids = [crc32(piece) for piece in pieces]
        marker = crc32(role.encode())
        row["input_ids"] += [marker] * (MARKERS - 1) + ids + [marker]
        learned = [*ids, marker] if role == "assistant" else [IGNORED] * (len(ids) + 1)  # an empty answer's stop token
        row["prompt_length"] = len(row["input_ids"]) - len(learned)
        row["labels"] += [IGNORED] * (MARKERS - 1) + learned
    return row


def stand_in(length: int, number: int) -> Row:
    """A row that begins unlike any of another number, and whose last quarter is its answer."""
    prompt = length - max(1, length // 4)
    return {"input_ids": [number] * length, "labels": [IGNORED] * prompt + [0] * (length - prompt)}


def steps(rows: Sequence[Row], batch: int) -> list[list[Row]]:
    """Optimizer steps' rows, drawn with a fixed seed."""
    drawn = np.random.default_rng(0).integers(len(rows), size=(max(4, DRAWN // batch), batch))
    return [[rows[at] for at in step] for step in drawn]


def summed(
    drawn: Sequence[Sequence[Row]],
    cut: Sequence[Sequence[Load]],
    *,
    source: Source,
    num_rows: int,
    row_tokens: float,
    longest: int,
) -> EpochWork:
    """Estimate the work of an epoch; how much of the rows' tokens is computed, from a sample of steps, `cut` up."""
    loads = [load for step in cut for load in step]
    drawn_tokens = sum(len(row["input_ids"]) for step in drawn for row in step)
    return EpochWork(
        source=source,
        num_rows=num_rows,
        row_tokens=row_tokens,
        computed_tokens=sum(load.tokens for load in loads) * row_tokens / drawn_tokens,
        scored=sum(load.scored for load in loads) / sum(map(len, drawn)),
        longest=longest,
    )


def loads(
    step: Sequence[Row],
    layout: Layout,
    micro_batch: int,
    max_tokens: int | None,
    a_group: int | None,
    devices: int = 1,
    *,
    anchors: bool = False,
) -> list[Load]:
    """The micro-batches of a step's rows, of all devices together; `anchors` keeps general rows near the base."""
    groups = cut(step, layout, micro_batch, max_tokens, devices)
    return [load(group, layout, a_group, is_whole_step=len(groups) <= devices, anchors=anchors) for group in groups]


def load(
    rows: Sequence[Row], layout: Layout, a_group: int | None, *, is_whole_step: bool, anchors: bool = False
) -> Load:
    """Return the load of one micro-batch on the device."""
    lengths = [num_tokens(row) for row in rows]
    labelled = [{at for at, label in enumerate(row["labels"]) if label != IGNORED and at > 0} for row in rows]
    is_padded = layout == "padded"
    prefix = shared_prefix(rows) if layout == "shared" else 0
    groups = side_by_side(rows, prefix, a_group) if layout in ("shared", "packed") else []
    return Load(
        tokens=len(rows) * max(lengths) if is_padded else sum(lengths) - (len(rows) - 1) * prefix,
        scored=len(rows) * len(set().union(*labelled)) if is_padded else sum(map(len, labelled)),
        groups=tuple((len(group), max(map(num_tokens, group))) for group in groups) or ((len(rows), max(lengths)),),
        prefix=prefix,
        anchored=sum(len(of) for row, of in zip(rows, labelled, strict=True) if row.get("replay")) if anchors else 0,
        is_masked=is_padded and min(lengths) < max(lengths),
        is_whole_step=is_whole_step,
    )
