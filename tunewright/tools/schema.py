"""Whether the arguments of a call fit the JSON Schema of its tool's parameters.

Patterns are not checked: a regular expression of a data set can take longer than anybody waits.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tunewright.metrics.schemas import Schema
from tunewright.tools.conversation import Tool

PATTERNS = ("pattern", "patternProperties")
MOST = 4_096  # schemas in memory


def functions(tools: Sequence[Tool]) -> dict[str, Any]:
    """The definition of each function by its name."""
    return {tool["function"]["name"]: tool["function"] for tool in tools}


def misfit(function: Mapping[str, Any], arguments: Any) -> str:
    """Why arguments do not fit a function's parameters; empty where they do. Raises ValueError for no schema."""
    parameters = function.get("parameters")
    if parameters is None:
        return ""
    validator = _validator(json.dumps(parameters))
    try:
        error = next(validator.iter_errors(arguments), None)
    except RecursionError:
        return "the schema refers to itself without end"
    if error is None:
        return ""
    where = error.json_path.removeprefix("$").removeprefix(".")
    said = {
        "required": "is missing",
        "additionalProperties": "is not among its parameters",
        "type": f"is not of type {error.validator_value}",
        "enum": f"is none of {json.dumps(error.validator_value)[:200]}",
    }.get(str(error.validator), f"does not satisfy {error.validator}")
    names = _named(error) if error.validator in ("required", "additionalProperties") else ""
    return f"{'.'.join(filter(None, (where, names))) or 'the whole'} {said}"


def _named(error: Any) -> str:
    """The argument that is missing or too many."""
    if error.validator == "required":
        return next((name for name in error.validator_value if name not in error.instance), "")
    known = error.schema.get("properties", {})
    return next((name for name in error.instance if name not in known), "")


@lru_cache(MOST)
def _validator(parameters: str) -> Any:
    return Schema(json.dumps(_without_patterns(json.loads(parameters)))).validator


def _without_patterns(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_patterns(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {name: value for name, value in schema.items() if not (name in PATTERNS and isinstance(value, str | dict))}
    properties = schema.get("properties")
    if isinstance(properties, dict):  # a parameter may be called pattern
        kept["properties"] = {name: _without_patterns(each) for name, each in properties.items()}
    return {name: value if name == "properties" else _without_patterns(value) for name, value in kept.items()}
