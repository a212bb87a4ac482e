"""The names of the metrics, and which of them can decide."""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

Metric = Literal[
    "exact_match",
    "normalized_match",
    "token_f1",
    "chrf",
    "rouge_l",
    "bleu",
    "accuracy",
    "macro_f1",
    "unparseable",
    "json_field_f1",
    "json_valid",
    "schema_valid",
    "numeric",
    "perplexity",
    "stopped",
    "length_ratio",
]
METRICS: tuple[Metric, ...] = get_args(Metric)
OWN_METRIC = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"


def _module_and_class(name: str) -> str:
    if not re.fullmatch(OWN_METRIC, name):
        raise PydanticCustomError("own_metric", "module:Class")
    return name


OwnMetric = Annotated[str, AfterValidator(_module_and_class), Field(json_schema_extra={"pattern": OWN_METRIC})]
WITH_EACH_ANSWER = ("stopped", "perplexity")  # can be told of all answers, whatever else is measured
CANNOT_DECIDE: dict[str, str] = {
    "macro_f1": "is one score of all rows, but the paired decision needs a score per row; accuracy has one",
    "length_ratio": "is best at 1, so neither higher nor lower is better",
}


def cannot_decide(metric: str) -> str:
    """Why a metric cannot decide, as a sentence; empty where it can."""
    return f"{metric} {CANNOT_DECIDE[metric]}" if metric in CANNOT_DECIDE else ""


def deciding(metric: str) -> str:
    """The metric. Raises ValueError where it cannot decide."""
    if why := cannot_decide(metric):
        raise ValueError(why)
    return metric


def require_in_range(metric: str, key: str, by: float) -> None:
    """Raises ValueError where no two scores of a metric differ by more than this.

    A score is from 0 to 1 but for perplexity, whose rows are in nats per token, and what a team's own metric says.
    """
    if by >= 1 and metric in {"auto", *METRICS} - {"perplexity"}:
        raise ValueError(f"{key}={by:g} is out of range: scores of {metric} are from 0 to 1; accepted: below 1")
