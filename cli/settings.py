"""`tunewright settings`: what a deployment file can set, as the sections of tunewright/config/ describe it."""

import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple, get_args, get_origin

import yaml
from pydantic import BaseModel
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from tunewright.accepted import did_you_mean, initials, meant, shown
from tunewright.cli.visible import plain_table
from tunewright.config.other_tools import IN_OTHER_TOOLS
from tunewright.errors import ConfigError
from tunewright.flows.parameters import Parameters, section_of

LEGIBLE = 60  # characters beside the longest key, from which on defaults and descriptions can be read in a table


class Setting(NamedTuple):
    """One setting, or one key of the items of a list."""

    key: str  # "training.epochs", "data.sources[].path"
    default: Any  # None where it is empty, or where the setting is required
    is_needed: bool
    choices: tuple[str, ...]  # empty where its description says what is accepted
    description: str
    is_list: bool = False  # then any of the choices can be given, and several


def listed(name: str | None = None) -> list[Setting]:
    """Those of a section, the one of a dotted key with what is below it, or all, in the order of their sections.

    Raises ConfigError where there is nothing of this name.
    """
    every = list(_within("", Parameters))
    key = re.sub(r"\[\d+\]", "[]", name or "")
    found = [each for each in every if not key or re.match(rf"{re.escape(key)}($|\.|\[\])", each.key)]
    if not found:
        raise ConfigError(f"{shown(name)}: no such setting; {_near(key, every)}")
    return found


def _near(key: str, every: Sequence[Setting]) -> str:
    """Suggest keys for an unknown one: those other tools call so, those with the same last part or its initials, those
    spelt similarly, or those of its section.
    """
    keys = [each.key for each in every]
    names = {other: other.rpartition(".")[2] for other in keys}
    section, _, last = key.rpartition(".")
    others = [key for key in [IN_OTHER_TOOLS.get(last)] if key]
    near = others or [other for other, name in names.items() if last and last in {name, initials(name)}]
    near = [other for other in near if section and other.startswith(f"{section}.")] or near
    if not near and not section and (close := get_close_matches(key, names.values(), 1, 0.8)):
        near = [other for other, name in names.items() if name == close[0]]
    if near := near or get_close_matches(key, keys, 3, 0.8):
        return meant(near).strip()
    if section in Parameters.model_fields:
        return did_you_mean(
            last, [other.removeprefix(f"{section}.") for other in keys if other.startswith(f"{section}.")]
        )
    return did_you_mean(key, Parameters.model_fields)


def _within(place: str, model: type[BaseModel]) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        key, inner = f"{place}{name}", section_of(field.annotation)
        is_section = inner is field.annotation
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(default, tuple):
            default = [each.model_dump() if isinstance(each, BaseModel) else each for each in default]
        if not is_section:
            yield Setting(
                key=key,
                default=default,
                is_needed=field.is_required(),
                choices=_choices(field.annotation),
                description=field.description or "",
                is_list=get_origin(field.annotation) is tuple,
            )
        if inner:
            yield from _within(f"{key}." if is_section else f"{key}[].", inner)


def _choices(annotation: Any) -> tuple[str, ...]:
    """The names that are accepted, where nothing else is."""
    if get_origin(annotation) is Literal:
        return tuple(map(str, get_args(annotation)))
    found = [_choices(inner) for inner in get_args(annotation) if inner not in (type(None), ...)]
    return tuple(choice for each in found for choice in each) if found and all(found) else ()


def show(console: Console, settings: list[Setting]) -> None:
    """A table of them; in a terminal too narrow for one, each with what it is below it."""
    rows = [(each.key, *_default_and_meaning(each)) for each in settings]
    if console.width < max(len(key) for key, _, _ in rows) + LEGIBLE:
        for key, default, meaning in rows:
            console.print(Text.assemble((key, "bold"), f"  {default}" if default else ""))
            console.print(Padding(Text(meaning), (0, 0, 1, 4), expand=False))
        return
    table = plain_table("setting", "default", "what it is")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _default_and_meaning(each: Setting) -> tuple[str, str]:
    is_empty = each.default in (None, "", (), [], {})
    plain = "" if is_empty else yaml.safe_dump(each.default, default_flow_style=True)  # as a deployment file has it
    default = "required" if each.is_needed else plain.removesuffix("\n...\n").strip()
    how_many = "A list of any of" if each.is_list else "One of"
    accepted = f" {how_many} {', '.join(each.choices)}." if each.choices else ""
    return default, f"{each.description}.{accepted}"
