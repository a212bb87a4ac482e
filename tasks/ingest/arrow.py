"""Arrow files, in the stream and in the file format of Arrow IPC, as `datasets` and pandas write them.

Such a file says itself how much memory it takes and where its texts lie, and Arrow believes it. So its messages are
measured before any is read, and each batch is validated before a value of it is.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from io import BufferedReader
from typing import BinaryIO, NamedTuple

import pyarrow as pa

from tunewright.errors import DataError
from tunewright.tasks.ingest.layouts import known_columns
from tunewright.tasks.ingest.opening import BUFFER, is_of_content
from tunewright.tasks.ingest.stores import opened

MAGIC = b"ARROW1\0\0"  # of the file format: then the same messages as in a stream, and a footer
CONTINUES = b"\xff\xff\xff\xff"
MAX_METADATA = 16 << 20
MAX_MESSAGE = 1 << 30  # bytes in memory of a record batch
SLICE_ROWS = 1_000
OF_BATCH, OF_DICTIONARY = 3, 2  # kinds of a message that have columns
CUT_OFF = "it is cut off: the mark that ends one is missing"
BYTES_OF_TEXT = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


def batches(path: str, columns: frozenset[str] | None) -> Iterator[pa.RecordBatch]:
    """The rows of a file in small valid batches, those of `columns` that it has; class labels by their names.

    Text may still not be UTF-8. Raises DataError where the file is not whole, or holds none of the columns.
    """
    try:
        with opened(path) as file:
            skipped = _measure(path, BufferedReader(file, BUFFER))  # pyright: ignore[reportArgumentType] it has readinto
        with opened(path) as file:
            file.seek(skipped)
            with pa.ipc.open_stream(pa.PythonFile(file, "r")) as reader:
                known = known_columns(path, reader.schema.names, columns)
                labels = _labels(reader.schema)
                for batch in reader:
                    for column in batch.columns:  # that text is UTF-8 is for who reads each row
                        column.validate()
                        column.view(_as_bytes(column.type)).validate(full=True)
                    for start in range(0, batch.num_rows, SLICE_ROWS):
                        yield labelled(batch.select(known).slice(start, SLICE_ROWS), labels)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
        if isinstance(error, OSError) and not is_of_content(error):
            raise
        raise _broken(path, str(error).splitlines()[0]) from error


def labelled(batch: pa.RecordBatch, labels: Mapping[str, list[str]]) -> pa.RecordBatch:
    """The batch with class numbers as the names of their classes; null for a number that has none, such as -1."""
    for name in set(batch.schema.names) & labels.keys():
        known = dict(enumerate(labels[name]))
        texts = pa.array([known.get(number) for number in batch[name].to_pylist()], pa.string())
        batch = batch.set_column(batch.schema.get_field_index(name), name, texts)
    return batch


def _labels(schema: pa.Schema) -> dict[str, list[str]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: each["names"] for name, each in features.items() if each.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    return BYTES_OF_TEXT.get(kind, kind)


class FlatbufferTable(NamedTuple):
    """A table of a flatbuffer, which Arrow's messages are written in: fields by number, any of which may be left out.

    https://flatbuffers.dev/internals and Message.fbs of Arrow.
    """

    buffer: bytes
    position: int

    @classmethod
    def root(cls, buffer: bytes) -> "FlatbufferTable":
        """The outermost table."""
        return cls(buffer, _number("<I", buffer, 0))

    def at(self, field: int) -> int | None:
        """Return the position of a field; None where it is left out."""
        layout = self.position - _number("<i", self.buffer, self.position)
        entry = 4 + 2 * field
        offset = _number("<H", self.buffer, layout + entry) if entry < _number("<H", self.buffer, layout) else 0
        return self.position + offset if offset else None

    def number(self, field: int, form: str) -> int:
        """A field that is a number; 0 where it is left out."""
        position = self.at(field)
        return 0 if position is None else _number(form, self.buffer, position)

    def table(self, field: int) -> "FlatbufferTable | None":
        """A field that is a table."""
        at = self.at(field)
        return None if at is None else FlatbufferTable(self.buffer, at + _number("<I", self.buffer, at))

    def pairs(self, field: int) -> list[tuple[int, int]]:
        """A field that is a list of pairs of 64-bit numbers."""
        found = self.table(field)
        if found is None:
            return []
        start, count = found.position + 4, _number("<I", self.buffer, found.position)
        return list(struct.iter_unpack("<qq", self.buffer[start : start + 16 * count]))


def _number(form: str, buffer: bytes, position: int) -> int:
    if position < 0:
        raise struct.error("a position before the beginning")
    return struct.unpack_from(form, buffer, position)[0]


def _measure(path: str, file: BufferedReader) -> int:
    """Return where the messages of a file begin. Raises DataError where they do not reach its end or are too large."""
    size = file.seek(0, 2)
    file.seek(0)
    start = position = len(MAGIC) if file.read(len(MAGIC)) == MAGIC else 0
    while True:
        file.seek(position)
        head = file.read(8)
        if head == CONTINUES + bytes(4):
            return start
        length = int.from_bytes(head[4:], "little")
        if head[:4] != CONTINUES or len(head) < 8 or not 0 < length <= MAX_METADATA:
            raise _broken(path, f"no message of Arrow IPC begins at byte {position:,}" if size > position else CUT_OFF)
        try:
            body, needed = _sizes(file, file.read(length))
        except (struct.error, IndexError) as error:
            raise _broken(path, f"the message at byte {position:,} cannot be read") from error
        if needed > MAX_MESSAGE:
            raise DataError(
                f"{path}: the record batch at byte {position:,} takes {needed:,} bytes of memory, accepted "
                f"are {MAX_MESSAGE:,}; write the file in smaller record batches"
            )
        position += 8 + length + body
        if position > size:
            raise _broken(path, CUT_OFF)


def _sizes(file: BinaryIO | BufferedReader, metadata: bytes) -> tuple[int, int]:
    """The bytes that a message's body takes in the file, and in memory; `file` stands where the body begins."""
    message = FlatbufferTable.root(metadata)
    kind, body = message.number(1, "<B"), message.number(3, "<q")
    columns = message.table(2)
    if kind == OF_DICTIONARY and columns:
        columns = columns.table(1)
    if body < 0:
        raise struct.error("a body of less than nothing")
    if kind not in (OF_BATCH, OF_DICTIONARY) or columns is None or columns.table(3) is None:
        return body, body
    start, decompressed = file.tell(), 0
    for offset, length in columns.pairs(2):
        if length >= 8:
            file.seek(start + offset)  # its decompressed size comes first, or -1 if it is not compressed
            decompressed += max(0, struct.unpack("<q", file.read(8))[0])
    return body, max(body, decompressed)


def _broken(path: str, why: str) -> DataError:
    return DataError(f"{path}: not a whole Arrow file ({why})")
