"""What is accepted, in words, where a value is refused: of a setting and of an expectation's argument alike."""

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic_core import ErrorDetails

WORDS = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text, in quotes where it looks like a number",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "too_short": "at least one item",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "less than {lt:g}",
    "less_than_equal": "{le:g} or less",
}


def accepted(error: ErrorDetails) -> str:
    """What would have been accepted where pydantic refused a value."""
    given, context = error["input"], error.get("ctx", {})
    in_quotes = ", in quotes since YAML reads on, yes, off and no as true and false"
    if error["type"] == "tuple_type" and isinstance(given, str | dict):
        items = given.strip() if isinstance(given, str) else shown(given)
        return f"a list: {items}, without quotes" if items.startswith("[") else f"a list: [{items}]"
    if error["type"] == "string_type" and isinstance(given, list) and all(isinstance(each, str) for each in given):
        return f"text: {', '.join(given)}"
    if error["type"] == "string_type" and isinstance(given, bool):
        return f"text{in_quotes}"
    if error["type"] == "literal_error":
        names = choices(error)
        return ", ".join(names) + (in_quotes if isinstance(given, bool) and {"on", "off"} & {*names} else "")
    words = WORDS.get(error["type"])
    return words.format(**context) if words else error["msg"].removeprefix("Input should be ")


def choices(error: ErrorDetails) -> list[str]:
    """What a literal_error of pydantic's says is accepted."""
    return [choice.strip("'") for choice in error.get("ctx", {})["expected"].replace(" or ", ", ").split(", ")]


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """What was meant, if that is near, and all that is accepted."""
    known = list(names)
    return f"{meant(get_close_matches(name, known, 1))}accepted: {', '.join(known)}"


def meant(near: Iterable[str]) -> str:
    """The question whether one of these was meant; empty where there are none."""
    found = " or ".join(near)
    return f"did you mean {found}? " if found else ""


def initials(name: str) -> str:
    """What a name of several words may be called for short: lr for learning_rate; empty for one word."""
    return "".join(word[:1] for word in name.split("_")) if "_" in name else ""


def printable(name: str) -> str:
    """A file's name for a message: as it stands, unless it holds what steers a terminal or ends a line."""
    return name if name.isprintable() else shown(name)


def shown(value: Any) -> str:
    """A value for a message: one printable line of at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if text.isprintable() else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
