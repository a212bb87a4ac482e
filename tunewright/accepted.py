"""Texts on the accepted values, for refused settings and arguments of expectations."""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text, in quotes where it looks like a number",
    "finite_number": "a finite number",
    "string_too_short": "text of {min_length} or more characters",
    "string_too_long": "text of {max_length} or fewer characters",
    "string_unicode": "text without halves of surrogate pairs",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "too_short": "at least one item",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
}
BOUNDS = {"ge": "greater_than_equal", "gt": "greater_than", "le": "less_than_equal", "lt": "less_than"}


def accepted(error: ErrorDetails, found: FieldInfo | None = None) -> str:
    """Describe the values that pydantic would accept in place of a refused one: of a field with bounds, both."""
    given, context = error["input"], error.get("ctx", {})
    in_quotes = ", in quotes since YAML reads on, yes, off and no as true and false"
    if error["type"] == "tuple_type" and isinstance(given, str | dict):
        items = given.strip() if isinstance(given, str) else shown(given)
        return f"a list: {items}, without quotes" if items.startswith("[") else f"a list: [{items}]"
    if error["type"] == "string_type" and isinstance(given, list) and all(isinstance(each, str) for each in given):
        return f"text, without brackets: {', '.join(given)}"
    if error["type"] == "string_type" and isinstance(given, bool):
        return f"text{in_quotes}"
    if error["type"] == "literal_error":
        names = choices(error)
        return ", ".join(names) + (in_quotes if isinstance(given, bool) and {"on", "off"} & {*names} else "")
    if found and error["type"] in BOUNDS.values() and (both := _range(found.metadata)):
        return both
    words = WORDS.get(error["type"])
    exact = {name: in_full(bound) if isinstance(bound, int | float) else bound for name, bound in context.items()}
    return words.format(**exact) if words else error["msg"].removeprefix("Input should be ")


def _range(metadata: Iterable[object]) -> str:
    """Describe the values between the two bounds of a field; empty where it has fewer."""
    bounds = {name: getattr(each, name) for each in metadata for name in BOUNDS if hasattr(each, name)}
    if len(bounds) != 2:
        return ""
    if {*bounds} == {"ge", "le"}:
        return f"{in_full(bounds['ge'])} to {in_full(bounds['le'])}"
    ends = [WORDS[kind].format(**{name: in_full(bounds[name])}) for name, kind in BOUNDS.items() if name in bounds]
    return ", ".join(ends)


def in_full(number: float) -> str:
    """A bound with all its digits, so that it can be copied: 4294967295, 0.5, 1."""
    return str(int(number)) if isinstance(number, int) or number.is_integer() else f"{number:.15g}"


def choices(error: ErrorDetails) -> list[str]:
    """Return the accepted values of a literal_error of pydantic's."""
    return [choice.strip("'") for choice in error.get("ctx", {})["expected"].replace(" or ", ", ").split(", ")]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Suggest the nearest name, if one is near, and list all accepted names."""
    known = list(names)
    return f"{meant(get_close_matches(name, known, 1))}accepted: {', '.join(known)}"


def meant(near: Iterable[str]) -> str:
    """The question whether one of these was meant; empty where there are none."""
    found = " or ".join(near)
    return f"did you mean {found}? " if found else ""


def initials(name: str) -> str:
    """Return the abbreviation of a name of several words, lr for learning_rate, or "" for one word."""
    return "".join(word[:1] for word in name.split("_")) if "_" in name else ""


def printable(name: str) -> str:
    """A file's name for a message: as it stands, unless it holds what steers a terminal or ends a line."""
    return name if name.isprintable() else shown(name)


def shown(value: Any) -> str:
    """A value for a message: one printable line of at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if text.isprintable() else json.dumps(value, default=str)
    return text if len(text) <= 60 else f'{text[:56]}..."' if isinstance(value, str) else f"{text[:57]}..."
