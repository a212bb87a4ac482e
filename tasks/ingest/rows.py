"""One record becomes one row: a conversation with an identity, and what the record says about itself."""

import hashlib
import unicodedata
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from json.encoder import encode_basestring
from typing import Any

from tunewright.config import Layout, Repair
from tunewright.tasks.ingest.files import SourceFile
from tunewright.tasks.ingest.layouts import layout_of, refuse_another, to_messages
from tunewright.tasks.ingest.naming import Renamed
from tunewright.tasks.ingest.parsing import Record, RefusedRecord, kind, quoted
from tunewright.tasks.ingest.preferences import from_openai
from tunewright.tasks.ingest.turns import optional_text
from tunewright.tools.conversation import Conversation, Message, chat_of, identity_of, texts_of

# Other numbers are years, days or moments written without a mark, or in another unit.
SECONDS = (1e8, 4_102_444_800)  # since 1970: from 1973 to the year 2100
REPAIRED = ("tool_calls", "reasoning_content")  # of a message, besides its content


def row_id_of(messages: Sequence[Message]) -> str:
    """The identity of a row: sha256 of the canonical JSON of its messages, with their tools where there are any."""
    if isinstance(messages, Conversation):
        return identity_of(chat_of(messages) or "")
    # Spelt out, since json.dumps with these options takes a third of the whole stage's time.
    turns = (f'{{"content":{encode_basestring(turn["content"])},"role":"{turn["role"]}"}}' for turn in messages)
    return hashlib.sha256(f"[{','.join(turns)}]".encode()).hexdigest()


def to_row(
    file: SourceFile, line: int, byte: int | None, value: Any, repairs: Sequence[Repair]
) -> tuple[tuple[Any, ...], Layout, set[Repair]]:
    """A record's value in the order of ROW_SCHEMA, the layout it came in, and the repairs that changed it.

    Its identity is that of its repaired texts. Raises RefusedRecord.
    """
    record = as_record(value, file)
    layout = layout_of(record) if file.layout == "auto" else file.layout
    messages = to_messages(record, layout)
    if file.layout == "auto":
        refuse_another(record, layout, messages)
    made: set[Repair] = set()
    for turn in messages if repairs else ():
        turn["content"], of_turn = repaired(turn["content"], repairs)
        made.update(of_turn)
        if len(turn) > 2:
            turn.update(_repaired_within({name: turn[name] for name in turn if name in REPAIRED}, repairs, made))
    if isinstance(messages, Conversation):
        messages.rejected = _repaired_within(messages.rejected, repairs, made)
    has_more = isinstance(messages, Conversation)
    row = (
        row_id_of(messages),
        optional_text(record, "source") or file.path.rpartition("/")[2],
        *(file.path, line, byte),
        *(_group(record), _time(record), file.use_as),
        ", ".join(sorted(made)) or None,
        texts_of(messages) if has_more else messages,
        chat_of(messages),
    )
    return row, layout, made


def as_record(value: Any, file: SourceFile) -> Record:
    """A record's value as an object, its fields under our names. Raises RefusedRecord where it is none."""
    if isinstance(value, dict):
        if pair := from_openai(value, file.columns):
            return pair
        return Renamed(value, file.columns) if file.columns else value
    said = f"a record is an object, this is {kind(value)}"
    if file.format == "jsonl" and isinstance(value, list) and any(isinstance(each, dict) for each in value):
        said += "; if the whole file is one JSON array, name it .json, or set format to json"
    raise RefusedRecord("not_an_object", said)


def columns_in(value: Any, columns: dict[str, str]) -> list[str]:
    """The fields of ours for which the record has the column that the settings name."""
    return [ours for ours, theirs in columns.items() if theirs in value] if isinstance(value, dict) else []


def _group(record: Record) -> str | None:
    """A text or a whole number; rows whose group is blank must not become one group."""
    value = record.get("group")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = optional_text(record, "group")
    return text if text.strip() else None


def _time(record: Record) -> str | None:
    value = record.get("time")
    if value is None or value == "":
        return None
    try:
        return utc_text(value)
    except ValueError as error:
        accepted = "ISO 8601, or seconds or milliseconds since 1970"
        reason = str(error).partition(":")[0]  # after which Python repeats the value
        detail = f"time is {quoted(value)} ({reason:.60}); accepted: {accepted}"
        raise RefusedRecord("bad_time", detail) from None


def repaired(text: str, repairs: Sequence[Repair]) -> tuple[str, list[Repair]]:
    """The text after `repairs`, and those that changed something; mojibake is undone before NFC composes.

    Only a decoding by the wrong table ("cafÃ©") is undone: quotes, ligatures and HTML stay.
    """
    made: list[Repair] = []
    if not repairs or text.isascii():
        return text, made
    import ftfy

    for repair in ("mojibake", "nfc"):
        if repair in repairs:
            better = ftfy.fix_encoding(text) if repair == "mojibake" else unicodedata.normalize("NFC", text)
            if better != text:
                text, made = better, [*made, repair]
    return text, made


def _repaired_within(value: Any, repairs: Sequence[Repair], made: set[Repair]) -> Any:
    """A JSON value with the repaired texts of its values; the names of fields stay."""
    if isinstance(value, str):
        value, of_text = repaired(value, repairs)
        made.update(of_text)
    elif isinstance(value, list):
        value = [_repaired_within(each, repairs, made) for each in value]
    elif isinstance(value, dict):
        value = {name: _repaired_within(each, repairs, made) for name, each in value.items()}
    return value


def utc_text(value: Any) -> str:
    """A time as "2024-05-01T10:00:00.000000Z".

    Accepted are ISO 8601 texts of a day or a time (UTC where they name no zone), seconds or milliseconds since 1970,
    between 1973 and 2100, as a number or its digits, and the dates and times of Parquet. Raises ValueError.
    """
    try:
        return f"{_moment(value).astimezone(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
    except OverflowError as error:
        raise ValueError(str(error)) from None


def _moment(value: Any) -> datetime:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _since_1970(value)
    if not isinstance(value, str):
        raise ValueError("neither a text nor a number")
    text = value.strip()
    if text.removeprefix("-").replace(".", "", 1).isdecimal() and len(text) != len("20240501"):
        return _moment(float(text))
    return _moment(datetime.fromisoformat(text))


def _since_1970(number: float) -> datetime:
    first, end = SECONDS
    if first <= number < end:
        return datetime.fromtimestamp(number, UTC)
    if first * 1000 <= number < end * 1000:
        return datetime.fromtimestamp(number / 1000, UTC)
    raise ValueError("a number, but not of 1973 to 2100")
