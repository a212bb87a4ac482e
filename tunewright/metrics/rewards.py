"""Reward functions of training on rewards: metrics of one answer, the JSON Schema, and functions of the team's.

    def polite(answer, reference, prompt):  # any of these, by their names
        return float("please" in answer.lower())

A function of the team's is named as module:function and returns a finite number.
"""

import importlib.util
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tunewright.accepted import meant
from tunewright.errors import ConfigError, imported, one_line
from tunewright.metrics.catalogue import PER_ROW
from tunewright.metrics.schemas import schema_valid
from tunewright.store.code_hashes import team_code
from tunewright.tools.parsing import said_beside

SETTING = "grpo.rewards"
SCHEMA_VALID = "schema_valid"
GIVEN = ("answer", "reference", "prompt")  # that a function of the team's can ask for, all texts
ACCEPTED = f"accepted: a function of some of {', '.join(GIVEN)}, which are texts, that returns a finite number"


def own_rewards(names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The team's functions among these names, each with a digest of its code. Raises ConfigError for a wrong one."""
    own = sorted(name for name in names if ":" in name)
    for name in own:
        _try(name)
    return tuple((name, team_code(name.partition(":")[0])) for name in own)


def _try(name: str) -> None:
    """Raises ConfigError where a function cannot be used, or gives no finite number for a made-up answer.

    What it raises there counts for nothing: the answer may be none that it is written for.
    """
    function = _function(name)
    try:
        score = function(answer="Yes", reference="Yes", prompt="Does it leave on Monday?")
    except (Exception, SystemExit):  # its code is its own
        return
    try:
        is_number = math.isfinite(float(score))
    except (TypeError, ValueError):
        is_number = False
    if not is_number:
        raise ConfigError(f"{SETTING}={name} gives {score!r:.60} for a made-up answer; {ACCEPTED}")


def folders_of(names: Iterable[str]) -> tuple[str, ...]:
    """The folders that the modules of the team's functions among these names are imported from, for another process."""
    found = dict.fromkeys(name.partition(":")[0].partition(".")[0] for name in names if ":" in name)
    specs = filter(None, map(importlib.util.find_spec, found))
    places = [(each.submodule_search_locations or [each.origin or ""])[0] for each in specs]
    return tuple(dict.fromkeys(str(Path(place).absolute().parent) for place in places))


class Rewards:
    """The weighted sum of reward functions; `schema` is the text of evaluation.json_schema, for schema_valid."""

    def __init__(self, weights: Mapping[str, float], schema: str) -> None:
        """Raises ConfigError where a function cannot be used."""
        self.weights, self.schema = weights, schema
        one_by_one = [name for name in weights if name != SCHEMA_VALID]  # which is checked for many answers at once
        self.functions = {name: _function(name) if ":" in name else _metric(name) for name in one_by_one}

    def __call__(
        self, rows: Sequence[str], prompts: Sequence[str], answers: Sequence[str], references: Sequence[str]
    ) -> list[float]:
        """The reward of each answer; `rows` are the ids of the rows that they answer.

        Raises ConfigError with the row where a function of the team's fails, or gives no finite number.
        """
        said = [*map(said_beside, answers, references)]  # reasoning is no part of an answer, as in evaluation
        totals = [0.0] * len(said)
        for name, weight in self.weights.items():
            for at, score in enumerate(self._scores(name, rows, prompts, said, references)):
                totals[at] += weight * score
        return totals

    def _scores(
        self, name: str, rows: Sequence[str], prompts: Sequence[str], said: Sequence[str], references: Sequence[str]
    ) -> list[float]:
        if name == SCHEMA_VALID:
            return schema_valid(self.schema, said)
        function = self.functions[name]
        scores = list[float]()
        for row, prompt, answer, reference in zip(rows, prompts, said, references, strict=True):
            try:
                score = function(answer=answer, reference=reference, prompt=prompt)
                scores.append(float(score))
            except (Exception, SystemExit) as error:  # its code is its own
                raise ConfigError(f"{_failed(name, row)}: {one_line(error)}") from error
            if not math.isfinite(scores[-1]):
                raise ConfigError(f"{_failed(name, row)}: it gives {scores[-1]}; accepted: a finite number")
        return scores


def _failed(name: str, row: str) -> str:
    return f"{SETTING}={name} fails on an answer to row {row[:12]}, which tunewright data FILE --row {row[:12]} shows"


def _metric(name: str) -> Callable[..., float]:
    score = PER_ROW[name]
    return lambda answer, reference, **_: score(answer, reference)


def _function(name: str) -> Callable[..., Any]:
    """A function of the team's, which takes all of GIVEN. Raises ConfigError."""
    module, _, named = name.partition(":")
    try:
        found = imported(module, "module:function")
    except ValueError as error:
        raise ConfigError(f"{SETTING}={name}{error}") from error
    function = getattr(found, named, None)
    if not callable(function):
        there = [each for each, value in vars(found).items() if callable(value)]
        near = meant(f"{module}:{each}" for each in get_close_matches(named, there, 1))
        what = f": {named} is not a function" if hasattr(found, named) else f": {module} has no {named}"
        raise ConfigError(f"{SETTING}={name}{what}; {near}{ACCEPTED}")
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters)
    asked = [each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    needed = [each.name for each in parameters if each.default is each.empty and each.kind is not each.VAR_KEYWORD]
    if unknown := [each for each in needed if each not in GIVEN]:
        raise ConfigError(f"{SETTING}={name} asks for {unknown[0]}; {ACCEPTED}")

    def with_asked(**given: str) -> Any:
        return function(**{key: value for key, value in given.items() if takes_all or key in asked})

    return with_asked
