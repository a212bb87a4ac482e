"""The bytes of one record as a JSON value, by the letter of the standard, or the reason why not."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NoReturn

from tunewright.tasks.ingest.code_pages import AROUND, ASCII, guess
from tunewright.tasks.ingest.opening import BOM

Record = dict[str, Any]

KINDS = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
MAX_DEPTH = 64
MAX_QUOTED = 60
SHOWN_FROM = 2_000  # characters of what was refused that are looked at for what must not be shown
# A JSON string (to the end if it is not closed), or a mark that opens, closes or separates. Possessive: linear time.
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|[\[\]{},]', re.DOTALL)
TRAILING_COMMA = re.compile(r",\s*$")


class RefusedRecord(Exception):
    """A record cannot become a row: a reason code and one sentence for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}, {detail}")
        self.reason = reason
        self.detail = detail


def parse_line(raw: bytes, ended: bool) -> Any:
    """The JSON value of one line; what stands in the last one without its end may be cut off."""
    raw = raw.removeprefix(BOM)  # in the middle of a file where files were joined; RFC 8259, 8.1 allows to ignore it
    if not raw or raw.isspace():
        raise RefusedRecord("blank_line", "empty")
    try:
        return parse_json(raw)
    except RefusedRecord as refused:
        if not ended and refused.reason in ("bad_json", "bad_encoding") and _is_open(raw):
            raise RefusedRecord("truncated", "the file ends in the middle of this record") from None
        if refused.reason == "bad_json" and raw.lstrip().startswith(b"["):
            said = f"{refused.detail}; if the file is one JSON array, set format to json"
            raise RefusedRecord("bad_json", said) from None
        raise


def parse_json(raw: bytes) -> Any:
    """The JSON value in `raw`, by the letter of the standard: UTF-8, no key twice, no NaN, no depth over 64."""
    text = decoded(raw)
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH < max(accumulate(_steps(raw))):
        raise RefusedRecord("too_deep", f"nested deeper than {MAX_DEPTH} levels")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RefusedRecord("bad_json", f"{_fault(text, error)} at character {error.pos + 1}") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise RefusedRecord("bad_json", str(error)) from None


def kind(value: Any) -> str:
    """Return the JSON type of a value."""
    return "null" if value is None else KINDS.get(type(value), type(value).__name__)


def quoted(value: Any) -> str:
    """A value of a record for a sentence, masked and at most 60 characters."""
    text = (value if isinstance(value, str) else unescaped(ascii(value)))[:SHOWN_FROM].encode(errors="replace").decode()
    shown = masked(text)
    if shown != text:
        return shown
    whole = repr(value)
    return whole if len(whole) <= MAX_QUOTED else f"{whole[: MAX_QUOTED - 2]}…{whole[-1]}"


def masked(text: str) -> str:
    """The first SHOWN_FROM characters of a text; or, where they hold secrets or personal data, only which.

    To be cut after this, not before: half a secret is not known as one.
    """
    from tunewright.privacy import excerpts  # with detect-secrets, which is slow to import

    return excerpts.masked(text[:SHOWN_FROM])


def unescaped(text: str) -> str:
    """A text in quotes as one that can be masked: the marks of JSON and Python are no part of the words beside them."""
    return text.replace("\\n", "\n").replace("\\t", "\t").replace('\\"', '"')


def decoded(raw: bytes) -> str:
    """The text in `raw`: UTF-8 without NUL."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        around = raw[max(0, error.start - AROUND) : error.start + AROUND]
        found = guess(around, around.translate(None, ASCII))
        of = " of the record" if b"\n" in raw[: error.start] else ""  # which has several lines
        where = f"byte {error.start + 1}{of} is {raw[error.start]:#04x}, not UTF-8"
        raise RefusedRecord("bad_encoding", f"{where}{found.said() if found.is_sure else ''}") from None
    if "\0" in text:
        raise RefusedRecord("nul_character", f"character {text.index(chr(0)) + 1} is NUL")
    return text


def _fault(text: str, error: json.JSONDecodeError) -> str:
    if text[error.pos : error.pos + 1] in ("}", "]") and TRAILING_COMMA.search(text[: error.pos]):
        return "a comma before a closing bracket"
    return error.msg.removesuffix(" at")


def _is_open(raw: bytes) -> bool:
    return any(token[1] == b"" for token in TOKEN.finditer(raw)) or sum(_steps(raw)) > 0


def _steps(raw: bytes) -> Iterator[int]:
    """1 for each bracket that opens, -1 for each that closes, 0 for strings and commas."""
    return ((token[0] in (b"{", b"[")) - (token[0] in (b"}", b"]")) for token in TOKEN.finditer(raw))


def _unique_keys(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) != len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise RefusedRecord("duplicate_key", f"{quoted(key)} appears {count} times in one object")
    return record


def _not_finite(literal: str) -> NoReturn:
    raise RefusedRecord("not_finite", f"{literal} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_not_finite)
