"""Expectations of the team's: any importable class that subclasses one of Great Expectations'.

It may name any column of the rows' frame (expectations.py), and `prompt` and `answer` for the texts themselves:

    class ExpectTicketNumber(gxe.ExpectColumnValuesToMatchRegex):
        column: str = "prompt"
        regex: str = "TCK-[0-9]{6}"

Its docstring, or its `description`, is what the report says of a row that fails. It validates texts a batch at
a time, so that they are never in memory together: there it must look row by row, and `mostly` is 1. Each is tried on
a few made-up rows before anything runs (trial.py).
"""
# pyright: reportPrivateImportUsage=false
# Great Expectations does not mark its public names as exported.

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeGuard

from great_expectations import expectations as gxe
from great_expectations.compatibility import pydantic
from great_expectations.expectations.metadata_types import FailureSeverity

from tunewright.accepted import did_you_mean, meant, shown
from tunewright.data_checks.conditions import stop_on_code
from tunewright.data_checks.rules import BY_ROW, Expected, columns_of, named_columns
from tunewright.data_checks.suite import Entry, SuiteError
from tunewright.errors import imported, one_line

TEXTS = ("prompt", "answer")


def own_expectation(entry: Entry) -> Expected:
    """The team's expectation with its arguments. Raises SuiteError where it cannot be made."""
    expectation = _made(_kind(entry), entry)
    if "row_condition" in entry.given:
        stop_on_code(entry, getattr(expectation, "row_condition", None))
    made = Expected(replace(entry, name=expectation.expectation_type), _fault(expectation), expectation)
    named = f"={entry.name} "
    if looks_at_texts(made) and not isinstance(expectation, BY_ROW):
        said = "sums up a column of texts; accepted on prompt and answer is what looks row by row"
        raise SuiteError(f"{entry.key}.name", named + said)
    mostly = getattr(expectation, "mostly", 1)
    if looks_at_texts(made) and mostly != 1:  # a share of the rows, which no batch knows
        said = f"has mostly={mostly}; accepted on prompt and answer is 1, each row being judged alone"
        raise SuiteError(f"{entry.key}.name", named + said)
    return made


def looks_at_texts(made: Expected) -> bool:
    """Return whether the expectation names the column prompt or answer."""
    return any(column in TEXTS for column in columns_of(made.expectation))


def stop_on_column(entry: Entry, made: Expected, columns: Sequence[str]) -> None:
    """Raises SuiteError where the expectation made of `entry` names a column that is none of these."""
    for argument, column in named_columns(made.expectation):
        if column not in columns:
            given = f"{entry.key}.arguments.{argument}" if argument in entry.given else f"{entry.key}.name"
            whose = "" if argument in entry.given else f"={entry.name}: {argument}"
            raise SuiteError(given, f"{whose}={column} is not a column of the rows; {did_you_mean(column, columns)}")


def _kind(entry: Entry) -> type[gxe.Expectation]:
    """The class that an entry names."""
    module, _, name = entry.name.rpartition(".")
    key, said = f"{entry.key}.name", f"={entry.name}"
    found = _imported(module, key, said)
    kind = getattr(found, name, None)
    if _is_expectation(kind):
        return kind
    if kind is None and hasattr(found, "__path__") and find_spec(entry.name):
        kind = _imported(entry.name, key, said)
    if isinstance(kind, ModuleType):
        near = meant(f"{entry.name}.{each}" for each in _expectations(kind)[:3])
        raise SuiteError(key, f"{said} is a module; {near}accepted: module.Class, a class in it")
    if kind is not None:
        raise SuiteError(key, f"{said} is not an expectation; accepted: a subclass of Great Expectations' Expectation")
    near = meant(f"{module}.{each}" for each in get_close_matches(name, _expectations(found), 1))
    raise SuiteError(key, f"{said}: {module} has no {name}; {near}accepted: an expectation class in it")


def _imported(module: str, key: str, said: str) -> ModuleType:
    try:
        return imported(module, "module.Class")
    except ValueError as error:
        raise SuiteError(key, f"{said}{error}") from error


def _expectations(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if _is_expectation(value)]


def _is_expectation(value: object) -> TypeGuard[type[gxe.Expectation]]:
    return isinstance(value, type) and issubclass(value, gxe.Expectation)


def _made(kind: type[gxe.Expectation], entry: Entry) -> gxe.Expectation:
    """An expectation of this class with the entry's arguments."""
    key = f"{entry.key}.arguments"
    if computed := next((name for name, value in entry.given.items() if _is_computed(value)), None):
        raise SuiteError(f"{key}.{computed}", f"={shown(entry.given[computed])}; accepted: a value, and no $PARAMETER")
    accepted = _arguments(kind)
    if unknown := next((name for name in entry.given if name not in accepted), None):
        raise SuiteError(
            f"{key}.{unknown}", f" is not an argument of {kind.__name__}; {did_you_mean(unknown, accepted)}"
        )
    try:
        return kind(severity=FailureSeverity(entry.severity), **entry.given)
    except pydantic.ValidationError as error:
        raise SuiteError(key, _refused(error.errors(), entry.given)) from error
    except Exception as error:  # its validators are its own
        raise SuiteError(key, f" of {kind.__name__}: {one_line(error)}") from error


def _is_computed(value: Any) -> bool:
    """Whether Great Expectations would evaluate the value as a formula, one such as 9^9^9^9^9 without end."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    named = isinstance(value, dict) and any(f"{name}".startswith("$PARAMETER") for name in value)
    return named or any(map(_is_computed, inner))


def _arguments(kind: type[gxe.Expectation]) -> list[str]:
    """Return the arguments of a class: its own fields and the description, without Great Expectations' other fields."""
    of_all, fields = (vars(each)["__fields__"] for each in (gxe.Expectation, kind))
    return [name for name in fields if name == "description" or name not in (*of_all, "batch_id")]


def _refused(errors: Sequence[Any], given: dict[str, Any]) -> str:
    """Return Great Expectations' errors on the first refused argument, one for each type that it may have."""
    name = errors[0]["loc"][0]
    said = dict.fromkeys(error["msg"] for error in errors if error["loc"][0] == name)
    plain = [each for each in said if each != "value is not a valid dict"] or [*said]  # a parameter's, never meant here
    value = f"={shown(given[name])}" if name in given else ""
    return f"{'' if name == '__root__' else f'.{name}'}{value}: {' or '.join(plain)}"


def _fault(expectation: gxe.Expectation) -> str:
    said = expectation.description or (type(expectation).__doc__ or "").strip().split("\n")[0].rstrip(".")
    plain = f"fails: {said or type(expectation).__name__}".replace("{", "{{").replace("}", "}}")
    has_value = len(columns_of(expectation)) == 1 and columns_of(expectation)[0] not in TEXTS
    return f"{plain}: {{value}}" if has_value else plain
