"""YAML in which nothing is misread, dropped or multiplied in silence: such text is refused, with its line.

Values are what Prefect reads (YAML 1.1), but for two: `1e-4` is a number, as YAML 1.2 says, and a date is text. Numbers
that it reads in base 8 or 60 (`010` is 8, `1:30` is 90) are refused: hardly anybody means them.
"""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from tunewright.errors import ConfigError

LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # as YAML counts lines
MAX_NODES = 10_000
MAX_DEPTH = 50
MAX_SCALAR_CHARS = 100  # of a number; a longer one takes PyYAML minutes in base 60
MAX_KEY_CHARS = 200
FAULTS = {  # part of what PyYAML says -> what was found; what is expected
    "found character '\\t'": "found a tab; expected: spaces, with which YAML indents",
    "that cannot start any token": "found a character that no plain text begins with; put such text in quotes",
    "mapping values are not allowed here": "found ':' where no key can stand; put text with a colon in quotes, or "
    "indent this line as its neighbours are",
    "but got ':'": "found ':' in [...] or {...}; expected: a comma or the closing bracket; put text with a colon in "
    "quotes",
    "but got '<stream end>'": "found the end of the file; expected: the bracket that closes the one on line {opened}",
    "found unexpected end of stream": "found the end of the file; expected: the quote that closes the one on line "
    "{opened}",
    "could not find expected ':'": "found text without a colon; expected: key: value",
    "expected a single document": "found a second document (---); expected: one document in a file",
}


@dataclass(frozen=True)
class Document:
    """The value of a YAML text, and the line of each key and item: "deployments[0].name" -> 2."""

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
        raise ConfigError(f"{name}{place}: {_fault(error, text)}") from None
    except yaml.reader.ReaderError as error:
        line = len(LINE_BREAK.split(text[: error.position]))
        raise ConfigError(f"{name} line {line}: the character {text[error.position]!a} cannot stand in YAML") from None
    except (ValueError, OverflowError) as error:  # PyYAML's own, for an escape past the end of Unicode
        raise ConfigError(f"{name}: not YAML: {error}") from None


def _fault(error: yaml.MarkedYAMLError, text: str) -> str:
    """Say what was found and what is expected, in place of PyYAML's words for its parser."""
    problem = " ".join(", ".join(filter(None, (error.context, error.problem))).split())
    if "expected <block end>" in problem and error.problem_mark:
        return _misplaced(LINE_BREAK.split(text), error.problem_mark.line, error.problem_mark.column)
    opened = error.context_mark.line + 1 if error.context_mark else 1
    return next((said.replace("{opened}", str(opened)) for part, said in FAULTS.items() if part in problem), problem)


def _misplaced(lines: list[str], at: int, column: int) -> str:
    """Say why a line ends the block that it seems to stand in."""
    line = lines[at]
    if line[:column].strip():
        return "found text after the value; expected: the end of the line; put the whole text in double quotes"
    written = [each for each in lines[:at] if each.strip() and not each.lstrip().startswith("#")]
    above = {len(each) - len(each.lstrip(inset)) for each in written for inset in (" ", " -")}
    if column not in above:
        accepted = " or ".join(map(str, sorted(above)))
        return f"found an indentation of {column}; expected, as on a line above: {accepted} spaces"
    found, expected = (
        ("a list item", "a key") if line[column : column + 1] == "-" else ("a key", "a list item, which begins with -")
    )
    return f"found {found}; expected, as on the lines above: {expected}"


class _Loader(yaml.SafeLoader):
    """Composes nodes within a budget and turns them into plain values, noting lines."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lines: dict[str, int] = {}
        self._composed = self._expanded = self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if tag := getattr(event, "tag", None):
            raise _refusal(f"the tag {tag!a} is not accepted; leave it out", event)
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
        digits = node.value.replace("_", "").lstrip("+-")
        # A number that was read in base 60, or in base 8 as another number than its digits say.
        is_number = isinstance(value, int | float)
        if is_number and (":" in node.value or (digits.isdecimal() and int(digits) != abs(value))):
            raise _refusal(f"{node.value} would be read as {value}; write {value}, or put the text in quotes", node)
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
                raise _refusal(f"duplicate key {key}, first on line {lines[key]}", key_node)
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
        raise _refusal(
            f"the key {shown} is not text; accepted: a word, in quotes if YAML reads it as something else{hint}", node
        )

    def _scalar(self, node: yaml.Node) -> Any:
        try:
            node.value.encode()
            if not node.tag.endswith(":str") and len(node.value) > MAX_SCALAR_CHARS:
                raise ValueError
            return self.construct_object(node)
        except (ValueError, OverflowError):
            raise _refusal(f"{node.value[:20]!a} cannot be read; put text in quotes", node) from None

    def _within(self, place: yaml.Node | yaml.Event, count: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise _refusal(f"nested more than {MAX_DEPTH} levels deep, or an alias that contains itself", place)
        if count > MAX_NODES:
            raise _refusal(f"more than {MAX_NODES} values, each alias counted with all that it stands for", place)


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
