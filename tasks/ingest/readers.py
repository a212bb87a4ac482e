"""Files as records, one reader a format: each yields (line, what stands there, how to parse it).

Nothing is parsed before it is asked for, so that a sample of a large file is cheap. `parse()` returns the record or
raises Refused; one bad record never ends the file. A file that is not of its format at all raises DataError.
"""

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import DataError
from tasks.ingest.files import BOM, SourceFile
from tasks.ingest.parsing import TOKEN, Record, Refused, decoded, parse_json, parse_line

Item = tuple[int, bytes, Callable[[], Record]]


def read(file: SourceFile, max_bytes: int, columns: frozenset[str]) -> Iterator[Item]:
    """The records of a file in their order; `columns` are those that Parquet is asked for."""
    path = Path(file.path)
    match file.format:
        case "jsonl":
            return _jsonl(path, max_bytes)
        case "json":
            return _array(path)
        case "csv":
            return _csv(path, max_bytes)
        case "parquet":
            return _parquet(path, columns)


def _refuse(reason: str, detail: str) -> NoReturn:
    raise Refused(reason, detail)


def _lines(path: Path, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The physical lines with their ends, from 1. A line over `max_bytes` is cut and never held whole."""
    with path.open("rb", buffering=1 << 20) as file:
        if file.read(len(BOM)) != BOM:
            file.seek(0)
        number = 0
        while line := file.readline(max_bytes + 2):
            number += 1
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(1 << 16)
            yield number, line


def _jsonl(path: Path, max_bytes: int) -> Iterator[Item]:
    for number, line in _lines(path, max_bytes):
        raw = line.rstrip(b"\r\n")
        yield number, raw, partial(parse_line, raw)


def _array(path: Path) -> Iterator[Item]:
    for number, raw in enumerate(_elements(path, path.read_bytes().removeprefix(BOM)), start=1):
        yield number, raw, partial(parse_json, raw)


def _elements(path: Path, content: bytes) -> Iterator[bytes]:
    """The text of each element of a JSON array: cut at its commas, so that one bad element spares the others."""
    if not content.lstrip().startswith(b"["):
        raise DataError(f"{path}: not a JSON array; for one object a line set format to jsonl")
    depth = num_elements = begin = 0
    for token in TOKEN.finditer(content):
        mark = token[0]
        if mark == b"," and depth == 1:
            num_elements += 1
            yield content[begin : token.start()].strip()
            begin = token.end()
        elif mark in (b"[", b"{"):
            depth += 1
            begin = token.end() if depth == 1 else begin
        elif mark in (b"]", b"}"):
            depth -= 1
            if depth == 0:
                last = content[begin : token.start()].strip()
                if last or num_elements:
                    yield last
                begin = token.end()
                break
    line = content.count(b"\n", 0, begin) + 1
    if depth:
        raise DataError(
            f"{path}: record {num_elements + 1}, which begins in line {line}, has no end: the file is cut off"
        )
    if content[begin:].strip():
        raise DataError(f"{path}: the array ends in line {line}, but more follows; accepted is one array")


class _Pulled:
    """Physical lines for the csv module, which decides how many make a record; `taken` are those of the current one."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.lines = _lines(path, max_bytes)
        self.taken: list[tuple[int, bytes]] = []
        self.num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        if self.taken and self.num_bytes > self.max_bytes:
            raise DataError(
                f"{self.path}: the quoted field that opens in line {self.taken[0][0]} does not close within "
                f"data.max_line_bytes={self.max_bytes}: a quote is missing, or the limit is too low"
            )
        self.taken.append(line)
        self.num_bytes += len(line[1])
        if len(line[1].rstrip(b"\r\n")) > self.max_bytes:
            raise csv.Error("the line was cut")
        return line[1].decode("utf-8", "surrogateescape")  # judged record by record, when it is parsed

    def start(self) -> None:
        self.taken = []
        self.num_bytes = 0


def _csv(path: Path, max_bytes: int) -> Iterator[Item]:
    """A record's line is its first. What csv cannot read is refused line by line: it may hide rows of any number."""
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))  # of the process; its default is below ours
    pulled = _Pulled(path, max_bytes)
    rows = csv.reader(pulled, strict=True)
    header = _header(path, rows, pulled)
    while True:
        pulled.start()
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            for number, line in pulled.taken:
                yield number, line.rstrip(b"\r\n"), partial(_refuse, "bad_csv", str(error))
        else:
            raw = b"".join(line for _, line in pulled.taken).rstrip(b"\r\n")
            yield pulled.taken[0][0], raw, partial(_columns, header, fields, raw)


def _header(path: Path, rows: Iterator[list[str]], pulled: _Pulled) -> list[str]:
    try:
        header = next(rows, [])
        decoded(b"".join(line for _, line in pulled.taken))
    except (csv.Error, Refused) as error:
        raise DataError(f"{path}: line 1 is no header row ({error}); accepted is CSV with commas in UTF-8") from error
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: the header row has {', '.join(map(ascii, twice))} more than once")
    return header


def _columns(header: list[str], fields: list[str], raw: bytes) -> Record:
    if not fields:
        raise Refused("blank_line", "nothing stands here")
    decoded(raw)
    if len(fields) != len(header):
        raise Refused("bad_csv", f"{len(fields)} columns, the header row has {len(header)}")
    return dict(zip(header, fields, strict=True))


def _parquet(path: Path, columns: frozenset[str]) -> Iterator[Item]:
    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if len(set(names)) != len(names):
            raise DataError(f"{path}: a column name stands there twice")
        known = [name for name in names if name in columns]
        if not known:
            raise DataError(f"{path}: no column is known of {names[:8]}; accepted are {', '.join(sorted(columns))}")
        number = 0
        for batch in file.iter_batches(batch_size=1_000, columns=known):
            for parse in _structs(batch):
                number += 1
                yield number, _shown(parse), parse
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from error


def _structs(batch: pa.RecordBatch) -> list[Callable[[], Record]]:
    try:
        return [partial(dict, record) for record in batch.to_pylist()]
    except UnicodeDecodeError:
        return [partial(_struct, batch.slice(row, 1)) for row in range(batch.num_rows)]


def _struct(row: pa.RecordBatch) -> Record:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        raise Refused("bad_encoding", f"byte {error.start + 1} of a text is not UTF-8") from None


def _shown(parse: Callable[[], Record]) -> bytes:
    try:
        return json.dumps(parse(), ensure_ascii=False, default=repr).encode()
    except Refused:
        return b""
