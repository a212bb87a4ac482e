"""Files as records, one reader a format: each yields (line, byte, what stands there, how to parse it).

Nothing is parsed before it is asked for, so that a sample of a large file is cheap, and no more than a block of a file
is held. `parse()` returns the record's value or raises Refused; one bad record never ends the file. A file that is not
of its format at all raises DataError.
"""

import csv
import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from io import BufferedReader
from itertools import accumulate, chain, islice, takewhile
from typing import Any, NamedTuple, NoReturn, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.errors import DataError
from tunewright.machine import parquet
from tunewright.machine.bounded import Unreadable
from tunewright.tasks.ingest import arrow, hub
from tunewright.tasks.ingest.arrays import elements
from tunewright.tasks.ingest.code_pages import ASCII, VIETNAMESE, WIDE_PAGES, Guess, guess, guess_by_line, named_page
from tunewright.tasks.ingest.encodings import conversion, mixed_conversion
from tunewright.tasks.ingest.files import FileFormat, SourceFile, named
from tunewright.tasks.ingest.layouts import known_columns
from tunewright.tasks.ingest.opening import BOM, Compression, decompressed, is_of_content
from tunewright.tasks.ingest.parsing import (
    Record,
    RefusedRecord,
    decoded,
    parse_json,
    parse_line,
    quoted,
)
from tunewright.tasks.ingest.stores import is_url, num_bytes, opened

NOT_UTF_8 = "not UTF-8"  # said of a record
WHOLE_FILE = "the file as a whole"
OTHER_LINES = "what is not UTF-8"  # of a file with other lines in UTF-8
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}  # of what is called CSV
NO_PARQUET = "accepted: an undamaged Parquet file; for a file of another format, set data.sources[].format"
ALWAYS_PLAUSIBLE = 100_000  # records of a file, and one for each of its bytes as it lies on the disk

MOST_LOOKED_AT = 1 << 26  # bytes of a file in which each line is looked at for its encoding
MOST_GUESSED_FROM = 100_000  # bytes of its lines that are not UTF-8

# What stands in quotes in CSV, and a field by its separator, in quotes or without. Possessive: linear time.
QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')
FIELDS = {
    mark: re.compile(QUOTED.pattern + rb"""(?=[%b\r\n]|\Z)|(?!")[^%b\r\n]*+""" % ((re.escape(mark.encode()),) * 2))
    for mark in SEPARATORS
}

R = TypeVar("R")
Columns = frozenset[str] | None
Item = tuple[int, int | None, bytes, Callable[[], Any]]


class Line(NamedTuple):
    """A physical line with its end; of one over the limit only its beginning."""

    number: int  # from 1
    byte: int
    content: bytes
    size: int


def read(file: SourceFile, max_bytes: int, columns: Columns) -> Iterator[Item]:
    """The records of a file in their order; `columns` are those that a table is asked for, None for all.

    A record longer than `max_bytes` is cut, but stays longer. A DataError names the setting that names the file.
    """
    with named(file.setting, file.path):
        yield from _read(file, max_bytes, columns)


def _read(file: SourceFile, max_bytes: int, columns: Columns) -> Iterator[Item]:
    match file.format:
        case "parquet":
            yield from plausible(file.path, _parquet(file.path, columns))
        case "arrow":
            yield from plausible(file.path, _of_batches(arrow.batches(file.path, columns)))
        case "hub":
            yield from _of_batches(hub.batches(file.path, file.digest, columns))
        case _:
            with decompressed(file.path, file.compression) as stream:
                yield from plausible(file.path, _text_reader(file, stream, max_bytes))


def plausible(path: str, records: Iterable[R]) -> Iterator[R]:
    """The records or lines of a file. Raises DataError where they are more than a file of its size can mean."""
    most = ALWAYS_PLAUSIBLE + num_bytes(path)
    for number, record in enumerate(records):
        if number >= most:
            raise DataError(
                f"{path}: it unpacks to over {most:,} records in {num_bytes(path):,} bytes: most are "
                "repeated or empty; leave them out"
            )
        yield record


def lines(stream: BufferedReader, max_bytes: int) -> Iterator[Line]:
    """The physical lines of a stream, none of them held whole that is over `max_bytes`."""
    byte = len(stream.read(len(BOM))) if stream.peek(len(BOM)).startswith(BOM) else 0
    number = 0
    while content := stream.readline(max_bytes + 2):
        number, size, rest = number + 1, len(content), content
        while not rest.endswith(b"\n") and (rest := stream.readline(1 << 16)):
            size += len(rest)
        yield Line(number, byte, content, size)
        byte += size


def json_lines(physical: Iterable[Line]) -> Iterator[Item]:
    """One JSON value a line."""
    for number, byte, content, size in physical:
        raw = content.rstrip(b"\r\n")
        yield number, byte, raw, partial(parse_line, raw, content.endswith(b"\n") or size > len(content))


def _text_reader(file: SourceFile, stream: BufferedReader, max_bytes: int) -> Iterator[Item]:
    match file.format:
        case "json":
            for number, (byte, raw) in enumerate(elements(file.path, stream, max_bytes), start=1):
                yield number, byte, raw, partial(parse_json, raw)
        case "csv":
            yield from _csv(file, lines(stream, max_bytes), max_bytes)
        case "text":
            for number, byte, content, _ in lines(stream, max_bytes):
                raw = content.rstrip(b"\r\n")
                yield number, byte, raw, partial(decoded, raw)
        case _:
            yield from json_lines(lines(stream, max_bytes))


def _refuse(reason: str, detail: str) -> NoReturn:
    raise RefusedRecord(reason, detail)


class _Pulled:
    """Physical lines for the csv module, which decides how many make a record; `taken` are those of the current one."""

    def __init__(self, path: str, physical: Iterator[Line], max_bytes: int) -> None:
        first = list(islice(physical, 1))
        self.path, self.lines, self.max_bytes = path, chain(first, physical), max_bytes
        self.mark = _separator(first[0].content) if first else ","
        self.again: deque[Line] = deque()  # that were taken, and are read once more
        self.taken: list[Line] = []
        self.num_bytes = self.last_again = 0  # bytes taken; the number of the last line that is read once more

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.again.popleft() if self.again else next(self.lines)
        if self.taken and self.num_bytes > self.max_bytes:
            raise DataError(
                f"{self.path}: the quoted field that opens in line {self.taken[0].number} does not close "
                f"within data.max_line_bytes={self.max_bytes}: a quote is missing, or the limit is too low"
            )
        self.taken.append(line)
        self.num_bytes += len(line.content)
        if len(line.content.rstrip(b"\r\n")) > self.max_bytes:
            raise csv.Error("the line was cut")
        return line.content.decode("utf-8", "surrogateescape")  # judged record by record, when it is parsed

    def bad(self, error: str) -> Iterator[tuple[Line, str]]:
        """The lines of a record that csv could not read, and what is wrong with each.

        Where a quote does not close, these are the lines up to that quote, and those behind it are read again: what
        they hold is no part of that field. None but the last of them can open a quote that stays open, so no line is
        read more than a few times.
        """
        taken = self.taken
        opens = _open_quote(taken, self.mark)
        if opens is None:
            yield from ((line, error) for line in taken)
            return
        before = "the end of the file" if "unexpected end" in error else f"line {taken[-1].number}"
        self.last_again = taken[-1].number
        self.again.extendleft(reversed(taken[opens + 1 :]))
        for line in taken[: opens + 1]:
            here = "here" if line is taken[opens] else f"in line {taken[opens].number}"
            yield line, f"a quote opened {here} is not closed before {before}"


def _separator(header: bytes) -> str:
    """The separator of the fields, by the header row: a comma, or where it has none, the mark that it has most of."""
    text = header.decode("utf-8", "surrogateescape")
    try:
        names = next(csv.reader([text]), [])
    except csv.Error:  # which is said where the row is read
        return ","
    return "," if len(names) != 1 else max(SEPARATORS, key=text.count)


def _open_quote(taken: Sequence[Line], mark: str) -> int | None:
    """Which of the lines of a record opens a quote that does not close in the same line; None where none does."""
    text = b"".join(line.content for line in taken)
    position = 0
    for field in _fields(text, mark):
        position = field.end() + text.startswith(mark.encode(), field.end())
    if not text.startswith(b'"', position):
        return None
    number, end = next(at for at in enumerate(accumulate(len(line.content) for line in taken)) if position < at[1])
    closed = QUOTED.match(text, position)
    return None if closed and closed.end() < end else number


def _fields(text: bytes, mark: str) -> Iterator[re.Match[bytes]]:
    """The fields of a record up to the first that no separator follows."""
    position = 0
    while field := FIELDS[mark].match(text, position):
        yield field
        if not text.startswith(mark.encode(), field.end()):
            return
        position = field.end() + 1


def _csv(file: SourceFile, physical: Iterator[Line], max_bytes: int) -> Iterator[Item]:
    """A record's line is its first. What csv cannot read is refused line by line, up to a quote that does not close."""
    csv.field_size_limit(max(csv.field_size_limit(), max_bytes))  # of the process; its default is below ours
    pulled = _Pulled(file.path, physical, max_bytes)
    rows = csv.reader(pulled, delimiter=pulled.mark, strict=True)
    header = _header(file, rows, pulled)
    while True:
        pulled.taken, pulled.num_bytes = [], 0
        try:
            fields = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            for line, said in pulled.bad(str(error)):
                yield line.number, line.byte, line.content.rstrip(b"\r\n"), partial(_refuse, "bad_csv", said)
        else:
            raw = b"".join(line.content for line in pulled.taken).rstrip(b"\r\n")
            first = pulled.taken[0]
            stray = (b'"' in field[0] and not field[0].startswith(b'"') for field in _fields(raw, pulled.mark))
            if first.number <= pulled.last_again and any(stray):  # it may be the rest of a text in quotes
                said = "a quote in a field without quotes around it, behind a line whose quote does not close"
                yield first.number, first.byte, raw, partial(_refuse, "bad_csv", said)
            else:
                yield first.number, first.byte, raw, partial(_columns, header, fields, raw, pulled.mark)


def _header(file: SourceFile, rows: Iterator[list[str]], pulled: _Pulled) -> list[str]:
    try:
        header = next(rows, [])
        decoded(b"".join(line.content for line in pulled.taken))
    except (csv.Error, RefusedRecord) as error:
        advice = encoding_advice(file.path, file.format, file.compression, str(error))
        raise DataError(
            f"{file.path}: line 1, the header row, cannot be read ({without_guess(str(error), advice)}); accepted: CSV "
            f"in UTF-8{advice}"
        ) from error
    if twice := sorted(name for name, count in Counter(header).items() if count > 1):
        more = f" and {len(twice) - 8} more" if len(twice) > 8 else ""
        raise DataError(
            f"{file.path}: the header row has {', '.join(map(quoted, twice[:8]))}{more} more than once; "
            "accepted: each name once"
        )
    return header


def encoding_advice(path: str, file_format: FileFormat, compression: Compression, said: str) -> str:
    """The code page of a file where `said` says of its text that it is not UTF-8, and the command that converts it.

    Lines in UTF-8 beyond ASCII stay as they are. Where the page is unsure there is no command for a whole file.
    """
    if NOT_UTF_8 not in said or is_url(path) or file_format not in ("jsonl", "json", "csv", "text"):
        return ""
    sample, beyond_ascii, is_mixed = bytearray(), set[int](), False
    with decompressed(path, compression) as stream:
        for line in takewhile(lambda line: line.byte < MOST_LOOKED_AT, lines(stream, MOST_LOOKED_AT)):
            if line.content.isascii():
                continue
            if line.size != len(line.content):
                return ""  # it is too long to tell
            if is_utf_8(line.content):
                is_mixed = True
                continue
            beyond_ascii.update(line.content.translate(None, ASCII))
            sample += line.content[: MOST_GUESSED_FROM - len(sample)]
    if not sample:
        return ""
    found, of = guess(bytes(sample), beyond_ascii), OTHER_LINES if is_mixed else WHOLE_FILE
    if not found.is_sure and (by_line := guess_by_line(bytes(sample), beyond_ascii)).is_sure:
        found = by_line
    if not found.is_sure and (named := named_page(said, beyond_ascii)) and found.pages[:1] in ((), (named,)):
        found = Guess((named,), "", is_sure=True)
    if not found.pages:
        return "; other lines are in UTF-8: correct the lines that are not" if is_mixed else ""
    page = found.pages[0]
    given = "" if found.is_sure else f" if they are {page.title}"
    command = (
        mixed_conversion(path, page.codec, compression, is_wide=page in (*WIDE_PAGES, VIETNAMESE), given=given)
        if is_mixed
        else conversion(path, page.iconv, compression)
    )
    if not found.is_sure:
        return f"; {of} may be {found.named()}{command}" if is_mixed else found.said("the file")
    if f"looks like {page.title}" in said:
        return command
    return f"{found.said(of)}{command}"


def without_guess(said: str, advice: str) -> str:
    """Return the sentence on a record without its own likely code page, where `advice` names that of the file."""
    is_named = advice.startswith((f"; {WHOLE_FILE} ", f"; {OTHER_LINES} "))
    return said.partition("; it looks like ")[0] if is_named else said


def is_utf_8(content: bytes) -> bool:
    """Whether bytes are UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _columns(header: list[str], fields: list[str], raw: bytes, mark: str) -> Record:
    if not fields:
        raise RefusedRecord("blank_line", "empty")
    decoded(raw)
    if len(fields) != len(header):
        raise RefusedRecord(
            "bad_csv",
            f"{len(fields)} column{'s'[: len(fields) != 1]}, the header row has {len(header)}, read as separated by "
            f"{SEPARATORS[mark]}; accepted: as many, with text that has {SEPARATORS[mark]} in double quotes",
        )
    return dict(zip(header, fields, strict=True))


def _parquet(path: str, columns: Columns) -> Iterator[Item]:
    try:
        if is_url(path):
            with pq.ParquetFile(opened(path)) as file:
                known = known_columns(path, file.schema_arrow.names, columns)
                yield from _of_batches(file.iter_batches(batch_size=1_000, columns=known))
        else:
            known = known_columns(path, parquet.column_names(path), columns)
            yield from _of_batches(parquet.batches(path, known))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and not is_of_content(error):
            raise
        raise DataError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]}); {NO_PARQUET}") from error
    except Unreadable as error:
        why = f"reading it {error}" if error.is_limit else f"not a whole Parquet file ({error}); {NO_PARQUET}"
        raise DataError(f"{path}: {why}") from error


def _of_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[Item]:
    for number, parse in enumerate((parse for batch in batches for parse in _structs(batch)), start=1):
        yield number, None, _shown(parse), parse


def _structs(batch: pa.RecordBatch) -> list[Callable[[], Record]]:
    try:
        return [partial(dict, record) for record in batch.to_pylist()]
    except (ValueError, OverflowError):
        return [partial(_struct, batch.slice(row, 1)) for row in range(batch.num_rows)]


def _struct(row: pa.RecordBatch) -> Record:
    try:
        return row.to_pylist()[0]
    except UnicodeDecodeError as error:
        raise RefusedRecord("bad_encoding", f"byte {error.start + 1} of a text is not UTF-8") from None
    except (ValueError, OverflowError) as error:  # a struct with a field twice, a time before the year 1
        raise RefusedRecord("wrong_type", f"a value that cannot be read ({error!s:.60})") from None


def _shown(parse: Callable[[], Record]) -> bytes:
    try:
        return json.dumps(parse(), ensure_ascii=False, default=repr).encode()
    except RefusedRecord:
        return b""
