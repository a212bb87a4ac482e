"""Evaluation files as texts: what no training row may repeat.

Their records need no layout, since they are never trained on: all that they say counts. Where a source names a layout
or columns, only those count. A record that cannot be read stops the run: a hole in what is held out is not seen later.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.artifacts import HELD_OUT_SCHEMA
from tasks.config import Data
from tasks.errors import DataError
from tasks.ingest.files import SourceFile, unchanged
from tasks.ingest.layouts import encodable, to_messages
from tasks.ingest.parsing import Refused
from tasks.ingest.parts import columns_of
from tasks.ingest.readers import read
from tasks.ingest.repairs import repaired
from tasks.ingest.rows import as_record, columns_in
from tasks.ingest.tables import Table, Tally

TURN_LABELS = frozenset({"role", "from", "type"})  # who says it, not what is said


def write_held_out(folder: Path, files: Iterable[SourceFile], data: Data) -> dict[str, Tally]:
    """Writes held_out.parquet, and returns the account of each file. Raises DataError at a record that says nothing."""
    tallies: dict[str, Tally] = {}
    with Table(folder / "held_out.parquet", HELD_OUT_SCHEMA) as table:
        for file in files:
            tally = tallies[file.path] = Tally()
            columns = columns_of(file) if file.layout != "auto" else frozenset(file.columns.values()) or None
            with unchanged(file):
                for line, _, raw, parse in read(file, data.max_line_bytes, columns):
                    if not raw.strip() and file.format in ("text", "jsonl"):
                        continue  # an empty line says nothing, so nothing is lost
                    try:
                        if len(raw) > data.max_line_bytes:
                            raise Refused("too_long", f"longer than data.max_line_bytes={data.max_line_bytes}")
                        value = parse()
                        tally.mapped.update(columns_in(value, file.columns))
                        text = encodable("\n".join(texts(value, file)), "its text")
                    except Refused as refused:
                        raise DataError(f"{file.path} line {line}: {refused.reason}, {refused.detail}") from None
                    if not text.strip():
                        there = f"; it has {', '.join(list(value)[:12])}" if isinstance(value, dict) else ""
                        raise DataError(f"{file.path} line {line}: no_text, a held-out record that says nothing{there}")
                    tally.num_rows += 1
                    table.add((file.path, line, repaired(text, data.repair)[0]), len(raw))
    return tallies


def texts(value: Any, file: SourceFile) -> Iterator[str]:
    """What a record says: its conversation where the source names a layout, else all texts in it. Raises Refused."""
    if file.layout != "auto":
        for message in to_messages(as_record(value, file.columns), file.layout):
            yield message["content"]
    elif file.columns:
        record = as_record(value, file.columns)
        for ours in file.columns:
            yield from _texts(record.get(ours))
    else:
        yield from _texts(value)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        for field, inner in value.items():
            if field not in TURN_LABELS:
                yield from _texts(inner)
