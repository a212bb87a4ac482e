"""Patterns in wrong answers: confused labels, a wrong field of JSON, or differences in case and punctuation only."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from tunewright.metrics import row_score
from tunewright.metrics.labels import Labels
from tunewright.metrics.structured import parsed
from tunewright.metrics.texts import plain
from tunewright.tasks.verdict_page.case import Case

LISTED = 10
NONE = "no label"
MISSING = "nothing"


class Confusion(NamedTuple):
    """One answer for another, of a field where the answers are JSON; and how often either stands in training rows."""

    field: str
    right: str
    said: str
    times: int
    trained: tuple[int, int] | None  # None where the answers are no closed set


class Mistakes:
    """The candidate's answers that are not exactly the reference."""

    def __init__(self, case: Case) -> None:
        self.case = case
        exact = row_score("exact_match")
        self.wrong = [(reference, answer) for reference, answer in case.said if not exact(answer, reference)]

    @cached_property
    def confusions(self) -> list[Confusion]:
        """Those that come more than once, the most frequent first."""
        counts = Counter(_confused(self.wrong, self.case.labels))
        often = sorted((-count, each) for each, count in counts.items() if count > 1)
        return [self._confusion(*each, times=-count) for count, each in often[:LISTED]]

    @cached_property
    def fields(self) -> list[tuple[str, int]]:
        """The fields of JSON answers with the number of wrong answers in each, the most frequent first."""
        pairs = [(parsed(reference), parsed(answer)) for reference, answer in self.wrong]
        both = [(right, said) for right, said in pairs if isinstance(right, dict) and isinstance(said, dict)]
        counts = Counter[str]()
        for right, said in both:
            counts.update({name: int(said.get(name) != right[name]) for name in right})
        return sorted(counts.items(), key=lambda item: (-item[1], item[0]))

    @cached_property
    def near(self) -> int:
        """How many differ in case, spaces and signs alone."""
        normalized = row_score("normalized_match")
        return sum(normalized(answer, reference) == 1 for reference, answer in self.wrong)

    def _confusion(self, field: str, right: str, said: str, *, times: int) -> Confusion:
        from tunewright.privacy.excerpts import in_a_line

        trained = None
        if self.case.labels:
            values: Counter[str] = Counter()
            for answer, count in self.case.trained.items():
                values[_value(parsed(answer), field) if field else plain(answer)] += count
            trained = values[right], values[said]
        return Confusion(in_a_line(field), in_a_line(right), in_a_line(said), times, trained)


def _confused(wrong: Iterable[tuple[str, str]], labels: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(field, right, said) of each mistake, where answers are JSON objects or labels."""
    known = Labels(labels)
    for reference, answer in wrong:
        right, said = parsed(reference), parsed(answer)
        if isinstance(right, dict) and isinstance(said, dict):
            fields = (name for name in right if said.get(name) != right[name])
            yield from ((name, _value(right, name), _value(said, name)) for name in fields)
        elif labels:
            read = known.read(answer)
            yield "", plain(reference), NONE if read is None else read


def _value(of: Any, field: str) -> str:
    return str(of[field]) if isinstance(of, dict) and field in of else MISSING
