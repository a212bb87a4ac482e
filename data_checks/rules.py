"""The forms that a built-in expectation has: a fault in words and the expectation of Great Expectations' behind it.

A fault's {value} stands for what a failing row has in the column.
"""
# pyright: reportPrivateImportUsage=false
# Great Expectations does not mark its public names as exported.

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import (
    ColumnMapExpectation,
    ColumnPairMapExpectation,
    MulticolumnMapExpectation,
)
from great_expectations.expectations.metadata_types import FailureSeverity

from tunewright.data_checks.batches import HASHES
from tunewright.data_checks.suite import Entry
from tunewright.reports.pages import located


def num_answers(frame: pd.DataFrame) -> pd.Series:
    """For each row how many different answers its prompt has among the rows of `frame`; null without one."""
    pairs = frame[["prompt_hash", "answer_hash"]].dropna().drop_duplicates()
    counted = frame["prompt_hash"].where(frame["answer_hash"].notna())
    return counted.map(pairs["prompt_hash"].value_counts()).astype("Int64")


def contradictions(frame: pd.DataFrame) -> pd.Series:
    """For each preference pair the place of a row of `frame` that says the opposite; null where there is none.

    That is a pair with the same prompt and the answers the other way round, or a row that is no pair and has the
    rejected answer. Where a pair prefers the rejected answer to a third one, both are true: answers may be ranked.
    """
    pairs = frame[frame["rejected_hash"].notna()]
    told = frame[frame["prompt_hash"].isin(pairs["prompt_hash"])]
    lines = zip(told["file"], told["line"], strict=True)
    places = {key: located(file, line) for key, (file, line) in zip(_hashes(told), lines, strict=True)}
    found = [
        (places.get((prompt, rejected, chosen)) or places.get((prompt, rejected, None))) if chosen != rejected else None
        for prompt, chosen, rejected in _hashes(pairs)
    ]
    return pd.Series(found, pairs.index, dtype=object).reindex(frame.index)


def _hashes(frame: pd.DataFrame) -> Iterator[tuple[int | None, ...]]:
    return zip(*(pa.array(frame[name], pa.int64()).to_pylist() for name in HASHES), strict=True)


def places_of_another_answer(frame: pd.DataFrame) -> list[str | None]:
    """Return for each row of `frame` the place of the first row that gives its prompt another answer, if any."""
    firsts: dict[int, list[tuple[int, str]]] = {}  # prompt -> the first row of each of two answers
    for _, row in frame.drop_duplicates(["prompt_hash", "answer_hash"]).iterrows():
        found = firsts.setdefault(row["prompt_hash"], [])
        if len(found) < 2:
            found.append((row["answer_hash"], located(row["file"], row["line"])))
    return [
        next((place for other, place in firsts[prompt] if other != answer), None)
        for prompt, answer in zip(frame["prompt_hash"], frame["answer_hash"], strict=True)
    ]


def answers_by_prompt(frame: pd.DataFrame, most: int) -> list[list[int]]:
    """Return for each of the first `most` prompts in `frame` one row's index label per different answer."""
    firsts = frame.drop_duplicates(["prompt_hash", "answer_hash"])
    prompts = firsts["prompt_hash"].drop_duplicates().head(most)
    return [firsts.index[firsts["prompt_hash"].eq(prompt)].tolist() for prompt in prompts]


BY_ROW = (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)  # what looks at one row at a time


class Rule(NamedTuple):
    """One of the expectations that a name of the suite stands for."""

    fault: str
    expectation: gxe.Expectation


class Expected(NamedTuple):
    """A rule, and the entry of the suite that asks for it."""

    entry: Entry
    fault: str
    expectation: gxe.Expectation


def expected(entry: Entry, rules: Iterable[Rule]) -> list[Expected]:
    """The rules with the severity of their entry."""
    severity = {"severity": FailureSeverity(entry.severity)}
    return [Expected(entry, rule.fault, rule.expectation.copy(update=severity)) for rule in rules]


def named_columns(expectation: gxe.Expectation) -> list[tuple[str, str]]:
    """(argument, column) of each that it names: a column, a column_A and a column_B, those of a column_list or _set."""
    given = [(name, value) for name, value in vars(expectation).items() if name.startswith("column")]
    several = [(name, value if isinstance(value, list | set | tuple) else [value]) for name, value in given]
    return [(name, column) for name, columns in several for column in columns if isinstance(column, str)]


def columns_of(expectation: gxe.Expectation) -> list[str]:
    """The columns it names."""
    return [column for _, column in named_columns(expectation)]


def between(fault: str, column: str, *, least: float | None = None, most: float | None = None) -> Rule:
    """Values of `column` are at least and at most so much; nulls are passed over."""
    return Rule(fault, gxe.ExpectColumnValuesToBeBetween(column=column, min_value=least, max_value=most))


def matches(fault: str, column: str, regex: str) -> Rule:
    """Values of `column` match."""
    return Rule(fault, gxe.ExpectColumnValuesToMatchRegex(column=column, regex=regex))


def nothing(fault: str, column: str) -> Rule:
    """There is nothing in `column`."""
    return Rule(fault, gxe.ExpectColumnValuesToBeNull(column=column))
