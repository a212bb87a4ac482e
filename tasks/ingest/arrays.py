"""The elements of a JSON array, cut at its commas as the file streams by, so that one bad element spares the others."""

import re
from collections.abc import Iterator
from io import BufferedReader

from tunewright.errors import DataError
from tunewright.tasks.ingest.opening import BOM
from tunewright.tasks.ingest.parsing import TOKEN

BLOCK = 1 << 20
MOST_LENGTHS = 50  # of max_bytes, in one element: it is refused, but only its end says where the next one begins
REST_OF_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)


class _Element:
    """The bytes of one element as they come: where it begins, and of one that is too long only its beginning."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.begin = 0
        self.kept = bytearray()

    def add(self, piece: bytes, byte: int) -> None:
        """Adds what stands at `byte` of the file."""
        if not self.kept:
            stripped = piece.lstrip()
            self.begin, piece = byte + len(piece) - len(stripped), stripped
        self.kept += piece[: max(0, self.max_bytes + 1 - len(self.kept))]

    def take(self) -> tuple[int, bytes]:
        """The element, which makes place for the next one."""
        taken = self.begin, bytes(self.kept if len(self.kept) > self.max_bytes else self.kept.rstrip())
        self.kept.clear()
        return taken


def elements(path: str, stream: BufferedReader, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The place (a byte of the file) and the text of each element, cut off where it is longer than `max_bytes`.

    Raises DataError where the file is not one whole array.
    """
    byte = _begin(path, stream)  # of `block` in the file
    element, number, depth, in_string = _Element(max_bytes), 1, 1, False
    held_back = b""  # a backslash that the end of a block parts from what it escapes
    while data := stream.read(BLOCK):
        block, begin, end = held_back + data, 0, 0  # up to `begin` it went into elements, up to `end` strings are known
        if in_string:
            rest = REST_OF_STRING.match(block)
            assert rest  # it matches nothing, too
            in_string, end = not rest[1], rest.end()
        for token in () if in_string else TOKEN.finditer(block, end):
            mark, end = token[0], token.end()
            if mark.startswith(b'"'):
                in_string = not token[1]
            elif mark in (b"[", b"{"):
                depth += 1
            elif mark == b",":
                if depth == 1:
                    element.add(block[begin : token.start()], byte + begin)
                    yield element.take()
                    number, begin = number + 1, end
            else:
                depth -= 1
                if depth == 0:
                    element.add(block[begin : token.start()], byte + begin)
                    last = element.take()
                    if last[1] or number > 1:
                        yield last
                    return _ends(path, stream, block[end:], byte + end)
        held_back = block[end:] if in_string else b""
        block = block.removesuffix(held_back)
        element.add(block[begin:], byte + begin)
        byte += len(block)
        if byte - element.begin > MOST_LENGTHS * max(max_bytes, BLOCK):
            raise DataError(
                f"{path}: record {number}, which begins at byte {element.begin}, has no end in "
                f"{MOST_LENGTHS} times data.max_line_bytes={max_bytes}"
            )
    where = f"record {number}, which begins at byte {element.begin}"
    raise DataError(f"{path}: {where}, has no end: the file is cut off, or a quote is missing")


def _begin(path: str, stream: BufferedReader) -> int:
    """Reads up to the bracket that opens the array, and returns where its content begins."""
    byte = len(stream.read(len(BOM))) if stream.peek(len(BOM)).startswith(BOM) else 0
    while (first := stream.read(1)).isspace():
        byte += 1
    if first != b"[":
        raise DataError(
            f"{path}: it does not begin with '['; accepted: an array of records with nothing around "
            "it; or, with format: jsonl, one object per line"
        )
    return byte + 1


def _ends(path: str, stream: BufferedReader, after: bytes, byte: int) -> None:
    """Raises DataError where more than white space follows the array."""
    while after:
        if after.strip():
            raise DataError(f"{path}: the array ends at byte {byte}, but more follows; accepted: one array")
        after = stream.read(BLOCK)
