"""Answers that are one of a closed set of labels, known from the training rows' answers and a few references."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow.parquet as pq

from tunewright.artifacts import Tokens
from tunewright.metrics.texts import canonical, normalized, parsed, plain

MAX_LABELS = 1_000
ROWS_OF_A_LABEL = 3  # on average, or the answers are no closed set
LABELS_ARE = f"of which each occurs in {ROWS_OF_A_LABEL} training rows on average, and few in one alone"
SEEN_ONCE = 0.05  # of the rows: the chance that the next answer is a new one, by Good and Turing (Good 1953)
UNSEEN = 0.05  # so many of the references may be labels that no training row has


class Labels:
    """A closed set. A text is the label that it equals but for case, spaces and signs around it, or as JSON."""

    def __init__(self, names: Sequence[str]) -> None:
        self.exactly = {plain(name) for name in names}
        alike = Counter(map(_loosely, self.exactly))
        # Labels that differ in case or signs alone are told apart by these.
        self.loosely = {_loosely(name): name for name in self.exactly if alike[_loosely(name)] == 1}

    def read(self, answer: str) -> str | None:
        """The label that a text is, or None."""
        said = plain(answer)
        return said if said in self.exactly else self.loosely.get(_loosely(said))

    def accuracy(self, answer: str, reference: str) -> float:
        """1.0 where the answer is read as the reference's label."""
        return float(self.read(answer) == self._wanted(reference))

    def unparseable(self, answer: str, reference: str = "") -> float:
        """1.0 where the answer is none of the labels, of which test rows alone may have a few."""
        return float(self.read(answer) is None)

    def macro_f1(self, answers: Sequence[str], references: Sequence[str]) -> float:
        """The mean F1 of the labels that the references have, so that each counts alike, however rare it is.

        An answer that is no label is a miss of its row's label and no find of another.
        """
        said, wanted = [*map(self.read, answers)], [*map(self._wanted, references)]
        found = Counter(mine for mine, right in zip(said, wanted, strict=True) if mine == right)
        num_said, num_wanted = Counter(said), Counter(wanted)
        return sum(2 * found[label] / (num_said[label] + num_wanted[label]) for label in num_wanted) / len(num_wanted)

    def _wanted(self, reference: str) -> str:
        return self.read(reference) or plain(reference)


def _loosely(text: str) -> str:
    value = parsed(text)
    return normalized(text) if value is None else canonical(value)


def training_answers(tokens: Tokens) -> Iterator[str]:
    """The last answer of each training row, but of no replay row: a free text among labels would end their set."""
    for batch in pq.ParquetFile(tokens.path("train.parquet")).iter_batches(columns=["reference", "replay"]):
        yield from (row["reference"] for row in batch.to_pylist() if not row["replay"])


def are_labels(numbers: Collection[int]) -> bool:
    """Return whether answers are labels, given how many rows have each different one."""
    num_rows, once = sum(numbers), sum(number == 1 for number in numbers)
    is_several = 2 <= len(numbers) <= min(MAX_LABELS, num_rows / ROWS_OF_A_LABEL)
    return is_several and once <= max(1, SEEN_ONCE * num_rows)


class ClosedSet(NamedTuple):
    """The labels, in alphabetical order, and those of them that no training row has."""

    labels: tuple[str, ...] = ()
    untrained: tuple[str, ...] = ()


def find_labels(answers: Iterable[str], references: Sequence[str]) -> ClosedSet:
    """The labels where training answers and references are of a closed set; else empty.

    They are where at most MAX_LABELS different answers are given, each several times, and the references keep to them.
    """
    counts: Counter[str] = Counter()
    for answer in answers:
        counts[plain(answer)] += 1
        if len(counts) > MAX_LABELS:
            return ClosedSet()
    unseen = [reference for reference in map(plain, references) if reference not in counts]
    known = {*map(_loosely, counts)} if unseen else set[str]()
    unseen = [reference for reference in unseen if _loosely(reference) not in known]  # others are misspelt
    if not are_labels(counts.values()) or len(unseen) > UNSEEN * len(references):
        return ClosedSet()
    return ClosedSet(tuple(sorted({*counts, *unseen})), tuple(sorted({*unseen})))


def closed_set(answers: Iterable[str], references: Sequence[str]) -> tuple[str, ...]:
    """The labels that training answers and references are of, in alphabetical order; empty where they are of none."""
    return find_labels(answers, references).labels
