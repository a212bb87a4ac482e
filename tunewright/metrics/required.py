"""Whether what the gate decides by can be measured on these answers, said before anything is trained."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow.parquet as pq

from tunewright.artifacts import Splits
from tunewright.config import CANNOT_DECIDE, Settings
from tunewright.errors import ConfigError
from tunewright.metrics.shape import choose


def last_answer(messages: Sequence[Mapping[str, str | None]]) -> str:
    """The text of the last answer of a conversation, which is the reference of a test row; empty without one."""
    return next((each["content"] or "" for each in reversed(messages) if each["role"] == "assistant"), "")


def require_metrics(settings: Settings, splits: Splits, schema: str) -> None:
    """Raises ConfigError where gate.metric or a guardrail cannot be measured on the test rows of the splits.

    `schema` is what evaluation.json_schema holds.
    """
    references = [last_answer(row["messages"]) for row in _rows(splits, "test", "messages")]
    trained = (last_answer(row["messages"]) for row in _rows(splits, "train", "messages", "side"))
    if said := misfit(settings, references, trained, schema, "the test rows"):
        raise ConfigError(said)


def misfit(settings: Settings, references: Sequence[str], answers: Iterable[str], schema: str, which: str) -> str:
    """The first key of the gate whose metric means nothing beside these references, why, and what to do; or "".

    `answers` are those of the training rows, and `which` says of what the references are.
    """
    try:
        choice = choose(settings.measured().metrics, references, answers, schema)
    except ConfigError as error:  # nothing that is asked for fits
        return str(error)
    fits = ", ".join(name for name in choice.names if name not in CANNOT_DECIDE)
    if settings.gate.metric == "auto" and not choice.decides:
        left = "; ".join(f"{name}: {why}" for name, why in choice.left_out.items())
        return f"evaluation.metrics has no metric that can decide on {which} ({left}); add auto, or another that fits"
    for key, name in wanted(settings):
        if why := choice.left_out.get(name):
            cure = "set auto or one of these" if key == "gate.metric" else "set one of these, or leave it out"
            return f"{key}={name} cannot be measured on {which}: {why}; {cure}: {fits}; or correct the answers"
    return ""


def wanted(settings: Settings) -> Iterator[tuple[str, str]]:
    """The keys of the gate that name a metric, and the metric."""
    yield "gate.metric", settings.gate.metric
    for at, each in enumerate(settings.gate.guardrails):
        yield f"gate.guardrails[{at}].metric", each.metric


def _rows(splits: Splits, side: str, *columns: str) -> Iterator[dict[str, Any]]:
    """The rows of a split, but no replay row: its answer says nothing of the task."""
    for batch in pq.ParquetFile(splits.path(f"{side}.parquet")).iter_batches(columns=list(columns)):
        yield from (row for row in batch.to_pylist() if row.get("side") != "replay")
