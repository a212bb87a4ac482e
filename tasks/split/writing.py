"""Write the splits as files, one row group at a time, and the quarantined rows with their reasons."""

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import ASSIGNMENTS_SCHEMA, QUARANTINE_SCHEMA, SPLIT_SCHEMA
from tunewright.artifacts.placement import GONE, NONE, SPLITS, Because
from tunewright.similarity.engine import read_pieces
from tunewright.tasks.split.assignment import Assignment, Partner
from tunewright.tasks.split.columns import RowColumns
from tunewright.tasks.split.contamination import Contamination
from tunewright.tasks.split.passages import first_place

TEXT_CHARS = 500
MASKED_CHARS = 2_000  # of a row that are looked through for what must not be shown, before it is cut


SIMILAR = "is similar"


class Details:
    """Explain in a sentence why a row was quarantined, with the place of the row it conflicts with.

    A passage shared with an evaluation row is not quoted, since people read the sentence while the test set is sealed.
    """

    def __init__(self, columns: RowColumns, assignment: Assignment, found: Contamination) -> None:
        self.columns, self.assignment, self.found = columns, assignment, found
        self.passages = found.training_rows()

    def __call__(self, row: int, text: str) -> str:
        """The sentence on a row with this text."""
        if self.assignment.because[row] == Because.CONTAMINATED:
            other, passage = self.passages[row]
            if not passage:
                return f"Its whole prompt occurs in {self.place(other)}"
            begin = first_place(text, passage)
            where = f", from {begin} of this row on" if begin else ", across a boilerplate sentence"
            return f"It shares a passage with {self.place(other)}{where}"
        if self.assignment.because[row] == Because.NOT_DRAWN:
            return "split.replay allows no more replay rows"
        partners = self.assignment.partners[row]
        said = " and ".join(map(self._of_partner, partners))
        if not any(math.isnan(partner.similarity) for partner in partners):
            said = said.replace(f" and {SIMILAR} ", " and ")
        if self.assignment.because[row] == Because.REPEATS_OWN_ROW:
            return f"It {said}, which takes precedence"
        splits = {partner.split for partner in partners if not math.isnan(partner.similarity)} - {NONE}
        if len(splits) == len(partners) > 1:
            return f"It {said}; on either split it would repeat a row of the other"
        return f"It {said}, so no split can take it"

    def _of_partner(self, partner: Partner) -> str:
        kind = "row" if partner.split == NONE else f"{SPLITS[partner.split]} row"
        other = f"{kind} {self.columns.place(partner.row)}"
        if math.isnan(partner.similarity):
            return f"has the same group as {other}"
        return f"{SIMILAR} to {other} (similarity {partner.similarity:.2f})"

    def place(self, text: int) -> str:
        """Return the place of an evaluation text."""
        if text < self.found.num_rows:
            return f"{SPLITS[int(self.assignment.split[text])]} row {self.columns.place(text)}"
        record = text - self.found.num_rows
        file, line = (self.found.held_out[name][record].as_py() for name in ("file", "line"))
        return f"held-out {file}:{line}"


def write_splits(folder: Path, file: Path, detail: Details) -> None:
    """train, validation and test.parquet with their rows in order, and quarantine.parquet with the others."""
    start, assignment = 0, detail.assignment
    with ExitStack() as open_files:
        writers = [
            open_files.enter_context(pq.ParquetWriter(folder / f"{name}.parquet", schema, compression="zstd"))
            for name, schema in (*((name, SPLIT_SCHEMA) for name in SPLITS), ("quarantine", QUARANTINE_SCHEMA))
        ]
        for batch in read_pieces(file):
            rows = slice(start, start + batch.num_rows)
            cluster = pa.array(assignment.cluster[rows], pa.int64())
            batch = batch.append_column(SPLIT_SCHEMA.field("cluster"), cluster).cast(SPLIT_SCHEMA)
            for number in range(len(SPLITS)):
                writers[number].write_table(batch.filter(pa.array(assignment.split[rows] == number)))
            aside = start + np.flatnonzero(assignment.split[rows] == NONE)
            writers[-1].write_table(_quarantine(batch.take(pa.array(aside - start)), aside, detail))
            start += batch.num_rows


def write_memory(folder_file: Path, row_ids: pa.Array, split: np.ndarray, because: np.ndarray, gone: pa.Table) -> None:
    """Write sides.parquet: the split of every row, and of rows that are `gone`, for the next version; no texts.

    A quarantined row has the split that it would return to, if any.
    """
    names = pa.array([*SPLITS, None], pa.string())
    reasons = pa.array([reason.name.lower() for reason in Because])
    here = [row_ids, names.take(pa.array(np.where(split == NONE, len(SPLITS), split))), reasons.take(pa.array(because))]
    there = [gone["row_id"], gone["side"], pa.array([GONE] * len(gone), pa.string())]
    tables = [pa.table(columns, schema=ASSIGNMENTS_SCHEMA) for columns in (here, there)]
    pq.write_table(pa.concat_tables(tables), folder_file, compression="zstd")


def _quarantine(batch: pa.Table, rows: np.ndarray, detail: Details) -> pa.Table:
    conversations: list[list[dict[str, Any]]] = batch["messages"].to_pylist()
    texts = ["\n".join(turn["content"] for turn in turns) for turns in conversations]
    columns = {
        "file": batch["file"],
        "line": batch["line"],
        "byte": batch["byte"],
        "row_id": batch["row_id"],
        "reason": [Because(because).name.lower() for because in detail.assignment.because[rows].tolist()],
        "detail": [detail(row, text) for row, text in zip(rows.tolist(), texts, strict=True)],
        "text": [_shown(turns, text)[:TEXT_CHARS] for turns, text in zip(conversations, texts, strict=True)],
    }
    return pa.table(columns, schema=QUARANTINE_SCHEMA)


def _shown(turns: list[dict[str, Any]], text: str) -> str:
    """The conversation as JSON; or, where the beginning of its text holds secrets or personal data, only which."""
    from tunewright.privacy.excerpts import masked

    beginning = text[:MASKED_CHARS]
    shown = masked(beginning)
    return json.dumps(turns, ensure_ascii=False) if shown == beginning else shown
