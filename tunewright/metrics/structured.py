"""Answers that are JSON: whether they can be read, and which fields are right."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tunewright.metrics.texts import exact_match, plain

Field = tuple[str, str]  # a path such as /slots/[] and a value as JSON


def parsed(text: str) -> dict[str, Any] | list[Any] | None:
    """The JSON object or array that a text is, or None: no key twice, no NaN or Infinity, no fence around it."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=refuse)
    except (ValueError, RecursionError):  # the second from brackets thousands deep
        return None
    return value if isinstance(value, dict | list) else None


def json_valid(answer: str, reference: str = "") -> float:
    """1.0 where the answer is a JSON object or array and nothing else."""
    return float(parsed(answer) is not None)


def json_field_f1(answer: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the fields: 1.0 where both say the same; 0.0 of what is no JSON.

    A field is a key's value, with the keys that lead to it; and an item of a list, whole and wherever in it it stands.
    """
    said, wanted = parsed(answer), parsed(reference)
    if said is None or wanted is None:
        return 0.0
    try:
        mine, theirs = Counter(_fields(said)), Counter(_fields(wanted))
    except RecursionError:  # from hundreds of levels
        return exact_match(answer, reference)
    return 2 * (mine & theirs).total() / (mine.total() + theirs.total())


def _fields(value: Any, path: str = "") -> Iterator[Field]:
    """An empty object or list is a field itself, so that it differs from none."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _fields(inner, f"{path}/{json.dumps(key)}")
    elif isinstance(value, list) and value:
        for inner in value:
            yield f"{path}/[]", canonical(inner)
    else:
        yield path, canonical(value)


def canonical(value: Any) -> str:
    """A value as JSON that is the same for equal values, whatever the order of their keys."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """With 3.0 as 3, and texts in Unicode NFC without the space around them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return plain(value) if isinstance(value, str) else value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key appears twice")
    return made


def refuse(constant: str) -> None:
    """Raises ValueError: the hook of json.loads for NaN and Infinity."""
    raise ValueError(f"{constant} is not JSON")
