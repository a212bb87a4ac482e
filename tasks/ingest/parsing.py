"""The bytes of one record as a JSON object, by the letter of the standard, or the reason why not."""

import json
import re
from collections import Counter
from typing import Any, NoReturn

Record = dict[str, Any]

MAX_DEPTH = 64
# A JSON string (to the end if it is not closed), or a mark that opens, closes or separates. Possessive: linear time.
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)


class Refused(Exception):
    """A record cannot become a row: a reason code and one sentence for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


def parse_line(raw: bytes) -> Record:
    """The JSON object of one line."""
    if not raw or raw.isspace():
        raise Refused("blank_line", "nothing stands here")
    return parse_json(raw)


def parse_json(raw: bytes) -> Record:
    """The JSON object in `raw`, by the letter of the standard: UTF-8, no key twice, no NaN, no depth over 64."""
    text = decoded(raw)
    if _is_too_deep(raw):
        raise Refused("too_deep", f"nested deeper than {MAX_DEPTH} levels")
    try:
        record = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise Refused("bad_json", f"{error.msg} at character {error.pos + 1}") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise Refused("bad_json", str(error)) from None
    if not isinstance(record, dict):
        raise Refused("not_an_object", f"a record is an object, this is {kind(record)}")
    return record


def kind(value: Any) -> str:
    """What a value is, in JSON's words."""
    names = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def decoded(raw: bytes) -> str:
    """The text in `raw`: UTF-8 without NUL."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise Refused("bad_encoding", f"byte {error.start + 1} is {raw[error.start]:#04x}, not UTF-8") from None
    if "\0" in text:
        raise Refused("nul_character", f"character {text.index(chr(0)) + 1} is NUL")
    return text


def _is_too_deep(raw: bytes) -> bool:
    if raw.count(b"{") + raw.count(b"[") <= MAX_DEPTH:
        return False
    depth = 0
    for token in TOKEN.finditer(raw):
        mark = token[0]
        depth += (mark in (b"{", b"[")) - (mark in (b"}", b"]"))
        if depth > MAX_DEPTH:
            return True
    return False


def _unique_keys(pairs: list[tuple[str, Any]]) -> Record:
    record = dict(pairs)
    if len(record) != len(pairs):
        key, count = Counter(key for key, _ in pairs).most_common(1)[0]
        raise Refused("duplicate_key", f"{key!a} stands {count} times in one object")
    return record


def _not_finite(literal: str) -> NoReturn:
    raise Refused("not_finite", f"{literal} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_not_finite)
