"""The metrics as evaluate.Metric subclasses: nothing is fetched from a hub, or run from a script of that name.

compute(predictions=, references=) gives {name: score, "rows": [score of each row]}, without "rows" where there is none
a row; it raises ValueError on no rows at all.
"""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import evaluate
from datasets import Features, Value

from tunewright.metrics.calls import tool_schema
from tunewright.metrics.catalogue import RowScore
from tunewright.metrics.labels import Labels
from tunewright.metrics.schemas import schema_valid
from tunewright.metrics.texts import json_valid, plain


class InMemory(evaluate.Metric):
    """A metric of columns of the answers' table, which are its predictions and references."""

    columns = ("answer", "reference")
    kinds = ("string", "string")

    def __init__(self, name: str, description: str | None = None) -> None:
        self.named, self.said = name, description or self.__doc__ or ""
        super().__init__(config_name=name, keep_in_memory=True)  # on disk each instance waits a second for a lock

    def _info(self) -> evaluate.MetricInfo:
        features = Features(dict(zip(("predictions", "references"), map(Value, self.kinds), strict=True)))
        return evaluate.MetricInfo(description=self.said, citation="", features=features)


class PerRow(InMemory):
    """The mean of a function of answer and reference."""

    def __init__(self, name: str, score: RowScore) -> None:
        self.score = score
        super().__init__(name, score.__doc__)

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, Any]:
        rows = self.rows(predictions, references)
        return {self.named: self.over_all(predictions, references, rows), "rows": rows}

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """The score of each row."""
        return [self.score(*pair) for pair in zip(predictions, references, strict=True)]

    def over_all(self, predictions: Sequence[str], references: Sequence[str], rows: Sequence[float]) -> float:
        """The score of all rows together."""
        return fmean(rows)


class LengthRatio(PerRow):
    """Over all characters, so that a short reference weighs no more than a long one."""

    def over_all(self, predictions: Sequence[str], references: Sequence[str], rows: Sequence[float]) -> float:
        """The score of all rows together."""
        said, wanted = (sum(len(plain(text)) for text in texts) for texts in (predictions, references))
        return said / max(1, wanted) if said or wanted else 1.0


class SchemaValid(PerRow):
    """The share of answers that satisfy a JSON Schema, given as its text."""

    def __init__(self, schema: str) -> None:
        self.schema = schema
        super().__init__("schema_valid", json_valid)

    def rows(self, predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        """The score of each row. Raises ConfigError where answers cannot be checked within limits."""
        return schema_valid(self.schema, predictions)


class ToolSchema(PerRow):
    """The share of answers whose calls are of a row's tools and fit their schemas."""

    columns = ("answer", "tools")

    def __init__(self) -> None:
        super().__init__("tool_schema", tool_schema)


class MacroF1(InMemory):
    """Macro F1 of labels, over all rows together."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        super().__init__("macro_f1", Labels.macro_f1.__doc__)

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, Any]:
        return {"macro_f1": self.labels.macro_f1(predictions, references)}


class Perplexity(InMemory):
    """exp of the mean negative log-likelihood a token, over all tokens of all rows; a row's score is that mean of it.

    Predictions are the rows' summed negative log-likelihoods in nats, references their token counts.
    """

    columns = ("nll", "num_reference_tokens")
    kinds = ("float64", "int64")

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, Any]:
        rows = [nll / num_tokens for nll, num_tokens in zip(predictions, references, strict=True)]
        return {"perplexity": math.exp(math.fsum(predictions) / sum(references)), "rows": rows}


class PreferenceMargin(InMemory):
    """The mean over preference pairs of how much likelier the chosen answer is than the rejected, in nats per token."""

    columns = ("margin", "margin")
    kinds = ("float64", "float64")

    def _compute(self, *, predictions: Any = None, **_: Any) -> dict[str, Any]:
        rows = [self.score(margin) for margin in predictions]
        return {self.named: fmean(rows), "rows": rows}

    def score(self, margin: float) -> float:
        """The score of a row with this margin."""
        return margin


class PreferenceAccuracy(PreferenceMargin):
    """The share of preference pairs in which the chosen answer is likelier per token than the rejected one."""

    def score(self, margin: float) -> float:
        """The score of a row with this margin."""
        return float(margin > 0)


class Stopped(InMemory):
    """The share of answers that ended by a stop token of the model's own, not by evaluation.max_new_tokens."""

    columns = ("stopped", "stopped")
    kinds = ("bool", "bool")

    def _compute(self, *, predictions: Any = None, **_: Any) -> dict[str, Any]:
        rows = [float(stopped) for stopped in predictions]
        return {"stopped": fmean(rows), "rows": rows}
