"""The parameters of a run as plain values: held against the sections of tasks.config, with one line for what is wrong.

Types are held as strictly as Prefect's server holds them: a number in quotes, or `true` for a number, is refused.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tasks.config import Registry, Settings, Stage
from tasks.errors import ConfigError

ACCEPTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text, in quotes where it looks like a number",
    "tuple_type": "a list",
    "too_short": "at least one item",
}


DEPLOYMENT_NAME = "the deployment's name"  # where a registry.name came from that nobody set


class Parameters(Settings):
    """Everything that a run can be given: all sections, and which stages to run."""

    until: Stage = Field("register", description="The last stage to run")
    refresh: tuple[Stage, ...] = Field((), description="Stages to run again although nothing changed")

    def settings(self) -> Settings:
        """The sections alone."""
        return Settings(**{name: getattr(self, name) for name in Settings.model_fields})


def checked(values: dict[str, Any], place: Callable[[str], str]) -> Parameters:
    """The parameters that plain values make; `place` says where a key stands. Raises ConfigError."""
    for key, value in flat(values).items():
        if isinstance(value, str) and "{{" in value:
            raise ConfigError(
                f"{place(key)}: {key}: {shown(value)} is filled in by prefect deploy alone; write the value"
            )
    try:
        return Parameters.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        raise ConfigError(_one_line(error.errors(include_url=False), place)) from None


def named(registry: Registry, deployment: str | None) -> Registry:
    """The registry section with its name, or else the deployment's. Raises ConfigError where there is neither."""
    if registry.name:
        return registry
    if not deployment:
        raise ConfigError("registry.name: missing; a run without a deployment needs one, such as triage")
    if not slug(deployment):
        raise ConfigError(f"registry.name: missing; {shown(deployment)} of the deployment has none of a-z and 0-9")
    return registry.model_copy(update={"name": slug(deployment)})


def slug(name: str) -> str:
    """A deployment's name as registry.name accepts it; empty where nothing of it is accepted."""
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower())[:100].strip("._-")


def field(key: str) -> FieldInfo | None:
    """The field that a dotted key names, or None."""
    *around, name = key.split(".")
    model = _model(around)
    return model.model_fields.get(name) if model else None


def flat(values: BaseModel | dict[str, Any]) -> dict[str, Any]:
    """Every value by its dotted name: "training.epochs", "data.sources[0].path"; lists of plain values comma-joined."""
    return dict(_flatten("", values.model_dump(mode="json") if isinstance(values, BaseModel) else values))


def unknown(key: str, name: str, accepted: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
    """What to say of a key that is none of the accepted; `name` is its last part, `elsewhere` keys that end so."""
    return f"{key}: unknown key; {_meant(name, accepted, elsewhere)}accepted: {', '.join(accepted)}"


def shown(value: Any) -> str:
    """A value for a message: one printable line of at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if text.isprintable() else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _flatten(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flatten(f"{key}.{name}" if key else name, inner)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, inner in enumerate(value):
            yield from _flatten(f"{key}[{i}]", inner)
    else:
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else value


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone or in a list."""
    for inner in (annotation, *get_args(annotation)):
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return None


def _model(location: Sequence[str | int]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Parameters
    for name in location:
        if isinstance(name, str):
            found = model.model_fields.get(name) if model else None
            model = _section(found.annotation) if found else None
    return model


def _one_line(errors: list[ErrorDetails], place: Callable[[str], str]) -> str:
    """The first error in full, a misspelt key before what it left missing; of the others their keys."""
    inner = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    leaves = [error for error in errors if error["loc"] not in inner]  # a list is too short when its items are wrong
    first, *others = sorted(leaves, key=lambda error: error["type"] != "extra_forbidden")
    also = ", ".join(_key(error["loc"]) for error in others[:5])
    rest = f" ({len(others)} more: {also})" if others else ""
    return f"{place(_key(first['loc']))}: {_explain(first)}{rest}"


def _explain(error: ErrorDetails) -> str:
    location, kind, context = error["loc"], error["type"], error.get("ctx", {})
    key = _key(location)
    if kind == "extra_forbidden":
        return _unknown_field(location)
    if kind == "value_error":  # the message of a validator in tasks.config
        return f"{key}: {context['error']}" if key else str(context["error"])
    found = field(".".join(part for part in location if isinstance(part, str)))
    described = found.description if found else None
    if kind == "missing":
        return f"{key}: missing; {described or 'a pipeline needs data.sources and model.base'}"
    if kind == "literal_error":
        choices = _choices(context["expected"])
        meant = _meant(str(error["input"]), choices)
        return f"{key}: {shown(error['input'])} is refused; {meant}accepted: {', '.join(choices)}"
    return f"{key}: {shown(error['input'])} is refused; accepted: {_accepted(error, described)}"


def _accepted(error: ErrorDetails, described: str | None) -> str:
    if error["type"] == "string_pattern_mismatch" and described:
        return described
    if error["type"] == "model_type" and (model := _model(error["loc"])):
        return f"a mapping with any of {', '.join(model.model_fields)}"
    accepted = ACCEPTED.get(error["type"]) or error["msg"].removeprefix("Input should be ")
    return f"{accepted} ({described})" if described else accepted


def _unknown_field(location: Sequence[str | int]) -> str:
    name = str(location[-1])
    model = _model(location[:-1]) or Parameters
    elsewhere = [f"{s}.{name}" for s in Parameters.model_fields if (m := _model([s])) and name in m.model_fields]
    return unknown(_key(location), name, list(model.model_fields), elsewhere)


def _meant(name: str, accepted: Sequence[str], elsewhere: Sequence[str] = ()) -> str:
    near = get_close_matches(name, accepted, 1) or elsewhere
    return f"did you mean {' or '.join(near)}? " if near else ""


def _choices(expected: str) -> list[str]:
    return [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]


def _key(location: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).removeprefix(".")
