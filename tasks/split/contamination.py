"""Training rows that have so much in common with a row of another split, or of an evaluation file, that it was seen.

That is 13 words in a row (Brown et al. 2020, "Language Models are Few-Shot Learners", appendix C), or the whole prompt,
however short or long. With rows of other splits it cannot be the whole prompt: equal prompts are one cluster.

A passage that more than ten training prompts have is a template (the same paper's rule), and so is an evaluation
question that stands within more than ten different prompts. A passage in the answers of both rows only shows that the
answers have a form: by it one training row in six of a slot-filling set would go, for names of slots in JSON. So the
passage must lie within the question of one of the two; what more than ten answers have is a form too. Of most
evaluation files ingest knows which text is the question (tasks/ingest/held_out.py); of others the last line is taken
for the answer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import Rows
from tunewright.artifacts.placement import TEST, TRAIN, VALIDATION
from tunewright.similarity.engine import read_pieces
from tunewright.tasks.split.passages import (
    Found,
    Passages,
    Search,
    Shared,
    conversations,
    evaluations,
    first_asked,
    gather,
    passages_of,
    whole_lines,
)

HELD_OUT = "held_out.parquet"


@dataclass(frozen=True)
class Contamination:
    """Passages that rows share with evaluation texts. Texts from `num_rows` on are records of evaluation files."""

    num_rows: int
    held_out: pa.Table  # file and line of each record
    of_splits: Shared  # training rows, with rows of the other splits
    of_held_out: Shared  # training rows, with records of evaluation files
    evaluation: Shared  # validation and test rows, with records of evaluation files

    def training_rows(self) -> dict[int, tuple[int, int]]:
        """Training row -> (text, passage) of what it has in common; with another split's row rather than a record's."""
        found: dict[int, tuple[int, int]] = {}
        for shared in (self.of_held_out, self.of_splits):
            passages = zip(shared.texts.tolist(), shared.hashes.tolist(), strict=True)
            found |= dict(zip(shared.rows.tolist(), passages, strict=True))
        return found


def find_contamination(file: Path, split: np.ndarray, held_out: Rows, left_out: np.ndarray) -> Contamination:
    """Compares the rows of rows.parquet by their `split`; the segments `left_out` (hashes) count for nothing."""
    is_tested = np.isin(split, [VALIDATION, TEST])
    tested_rows = ((conversations(messages, left_out), numbers) for numbers, messages in _rows(file, is_tested))
    of_splits = Search(gather(passages_of(*each) for each in tested_rows), gather(()))
    records = _passages_of_records(held_out, len(split), left_out)
    with_records, evaluation = Search(*records), Search(*records)
    trained, tested = dict[int, int](), dict[int, int]()
    for numbers, messages in _rows(file, split == TRAIN):
        texts = conversations(messages, left_out)
        first = first_asked(trained, texts, numbers)
        of_splits.look(texts, numbers, first)
        with_records.look(texts, numbers, first)
    for numbers, messages in _rows(file, is_tested) if held_out.num_held_out else ():
        texts = conversations(messages, left_out)
        evaluation.look(texts, numbers, first_asked(tested, texts, numbers))
    places = pq.read_table(held_out.path(HELD_OUT), columns=["file", "line"]) if held_out.num_held_out else pa.table({})
    return Contamination(len(split), places, of_splits.shared(), with_records.shared(), evaluation.shared())


def _rows(file: Path, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, pa.ChunkedArray]]:
    """The numbers and messages of the wanted rows (a mask), batch by batch."""
    start = 0
    for batch in read_pieces(file, ["messages"]):
        here = wanted[start : start + batch.num_rows]
        yield start + np.flatnonzero(here), batch.filter(pa.array(here))["messages"]
        start += batch.num_rows


def _passages_of_records(held_out: Rows, first_number: int, left_out: np.ndarray) -> tuple[Passages, Passages]:
    """The passages, and the runs of whole lines, of the records of evaluation files."""
    of_passages: list[Found] = []
    of_lines: list[Found] = []
    for batch in read_pieces(held_out.path(HELD_OUT), ["text", "asked", "answered"]) if held_out.num_held_out else ():
        texts, lines = evaluations(batch, left_out)
        numbers = np.arange(first_number, first_number + batch.num_rows)
        of_passages.append(passages_of(texts, numbers))
        of_lines += whole_lines(texts, lines, numbers)
        first_number += batch.num_rows
    return gather(of_passages), gather(of_lines)
