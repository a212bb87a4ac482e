"""The bytes of a file as they are decompressed, and what the first of them give away: an archive, or no data at all."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pyarrow as pa

from tunewright.errors import DataError
from tunewright.tasks.ingest.encodings import conversion
from tunewright.tasks.ingest.stores import opened

Compression = Literal["", "gz", "zst"]

BOM = b"\xef\xbb\xbf"
BUFFER = 1 << 20
HEAD = 4_096

MAGIC: tuple[tuple[bytes, Compression], ...] = ((b"\x1f\x8b", "gz"), (b"\x28\xb5\x2f\xfd", "zst"))
CODECS = {"gz": "gzip", "zst": "zstd"}

BINARY = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")  # Parquet, Arrow's files and streams: no text in UTF-16

GIT_LFS = ("git_lfs_pointer", "a Git LFS pointer, not the data: download the data with git lfs pull")
HTML = ("html_page", "an HTML page, not data: a download was answered with a web page")
ENCODINGS = {"utf_16": "UTF-16", "utf_32": "UTF-32", "iso_2022_jp": "ISO-2022-JP"}
UTF_16, UTF_32, ISO_2022_JP = ((reason, f"{name}; accepted: UTF-8") for reason, name in ENCODINGS.items())
TO_JAPANESE = (b"\x1b$B", b"\x1b$@")  # the escape sequences of ISO-2022-JP, whose bytes are all ASCII
ARCHIVE = ("unknown_archive", "compressed in another format than gzip or Zstandard: decompress it first")
NOT_DATA: tuple[tuple[bytes, tuple[str, str]], ...] = (
    (b"version https://git-lfs", GIT_LFS),
    (b"<!doctype html", HTML),
    (b"<html", HTML),
    (b"<?xml", ("xml_page", "an XML page, not data: a store answered with an error")),
    (b"\xff\xfe\0\0", UTF_32),
    (b"\0\0\xfe\xff", UTF_32),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
    (b"pk\x03\x04", ARCHIVE),
    (b"bzh", ARCHIVE),
    (b"\xfd7zxz", ARCHIVE),
)


def compression_of(path: str) -> Compression:
    """Return a file's compression, by its first bytes. Raises DataError where they show that it holds no data."""
    with opened(path) as file:
        head = file.read(HEAD)
    if not head:
        raise DataError(f"{path}: the file is empty; accepted: a file with at least one record")
    found: list[Compression] = [compression for magic, compression in MAGIC if head.startswith(magic)]
    compression: Compression = found[0] if found else ""
    if compression:
        with decompressed(path, compression) as stream:
            head = stream.read(HEAD)
        if not head:
            raise DataError(f"{path}: the compressed file is empty; accepted: a file with at least one record")
    _hold_data(path, head, compression)
    if not compression and path.lower().endswith((".gz", ".zst")):
        raise DataError(f"{path}: not compressed, although its name says so; accepted: a name without .gz or .zst")
    return compression


@contextmanager
def decompressed(path: str, compression: Compression) -> Iterator[io.BufferedReader]:
    """Decompress a file as it is read, from its beginning. Raises DataError for an archive that is not whole."""
    with opened(path) as file:
        if not compression:
            yield io.BufferedReader(file, BUFFER)  # pyright: ignore[reportArgumentType] it has readinto
            return
        try:
            # The zstandard package reads a file that was cut off as if it were whole; Arrow does not.
            stream = pa.CompressedInputStream(pa.PythonFile(file, "rb"), CODECS[compression])
            yield io.BufferedReader(stream, BUFFER)  # pyright: ignore[reportArgumentType] it has readinto
        except OSError as error:
            if not is_of_content(error):
                raise
            raise DataError(f"{path}: the archive is cut off or damaged ({error}); accepted: a whole one") from error


def is_of_content(error: OSError) -> bool:
    """Whether Arrow found a file's content at fault: such an error is an OSError without a number."""
    return type(error) is OSError and error.errno is None


def _hold_data(path: str, head: bytes, compression: Compression) -> None:
    start = head.removeprefix(BOM).lstrip().lower()
    for beginning, (reason, detail) in NOT_DATA:
        if start.startswith(beginning):
            command = conversion(path, ENCODINGS[reason], compression) if reason in ENCODINGS else ""
            raise DataError(f"{path}: the file is {detail}{command}")
    if head.isascii() and any(escape in head for escape in TO_JAPANESE):
        command = conversion(path, ENCODINGS[ISO_2022_JP[0]], compression)
        raise DataError(f"{path}: the file is {ISO_2022_JP[1]}{command}")
    odd, even = (half.count(0) > 0.4 * len(half) for half in (head[1::2], head[::2]))
    if odd != even and len(head) >= 8 and not head.startswith(BINARY):
        command = conversion(path, "UTF-16LE" if odd else "UTF-16BE", compression)
        raise DataError(f"{path}: the file is {UTF_16[1]}{command}")
