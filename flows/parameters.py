"""Validate the parameters of a run, given as plain values, with one line for what is wrong.

Types are as strict as in Prefect's server: a number in quotes, or `true` for a number, is refused.
"""

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Sequence
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import AliasChoices, BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tunewright.accepted import accepted, choices, initials, meant, shown
from tunewright.config import Registry, Settings, Stage
from tunewright.config.other_tools import IN_OTHER_TOOLS
from tunewright.data_checks.suite import SuiteError, suite
from tunewright.errors import ConfigError
from tunewright.registry.address import by_environment

log = logging.getLogger("tunewright")

FLOW = "finetune"  # the name of the pipeline's flow in Prefect
CLOSE = 0.8  # of 1: how much the spelling of a key of another section has to have in common with what was given
DEPLOYMENT_NAME = "the deployment's name"  # where a registry.name came from that nobody set


class Parameters(Settings):
    """Everything that a run can be given: all sections, and which stages to run."""

    until: Stage = Field("register", description="The last stage to run")
    refresh: tuple[Stage, ...] = Field((), description="Stages to run again even if nothing changed")

    def settings(self) -> Settings:
        """The sections alone. Raises ConfigError where MLFLOW_TRACKING_URI is no address that is read here."""
        sections = {name: getattr(self, name) for name in Settings.model_fields}
        return Settings(**{**sections, "registry": by_environment(self.registry)})


def checked(values: dict[str, Any], place: Callable[[str], str], left_empty: Collection[str] = ()) -> Parameters:
    """The parameters that plain values make; `place` says where a key stands. Raises ConfigError.

    Of keys in `left_empty` an error says that the value is empty, and not what an empty value is read as.
    """
    for key, value in flat(values).items():
        if isinstance(value, str) and "{{" in value:
            raise ConfigError(
                f"{place(key)}: {key}: {shown(value)} is filled in by prefect deploy alone; write the value"
            )
    try:
        parameters = Parameters.model_validate_json(json.dumps(values), strict=True)
        suite(parameters.checks.expectations)
    except ValidationError as error:
        raise ConfigError(_one_line(error.errors(include_url=False), values, place, left_empty)) from None
    except SuiteError as error:
        raise ConfigError(f"{place(error.key)}: {error}") from None
    return parameters


def present(key: str, place: Callable[[str], str]) -> str:
    """Return the present name of a dotted key; an old name is logged, since it works for one release only."""
    around, _, name = key.rpartition(".")
    model = _model(re.sub(r"\[\d+\]", "", around).split("."))
    for field_name, each in model.model_fields.items() if model else ():
        if isinstance(each.validation_alias, AliasChoices) and name in each.validation_alias.choices[1:]:
            new = f"{around}.{field_name}"
            log.warning("%s: %s: write %s; the old name works for one more release", place(key), key, new)
            return new
    return key


def renamed(values: dict[str, Any], place: Callable[[str], str], around: str = "") -> dict[str, Any]:
    """Return plain values, those of the key `around`, under the present names of their keys, in the same order."""
    found = {}
    for name, value in values.items():
        key = f"{around}.{name}" if around else name
        if isinstance(value, dict):
            value = renamed(value, place, key)
        elif isinstance(value, list):
            pairs = enumerate(value)
            value = [renamed(each, place, f"{key}[{i}]") if isinstance(each, dict) else each for i, each in pairs]
        found[present(key, place).rpartition(".")[2]] = value
    return found


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
    """A deployment's name as registry.name accepts it, without accents; empty where nothing of it is accepted."""
    plain = "".join(each for each in unicodedata.normalize("NFKD", name) if not unicodedata.combining(each))
    return re.sub(r"[^a-z0-9_-]+", "-", plain.lower())[:100].strip("_-")


def identifier(deployment: str) -> str:
    """The name of a deployment's watcher, events, automations and files: its slug, or itself where that is empty."""
    return slug(deployment) or deployment


def field(key: str) -> FieldInfo | None:
    """The field that a dotted key names, or None."""
    *around, name = key.split(".")
    model = _model(around)
    return model.model_fields.get(name) if model else None


def flat(values: BaseModel | dict[str, Any]) -> dict[str, Any]:
    """Every value by its dotted name: "training.epochs", "data.sources[0].path"; lists of plain values comma-joined."""
    return dict(_flatten("", values.model_dump(mode="json") if isinstance(values, BaseModel) else values))


def written(value: Any) -> str:
    """A value of `flat` as a deployment file has it: text as it stands, [] for an empty list, null, true."""
    return "[]" if value == "" else value if isinstance(value, str) else json.dumps(value)


def unknown(
    key: str, name: str, accepted: Sequence[str], elsewhere: Sequence[str] = (), *, is_sure: bool = False
) -> str:
    """Return the error for an unknown key; `name` is its last part.

    `elsewhere` are other keys that may be meant, if none of the accepted is; with `is_sure` they are meant.
    """
    short = [each for each in accepted if name and initials(each) == name]
    near = elsewhere if is_sure else short or get_close_matches(name, accepted, 1) or elsewhere
    return f"{key}: unknown key; {meant(near)}accepted: {', '.join(accepted)}"


def _flatten(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flatten(f"{key}.{name}" if key else name, inner)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for i, inner in enumerate(value):
            yield from _flatten(f"{key}[{i}]", inner)
    else:
        yield key, ", ".join(map(str, value)) if isinstance(value, list) else value


def section_of(annotation: Any) -> type[BaseModel] | None:
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
            model = section_of(found.annotation) if found else None
    return model


def _one_line(
    errors: list[ErrorDetails], values: dict[str, Any], place: Callable[[str], str], left_empty: Collection[str]
) -> str:
    """The first error in full, a misspelt key before what it left missing; of the others their keys."""
    inner = {error["loc"][:depth] for error in errors for depth in range(len(error["loc"]))}
    leaves = [error for error in errors if error["loc"] not in inner]  # a list is too short when its items are wrong
    by_key: dict[str, list[ErrorDetails]] = {}  # one for each type that a value may have
    for error in sorted(leaves, key=lambda error: error["type"] != "extra_forbidden"):
        by_key.setdefault(_key(error["loc"]), []).append(error)
    (key, first), *others = by_key.items()
    also = [other for other, _ in others[:5]] + ([f"{len(others) - 5} more"] if others[5:] else [])
    rest = f" (also wrong or missing: {', '.join(also)})" if also else ""
    return f"{_places(key, first[0], values, place)}: {_explain(key, first, is_empty=key in left_empty)}{rest}"


def _places(key: str, error: ErrorDetails, values: dict[str, Any], place: Callable[[str], str]) -> str:
    """Return the place of the value; or, of several that contradict each other, of those that are given."""
    if error["type"] != "value_error":
        return place(key)
    named = [name if "." in name else f"{key}.{name}" for name in re.findall(r"\w+\.\w+|\w+(?==)", error["msg"])]
    given = [name for name in named if name in flat(values)]
    return ", ".join(dict.fromkeys(place(name) for name in given or [key]))


def _explain(key: str, errors: list[ErrorDetails], *, is_empty: bool) -> str:
    """Describe the error of a key; pydantic reports one for each type that its value may have."""
    error = errors[0]
    location, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        return _unknown_field(location)
    if kind == "value_error":  # the message of a validator in tunewright.config
        said = error.get("ctx", {})["error"]
        return f"{key}: {said}" if key else str(said)
    found = field(re.sub(r"\[\d+\]", "", key))
    described = found.description if found else None
    if kind == "missing":
        return f"{key}: missing ({described or 'a pipeline needs data.sources and model.base'})"
    refused = f"{key} is empty" if is_empty else f"{key}: {shown(error['input'])} is refused"
    if kind == "string_pattern_mismatch" and described:
        near = [slug(error["input"])] if key == "registry.name" and slug(error["input"]) else []
        return f"{refused}; {meant(near)}accepted: {described.partition(': ')[2] or described}"
    words = f"{_words(errors, found)}{', or null' if found and type(None) in get_args(found.annotation) else ''}"
    if kind == "literal_error":
        of_numbers = f" ({described})" if choices(error)[0].isdecimal() else ""  # which say nothing by themselves
        near = meant(get_close_matches(str(error["input"]), choices(error), 1))
        return f"{refused}; {near}{words}{of_numbers}"
    section = section_of(found.annotation) if found else None
    short = _short(section, error["input"])
    if section and kind == "model_type":
        return f"{refused}; {meant(short)}accepted: a mapping with any of {', '.join(section.model_fields)}"
    if short and kind == "tuple_type":
        return f"{refused}; {meant(f'[{each}]' for each in short)}accepted: a list ({described})"
    return f"{refused}; {words} ({described})" if described else f"{refused}; {words}"


def _words(errors: Sequence[ErrorDetails], found: FieldInfo | None) -> str:
    return f"accepted: {' or '.join(dict.fromkeys(accepted(error, found) for error in errors))}"


def _short(section: type[BaseModel] | None, given: Any) -> list[str]:
    """Guess the section meant by a plain text: the text as the value of the section's only required field."""
    needed = [name for name, field in section.model_fields.items() if field.is_required()] if section else []
    one_line = isinstance(given, str) and given.isprintable()
    if len(needed) != 1 or not one_line:
        return []
    if needed == ["sources"]:  # a list of sections, each of which needs a path
        return [f"{{sources: [{{path: {given}}}]}}"]
    return [f"{{{needed[0]}: {given}}}"]


def _unknown_field(location: Sequence[str | int]) -> str:
    """Return the error for an unknown key, with keys of the same or a similar name, also from other tools."""
    name, key = str(location[-1]), _key(location)
    model = _model(location[:-1]) or Parameters
    fields = list(model.model_fields)
    if meant_by_others := IN_OTHER_TOOLS.get(name):
        section, _, own = meant_by_others.partition(".")
        return unknown(key, name, fields, [own if location[:-1] == (section,) else meant_by_others], is_sure=True)
    below = {f"{at}[0].": section_of(field.annotation) for at, field in model.model_fields.items()}
    beside = {f"{section}.": _model([section]) for section in Parameters.model_fields}
    whole = {"": Parameters} if model is not Parameters else {}
    found = below if model is not Parameters else {}
    names = [(place, each) for place, m in (found | beside | whole).items() if m for each in m.model_fields]
    exact = [f"{place}{each}" for place, each in names if each == name]
    short = [f"{place}{each}" for place, each in names if initials(each) == name]
    close = get_close_matches(name, [each for _, each in names], 1, CLOSE)
    near = exact or short or [f"{place}{each}" for place, each in names if each in close]
    near = [each for each in near if each.startswith(f"{location[0]}.")] or near  # of the section that is named
    return unknown(key, name, fields, near, is_sure=model is Parameters and bool(exact))


def _key(location: Sequence[str | int]) -> str:
    """A location as a dotted key; without the type that pydantic adds for a value that may have one of several."""
    key, model, annotation = "", Parameters, None
    for part in location:
        if isinstance(part, int):
            key += f"[{part}]"
            annotation = next(iter(get_args(annotation)), None)
        else:
            key += f".{part}"
            found = model.model_fields.get(part) if model else None
            annotation = found.annotation if found else None
        types = [kind for kind in get_args(annotation) if kind is not type(None)]
        if get_origin(annotation) in (Union, UnionType) and len(types) > 1:
            break
        model = section_of(annotation)
    return key.removeprefix(".")
