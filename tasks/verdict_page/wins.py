"""Wins and losses row by row: some of each kind beside each opponent, clipped, with what every contender said.

Also what wrong answers have in common: one label for another, one field of JSON, or nothing but case and signs.
"""

import html
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from tunewright.metrics import row_score
from tunewright.metrics.intervals import Floats
from tunewright.metrics.labels import Labels
from tunewright.metrics.texts import canonical, parsed, plain
from tunewright.privacy.excerpts import ends, masked
from tunewright.privacy.secrets import secret_values
from tunewright.reports.pages import in_part, located
from tunewright.tasks.verdict_page.case import CANDIDATE, Case, title
from tunewright.tools.conversation import prompt_and_answer

MOST_ROWS = 100
MOST_BYTES = 600_000  # of their texts in the page
QUESTION_CHARS = 600
ANSWER_CHARS = 400
OPENING_CHARS = 160
SHORTEST_OPENING = 20  # characters, under which it is not worth to be told once
OUTCOMES = {-1: "lost", 1: "won", 0: "tied"}
UNANSWERED = "unanswered"

Text = Callable[[str], str]
LISTED = 20
MISSING = "nothing"


class Shown(NamedTuple):
    """The rows that the page has room for."""

    beside: list[dict[str, Any]]  # opponent, and counts: how many rows the candidate won, lost and tied
    rows: list[dict[str, Any]]
    num_rows: int  # of the test split
    opening: str  # what the questions begin with


def shown(case: Case) -> Shown:
    """Rows of each outcome beside each opponent; none where nothing could be compared."""
    differences = case.differences
    beside = []
    for name, each in differences.items():
        counts = {outcome: int((np.sign(each) == sign).sum()) for sign, outcome in OUTCOMES.items()}
        beside.append({"opponent": in_part(title(name), case.in_part(name)), "counts": counts})
    if not differences:
        return Shown([], [], 0, "")
    chosen = picked(differences, case.scores[CANDIDATE], MOST_ROWS)
    ids = case.tables[CANDIDATE]["row_id"].to_pylist()
    columns, some = ["row_id", "file", "line", "messages"], [("row_id", "in", [ids[at] for at in chosen])]
    found = pq.read_table(case.splits.path("test.parquet"), columns=columns, filters=some)
    rows = {row["row_id"]: row for row in found.to_pylist()}
    opening = shared_opening([_last(prompt_and_answer(row["messages"])[0]) for row in rows.values()])
    listed = _within([_row(case, at, rows[ids[at]], opening) for at in chosen], MOST_BYTES)
    return Shown(beside, list(listed), len(ids), _text(opening.strip(), OPENING_CHARS))


def picked(differences: Mapping[str, Floats], own: Floats, most: int) -> list[int]:
    """Which rows to show: of each outcome beside each opponent in turn, the largest differences first.

    Their order is by the first opponent: losses, wins, ties, then rows that it did not answer; of ties those with the
    lowest score of the candidate's.
    """
    cells = [
        [int(at) for at in np.lexsort((own, -np.abs(each))) if np.sign(each[at]) == sign]
        for sign in OUTCOMES
        for each in differences.values()
    ]
    layers = itertools.chain.from_iterable(itertools.zip_longest(*cells))
    chosen = itertools.islice(dict.fromkeys(at for at in layers if at is not None), most)
    first, kinds = next(iter(differences.values())), [*OUTCOMES]
    places = [len(kinds) if np.isnan(each) else kinds.index(int(np.sign(each))) for each in first]
    return sorted(chosen, key=lambda at: (places[at], -abs(np.nan_to_num(first[at])), own[at], at))


def shared_opening(texts: Sequence[str]) -> str:
    """Return the common prefix of all texts, up to the end of a word, or "" if it is short."""
    first, last = min(texts), max(texts)
    end = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), 0)
    whole = first[: max(first.rfind(" ", 0, end), first.rfind("\n", 0, end)) + 1]
    return whole if len(whole) >= SHORTEST_OPENING else ""


def _last(turns: Sequence[Any]) -> str:
    return (turns[-1]["content"] or "") if turns else ""


def _row(case: Case, at: int, row: Mapping[str, Any], opening: str) -> dict[str, Any]:
    """A test row with the answers of all contenders, and its outcome beside each opponent."""
    turns = prompt_and_answer(row["messages"])[0]
    asked = _last(turns)
    whole = asked if len(turns) == 1 else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
    reference = case.said[at][0]
    known = secret_values(whole)
    return {
        "place": located(row["file"], row["line"]),
        "question": _text(whole, QUESTION_CHARS),
        "begins": " ".join(
            _text(asked.removeprefix(opening), 200, known).split()
        ),  # on one line, without the shared opening
        "reference": _text(reference, ANSWER_CHARS, known),
        "said": [_said(case, name, at, reference, known) for name in (CANDIDATE, *case.differences)],
        "outcomes": [_outcome(each[at]) for each in case.differences.values()],
    }


def _outcome(difference: float) -> str:
    return UNANSWERED if np.isnan(difference) else OUTCOMES[int(np.sign(difference))]


def _said(case: Case, contender: str, at: int, reference: str, known: frozenset[str]) -> dict[str, Any]:
    """A contender's answer; no text where it is the reference, and no score where it did not answer."""
    answer, stopped = (case.tables[contender][name][at].as_py() for name in ("answer", "stopped"))
    if answer is None:
        return {"who": title(contender), "text": "", "is_reference": False, "stopped": True, "score": None}
    is_reference, score = answer == reference, float(case.scores[contender][at])
    text = "" if is_reference else _text(answer, ANSWER_CHARS, known)
    return {"who": title(contender), "text": text, "is_reference": is_reference, "stopped": stopped, "score": score}


@lru_cache(1_000)
def _text(text: str, length: int, known: frozenset[str] = frozenset()) -> str:
    """A text as it may be shown: both ends of it, and nothing secret or personal; `known` are secrets of its prompt."""
    return ends(masked(text, known), length)


def _within(rows: Sequence[dict[str, Any]], most: int) -> Iterator[dict[str, Any]]:
    for row in rows:
        texts = (row["question"], row["begins"], row["reference"], *(each["text"] for each in row["said"]))
        most -= sum(len(html.escape(text).encode()) for text in texts)
        if most < 0:
            return
        yield row


class Confusion(NamedTuple):
    """One answer for another, of a field where the answers are JSON; and how often either stands in training rows."""

    field: str
    right: str
    said: str
    times: int
    trained: tuple[int, int] | None  # None where the answers are no closed set
    is_no_label: bool  # where they are, whether the answer is none of the labels


class Mistakes:
    """The candidate's answers that are not exactly the reference."""

    def __init__(self, case: Case) -> None:
        self.case = case
        exact = row_score("exact_match")
        wrong = [at for at, (reference, answer) in enumerate(case.said) if not exact(answer, reference)]
        self.wrong = [case.said[at] for at in wrong]
        self.prompts = [case.tables[CANDIDATE]["prompt"][at].as_py() or "" for at in wrong]

    @cached_property
    def confusions(self) -> list[Confusion]:
        """The pairs of reference and answer, the most frequent first."""
        often = sorted((-count, each) for each, count in self._confused.items())
        return [self._confusion(*each, times=-count) for count, each in often[:LISTED]]

    @property
    def num_unlisted(self) -> int:
        """Count the pairs that `confusions` leaves out."""
        return len(self._confused) - len(self.confusions)

    @cached_property
    def _confused(self) -> Counter[tuple[str, str, str, bool]]:
        return Counter(_confused(self.wrong, self.case.labels))

    @cached_property
    def _secrets(self) -> frozenset[str]:
        """Those in the prompts, which an answer may repeat."""
        return frozenset[str]().union(*map(secret_values, self.prompts))

    @cached_property
    def fields(self) -> list[tuple[str, int]]:
        """The fields of JSON answers with the number of answers that are wrong in each, the most frequent first.

        A field that an answer has and its reference has not is wrong there.
        """
        counts = Counter[str]()
        for right, said in self._objects:
            counts.update({name: int(_differs(name, right, said)) for name in right | said})
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))

    @property
    def num_json(self) -> int:
        """Count those that are JSON objects, as their references are: only these have fields."""
        return len(self._objects)

    @cached_property
    def _objects(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        pairs = [(parsed(reference), parsed(answer)) for reference, answer in self.wrong]
        return [(right, said) for right, said in pairs if isinstance(right, dict) and isinstance(said, dict)]

    @cached_property
    def near(self) -> int:
        """Count those that differ in case, spaces and signs alone."""
        normalized = row_score("normalized_match")
        return sum(normalized(answer, reference) == 1 for reference, answer in self.wrong)

    def _confusion(self, field: str, right: str, said: str, is_no_label: bool, *, times: int) -> Confusion:
        from tunewright.privacy.excerpts import in_a_line

        trained = None
        if self.case.labels:
            values: Counter[str] = Counter()
            for answer, count in self.case.trained.items():
                values[_value(parsed(answer), field) if field else plain(answer)] += count
            trained = values[right], values[said]
        right, said = (in_a_line(each, self._secrets) for each in (right, said))
        return Confusion(in_a_line(field), right, said, times, trained, is_no_label)


def _confused(wrong: Iterable[tuple[str, str]], labels: Sequence[str]) -> Iterator[tuple[str, str, str, bool]]:
    """(field, right, said, is no label) of each mistake, where answers are JSON objects or labels."""
    known = Labels(labels)
    for reference, answer in wrong:
        right, said = parsed(reference), parsed(answer)
        if isinstance(right, dict) and isinstance(said, dict):
            fields = (name for name in right | said if _differs(name, right, said))
            yield from ((name, _value(right, name), _value(said, name), False) for name in fields)
        elif labels:
            read = known.read(answer)
            yield "", plain(reference), plain(answer) if read is None else read, read is None


def _differs(field: str, right: Mapping[str, Any], said: Mapping[str, Any]) -> bool:
    """Whether a field is wrong, as json_field_f1 counts it: blanks around a text make no difference."""
    if field not in right or field not in said:
        return True
    return canonical(said[field]) != canonical(right[field])


def _value(of: Any, field: str) -> str:
    return str(of[field]) if isinstance(of, dict) and field in of else MISSING
