"""Wins and losses row by row: some of each kind beside each opponent, clipped, with what every contender said."""

import html
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from tunewright.data_checks.columns import prompt_and_answer
from tunewright.metrics.intervals import Floats
from tunewright.privacy.excerpts import ends, masked
from tunewright.tasks.verdict_page.case import CANDIDATE, Case, title

MOST_ROWS = 100
MOST_BYTES = 600_000  # of their texts in the page
QUESTION_CHARS = 600
ANSWER_CHARS = 400
OPENING_CHARS = 160
SHORTEST_OPENING = 20  # characters, under which it is not worth to be told once
OUTCOMES = {-1: "lost", 1: "won", 0: "tied"}

Text = Callable[[str], str]


class Beside(NamedTuple):
    """The candidate beside one opponent: how many rows it won, lost and tied, and in words who that is."""

    opponent: str
    counts: dict[str, int]


class Said(NamedTuple):
    """What a contender answered; `text` is empty where that is the reference."""

    who: str
    text: str
    is_reference: bool
    stopped: bool
    score: float


class ShownRow(NamedTuple):
    """A test row with all answers; `outcomes` are beside each opponent."""

    row_id: str
    place: str
    question: str
    begins: str  # of the question, on one line, without what all questions begin with
    reference: str
    said: list[Said]
    outcomes: list[str]


class Shown(NamedTuple):
    """The rows that the page has room for."""

    beside: list[Beside]
    rows: list[ShownRow]
    num_rows: int  # of the test side
    opening: str  # what the questions begin with


def shown(case: Case) -> Shown:
    """Rows of each outcome beside each opponent; none where nothing could be compared."""
    differences = case.differences
    beside = [Beside(title(name), _counts(each)) for name, each in differences.items()]
    if not differences:
        return Shown([], [], 0, "")
    chosen = picked(differences, case.scores[CANDIDATE], MOST_ROWS)
    ids = case.tables[CANDIDATE]["row_id"]
    rows = _test_rows(case, [ids[at].as_py() for at in chosen])
    opening = shared_opening([_last(prompt_and_answer(row["messages"])[0]) for row in rows.values()])
    found = [_row(case, at, rows[ids[at].as_py()], opening) for at in chosen]
    return Shown(beside, list(_within(found, MOST_BYTES)), len(ids), _text(opening.strip(), OPENING_CHARS))


def picked(differences: Mapping[str, Floats], own: Floats, most: int) -> list[int]:
    """Which rows to show: of each outcome beside each opponent in turn, the largest differences first.

    Their order is by the first opponent: losses, wins, ties; of ties those with the lowest score of the candidate's.
    """
    cells = [
        [int(at) for at in np.lexsort((own, -np.abs(each))) if np.sign(each[at]) == sign]
        for sign in OUTCOMES
        for each in differences.values()
    ]
    layers = itertools.chain.from_iterable(itertools.zip_longest(*cells))
    chosen = itertools.islice(dict.fromkeys(at for at in layers if at is not None), most)
    first, kinds = next(iter(differences.values())), [*OUTCOMES]
    return sorted(chosen, key=lambda at: (kinds.index(int(np.sign(first[at]))), -abs(first[at]), own[at], at))


def shared_opening(texts: Sequence[str]) -> str:
    """What all texts begin with, up to the end of a word; empty where that is little."""
    first, last = min(texts), max(texts)
    end = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), 0)
    whole = first[: max(first.rfind(" ", 0, end), first.rfind("\n", 0, end)) + 1]
    return whole if len(whole) >= SHORTEST_OPENING else ""


def _counts(differences: Floats) -> dict[str, int]:
    return {name: int((np.sign(differences) == sign).sum()) for sign, name in OUTCOMES.items()}


def _test_rows(case: Case, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    columns = ["row_id", "file", "line", "messages"]
    rows = pq.read_table(case.splits.path("test.parquet"), columns=columns, filters=[("row_id", "in", ids)])
    return {row["row_id"]: row for row in rows.to_pylist()}


def _last(turns: Sequence[Any]) -> str:
    return (turns[-1]["content"] or "") if turns else ""


def _row(case: Case, at: int, row: Mapping[str, Any], opening: str) -> ShownRow:
    turns = prompt_and_answer(row["messages"])[0]
    asked = _last(turns)
    whole = asked if len(turns) == 1 else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    reference = case.said[at][0]
    return ShownRow(
        row_id=row["row_id"],
        place=f"{row['file']} line {row['line']}",
        question=_text(whole, QUESTION_CHARS),
        begins=" ".join(_text(asked.removeprefix(opening), 200).split()),
        reference=_text(reference, ANSWER_CHARS),
        said=[_said(case, name, at, reference) for name in (CANDIDATE, *case.differences)],
        outcomes=[OUTCOMES[int(np.sign(each[at]))] for each in case.differences.values()],
    )


def _said(case: Case, contender: str, at: int, reference: str) -> Said:
    table = case.tables[contender]
    answer, stopped = (table[name][at].as_py() for name in ("answer", "stopped"))
    is_reference = answer == reference
    text = "" if is_reference else _text(answer, ANSWER_CHARS)
    return Said(title(contender), text, is_reference, stopped, float(case.scores[contender][at]))


@lru_cache(1_000)
def _text(text: str, length: int) -> str:
    """A text as it may be shown: both ends of it, and nothing secret or personal."""
    return ends(masked(text), length)


def _within(rows: Sequence[ShownRow], most: int) -> Iterator[ShownRow]:
    """As many of the rows as there is room for."""
    left = most
    for row in rows:
        texts = (row.question, row.begins, row.reference, *(each.text for each in row.said))
        left -= sum(len(html.escape(text).encode()) for text in texts)
        if left < 0:
            return
        yield row
