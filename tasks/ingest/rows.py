"""One record becomes one row: a conversation with an identity, and what the record says about itself."""

import hashlib
from collections.abc import Sequence
from json.encoder import encode_basestring
from typing import Any, NamedTuple

from tunewright.config import Layout, Repair
from tunewright.tasks.ingest.files import SourceFile
from tunewright.tasks.ingest.layouts import Message, layout_of, optional_text, refuse_another, renamed, to_messages
from tunewright.tasks.ingest.parsing import Record, RefusedRecord, kind, quoted
from tunewright.tasks.ingest.repairs import repaired
from tunewright.tasks.ingest.times import utc_text


class Row(NamedTuple):
    """A row in the order of ROW_SCHEMA."""

    row_id: str
    source: str
    file: str
    line: int
    byte: int | None
    group: str | None
    time: str | None
    side: str | None
    repairs: str | None
    messages: list[Message]


def row_id_of(messages: list[Message]) -> str:
    """The identity of a row: sha256 of the canonical JSON of its messages."""
    # Spelt out, since json.dumps with these options takes a third of the whole stage's time.
    turns = (f'{{"content":{encode_basestring(turn["content"])},"role":"{turn["role"]}"}}' for turn in messages)
    return hashlib.sha256(f"[{','.join(turns)}]".encode()).hexdigest()


def to_row(file: SourceFile, line: int, byte: int | None, value: Any, repairs: Sequence[Repair]) -> tuple[Row, Layout]:
    """The row of a record's value, and the layout it came in. Its identity is that of its repaired texts.

    Raises Refused.
    """
    record = as_record(value, file.columns)
    layout = layout_of(record) if file.layout == "auto" else file.layout
    messages = to_messages(record, layout)
    if file.layout == "auto":
        refuse_another(record, layout, messages)
    made = _repair(messages, repairs) if repairs else None
    row = Row(
        row_id=row_id_of(messages),
        source=optional_text(record, "source") or file.path.rpartition("/")[2],
        file=file.path,
        line=line,
        byte=byte,
        group=_group(record),
        time=_time(record),
        side=file.side,
        repairs=made,
        messages=messages,
    )
    return row, layout


def as_record(value: Any, columns: dict[str, str]) -> Record:
    """A record's value as an object, its fields under our names. Raises Refused where it is no object."""
    if not isinstance(value, dict):
        raise RefusedRecord("not_an_object", f"a record is an object, this is {kind(value)}")
    return renamed(value, columns) if columns else value


def columns_in(value: Any, columns: dict[str, str]) -> list[str]:
    """The fields of ours for which the record has the column that the settings name."""
    return [ours for ours, theirs in columns.items() if theirs in value] if isinstance(value, dict) else []


def _repair(messages: list[Message], repairs: Sequence[Repair]) -> str | None:
    """Repairs the contents where they stand, and names what was done."""
    done: set[Repair] = set()
    for turn in messages:
        turn["content"], made = repaired(turn["content"], repairs)
        done.update(made)
    return ", ".join(sorted(done)) or None


def _group(record: Record) -> str | None:
    """A text or a whole number; rows whose group is empty must not become one group."""
    value = record.get("group")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return optional_text(record, "group") or None


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
