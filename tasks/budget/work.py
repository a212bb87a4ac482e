"""How many tokens are computed: the rows of optimizer steps as they will lie in micro batches, drawn at random.

Render's rows are counted exactly, a sample of steps for the whole; before render has run, rows of a guessed length
stand for them. What is here of tasks/batches is its arithmetic without its tensors; a test holds both to the same.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from tasks.artifacts import IGNORED
from tasks.budget.memory import Load

Layout = Literal["shared", "packed", "flash", "padded"]
Source = Literal["render", "ingest", "settings"]  # counted, estimated from the texts, or assumed
Row = Mapping[str, Any]  # input_ids and labels

MOST_ROWS = 20_000  # that are read
SAMPLE = 2_000  # of them, that steps are drawn from
DRAWN = 1_000  # rows of the steps that are drawn, and at least four steps
BYTES_A_TOKEN = 4  # of text: what a vocabulary of about 50,000 takes of English


class Work(BaseModel):
    """What an epoch computes. Figures a row are means."""

    model_config = ConfigDict(frozen=True)

    source: Source
    num_rows: int
    row_tokens: float  # that a row has
    computed_tokens: float  # that are computed for a row
    scored: float  # labelled positions of a row
    longest: int


def rows_of_render(file: Path) -> tuple[int, list[Row]]:
    """How many rows render made, and some of them, drawn from all over the file: input_ids and labels."""
    parquet = pq.ParquetFile(file)
    num_groups = parquet.num_row_groups
    few = min(num_groups, max(1, MOST_ROWS * num_groups // max(1, parquet.metadata.num_rows)))
    groups = [at * num_groups // few for at in range(few)]
    table = parquet.read_row_groups(groups, columns=["input_ids", "labels"])
    num_read = min(len(table), MOST_ROWS)
    drawn = np.random.default_rng(0).choice(num_read, min(num_read, SAMPLE), replace=False)
    return parquet.metadata.num_rows, table.take(np.sort(drawn)).to_pylist()


def rows_of_ingest(file: Path, share: float) -> tuple[int, list[Row]]:
    """How many rows will train of those that ingest read, about, and what some may be as tokens.

    What rows begin with together is not known yet.
    """
    parquet = pq.ParquetFile(file)
    lengths = [_guessed(row) for row in next(parquet.iter_batches(1_000, columns=["messages"])).to_pylist()]
    rows = [_stand_in(length, number) for number, length in enumerate(lengths)]
    return int(share * parquet.metadata.num_rows), rows


def rows_assumed(longest: int, num: int) -> list[Row]:
    """Rows as long as the settings allow: what nothing is known of could be."""
    return [_stand_in(longest, number) for number in range(num)]


def _guessed(row: Mapping[str, Any]) -> int:
    texts = [message["content"] or "" for message in row["messages"]]
    return 8 + sum(8 + len(text.encode()) // BYTES_A_TOKEN for text in texts)  # and the template's own


def _stand_in(length: int, number: int) -> Row:
    """A row that begins unlike any of another number, and whose last quarter is its answer."""
    prompt = length - max(1, length // 4)
    return {"input_ids": [number] * length, "labels": [IGNORED] * prompt + [0] * (length - prompt)}


def steps(rows: Sequence[Row], batch: int) -> list[list[Row]]:
    """Optimizer steps' rows, drawn with a fixed seed."""
    drawn = np.random.default_rng(0).integers(len(rows), size=(max(4, DRAWN // batch), batch))
    return [[rows[at] for at in step] for step in drawn]


def summed(source: Source, num_rows: int, drawn: Sequence[Sequence[Row]], cut: Sequence[Sequence[Load]]) -> Work:
    """What the drawn steps, cut into micro batches, say of all rows."""
    number = sum(map(len, drawn))
    loads = [load for step in cut for load in step]
    return Work(
        source=source,
        num_rows=num_rows,
        row_tokens=sum(len(row["input_ids"]) for step in drawn for row in step) / number,
        computed_tokens=sum(load.tokens for load in loads) / number,
        scored=sum(load.scored for load in loads) / number,
        longest=max(len(row["input_ids"]) for step in drawn for row in step),
    )


def loads(step: Sequence[Row], layout: Layout, micro_batch: int, max_tokens: int | None) -> list[Load]:
    """The micro batches of a step's rows."""
    groups = cut(step, layout, micro_batch, max_tokens)
    return [load(group, layout, is_whole_step=len(groups) == 1) for group in groups]


def cut(rows: Sequence[Row], layout: Layout, micro_batch: int, max_tokens: int | None) -> list[list[Row]]:
    """The rows in groups, as tasks/batches cuts them."""
    if len(rows) <= micro_batch and max_tokens is None:
        return [list(rows)]
    key = (lambda row: row["input_ids"]) if layout == "shared" else num_tokens
    groups: list[list[Row]] = [[]]
    for row in sorted(rows, key=key):
        more = [*groups[-1], row]
        too_many = max_tokens and len(more) > 1 and _computed(more, layout, _prefix(more, layout)) > max_tokens
        if len(more) > micro_batch or too_many:
            groups.append([])
        groups[-1].append(row)
    return groups


def load(rows: Sequence[Row], layout: Layout, *, is_whole_step: bool) -> Load:
    """What one micro batch puts on the device."""
    prefix = _prefix(rows, layout)
    labelled = [{at for at, label in enumerate(row["labels"]) if label != IGNORED and at > 0} for row in rows]
    scored = len(rows) * len(set().union(*labelled)) if layout == "padded" else sum(map(len, labelled))
    return Load(
        rows=len(rows),
        tokens=_computed(rows, layout, prefix),
        longest=max(map(num_tokens, rows)),
        scored=scored,
        prefix=prefix,
        is_whole_step=is_whole_step,
    )


def _computed(rows: Sequence[Row], layout: Layout, prefix: int) -> int:
    lengths = [num_tokens(row) for row in rows]
    if layout == "padded":
        return len(rows) * max(lengths)
    return sum(lengths) - (len(rows) - 1) * prefix


def _prefix(rows: Sequence[Row], layout: Layout) -> int:
    """How many tokens all rows begin with, before any has to predict its own."""
    if layout != "shared":
        return 0
    first, last = min(row["input_ids"] for row in rows), max(row["input_ids"] for row in rows)
    unlike = (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    return min(next(unlike, min(len(first), len(last))), *(_own_from(row) for row in rows))


def num_tokens(row: Row) -> int:
    """How many tokens of a row are computed: those up to the one that predicts its last label."""
    labels = row["labels"]
    return max(1, next((at for at in range(len(labels) - 1, 0, -1) if labels[at] != IGNORED), 1))


def _own_from(row: Row) -> int:
    labelled = next((at for at, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"]))
    return max(0, labelled - 1)
