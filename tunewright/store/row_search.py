"""Records found by what a person knows of them: their row_id, their place in a file, or words of theirs.

Files are read row group by row group, and wide columns only where a narrow one matches, so that a row among a million
is found in a second.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import Artifact, Rows
from tunewright.config import called_in
from tunewright.errors import ConfigError
from tunewright.store.caching import MANIFEST
from tunewright.store.refusals import StoppedStage
from tunewright.tools.conversation import shown_turns

HELD_OUT, QUARANTINE, FINDINGS = "held_out.parquet", "quarantine.parquet", "findings.parquet"
MOST_MATCHES = 10
SHOWN_CHARS = 300
PLACE = ["file", "line", "row_id"]
OF_ROW = [*PLACE, "messages", "chat"]
OF_TEXT = {QUARANTINE: [*PLACE, "text"], HELD_OUT: ["file", "line", "text"]}  # records that are no rows
NO_ROW = {"row_id": None}

Found = dict[str, Any]  # the columns of one row


@dataclass(frozen=True)
class RowQuery:
    """The one of three ways to name a row that a person chose."""

    said: str  # the option as it was given
    row: str | None = None
    place: tuple[str, int] | None = None
    words: Sequence[str] = ()

    @classmethod
    def of(cls, row: str | None, line: str | None, text: str | None) -> "RowQuery":
        """Return the query for an option. Raises ConfigError if it names no place, or no word."""
        if row is not None:
            return cls(f"--row {row}", row=row)
        if line is not None:
            file, _, number = line.rpartition(":")
            if not file or not number.isdecimal():
                raise ConfigError(f"--line {line}: accepted: FILE:LINE, such as data/mine.jsonl:12")
            return cls(f"--line {line}", place=(file, int(number)))
        words = (text or "").split()
        if not words:
            raise ConfigError("--text: accepted: one word or more")
        return cls(f"--text {text}", words=words)

    def among(self, rows: Rows) -> list[Found]:
        """The records of it that ingest read; at least MOST_MATCHES + 1 where there are more than MOST_MATCHES."""
        if self.row is not None:
            row_id = pc.field("row_id")
            begins_so = (row_id >= self.row) & (row_id < f"{self.row}g")  # after every hex digit
            return select(rows.path("rows.parquet"), begins_so, OF_ROW, MOST_MATCHES + 1)
        return by_line(rows, *self.place) if self.place else by_text(rows, self.words)

    def refused(self, stopped: StoppedStage) -> list[Found]:
        """The records of it that ingest refused when it stopped: they have a place and a text, and are no rows."""
        table = stopped.path(QUARANTINE)
        if self.row is not None or not table.is_file():
            return []
        if self.words:
            return _with_words(table, OF_TEXT[QUARANTINE], self.words)
        file, line = self.place or ("", 0)
        names = pq.read_table(table, columns=["file"])["file"].unique().to_pylist()
        named = pc.field("file").isin(pa.array([name for name in names if is_named(name, file)], pa.string()))
        return select(table, named & (pc.field("line") == line), OF_TEXT[QUARANTINE], MOST_MATCHES + 1)


def place(record: Found) -> dict[str, Any]:
    """The place of a record, and its row_id."""
    return {name: record[name] for name in PLACE}


def manifest(artifact: Artifact) -> dict[str, Any]:
    """Read the manifest of an artifact (caching.py)."""
    return json.loads(artifact.path(MANIFEST).read_text(encoding="utf-8"))


def by_line(rows: Rows, file: str, line: int) -> list[Found]:
    """The records on a line of a file, those too that were refused or held out.

    The file's name may leave out the folders around it. Of a CSV file it is the record that the line is part of, with
    that line as `asked_line` where it is not its first.
    """
    found: list[Found] = []
    for name in files_named(rows, file):
        found += _at(rows, name, line) or (_around(rows, name, line) if is_csv(rows, name) else [])
    return found[: MOST_MATCHES + 1]


def files_named(rows: Rows, file: str) -> list[str]:
    """The files that were read under this name, which may leave out the folders around it."""
    return [name for name in rows.detected if is_named(name, file)]


def is_named(path: str, file: str) -> bool:
    """Whether a path is meant by a file's name, which may leave out the folders around it.

    It may also be the path from the folder that the command was called in.
    """
    is_same = os.path.normpath(called_in() / file) == os.path.normpath(Path(path).absolute())
    return path == file or path.endswith(f"/{file}") or is_same


def by_text(rows: Rows, words: Sequence[str]) -> list[Found]:
    """The records that contain all words, in any case and order, those too that were refused or held out.

    There are more where it returns more than MOST_MATCHES.
    """
    found: list[Found] = []
    for batch in _batches(rows.path("rows.parquet"), OF_ROW):
        messages = batch["messages"]
        turns, row_of = messages.flatten().field("content"), pc.call_function("list_parent_indices", [messages])
        hits = np.ones(len(batch), dtype=bool)
        for word in words:
            hits &= np.bincount(np.asarray(row_of)[_contains(turns, word)], minlength=len(batch)) > 0
        found += batch.filter(pa.array(hits)).slice(0, MOST_MATCHES + 1).to_pylist()
        if len(found) > MOST_MATCHES:
            return found
    for name, columns in OF_TEXT.items():
        found += _with_words(rows.path(name), columns, words)
    return found


def excerpt(record: Found) -> str:
    """The beginning of what a record says, and of its rejected answer."""
    if not record.get("messages"):
        return _beginning(record.get("text") or "")
    said = [f"{turn['role']}: {turn['content']}" for turn in shown_turns(record)]
    number = len(record["messages"])
    return "\n".join(map(_beginning, ["\n".join(said[:number]), *said[number:]]))


def _beginning(text: str) -> str:
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"


def select(file: Path, where: pc.Expression, columns: list[str], most: int) -> list[Found]:
    """The first rows of a Parquet file that satisfy a condition; other columns are read only where a row does."""
    import pyarrow.dataset as ds  # with pandas, which most commands have no use for

    found: list[Found] = []
    for fragment in ds.dataset(file).get_fragments():
        for group in fragment.split_by_row_group(where):
            if len(found) < most and group.count_rows(filter=where):
                found += group.to_table(columns=columns, filter=where).slice(0, most - len(found)).to_pylist()
    return found


def _at(rows: Rows, file: str, line: int) -> list[Found]:
    """The record that begins in a line."""
    here = (pc.field("file") == file) & (pc.field("line") == line)
    kept = select(rows.path("rows.parquet"), here, OF_ROW, 1)
    others = (found for name, columns in OF_TEXT.items() for found in select(rows.path(name), here, columns, 1))
    return kept or [NO_ROW | found for found in others]


def _around(rows: Rows, file: str, line: int) -> list[Found]:
    """The record of a CSV file that a line is part of: the last one that begins before it.

    Where no record is known to begin behind it, only as many lines belong to it as its texts have.
    """
    begins = np.concatenate([_lines(rows.path(name), file) for name in ("rows.parquet", *OF_TEXT)])
    before, is_last = begins[begins < line], not (begins > line).any()
    found = _at(rows, file, int(before.max())) if len(before) else []
    is_sample = manifest(rows)["ingredients"].get("data.limit") is not None  # then records between two are not known
    if is_last or is_sample:
        texts = [[turn["content"] for turn in each.get("messages") or ()] or [each.get("text") or ""] for each in found]
        breaks = [sum(text.count("\n") for text in of_record) for of_record in texts]
        found = [each for each, most in zip(found, breaks, strict=True) if line - each["line"] <= most]
    return [each | {"asked_line": line} for each in found]


def _lines(file: Path, of: str) -> np.ndarray:
    """The lines in which the records of a file begin."""
    import pyarrow.dataset as ds  # with pandas, which most commands have no use for

    return ds.dataset(file).to_table(columns=["line"], filter=pc.field("file") == of)["line"].to_numpy()


def is_csv(rows: Rows, file: str) -> bool:
    """Whether a file was read as CSV."""
    return rows.detected.get(file, "").startswith("csv")


def _with_words(file: Path, columns: list[str], words: Sequence[str]) -> list[Found]:
    """The records that are no rows and contain all words."""
    found: list[Found] = []
    for batch in _batches(file, columns):
        hits = np.logical_and.reduce([_contains(batch["text"], word) for word in words])
        found += [NO_ROW | each for each in batch.filter(pa.array(hits)).slice(0, MOST_MATCHES + 1).to_pylist()]
    return found


def _batches(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    return pq.ParquetFile(file).iter_batches(batch_size=20_000, columns=columns)


def _contains(texts: pa.Array, text: str) -> np.ndarray:
    options = pc.MatchSubstringOptions(text, ignore_case=True)
    return np.asarray(pc.call_function("match_substring", [texts], options).fill_null(False), dtype=bool)
