"""ingest: files of conversations become rows with an identity; each record refused is kept with its place and reason.

The account adds up: records read = rows kept + records quarantined. A record is a line (JSONL), an element (JSON), a
row (CSV, Parquet); a blank line is a refused record, the end of the last line is none. With data.limit the sample is
drawn among all records, good and bad alike, so that the share refused is that of the files; the others are not read.
"""

import hashlib
import heapq
from collections import Counter
from json.encoder import encode_basestring
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

from tasks.artifacts import QUARANTINE_SCHEMA, ROW_SCHEMA, Rows
from tasks.caching import cached, digest_of
from tasks.config import Data, Layout
from tasks.errors import DataError, retry_transient
from tasks.ingest.files import SourceFile, source_files
from tasks.ingest.layouts import FIELDS, Message, layout_of, optional_text, to_messages
from tasks.ingest.parsing import Record, Refused
from tasks.ingest.readers import read

__all__ = ["SourceFile", "ingest", "row_id_of", "source_files"]

BATCH_ROWS = 2_000
BATCH_BYTES = 32_000_000


def row_id_of(messages: list[Message]) -> str:
    """The identity of a row: sha256 of the canonical JSON of its messages."""
    # Spelt out, since json.dumps with these options takes a third of the whole stage's time.
    turns = (f'{{"content":{encode_basestring(turn["content"])},"role":"{turn["role"]}"}}' for turn in messages)
    return hashlib.sha256(f"[{','.join(turns)}]".encode()).hexdigest()


class Table:
    """A Parquet file that grows row by row, at most one batch of it in memory."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.writer = pq.ParquetWriter(file, schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()
        self.writer.close()

    def add(self, row: dict[str, Any], num_bytes: int) -> None:
        """Adds a row of about `num_bytes`."""
        self.rows.append(row)
        self.num_bytes += num_bytes
        if len(self.rows) >= BATCH_ROWS or self.num_bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what was added since the last time."""
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, self.schema))
            self.rows, self.num_bytes = [], 0


def sample(data: Data, files: tuple[SourceFile, ...]) -> frozenset[tuple[str, int]] | None:
    """The (file, line) of data.limit records, those with the smallest digests of what stands there; None for all.

    Neither the order of the files nor that of their lines matters.
    """
    if data.limit is None:
        return None
    records = (
        (hashlib.sha256(raw).digest(), file.path, line)
        for file in files
        for line, raw, _ in read(file, data.max_line_bytes, FIELDS)
    )
    return frozenset((path, line) for _, path, line in heapq.nsmallest(data.limit, records))


def to_row(file: SourceFile, line: int, record: Record, layout: Layout) -> dict[str, Any]:
    """The row (ROW_SCHEMA) of a record. Raises Refused."""
    messages = to_messages(record, layout)
    return {
        "row_id": row_id_of(messages),
        "source": optional_text(record, "source") or Path(file.path).name,
        "file": file.path,
        "line": line,
        "group": optional_text(record, "group") or None,  # rows without a group must not become one
        "messages": messages,
    }


def refusal(file: SourceFile, line: int, raw: bytes, refused: Refused) -> dict[str, Any]:
    """The entry (QUARANTINE_SCHEMA) of a refused record."""
    text = raw[:2_000].decode("utf-8", "replace")[:500]
    return {"file": file.path, "line": line, "reason": refused.reason, "detail": refused.detail, "text": text}


def judge(data: Data, files: tuple[SourceFile, ...], num_rows: int, reasons: Counter[str], first: str) -> None:
    """Raises DataError where nothing was kept or too large a share refused; `first` is the first refusal."""
    num_refused = reasons.total()
    num_read = num_rows + num_refused
    if num_read == 0:
        raise DataError(f"no record in {', '.join(file.path for file in files)}")
    over = num_refused / num_read > data.max_refused_share
    if over or num_rows == 0:
        why = f"over data.max_refused_share={data.max_refused_share}" if over else "so no row is left"
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        raise DataError(f"{num_refused} of {num_read} records refused, {why}: {counts}; first: {first}")


@task(
    name="ingest",
    task_run_name="ingest {data.sources[0].path}",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=retry_transient,
)
@cached(libraries=("pyarrow",))
def ingest(folder: Path, data: Data, files: tuple[SourceFile, ...]) -> Rows:
    """The rows of `files`, which is what source_files(data) returned."""
    chosen = sample(data, files)
    num_rows, reasons, detected, first = 0, Counter[str](), dict[str, str](), ""
    with (
        Table(folder / "rows.parquet", ROW_SCHEMA) as rows,
        Table(folder / "quarantine.parquet", QUARANTINE_SCHEMA) as quarantine,
    ):
        for file in files:
            layouts = set[str]()
            for line, raw, parse in read(file, data.max_line_bytes, FIELDS):
                if chosen is not None and (file.path, line) not in chosen:
                    continue
                try:
                    if len(raw) > data.max_line_bytes:
                        raise Refused("too_long", f"longer than data.max_line_bytes={data.max_line_bytes}")
                    record = parse()
                    layout = layout_of(record) if file.layout == "auto" else file.layout
                    row = to_row(file, line, record, layout)
                except Refused as refused:
                    reasons[refused.reason] += 1
                    first = first or f"{file.path} line {line}: {refused.reason}, {refused.detail}"
                    quarantine.add(refusal(file, line, raw, refused), len(raw))
                else:
                    num_rows += 1
                    layouts.add(layout)
                    rows.add(row, len(raw))
            if digest_of(Path(file.path)) != file.sha256:
                raise DataError(f"{file.path}: the file changed while it was read; run again when it is complete")
            detected[file.path] = ", ".join([file.format, " and ".join(sorted(layouts))])
    judge(data, files, num_rows, reasons, first)
    return Rows(
        num_read=num_rows + reasons.total(),
        num_rows=num_rows,
        num_quarantined=reasons.total(),
        reasons=dict(sorted(reasons.items())),
        detected=detected,
    )
