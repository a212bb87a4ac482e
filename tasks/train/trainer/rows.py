"""The rows of a training, as render wrote them: all, or a share of them."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import UNDESIRABLE
from tunewright.config import Preference
from tunewright.modeling.unpaired import labelled
from tunewright.tasks.train.trainer.watch import asked_of

COLUMNS = ["row_id", "input_ids", "labels", "prompt_length", "reference"]

Asked = Mapping[str, Any]  # COLUMNS of a row, and its question as `answer`


def part_of(rows: pa.Table, share: float) -> pa.Table:
    """A share of the rows, at least one: those whose ids, which are hashes, come first. A smaller share is within."""
    if share == 1:
        return rows
    last = sorted(rows["row_id"].to_pylist())[math.ceil(share * len(rows)) - 1]
    return rows.filter(pc.field("row_id") <= last)


def prompts_in(file: Path, share: float = 1) -> list[Asked]:
    """The rows of a file of render's whose prompts are answered, or a share of them: all but those for replay."""
    table = part_of(pq.read_table(file, columns=[*COLUMNS, "replay"]), share)
    return [row | {"answer": asked_of(row)} for row in table.to_pylist() if not row["replay"]]


def rows_in(file: Path, preference: Preference | None, *, tells_general: bool = False) -> pa.Table:
    """The rows of a file of render's; with `preference` its pairs or labelled answers, of which the stage saw some.

    With `tells_general` each row says whether it is a general one, by `replay`.
    """
    columns = ["row_id", "input_ids", "labels"]
    if not preference:
        return pq.read_table(file, columns=[*columns, "replay"] if tells_general else columns)
    columns += ["prompt_length", "rejected_ids"]
    if preference.learns_labels:
        files = (file, file.with_name(UNDESIRABLE.format(file.stem)))
        rows, undesirable = (pq.read_table(each, columns=[*columns, "replay"]).to_pylist() for each in files)
        return pa.Table.from_pylist(labelled(rows, undesirable))
    found = pq.read_table(file, columns=columns)
    return found.filter(found["rejected_ids"].is_valid())


def longest_of(rows: pa.Table) -> int:
    """The most tokens of a row; of a pair those of its prompt and both answers."""
    columns = [name for name in ("input_ids", "rejected_ids") if name in rows.column_names]
    lengths = [rows[name].combine_chunks().value_lengths().to_numpy() for name in columns]
    return int(np.sum(lengths, axis=0).max())
