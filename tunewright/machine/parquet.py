"""The rows of a local Parquet file, read in a bounded process: a file of kilobytes can unpack to gigabytes."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.machine import bounded

ROWS = 1_000  # of a batch, or fewer where these take too much memory
BATCH_BYTES = 32_000_000  # of a part that is sent, unless one row has more
MEGABYTES = 700  # of memory to read a file with, and as much as its size on top


def column_names(file: str) -> list[str]:
    """Return the names of its columns. Raises Unreadable where it is no whole Parquet file."""
    return bounded.call(_column_names, str(Path(file).absolute()), megabytes=_megabytes(file))


def batches(file: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of these columns. Raises Unreadable where one row, or the file, takes too much to be read."""
    for part in bounded.stream(_parts, str(Path(file).absolute()), columns, megabytes=_megabytes(file)):
        yield from pa.ipc.open_stream(part)


def _megabytes(file: str) -> int:
    return MEGABYTES + Path(file).stat().st_size // 1_000_000


def _column_names(file: str) -> list[str]:
    with pq.ParquetFile(file) as opened:
        return opened.schema_arrow.names


def _parts(file: str, columns: list[str]) -> Iterator[bytes]:
    """The rows as streams of Arrow, in the bounded process."""
    with pq.ParquetFile(file) as opened:
        for group in range(opened.num_row_groups):
            for batch in _batches(opened, group, columns):
                for piece in _pieces(batch):
                    sink = pa.BufferOutputStream()
                    with pa.ipc.new_stream(sink, piece.schema) as writer:
                        writer.write_batch(piece)
                    yield sink.getvalue().to_pybytes()


def _batches(opened: pq.ParquetFile, group: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The batches of a row group, of fewer rows where memory runs out: what its metadata say of it may be wrong."""
    rows, done = ROWS, 0
    while True:
        try:
            seen = 0
            for batch in opened.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                seen += batch.num_rows
                if seen > done:
                    new = batch.slice(max(0, batch.num_rows - (seen - done)))
                    # Without dictionaries, so that its size is that of its values.
                    plain = pa.schema([(field.name, _plain(field.type)) for field in new.schema])
                    yield new if new.schema.types == plain.types else new.cast(plain)
                    done = seen
            return
        except MemoryError:
            if rows == 1:
                raise
            rows = max(1, rows // 10)


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    return pa.large_list(_plain(kind.value_type)) if pa.types.is_large_list(kind) else kind


def _pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """A batch in pieces that can be sent and held."""
    rows = max(1, batch.num_rows * BATCH_BYTES // max(batch.nbytes, 1))
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)
