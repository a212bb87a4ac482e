"""The first rows of the sources, and about how many there are: what a plan estimates from before ingest has read all.

What ingest is certain to refuse is refused here too, in the same words, so that a plan says it first.
"""

import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import MESSAGES
from tunewright.config import Data, Use
from tunewright.errors import DataError
from tunewright.similarity.prompts import hashed_conversations
from tunewright.tasks.ingest import (
    Need,
    absent_columns,
    by_setting,
    find_columns,
    judge,
    reasons,
    stop_on_empty_split,
    stop_on_encoding,
    stop_on_needs,
    stop_on_unusable_source,
)
from tunewright.tasks.ingest.files import USER_PROVIDED, SourceFile, is_remote
from tunewright.tasks.ingest.parsing import RefusedRecord
from tunewright.tasks.ingest.parts import columns_of
from tunewright.tasks.ingest.readers import Item, read
from tunewright.tasks.ingest.rows import to_row
from tunewright.tasks.ingest.tables import Tables, Tally
from tunewright.tools.conversation import Message, conversation_of

ROWS = 1_000  # that are parsed, of all files together
MOST_BYTES = 64_000_000  # that are looked through for the number of records, of all files together


class Sample(NamedTuple):
    """Some rows of what trains or is drawn from, and the number of all: of `drawn` a share becomes other splits."""

    conversations: list[list[Message]]
    drawn: float
    given: dict[str, float]  # use_as -> rows of the sources that have it
    is_all: bool  # whether these are all rows of the sources
    independent: float = 1.0  # of the rows that may test, groups for each row; a row without a group is one by itself
    repeated: float = 0.0  # of `drawn`, about how many are exact duplicates, as dedupe compares conversations
    refused: float = 0.0  # about how many records ingest will quarantine, which are no rows
    num_files: int = 1  # that have them
    warned: tuple[str, ...] = ()  # of what the first records lack, and others may have


class _Records:
    """The records of a file, with how many were taken, and their bytes."""

    def __init__(self, items: Iterator[Item]) -> None:
        self.items = items
        self.num_taken = self.num_bytes = 0
        self.is_whole = True  # unless `rest` left some

    def __iter__(self) -> Iterator[Item]:
        for item in self.items:
            self.num_taken += 1
            self.num_bytes += len(item[2]) + 1
            yield item

    def rest(self, most_bytes: int) -> Iterator[Item]:
        """The records that follow, up to the one with which all have more than `most_bytes`."""
        for item in self:
            yield item
            if self.num_bytes > most_bytes:
                self.is_whole = False
                return

    def number(self, size: int) -> int:
        """The number of all records; estimated from the file's size in bytes where some were left."""
        return self.num_taken if self.is_whole else max(self.num_taken, ceil(self.num_taken * size / self.num_bytes))


def first_rows(files: Sequence[SourceFile], data: Data, needs: Sequence[Need] = ()) -> Sample | None:
    """The first rows of each local file; None where there are none, as in the hub or a store, which are not asked.

    Deterministic, and bounded in time and memory whatever the files hold. Raises DataError and ConfigError where ingest
    is certain to raise it.
    """
    sources = [file for file in files if not file.held_out]
    local = [file for file in sources if not is_remote(file.path)]
    each = max(1, ROWS // max(1, len(local)))
    conversations: list[list[Message]] = []
    drawn, given = 0.0, dict.fromkeys(get_args(Use), 0.0)
    tallies: dict[str, Tally] = {}
    refused, of_drawn = 0.0, list[np.ndarray]()
    numbers: dict[str, int] = {}  # of a file's records
    groups: dict[str | None, list[str | None]] = {}  # use_as -> the group of each row
    for file in local:
        tally, number, kept, of_group, hashes = _of_file(
            file, each, MOST_BYTES // len(local), data, needs if len(sources) == 1 else ()
        )
        tallies[file.path], numbers[file.path] = tally, number
        groups.setdefault(file.use_as, []).extend(of_group)
        conversations += [] if file.is_user_provided else kept
        rows = number * len(kept) / max(1, tally.num_read)
        refused += number * tally.reasons.total() / max(1, tally.num_read)
        if file.use_as:
            given[file.use_as] += rows
        else:
            drawn += rows
            of_drawn += hashes
    tally, num_records = Tally().add(*tallies.values()), sum(numbers.values())
    if len(local) == len(sources):
        _stop_on_refused(data, sources, tallies, tally, num_records)
    warned = _warn_or_stop(data, local, tallies, numbers)
    total = drawn + sum(number for use, number in given.items() if use not in USER_PROVIDED)
    share = data.limit / total if data.limit and total > data.limit else 1
    given = {use: number if use in USER_PROVIDED else share * number for use, number in given.items() if number}
    is_all = tally.num_read == num_records and len(local) == len(sources)
    repeated = round(share * drawn * repeated_share(np.concatenate(of_drawn), share), 3) if of_drawn else 0.0
    may_test = independent(groups.get("test") or groups.get(None) or [])
    if not conversations:
        return None
    return Sample(conversations, share * drawn, given, is_all, may_test, repeated, share * refused, len(local), warned)


def independent(groups: Sequence[str | None]) -> float:
    """Return the number of groups per row, 0 to 1; a row without a group counts as one."""
    alone = sum(group is None for group in groups)
    return (alone + len({*groups} - {None})) / len(groups) if groups else 1.0


def repeated_share(hashes: np.ndarray, share: float = 1.0) -> float:
    """Return the share of conversations that repeat another one, where this share of them is drawn at random."""
    if not len(hashes):
        return 0.0
    copies = np.unique(hashes, return_counts=True)[1]
    return 1 - float((1 - (1 - share) ** copies).sum()) / (share * len(hashes))


def _of_file(
    file: SourceFile, wanted: int, most_bytes: int, data: Data, needs: Sequence[Need]
) -> tuple[Tally, int, list[list[Message]], list[str | None], list[np.ndarray]]:
    """The account of a file's first records, about how many it has, the first rows, their groups, and the hashes.

    Raises DataError where these are all, and lack what split needs.
    """
    records = _Records(read(file, data.max_line_bytes, columns_of(file)))
    with tempfile.TemporaryDirectory() as folder:
        with Tables(Path(folder)) as tables:
            tally = tables.fill(islice(records, wanted), file, data.max_line_bytes, data.repair)
        table = pq.read_table(Path(folder, "rows.parquet"), columns=["messages", "chat", "group"])
        kept, groups = list(map(conversation_of, table.to_pylist())), table["group"].to_pylist()
        hashes = [hashed_conversations(table["messages"], table["chat"])[2][:, 0]] if kept else []
        hashes += _hashes(records.rest(most_bytes), file, data.max_line_bytes)
        number = records.number(Path(file.path).stat().st_size)
        if kept and data.limit is None and tally.num_read == number:
            stop_on_needs(Path(folder, "rows.parquet"), needs)
    return tally, number, kept, groups, hashes


def _hashes(items: Iterator[Item], file: SourceFile, max_bytes: int) -> Iterator[np.ndarray]:
    """The hashes of the conversations of records; none where `file` has a use, as no row of it is drawn."""
    while batch := list(islice(items, ROWS)):
        rows = [] if file.use_as else [said for item in batch if (said := _conversation(item, file, max_bytes))]
        if rows:
            messages, chats = zip(*rows, strict=True)
            yield hashed_conversations(pa.array(messages, MESSAGES), pa.array(chats, pa.string()))[2][:, 0]


def _conversation(item: Item, file: SourceFile, max_bytes: int) -> tuple[list[Message], str | None] | None:
    """`messages` and `chat` of a record as it stands, without repairs, which take long; None where it is refused."""
    line, byte, raw, parse = item
    try:
        return to_row(file, line, byte, parse(), ())[0][-2:] if len(raw) <= max_bytes else None
    except RefusedRecord:
        return None


def _stop_on_refused(
    data: Data, sources: Sequence[SourceFile], tallies: dict[str, Tally], tally: Tally, num_records: int
) -> None:
    """Raises what ingest is certain to raise: of all records, or of the first where these alone are too many."""
    num_refused = tally.reasons.total()
    is_drawn = data.limit is not None and data.limit < num_records  # which records are read is not known here
    if tally.num_read == num_records and not (is_drawn and tally.num_rows):
        find_columns(sources, tallies, data.max_line_bytes)
        judge(data, sources, tally)
        stop_on_encoding(data, sources, tallies)
        stop_on_empty_split(sources, tallies)
    elif num_refused > data.max_refused_share * num_records and not is_drawn:
        raise DataError(
            f"{num_refused} of the first {tally.num_read} of {num_records} records quarantined, over "
            f"data.max_refused_share={data.max_refused_share} of all: {reasons(tally, sources)}",
            see=("quarantine.parquet",),
        )


def _warn_or_stop(
    data: Data, files: Sequence[SourceFile], tallies: dict[str, Tally], numbers: dict[str, int]
) -> tuple[str, ...]:
    """Raises what ingest is certain to raise of a source that is read whole; returns warnings of the others' first."""
    warned: list[str] = []
    for setting, of_source in by_setting(files).items():
        num_read = sum(tallies[file.path].num_read for file in of_source)
        if data.limit is None and num_read == sum(numbers[file.path] for file in of_source):
            find_columns(of_source, tallies, data.max_line_bytes)
            stop_on_unusable_source(data, of_source, tallies)
        elif num_read:
            tally, of_first = (
                Tally().add(*(tallies[file.path] for file in of_source)),
                f"the first {num_read:,} records",
            )
            absent = absent_columns(of_source, tallies, data.max_line_bytes)
            warned += [f"{key}: none of {of_first} has {theirs}; {there}" for key, theirs, there in absent]
            if not tally.num_rows:
                warned.append(f"{setting}: none of {of_first} can be used: {reasons(tally, of_source)}")
    return tuple(warned)
