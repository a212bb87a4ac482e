"""Answers that are JSON: whether they can be read, whether a schema holds, and which fields are right."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.config import or_meant
from tasks.errors import ConfigError
from tasks.metrics.texts import exact_match, plain

Field = tuple[str, str]  # a path such as /slots/[] and a value as JSON


def parsed(text: str) -> dict[str, Any] | list[Any] | None:
    """The JSON object or array that a text is, or None: no key twice, no NaN or Infinity, no fence around it."""
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse)
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


class Schema:
    """A JSON Schema, of the draft that its $schema names or the newest. What it refers to is never fetched."""

    def __init__(self, text: str) -> None:
        """Raises ValueError, with one line that says why, where the text is no schema or refers beyond itself."""
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
        from jsonschema_specifications import REGISTRY

        try:
            schema = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is no JSON: {error}") from error
        if not isinstance(schema, dict):
            raise ValueError("is no JSON Schema: no object")
        kind = validator_for(schema)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"is no JSON Schema: {error.json_path}: {error.message}") from error
        _stop_on_unknown_reference(schema, REGISTRY)
        self.validator = kind(schema, registry=REGISTRY)

    def valid(self, answer: str, reference: str = "") -> float:
        """1.0 where the answer is a JSON object or array that satisfies the schema."""
        value = parsed(answer)
        try:
            return float(value is not None and self.validator.is_valid(value))
        except RecursionError:  # of a schema that refers to itself, from hundreds of levels
            return 0.0


def json_schema(file: str | None) -> str:
    """The text of evaluation.json_schema's file, or "" without one. Raises ConfigError where it is no JSON Schema."""
    if file is None:
        return ""
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
        Schema(text)
    except OSError as error:
        raise ConfigError(
            f"evaluation.json_schema={file}: {error.strerror}; accepted: a file{or_meant(file)}"
        ) from error
    except ValueError as error:  # of Schema, and bytes that are no UTF-8
        raise ConfigError(f"evaluation.json_schema={file} {error}") from error
    return text


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


def _stop_on_unknown_reference(schema: dict[str, Any], registry: Any) -> None:
    from referencing import Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    def look(resource: Any, resolver: Any) -> None:
        if isinstance(resource.contents, dict) and (there := resource.contents.get("$ref")):
            resolver.lookup(there)
        for inner in resource.subresources():
            look(inner, resolver.in_subresource(inner))

    whole = Resource.from_contents(schema, default_specification=DRAFT202012)
    try:
        look(whole, registry.resolver_with_root(whole))
    except Unresolvable as error:
        raise ValueError(f"refers to {error.ref}, which is not in the file; nothing is fetched") from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key stands twice")
    return made


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
