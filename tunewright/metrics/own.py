"""Metrics of the team's: any importable evaluate.Metric, named as module:Class, that scores each row.

    class Politeness(evaluate.Metric):
        higher_is_better = True        # the default, as are in_words = "Politeness", low = 0 and high = 1
        def _info(self):
            features = datasets.Features({"predictions": Value("string"), "references": Value("string")})
            return evaluate.MetricInfo(description="Says please", citation="", features=features)
        def _compute(self, predictions, references):
            return {"rows": [float("please" in answer.lower()) for answer in predictions]}

compute gives "rows", a finite number for each row in order, since the decision is a paired one; their mean is the
metric's score. It is tried on a few made-up answers before anything runs.
"""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from tunewright.accepted import meant
from tunewright.errors import ConfigError, imported, one_line
from tunewright.metrics.catalogue import Description
from tunewright.store.code_hashes import team_code

ACCEPTED = "accepted: an evaluate.Metric whose compute(predictions=, references=) gives rows, a finite number for each"
SAID = ("", '{"a": 1}', "It left on Monday.", "返品したい")
METRICS = "evaluation.metrics"
WANTED = ("Yes", '{"a": 2}', "It left on Monday and arrives tomorrow.", "返品したい")


def is_own(name: str) -> bool:
    """Whether a name is that of a class of the team's."""
    return ":" in name


def own_metrics(names: Sequence[str], setting: str = METRICS) -> tuple[tuple[str, str], ...]:
    """The team's metrics among these names of a setting, each with a digest of its code: for evaluate's key.

    Raises ConfigError for the first that cannot be used. `evaluate`, which takes seconds to import, is imported only
    where there is one.
    """
    own = sorted({name for name in names if is_own(name)})
    for name in own:
        try:
            _try(name)
        except ConfigError as error:
            raise ConfigError(str(error).replace(_said(name), f"{setting}={name}", 1)) from error
    return tuple((name, team_code(name.partition(":")[0])) for name in own)


def _try(name: str) -> None:
    metric = made(name)
    try:
        result = metric.compute(predictions=[*SAID], references=[*WANTED])
    except Exception as error:  # its code is its own
        raise ConfigError(f"{_said(name)} does not score made-up texts: {one_line(error)}; {ACCEPTED}") from error
    rows_of(name, result, len(SAID))


def made(name: str) -> Any:
    """A new instance of a class of the team's. Raises ConfigError."""
    kind = _kind(name)
    try:
        return kind(keep_in_memory=True)
    except Exception as error:  # its code is its own
        raise ConfigError(f"{_said(name)} cannot be created: {one_line(error)}; {ACCEPTED}") from error


def described(name: str) -> Description:
    """Return the description that the metric's class gives."""
    kind = _kind(name)
    return Description(
        name,
        in_words=str(getattr(kind, "in_words", kind.__name__)),
        higher_is_better=bool(getattr(kind, "higher_is_better", True)),
        unit=str(getattr(kind, "unit", "of 1")),
        low=float(getattr(kind, "low", 0.0)),
        high=float(getattr(kind, "high", 1.0)),
    )


def rows_of(name: str, result: Any, num_rows: int) -> list[float]:
    """The score of each row that compute gave. Raises ConfigError where there is none, or one out of its range."""
    given = result.get("rows") if isinstance(result, dict) else None
    if given is None:
        raise ConfigError(f"{_said(name)} gives no rows; the paired decision needs a score per row; {ACCEPTED}")
    try:
        rows = [float(score) for score in given]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{_said(name)} gives rows that are not numbers; {ACCEPTED}") from error
    if len(rows) != num_rows:
        raise ConfigError(f"{_said(name)} gives {len(rows)} rows for {num_rows} answers; {ACCEPTED}")
    low, high = described(name).low, described(name).high
    if wrong := [score for score in rows if not (math.isfinite(score) and low <= score <= high)]:
        between = f"finite numbers from {low:g} to {high:g}, which are its low and high"
        raise ConfigError(f"{_said(name)} gives a row {wrong[0]:g}; accepted: {between}")
    return rows


@cache
def _kind(name: str) -> type:
    import evaluate

    module, _, named = name.partition(":")
    try:
        found = imported(module, "module:Class")
    except ValueError as error:
        raise ConfigError(f"{_said(name)}{error}") from error
    classes = {each: kind for each, kind in vars(found).items() if isinstance(kind, type)}
    kinds = {each: kind for each, kind in classes.items() if issubclass(kind, evaluate.Metric)}
    if named not in kinds:
        near = meant(f"{module}:{each}" for each in get_close_matches(named, kinds, 1))
        what = " is not an evaluate.Metric" if hasattr(found, named) else f": {module} has no {named}"
        raise ConfigError(f"{_said(name)}{what}; {near}{ACCEPTED}")
    return kinds[named]


def _said(name: str) -> str:
    return f"{METRICS}={name}"
