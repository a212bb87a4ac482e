"""Questions: the records of files that a model is to answer. A record's own answer, where it has one, is apart.

A record is read as ingest reads it, but its answer may be missing. One that cannot be read is no reason to stop: it is
yielded with the reason, in its place.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple

from tunewright.config import Data
from tunewright.errors import DataError
from tunewright.reports.pages import counted, located
from tunewright.tasks.ingest import find_columns, reasons
from tunewright.tasks.ingest.files import SourceFile, named, unchanged
from tunewright.tasks.ingest.layouts import REQUIRED, layout_of, refuse_another, to_question
from tunewright.tasks.ingest.naming import found_fields, own_name
from tunewright.tasks.ingest.parsing import RefusedRecord
from tunewright.tasks.ingest.parts import columns_of
from tunewright.tasks.ingest.preferences import PAIR
from tunewright.tasks.ingest.readers import read
from tunewright.tasks.ingest.rows import as_record, columns_in, row_id_of
from tunewright.tasks.ingest.tables import Tally
from tunewright.tasks.ingest.turns import MAPPED, encodable
from tunewright.tools.conversation import Message, before, text_of

MOST_BYTES: int = Data.model_fields["max_line_bytes"].default  # of a record
ASKING = tuple(dict.fromkeys(fields[0] for fields in REQUIRED.values() if fields != PAIR))  # fields of a question


class Question(NamedTuple):
    """A conversation that ends with a user's message or a tool's result, and the record's own answer to it."""

    file: str
    line: int
    row_id: str  # as ingest has it, of the question alone where there is no answer
    messages: Sequence[Message]
    reference: str | None
    answered: list[Message] | None = None  # the conversation with the reference


class RefusedQuestion(NamedTuple):
    """A record that cannot be read as a question."""

    file: str
    line: int
    reason: str
    detail: str


def questions(file: SourceFile, tally: Tally) -> Iterator[Question | RefusedQuestion]:
    """The records of a file in their order, counted in `tally`; empty lines are none.

    Raises DataError where the file is not of its format, or changes while it is read.
    """
    with named(file.setting, file.path), unchanged(file):
        for line, _, raw, parse in read(file, MOST_BYTES, columns_of(file)):
            if not raw.strip() and file.format in ("text", "jsonl"):
                continue
            try:
                if len(raw) > MOST_BYTES:
                    raise RefusedRecord("too_long", f"longer than {MOST_BYTES:,} bytes")
                value = parse()
                tally.mapped.update(columns_in(value, file.columns))
                question = _question(file, line, value)
            except RefusedRecord as refused:
                tally.reasons[refused.reason] += 1
                tally.firsts.setdefault(refused.reason, f"{located(file.path, line)}, {refused.detail}")
                yield RefusedQuestion(file.path, line, refused.reason, refused.detail)
            else:
                tally.num_rows += 1
                yield question


def count(files: Sequence[SourceFile]) -> Tally:
    """Read all records once, and return how many there are.

    Raises ConfigError where no record has a column that `columns` names, DataError where none is a question.
    """
    tallies = {file.path: Tally() for file in files}
    for file in files:
        for _ in questions(file, tallies[file.path]):
            pass
    find_columns(files, tallies, MOST_BYTES)
    tally = Tally().add(*tallies.values())
    if not tally.num_rows:
        named_files = ", ".join(file.path for file in files)
        number = counted(tally.num_read, "record")
        why = f"no question in {number}: {reasons(tally, files)}" if tally.num_read else "no record"
        raise DataError(f"{named_files}: {why}")
    return tally


def _question(file: SourceFile, line: int, value: Any) -> Question:
    """A record's value as a question. Raises RefusedRecord."""
    messages = _messages(file, value)
    answer = text_of(messages[-1]) if messages[-1]["role"] == "assistant" else None
    asked = messages if answer is None else before(messages, len(messages) - 1)
    if not asked or asked[-1]["role"] not in ("user", "tool"):
        said = f"the {asked[-1]['role']}'s" if asked else "missing"
        raise RefusedRecord("roles_out_of_order", f"the message to answer is {said}; accepted: a user's")
    if not asked[-1]["content"].strip():
        raise RefusedRecord("empty_prompt", "the question is empty")
    whole = messages if answer else None
    return Question(file.path, line, row_id_of(whole or asked), asked, answer or None, whole)


def _messages(file: SourceFile, value: Any) -> list[Message]:
    """The conversation of a record: of a text, that text as a user's message."""
    if isinstance(value, str):
        return [{"role": "user", "content": encodable(value, "the text")}]
    record = as_record(value, file)
    if file.layout != "auto":
        return to_question(record, file.layout)
    there = copy(record)  # which names fields as the source does
    for field in [field for field, value in record.items() if value is None]:
        del there[field]
    empty = next((name for name in ASKING if record.get(name, 1) is None), "")
    try:
        layout = layout_of(there)
        messages = to_question(there, layout)
    except RefusedRecord as refused:
        if empty and refused.reason in ("unknown_layout", "missing_field"):
            raise RefusedRecord("null_field", f"{own_name(record, empty)} is null") from None
        if refused.reason != "unknown_layout":
            raise
        said = f"{found_fields(record)}; accepted: one of {', '.join(ASKING)}; {MAPPED}"
        raise RefusedRecord(refused.reason, said) from None
    refuse_another(there, layout, messages)
    return messages
