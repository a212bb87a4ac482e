"""YAML in which nothing is misread, dropped or multiplied in silence: such text is refused, with its line.

Values are what Prefect reads (YAML 1.1), but for two: `1e-4` is a number, as YAML 1.2 says, and a date is text. Numbers
that it reads in base 8 or 60 (`010` is 8, `1:30` is 90) are refused: hardly anybody means them.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from tasks.errors import ConfigError

MAX_NODES = 10_000
MAX_DEPTH = 50
MAX_SCALAR_CHARS = 100  # of a number; a longer one takes PyYAML minutes in base 60
MAX_KEY_CHARS = 200
HINTS = {  # part of what PyYAML says -> what to do
    "found character '\\t'": "indent with spaces, not tabs",
    "mapping values are not allowed here": "put text with a colon in quotes, or indent this line as its neighbours are",
    "but got ':'": "put text with a colon in quotes",
    "expected <block end>": "this line is indented as far as no line above that it could belong to",
}


@dataclass(frozen=True)
class Document:
    """What a text holds, and the line of each key and item: "deployments[0].name" -> 2."""

    name: str
    value: Any
    lines: dict[str, int]

    def place(self, at: str) -> str:
        """File and line of a key, or of the nearest key around it that stands in the text."""
        while at and at not in self.lines:
            at = at[: max(at.rfind("."), at.rfind("["), 0)]
        return f"{self.name} line {self.lines.get(at, 1)}"


def parse(text: str, name: str) -> Document:
    """The only document in `text`; errors name `name`, line and column. Raises ConfigError."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return Document(name, None if node is None else loader.plain(node, "", 0), loader.lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" line {mark.line + 1} column {mark.column + 1}" if mark else ""
        problem = " ".join(", ".join(filter(None, (error.context, error.problem))).split())
        hint = next((f"; {hint}" for said, hint in HINTS.items() if said in problem), "")
        raise ConfigError(f"{name}{place}: {problem}{hint}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{name} line {line}: the character {text[error.position]!a} cannot stand in YAML") from None
    except (ValueError, OverflowError) as error:  # PyYAML's own, for an escape past the end of Unicode
        raise ConfigError(f"{name}: not YAML: {error}") from None


class _Loader(yaml.SafeLoader):
    """Composes nodes within a budget and turns them into plain values, noting lines."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lines: dict[str, int] = {}
        self._composed = self._expanded = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if tag := getattr(event, "tag", None):
            raise _refusal(f"the tag {tag!a} is not accepted; values need no tags", event)
        self._composed += 1
        self._depth += 1
        self._within(event, self._composed, self._depth)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def plain(self, node: yaml.Node, at: str, depth: int) -> Any:
        """The node's value; aliases are counted each time they are followed."""
        self._expanded += 1
        self._within(node, self._expanded, depth)
        self.lines.setdefault(at, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, f"{at}[{i}]", depth + 1) for i, item in enumerate(node.value)]
        value = self._scalar(node)
        if isinstance(value, int | float) and _is_misread(node.value, value):
            raise _refusal(f"{node.value} would be read as {value}; write that, or text in quotes", node)
        return value

    def _mapping(self, node: yaml.MappingNode, at: str, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            merge = key_node.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merge else self._key(key_node)
            if key in lines:
                raise _refusal(f"the key {key} stands twice, first on line {lines[key]}", key_node)
            lines[key] = line
            if merge:
                merged = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            inner = f"{at}.{key}" if at else key
            self.lines.setdefault(inner, line)
            values[key] = self.plain(value_node, inner, depth + 1)
        for other in merged:
            if not isinstance(other, yaml.MappingNode):
                raise _refusal("<< takes a mapping, such as *name", other)
            values = self.plain(other, at, depth + 1) | values
        return values

    def _key(self, node: yaml.Node) -> str:
        key = self._scalar(node) if isinstance(node, yaml.ScalarNode) else None
        if isinstance(key, str) and key and key.isprintable() and len(key) <= MAX_KEY_CHARS:
            return key
        shown = ascii(node.value[:20]) if isinstance(node, yaml.ScalarNode) else "that is a list or a mapping"
        hint = "; a number has a point, no comma: 0.001" if isinstance(key, int) and not isinstance(key, bool) else ""
        raise _refusal(f"the key {shown} does not read as text; accepted is a word, in quotes if need be{hint}", node)

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            node.value.encode()
            if not node.tag.endswith(":str") and len(node.value) > MAX_SCALAR_CHARS:
                raise ValueError
            return self.construct_object(node)
        except (ValueError, OverflowError):
            raise _refusal(f"{node.value[:20]!a} cannot be read; if it is text, put it in quotes", node) from None

    def _within(self, place: yaml.Node | yaml.Event, count: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} levels deep, or an alias that contains itself", place)
        if count > MAX_NODES:
            raise _refusal(f"more than {MAX_NODES} values, each alias counted with all that it stands for", place)


def _is_misread(text: str, number: float) -> bool:
    """Whether a number was read in base 60, or in base 8 as another number than its digits say."""
    digits = text.replace("_", "").lstrip("+-")
    return ":" in text or (digits.isdecimal() and int(digits) != abs(number))


def _refusal(problem: str, place: yaml.Node | yaml.Event) -> yaml.MarkedYAMLError:
    mark: Any = place.start_mark
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


_TEXT = {"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TEXT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
