"""Evaluation files as texts: what no training row may repeat, and how much of it is the question.

Their records need no layout, since they are never trained on: all that they say counts. Where a source names a layout
or columns, only those count. Of a record in a layout that ingest knows, named or seen, question and answer are known;
of another the fields that are called an answer are taken for it. A record that cannot be read stops the run: a hole in
what is held out is not seen later.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.artifacts import HELD_OUT_SCHEMA
from tunewright.config import Data, Layout, Repair
from tunewright.errors import DataError
from tunewright.reports.pages import located
from tunewright.tasks.ingest.files import SourceFile, named, unchanged
from tunewright.tasks.ingest.layouts import MORE, REQUIRED, layout_of, to_messages, to_question
from tunewright.tasks.ingest.parsing import Record, RefusedRecord
from tunewright.tasks.ingest.parts import columns_of
from tunewright.tasks.ingest.preferences import from_openai
from tunewright.tasks.ingest.readers import encoding_advice, read, without_guess
from tunewright.tasks.ingest.rows import as_record, columns_in, repaired
from tunewright.tasks.ingest.tables import TableWriter, Tally
from tunewright.tasks.ingest.turns import encodable
from tunewright.tools.conversation import Message, rejected_of

TURN_LABELS = frozenset({"role", "from", "type"})  # who says it, not what is said
# What data sets of no layout of ours call their answers.
ANSWERS = frozenset({"answer", "completion", "label", "output", "response", "solution", "target", "canonical_solution"})


@dataclass(frozen=True)
class HeldOut:
    """The texts of a record by role: question, neither, answer; all in `other` if the roles are unknown."""

    question: list[str] | None
    other: list[str]
    answer: list[str]
    layout: Layout | None = None  # that it is in

    def columns(self, repairs: Sequence[Repair]) -> tuple[str, int | None, int]:
        """`text`, `asked` and `answered` of HELD_OUT_SCHEMA, the texts repaired. Raises RefusedRecord."""
        question, other, answer = (
            [repaired(encodable(text, "its text"), repairs)[0] for text in part or ()]
            for part in (self.question, self.other, self.answer)
        )
        num_lines = [len("\n".join(part).splitlines()) for part in (question, answer)]
        return "\n".join([*question, *other, *answer]), None if self.question is None else num_lines[0], num_lines[1]


def write_held_out(folder: Path, files: Iterable[SourceFile], data: Data) -> dict[str, Tally]:
    """Writes held_out.parquet, and returns the account of each file. Raises DataError at a record that says nothing."""
    tallies: dict[str, Tally] = {}
    with TableWriter(folder / "held_out.parquet", HELD_OUT_SCHEMA) as table:
        for file in files:
            tally = tallies[file.path] = Tally()
            columns = columns_of(file) if file.layout != "auto" else frozenset(file.columns.values()) or None
            with named(file.setting, file.path), unchanged(file):
                for line, _, raw, parse in read(file, data.max_line_bytes, columns):
                    if not raw.strip() and file.format in ("text", "jsonl"):
                        continue  # an empty line says nothing, so nothing is lost
                    try:
                        if len(raw) > data.max_line_bytes:
                            raise RefusedRecord("too_long", f"longer than data.max_line_bytes={data.max_line_bytes}")
                        value = parse()
                        tally.mapped.update(columns_in(value, file.columns))
                        said = held_out(value, file)
                        text, asked, answered = said.columns(data.repair)
                    except RefusedRecord as refused:
                        advice = encoding_advice(file.path, file.format, file.compression, refused.detail)
                        said = without_guess(str(refused), advice)
                        raise DataError(f"{located(file.path, line)}: {said}{advice}") from None
                    if not text.strip():
                        there = f"; it has {', '.join(list(value)[:12])}" if isinstance(value, dict) else ""
                        raise DataError(f"{located(file.path, line)}: a held-out record without text{there}")
                    tally.num_rows += 1
                    tally.layouts.update([said.layout] if said.layout else [])
                    table.add((file.path, line, text, asked, answered), len(raw))
    return tallies


def held_out(value: Any, file: SourceFile) -> HeldOut:
    """Parse a record of an evaluation file. Raises RefusedRecord if it is not in the layout that the source names."""
    if file.layout != "auto":
        return _conversation(to_messages(as_record(value, file), file.layout), [], file.layout)
    if file.columns:
        record = as_record(value, file)
        value = {ours: record[ours] for ours in file.columns if ours in record}
    if not isinstance(value, dict):
        return HeldOut(None, list(_texts(value)), [])
    with suppress(RefusedRecord):  # its texts count all the same
        value = from_openai(value, file.columns) or value
    if found := _in_layout(value):
        return found
    # What is called an answer is one, and all else the question; without such a field the two are not told apart.
    answer = {field: value for field, value in value.items() if field.lower().removesuffix("s") in ANSWERS}
    rest = list(_texts({field: said for field, said in value.items() if field not in answer}))
    return HeldOut(rest, [], list(_texts(answer))) if answer and rest else HeldOut(None, list(_texts(value)), [])


def _in_layout(record: Record) -> HeldOut | None:
    """As the conversation that it is in a layout of ours, whose answer may be missing; None where it is in none."""
    there = {field: value for field, value in record.items() if value is not None}
    try:
        layout = layout_of(there)
        messages = to_question(there, layout)
    except RefusedRecord:
        return None
    of_layout = {*REQUIRED[layout], "system", *MORE.get(layout, ())}
    other = {field: value for field, value in there.items() if field not in of_layout}
    return _conversation(messages, list(_texts(other)), layout)


def _conversation(messages: list[Message], other: list[str], layout: Layout) -> HeldOut:
    """A conversation whose last message is the answer where the assistant says it, and a rejected answer is one too."""
    said = [message["content"] for message in messages]
    end = len(said) - (messages[-1]["role"] == "assistant")
    return HeldOut(said[:end], other, [text for text in (*said[end:], rejected_of(messages)) if text], layout)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        for field, inner in value.items():
            if field not in TURN_LABELS:
                yield from _texts(inner)
