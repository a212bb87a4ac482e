"""Expectations of the team's: any importable class that subclasses one of Great Expectations'.

It may name any column of the rows' frame (expectations.py), and `prompt` and `answer` for the texts themselves:

    class ExpectTicketNumber(gxe.ExpectColumnValuesToMatchRegex):
        column: str = "prompt"
        regex: str = "TCK-[0-9]{6}"

Its docstring, or its `description`, is what the report says of a row that fails. Texts are held against it a batch at
a time, so that they never lie in memory together: there it must look row by row, and `mostly` is 1.
"""
# pyright: reportPrivateImportUsage=false
# Great Expectations does not mark its public names as exported.

import importlib
from dataclasses import replace

from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import (
    ColumnMapExpectation,
    ColumnPairMapExpectation,
    MulticolumnMapExpectation,
)
from great_expectations.expectations.metadata_types import FailureSeverity

from data_checks.rules import Expected, columns_of
from data_checks.suite import Entry, SuiteError

TEXTS = ("prompt", "answer")
BY_ROW = (ColumnMapExpectation, ColumnPairMapExpectation, MulticolumnMapExpectation)


def own_expectation(entry: Entry) -> Expected:
    """The team's expectation with its arguments. Raises SuiteError where it cannot be made."""
    where = f"{entry.key}.name={entry.name}"
    module, _, name = entry.name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # what a module of the team's does when it is imported is its own
        raise SuiteError(f"{where} cannot be imported: {one_line(error)}") from error
    if not (isinstance(kind, type) and issubclass(kind, gxe.Expectation)):
        raise SuiteError(f"{where} is no expectation; accepted is a subclass of Great Expectations' Expectation")
    try:
        expectation = kind(severity=FailureSeverity(entry.severity), **entry.given)
    except Exception as error:  # likewise its validators
        raise SuiteError(f"{entry.key}.arguments={entry.given} of {name}: {one_line(error)}") from error
    made = Expected(replace(entry, name=expectation.expectation_type), _fault(expectation), expectation)
    if looks_at_texts(made) and not isinstance(expectation, BY_ROW):
        raise SuiteError(f"{where} sums up a column of texts; accepted on prompt and answer is what looks row by row")
    mostly = getattr(expectation, "mostly", 1)
    if looks_at_texts(made) and mostly != 1:  # a share of the rows, which no batch knows
        raise SuiteError(
            f"{where} has mostly={mostly}; accepted on prompt and answer is 1, each row being judged alone"
        )
    return made


def looks_at_texts(made: Expected) -> bool:
    """Whether it names prompt or answer among its columns."""
    return any(column in TEXTS for column in columns_of(made.expectation))


def one_line(error: BaseException) -> str:
    """An error's type and message on one line of at most 200 characters."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return said if len(said) <= 200 else f"{said[:199]}…"


def _fault(expectation: gxe.Expectation) -> str:
    said = expectation.description or (type(expectation).__doc__ or "").strip().split("\n")[0].rstrip(".")
    plain = f"fails: {said or type(expectation).__name__}".replace("{", "{{").replace("}", "}}")
    has_value = len(columns_of(expectation)) == 1 and columns_of(expectation)[0] not in TEXTS
    return f"{plain}: {{value}}" if has_value else plain
