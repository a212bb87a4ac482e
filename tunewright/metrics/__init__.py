"""Metrics of an answer against its reference: one score per row, and one over all rows.

catalogue.py says what each metric means, shape.py which of them fit the answers of a data set, own.py what a metric of
the team's has to be. Each is an evaluate.Metric (classes.py), so that nothing is fetched from a hub.
"""

from statistics import fmean
from typing import Any

import pyarrow as pa

from tunewright.metrics.catalogue import CATALOGUE, GENERAL, PER_ROW, Description, RowScore
from tunewright.metrics.labels import Labels
from tunewright.metrics.own import described, is_own, made, own_metrics, rows_of
from tunewright.metrics.schemas import json_schema
from tunewright.metrics.shape import AnswerShape, Choice, choose
from tunewright.tools.parsing import said_beside

__all__ = [
    "AnswerShape",
    "Choice",
    "Description",
    "choose",
    "describe",
    "json_schema",
    "measure",
    "own_metrics",
    "row_score",
]

TEXTS = ("answer", "reference")


def describe(name: str) -> Description:
    """Return a metric's name in words, direction, unit and range. Raises ConfigError for an unknown team metric."""
    return described(name) if is_own(name) else (CATALOGUE | GENERAL)[name]


def row_score(name: str, shape: AnswerShape | None = None) -> RowScore:
    """The function of answer and reference; that of labels needs the shape that they are known from."""
    if name in ("accuracy", "unparseable") and shape:
        return getattr(Labels(shape.labels), name)
    return PER_ROW[name]


def load(name: str, shape: AnswerShape | None = None) -> Any:
    """A new evaluate.Metric, in memory."""
    from tunewright.metrics import classes

    if is_own(name):
        return made(name)
    match name:
        case "perplexity":
            return classes.Perplexity(name)
        case "preference_accuracy":
            return classes.PreferenceAccuracy(name)
        case "preference_margin":
            return classes.PreferenceMargin(name)
        case "stopped":
            return classes.Stopped(name)
        case "macro_f1" if shape:
            return classes.MacroF1(Labels(shape.labels))
        case "length_ratio":
            return classes.LengthRatio(name, row_score(name))
        case "tool_schema":
            return classes.ToolSchema()
        case "schema_valid" if shape:
            return classes.SchemaValid(shape.schema)
        case _:
            return classes.PerRow(name, row_score(name, shape))


def measure(name: str, answers: pa.Table, shape: AnswerShape | None = None) -> tuple[float, list[float] | None]:
    """The score over all rows of a table of ANSWER_SCHEMA, and that of each row, which macro_f1 has none of.

    Raises ConfigError where a metric of the team's does not score each row, ValueError where there is none.
    """
    if not len(answers):
        raise ValueError("there are no answers to score")
    metric = load(name, shape)
    columns = getattr(metric, "columns", TEXTS)
    said, wanted = (_values(answers.column(column)) for column in columns)
    if tuple(columns) == TEXTS:  # reasoning is no part of an answer, where the references have none
        said = [*map(said_beside, said, wanted)]
    result = metric.compute(predictions=said, references=wanted)
    if is_own(name):
        rows = rows_of(name, result, len(answers))
        return fmean(rows), rows
    return result[name], result.get("rows")


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column; a missing text is empty, since evaluate.Metric refuses null in the first row alone."""
    return (column.fill_null("") if pa.types.is_string(column.type) else column).to_pylist()
