"""JSON Schemas: whether answers satisfy one.

A regular expression of a schema can take longer than anybody waits, so schemas are read and answers checked in a
bounded child, an error of which is one line.
"""

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tunewright.accepted import meant
from tunewright.config import or_meant
from tunewright.errors import ConfigError
from tunewright.machine import bounded
from tunewright.metrics.texts import parsed, refuse

REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")
MOST_BYTES = 16_000_000  # of a file with a schema
AT_ONCE = 100  # answers that are checked within the limits of a bounded call
SECONDS = bounded.SECONDS  # of processor time for them
ENDING_PATTERNS = "accepted are patterns without a repetition of a repetition, as ^(a+)+$ has one"


class Schema:
    """A JSON Schema, of the draft that its $schema names or the newest. What it refers to is never fetched."""

    def __init__(self, text: str) -> None:
        """Raises ValueError, with one line that says why, where the text is no schema or refers beyond itself."""
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for
        from jsonschema_specifications import REGISTRY

        try:
            schema = json.loads(text, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"is not JSON: {error}") from error
        if not isinstance(schema, dict):
            raise ValueError("is not a JSON Schema: not an object")
        kind = validator_for(schema)
        try:
            kind.check_schema(schema)
        except SchemaError as error:
            # Of a type: "'objekt' is not one of ['array', ...]" says more than "under any of the given schemas".
            said = next((each.message for each in error.context or () if each.validator == "enum"), error.message)
            raise ValueError(f"is not a JSON Schema: {error.json_path}: {said}") from error
        _stop_on_unknown_reference(schema, REGISTRY)
        self.validator = kind(schema, registry=REGISTRY)

    def valid(self, answer: str) -> float:
        """Return 1.0 where the answer is a JSON object or array that satisfies the schema, else 0.0."""
        value = parsed(answer)
        try:
            return float(value is not None and self.validator.is_valid(value))
        except RecursionError:  # of a schema that refers to itself, from hundreds of levels
            return 0.0


def schema_valid(schema: str, answers: Sequence[str]) -> list[float]:
    """Return 1.0 for each answer that is a JSON object or array which satisfies the schema, else 0.0.

    Raises ConfigError where a hundred answers take more than the limits of a bounded call.
    """
    rows: list[float] = []
    try:
        for some in bounded.stream(_valid, schema, [*answers], seconds=SECONDS):
            rows += json.loads(some)
    except bounded.Unreadable as error:
        last = min(len(rows) + AT_ONCE, len(answers))
        raise ConfigError(
            f"evaluation.json_schema: to check answers {len(rows) + 1} to {last} of {len(answers)} {error}; "
            f"{ENDING_PATTERNS}"
        ) from error
    return rows


def _valid(schema: str, answers: list[str]) -> Iterator[bytes]:
    """Runs in the bounded child."""
    valid = Schema(schema).valid
    for start in range(0, len(answers), AT_ONCE):
        yield json.dumps([valid(answer) for answer in answers[start : start + AT_ONCE]]).encode()


def json_schema(file: str | None) -> str:
    """The text of evaluation.json_schema's file, or "" without one. Raises ConfigError where it is no JSON Schema."""
    if file is None:
        return ""
    try:
        text = _read(Path(file).expanduser())
        bounded.call(check, text)
    except FileNotFoundError as error:
        folder = Path(file).expanduser().absolute().parent
        near = meant(get_close_matches(Path(file).name, [other.name for other in folder.glob("*.json")], 1))
        said = f"no such file in {folder}; {near}accepted: a file with a JSON Schema{or_meant(file)}"
        raise ConfigError(f"evaluation.json_schema={file}: {said}") from error
    except OSError as error:
        raise ConfigError(f"evaluation.json_schema={file}: {error.strerror}; accepted: a file") from error
    except ValueError as error:  # of check, and bytes that are no UTF-8
        raise ConfigError(f"evaluation.json_schema={file} {error}") from error
    return text


def check(text: str) -> None:
    """Raises ValueError as Schema does; `json_schema` calls it in the bounded child."""
    Schema(text)


def _read(file: Path) -> str:
    if file.exists() and not file.is_file():  # a device or a pipe may never end
        raise ValueError("is not a regular file; accepted: a file with a JSON Schema")
    with file.open("rb") as opened:
        read = opened.read(MOST_BYTES + 1)
    if len(read) > MOST_BYTES:
        raise ValueError(f"is larger than {MOST_BYTES:,} bytes, the limit")
    return read.decode("utf-8")


def _stop_on_unknown_reference(schema: dict[str, Any], registry: Any) -> None:
    """Raises ValueError where a reference leads out of the file, also one that only another reference leads to."""
    from referencing import Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012

    whole = Resource.from_contents(schema, default_specification=DRAFT202012)
    waiting, seen = [(whole, registry.resolver_with_root(whole))], set[int]()
    while waiting:
        resource, resolver = waiting.pop()
        if id(resource.contents) in seen:
            continue
        seen.add(id(resource.contents))
        references = resource.contents if isinstance(resource.contents, dict) else {}
        for name in REFERENCES:
            if there := references.get(name):
                try:
                    found = resolver.lookup(there)
                except Unresolvable as error:
                    raise ValueError(
                        f"refers to {error.ref}, which is not in the file; nothing is downloaded"
                    ) from error
                waiting.append((Resource.from_contents(found.contents, DRAFT202012), found.resolver))
        waiting += [(inner, resolver.in_subresource(inner)) for inner in resource.subresources()]
