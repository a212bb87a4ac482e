"""The two tables of a folder, rows.parquet and quarantine.parquet, and the account of what went into them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from tunewright.artifacts import MESSAGES, QUARANTINE_SCHEMA, ROW_SCHEMA
from tunewright.config import Repair
from tunewright.reports.pages import located
from tunewright.tasks.ingest.files import SourceFile
from tunewright.tasks.ingest.parsing import SHOWN_FROM, RefusedRecord, masked, unescaped
from tunewright.tasks.ingest.readers import Item
from tunewright.tasks.ingest.rows import columns_in, to_row

BATCH_ROWS = 5_000
BATCH_BYTES = 32_000_000
REPEATING = ["source", "file", "group", "use_as", "repairs", "reason", "messages.list.element.role"]


class Tally(BaseModel):
    """Account of some records: read = kept + refused."""

    num_rows: int = 0
    reasons: Counter[str] = Counter()
    firsts: dict[str, str] = {}  # reason -> place and detail of the first record refused for it
    layouts: Counter[str] = Counter()
    repaired: Counter[str] = Counter()  # repair -> rows
    mapped: Counter[str] = Counter()  # our field -> records that had the column which stands for it

    @property
    def num_read(self) -> int:
        """All records."""
        return self.num_rows + self.reasons.total()

    def read(
        self, item: Item, file: SourceFile, max_bytes: int, repairs: Sequence[Repair]
    ) -> Sequence[Any] | RefusedRecord:
        """Reads and counts a record of a file, and returns its row, or why it is refused."""
        line, byte, raw, parse = item
        try:
            if len(raw) > max_bytes:
                raise RefusedRecord("too_long", f"longer than data.max_line_bytes={max_bytes}")
            value = parse()
            if file.columns:
                self.mapped.update(columns_in(value, file.columns))
            row, layout, repaired = to_row(file, line, byte, value, repairs)
        except RefusedRecord as refused:
            self.reasons[refused.reason] += 1
            self.firsts.setdefault(refused.reason, f"{located(file.path, line)}, {refused.detail}")
            return refused
        self.num_rows += 1
        self.layouts[layout] += 1
        self.repaired.update(repaired)
        return row

    def add(self, *others: "Tally") -> Self:
        """Adds the accounts of later records, and returns this one."""
        for other in others:
            self.num_rows += other.num_rows
            self.firsts = other.firsts | self.firsts
            for name in ("reasons", "layouts", "repaired", "mapped"):
                getattr(self, name).update(getattr(other, name))
        return self


class TableWriter:
    """A Parquet file that grows by one record (a tuple in the schema's order) at a time, a batch of it in memory."""

    def __init__(self, file: Path, schema: pa.Schema) -> None:
        self.schema = schema
        repeating = [name for name in REPEATING if name.split(".")[0] in schema.names]
        # A dictionary of texts that never repeat is built, found useless and thrown away: a third of the writing time.
        self.writer = pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=repeating)  # pyright: ignore[reportArgumentType]
        self.records: list[Sequence[Any]] = []
        self.num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()
        self.writer.close()

    def add(self, record: Sequence[Any], num_bytes: int) -> None:
        """Adds a record of about `num_bytes`."""
        self.records.append(record)
        self.num_bytes += num_bytes
        if len(self.records) >= BATCH_ROWS or self.num_bytes >= BATCH_BYTES:
            self.flush()

    def append(self, file: Path) -> None:
        """Adds what stands in another file of the same schema."""
        with pq.ParquetFile(file) as other:
            for group in range(other.num_row_groups):
                self.writer.write_table(other.read_row_group(group))

    def flush(self) -> None:
        """Writes what was added since the last time."""
        if self.records:
            columns = zip(zip(*self.records, strict=True), self.schema, strict=True)
            arrays = [_array(values, field.type) for values, field in columns]
            self.writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
            self.records, self.num_bytes = [], 0


class Tables(ExitStack):
    """Both tables of one folder, to be used in a with statement."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.rows = self.enter_context(TableWriter(folder / "rows.parquet", ROW_SCHEMA))
        self.quarantine = self.enter_context(TableWriter(folder / "quarantine.parquet", QUARANTINE_SCHEMA))

    def append(self, folder: Path) -> None:
        """Adds the tables of another folder."""
        self.rows.append(folder / "rows.parquet")
        self.quarantine.append(folder / "quarantine.parquet")

    def fill(self, items: Iterable[Item], file: SourceFile, max_bytes: int, repairs: Sequence[Repair]) -> Tally:
        """Adds each record of a file as a row or as a refusal, and returns their account."""
        tally = Tally()
        for item in items:
            line, byte, raw, _ = item
            found = tally.read(item, file, max_bytes, repairs)
            if isinstance(found, RefusedRecord):
                text = raw[: 4 * SHOWN_FROM].decode("utf-8", "replace")[:SHOWN_FROM]
                shown = masked(plain := unescaped(text))  # what is secret or personal is not in the entry
                text = (text if shown == plain else shown)[:500]
                entry = (file.path, line, byte, None, found.reason, found.detail, text)
                self.quarantine.add(entry, len(raw))
            else:
                self.rows.add(found, len(raw))
        return tally


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """The values of one column; conversations column by column, a third of the time that a list of dicts takes."""
    if kind != MESSAGES:
        return pa.array(values, kind)
    ends = [0]
    for messages in values:
        ends.append(ends[-1] + len(messages))
    fields = list(MESSAGES.value_type)
    columns = [pa.array([turn[field.name] for messages in values for turn in messages], field.type) for field in fields]
    turns = pa.StructArray.from_arrays(columns, fields=fields)
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), turns, type=MESSAGES)
