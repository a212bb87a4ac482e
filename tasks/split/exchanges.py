"""Test rows whose last question and answer, which are what is scored, a training row has as well.

Clusters compare whole prompts, of which the last question of a long chat is a small part: two chats that end alike may
be in two splits.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tunewright.artifacts.placement import TEST, TRAIN
from tunewright.similarity.engine import read_pieces
from tunewright.similarity.folding import fold_messages
from tunewright.similarity.prompts import joined, message_hashes


def known_from_training(file: Path, split: np.ndarray) -> int:
    """How many test rows of rows.parquet end with a question and an answer that follow each other in a training row."""
    trained, tested = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for rows, hashes, is_last in _exchanges(file):
        trained.append(np.unique(hashes[split[rows] == TRAIN]))
        tested.append(hashes[is_last & (split[rows] == TEST)])
    return int(np.isin(np.concatenate(tested), np.concatenate(trained)).sum())


def _exchanges(file: Path) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The row of each question with its answer, their hash, and whether they end the row, batch by batch."""
    start = 0
    for batch in read_pieces(file, ["messages"]):
        messages = batch["messages"].combine_chunks()
        folded, roles = fold_messages(messages), messages.flatten().field("role")
        at = np.asarray(pc.index_in(roles, pa.array(["user", "assistant"])).fill_null(-1))  # pyright: ignore[reportAttributeAccessIssue]
        row = np.repeat(np.arange(len(messages)), np.diff(folded.rows))
        first = np.flatnonzero((at[:-1] == 0) & (at[1:] == 1) & (row[:-1] == row[1:]))
        hashes = message_hashes(folded)[0]
        yield start + row[first], joined(hashes[first], hashes[first + 1]), np.isin(first + 1, folded.answers)
        start += batch.num_rows
