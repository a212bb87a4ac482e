"""Pairs of answers to the same test rows, and how often the candidate's is preferred.

A judge's model (tasks/judge) and people (tunewright/evidence/review.py) say which answer of a pair is better.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tunewright.metrics.intervals import by_cluster
from tunewright.tools.conversation import prompt_and_answer

CONFIDENCE = 0.95  # of each bound of an interval
CANDIDATE = "candidate"


class Pair(NamedTuple):
    """Two answers to one test row."""

    row_id: str
    cluster: int
    opponent: str
    conversation: str
    reference: str
    candidates: str
    opponents: str

    @property
    def is_equal(self) -> bool:
        """Whether both answers are the same but for white space around them, so that neither is better."""
        return self.candidates.strip() == self.opponents.strip()


class RowPrompt(NamedTuple):
    """The conversation that a test row's answer ends."""

    cluster: int
    conversation: str  # the text of the turns before the last answer


def pairs(tables: Mapping[str, pa.Table], questions: Mapping[str, RowPrompt]) -> Iterator[Pair]:
    """Yield the pairs of the candidate with each other contender, by contender and row_id.

    `tables` are answers.parquet of each contender, `questions` those of the rows by row_id. Ids are hashes, so that the
    first of them are rows at random, and the same ones each time. A row that the other contender did not answer is left
    out.
    """
    said = {name: _column(table, "answer") for name, table in tables.items()}
    references = _column(tables[CANDIDATE], "reference")
    for opponent, theirs in said.items():
        for row_id in sorted(references) if opponent != CANDIDATE else ():
            if theirs.get(row_id) is not None:
                texts = references[row_id], said[CANDIDATE][row_id], theirs[row_id]
                cluster, conversation = questions[row_id]
                yield Pair(row_id, cluster, opponent, conversation, *texts)


def questions_of(test: pa.Table) -> dict[str, RowPrompt]:
    """Return what each row of test.parquet asks, by row_id."""
    rows = test.select(["row_id", "cluster", "messages"]).to_pylist()
    asked = ((row, prompt_and_answer(row["messages"])[0]) for row in rows)
    return {
        row["row_id"]: RowPrompt(row["cluster"], "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns))
        for row, turns in asked
    }


def mean_of_pairs(scores: Sequence[float], clusters: Sequence[int]) -> tuple[float, float, float]:
    """Return the mean of scores of pairs, from 0 to 1, between its bounds: low, mean, high."""
    return by_cluster(np.array(scores), np.array(clusters), 0.0, 1.0).interval(CONFIDENCE)


def _column(table: pa.Table, name: str) -> dict[str, str]:
    return dict(zip(table.column("row_id").to_pylist(), table.column(name).to_pylist(), strict=True))
