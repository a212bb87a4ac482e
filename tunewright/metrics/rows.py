"""The scores of each row in an answers.parquet, as evaluate has written them."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from tunewright.errors import ConfigError
from tunewright.metrics.intervals import Floats

RAISE_LIMIT = "raise evaluation.max_new_tokens first: other findings may follow from it"  # where many are cut off


def measured(answers: pa.Table) -> list[str]:
    """The metrics that the answers have a score a row of."""
    named = [field.name for field in answers.schema if pa.types.is_float64(field.type) and field.name != "nll"]
    return sorted({*named, "perplexity", "stopped"})


def require_measured(answers: pa.Table, metrics: Iterable[str], scored: Iterable[str]) -> None:
    """Raises ConfigError where the answers have no score a row of a metric; `scored` are those that they have one of.

    The last defence: metrics/required.py says it before anything is trained.
    """
    there = measured(answers)
    for metric in metrics:
        if metric not in there:
            known = ", ".join(sorted({*there, *scored}))
            raise ConfigError(f"gate: {metric or 'auto'} was not measured on these rows, only {known}")


def scores(answers: pa.Table, metric: str) -> Floats:
    """The score of each row [rows], in the rows' order."""
    if metric == "perplexity":
        return _numbers(answers, "nll") / _numbers(answers, "num_reference_tokens")
    return _numbers(answers, metric)


def cut_off(answers: pa.Table) -> np.ndarray:
    """Whether each row's answer [rows] was cut off while its reference goes on: only beginnings are compared there."""
    stopped, lengths, wanted = (
        answers.column(name).to_numpy() for name in ("stopped", "num_tokens", "num_reference_tokens")
    )
    return ~stopped & (lengths < wanted)


def _numbers(answers: pa.Table, column: str) -> Floats:
    return answers.column(column).to_numpy().astype(float)
