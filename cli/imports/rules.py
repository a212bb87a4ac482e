"""Rules for the keys of another tool: each tool has a table of them, and every key has one of three ends.

It is set (ours has a counterpart), not needed (the pipeline does or decides it itself), or it has no counterpart, and
then the rule says what is lost. A key without a rule is not known.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunewright.accepted import shown
from tunewright.cli.imports.places import Places

OFF = (None, False, 0, "", "no", "none", "false")


@dataclass(frozen=True)
class Original:
    """The configuration to import: its values without the empty ones, and what its tool takes for those not given."""

    values: Mapping[str, Any]
    places: Places
    defaults: Mapping[str, Any] = field(default_factory=dict)
    devices: int = 1
    groups: frozenset[str] = frozenset()  # mappings of it whose keys count as those beside them
    command: str = ""  # of the tool, where --from names it

    def get(self, key: str) -> Any:
        """The value of a key, or what the tool takes without it."""
        return self.values.get(key, self.defaults.get(key))

    def of(self, values: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> "Original":
        """An entry within it, such as a data set."""
        return Original({key: each for key, each in values.items() if each is not None}, self.places, defaults or {})

    def entries(self, key: str) -> list[dict[str, Any]]:
        """The mappings in a list. Raises ValueError where it is no such list."""
        found = self.get(key) or []
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise ValueError(f"{key}: {shown(found)} is refused; accepted: a list of mappings")
        return found


@dataclass(frozen=True)
class Treatment:
    """The end of one key: our keys with their values, and why, or what is lost."""

    kind: Literal["set", "not needed", "no counterpart"]
    why: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class KeyRule:
    """Decides on a value of a key; `targets` are all of our keys that it can set."""

    decide: Callable[[Any, Original], Treatment]
    targets: tuple[str, ...] = ()


Table = Mapping[str, KeyRule]


@dataclass(frozen=True)
class DataSetEntry:
    """A data set of a configuration: where it stands, the rules of its keys, and the split that it is for."""

    key: str
    table: Table
    values: Original
    use_as: str = ""
    is_made: bool = False  # of keys that stand elsewhere, which have ends of their own


@dataclass(frozen=True)
class Tool:
    """The configurations of another tool: their keys, and how to tell them from those of others."""

    name: str  # as --from takes it
    title: str
    table: Table
    marks: tuple[str, ...]  # keys that tell its configurations from those of the others
    refused: Callable[[Original], Iterable[tuple[str, str]]]  # keys that make it no supervised fine-tuning, and why
    entries: Callable[[Original], Iterable[DataSetEntry]]
    groups: tuple[str, ...] = ()  # mappings whose keys count as those beside them
    defaults: Mapping[str, Any] = field(default_factory=dict)  # its own, where they differ from ours
    completed: Callable[[Original, Mapping[str, Any]], Iterable[tuple[str, Treatment]]] = lambda _original, _ours: ()
    own_defaults: Callable[[Original], Mapping[str, Any]] = lambda _original: {}  # of what a configuration is for


def carried(values: Mapping[str, Any], differs: str = "") -> Treatment:
    """Set ours; `differs` says in which way the meaning is not quite the same."""
    return Treatment("set", differs, values)


def not_needed(why: str) -> Treatment:
    """Leave it out, since the pipeline does or decides it itself."""
    return Treatment("not needed", why)


def base_model(value: Any, original: Original) -> Treatment:
    """The base: a folder, or a hub id."""
    name, said = original.places.base(str(value))
    return carried({"model.base": name}, said)


def lost(what: str, values: Mapping[str, Any] | None = None) -> Treatment:
    """Leave it out, although it does something there; `values` are the nearest of ours."""
    return Treatment("no counterpart", what, values or {})


def to(target: str, names: Mapping[Any, Any] | None = None, otherwise: str = "") -> KeyRule:
    """Ours under another name; `names` translates values, and `otherwise` is what is lost of any other value."""

    def decide(value: Any, _: Original) -> Treatment:
        if names is None:
            return carried({target: value})
        hashable = value if isinstance(value, str | int | float | bool) else shown(value)
        if hashable in names:
            return carried({target: names[hashable]})
        return lost(otherwise)

    return KeyRule(decide, (target,))


def by(decide: Callable[[Any, Original], Treatment], *targets: str) -> KeyRule:
    """A rule with a conversion of its own."""
    return KeyRule(decide, targets)


def needless(why: str) -> KeyRule:
    """A key that is never needed."""
    return KeyRule(lambda _value, _original: not_needed(why))


def missing(what: str) -> KeyRule:
    """A key without a counterpart; where it is off, nothing is lost."""
    return KeyRule(lambda value, _: not_needed("off there as well") if is_off(value) else lost(what))


def same_as(usual: Any, why: str, what: str) -> KeyRule:
    """A key that has one value here: nothing is lost where it has it there too."""
    return KeyRule(lambda value, _: not_needed(why) if value == usual else lost(what))


def each(names: str, rule: KeyRule) -> dict[str, KeyRule]:
    """One rule for several keys, with spaces between."""
    return dict.fromkeys(names.split(), rule)


def is_off(value: Any) -> bool:
    """Whether a value says that something is not used."""
    return value in OFF if isinstance(value, str | int | float | None) else not value


def is_number(value: Any) -> bool:
    """Whether a value is a number, which true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def words(value: Any) -> list[str]:
    """The items of a list, or of a text with commas."""
    items: Iterable[Any] = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [str(item).strip() for item in items]
