"""The first rows of the sources, and about how many there are: what a plan reckons with before ingest has read all."""

from collections.abc import Iterator, Sequence
from itertools import islice
from math import ceil
from pathlib import Path
from typing import NamedTuple

from tasks.config import Data
from tasks.errors import DataError
from tasks.ingest.files import SourceFile, is_remote
from tasks.ingest.layouts import Message
from tasks.ingest.parsing import Refused
from tasks.ingest.parts import columns_of
from tasks.ingest.readers import Item, read
from tasks.ingest.rows import to_row

ROWS = 1_000  # that are parsed, of all files together
MOST_BYTES = 64_000_000  # that are looked through for the number of records, of all files together


class Sample(NamedTuple):
    """Some rows of what trains or is drawn from, and the number of all: of `drawn` a share becomes other splits."""

    conversations: list[list[Message]]
    drawn: float
    train: float

    @property
    def is_all(self) -> bool:
        """Whether these are all rows."""
        return len(self.conversations) == self.drawn + self.train


def first_rows(files: Sequence[SourceFile], data: Data) -> Sample | None:
    """The first rows of each local file; None where there are none, as in the hub or a store, which are not asked.

    Deterministic, and bounded in time and memory whatever the files hold.
    """
    local = [file for file in files if _trains(file)]
    each = max(1, ROWS // max(1, len(local)))
    conversations: list[list[Message]] = []
    numbers = {"drawn": 0.0, "train": 0.0}
    for file in local:
        try:
            items = read(file, data.max_line_bytes, columns_of(file))
            kept, number = _of_file(file, items, each, MOST_BYTES // len(local), data)
        except DataError:  # what a run refuses is for the run to say
            continue
        conversations += kept
        numbers["train" if file.side == "train" else "drawn"] += number
    total = sum(numbers.values())
    if data.limit and total > data.limit:
        numbers = {name: number * data.limit / total for name, number in numbers.items()}
    return Sample(conversations, **numbers) if conversations else None


def _trains(file: SourceFile) -> bool:
    return not (file.held_out or is_remote(file.path) or file.format == "hub" or file.side in ("validation", "test"))


def _of_file(
    file: SourceFile, items: Iterator[Item], wanted: int, most_bytes: int, data: Data
) -> tuple[list[list[Message]], float]:
    """The first rows of a file, and about how many rows it has."""
    kept: list[list[Message]] = []
    num_parsed = 0
    num_bytes = num_records = 0
    for line, byte, raw, parse in islice(items, wanted):
        num_parsed += 1
        num_bytes += len(raw) + 1
        try:
            kept.append(to_row(file, line, byte, parse(), data.repair)[0].messages)
        except Refused:
            continue
    num_records = num_parsed
    for _, _, raw, _ in items:
        num_records += 1
        num_bytes += len(raw) + 1
        if num_bytes > most_bytes:
            size = Path(file.path).stat().st_size
            num_records = max(num_records, ceil(num_records * size / num_bytes))
            break
    return kept, num_records * len(kept) / max(1, num_parsed)
