"""Read a configuration of another tool, bounded and safe as a deployment file is, and tell whose it is."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.accepted import shown
from tunewright.cli.deployment_file import strict_yaml
from tunewright.cli.deployment_file.strict_yaml import Document
from tunewright.cli.imports.rules import Tool
from tunewright.errors import ConfigError

MAX_BYTES = 1_000_000
PAIR = re.compile(r"\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.I)  # a character that JSON writes as two


def parse(file: Path) -> Document:
    """The content of a file, YAML or JSON, with the line of each key. Raises ConfigError."""
    try:
        if not file.is_file():
            raise ConfigError(f"{file}: {'not a file' if file.exists() else 'no such file'}")
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if file.suffix == ".jsonl":
        raise ConfigError(f"{file}: lines of data; accepted: a configuration that names them, in YAML or JSON")
    if len(content) > MAX_BYTES:
        raise ConfigError(f"{file}: larger than {MAX_BYTES:,} bytes; a configuration is a page of text")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{file} line {line}: byte {content[error.start]:#04x} is not UTF-8") from None
    if file.suffix == ".json" or text.lstrip()[:1] in ("{", "["):
        text = _as_yaml(text)
    return strict_yaml.parse(text, str(file))


def _as_yaml(text: str) -> str:
    """JSON that YAML reads: without tabs, which a JSON text cannot hold, and without halves of characters."""
    return PAIR.sub(lambda found: json.loads(f'"{found[0]}"'), text).replace("\t", " ")


def mapping(document: Document) -> dict[str, Any]:
    """The keys of a configuration. Raises ConfigError where it has none."""
    value = document.value
    if not isinstance(value, dict) or not value:
        raise ConfigError(f"{document.name}: {shown(value)} is refused; accepted: a mapping of arguments")
    if "deployments" in value:
        raise ConfigError(f"{document.place('deployments')}: deployments: this is a deployment file already")
    return value


def flattened(values: Mapping[str, Any], groups: Sequence[str]) -> dict[str, tuple[str, Any]]:
    """Each key, with the place where it stands and its value; the keys of a group stand beside those around it."""
    given = values.get("method")
    method = given if isinstance(given, dict) else {}
    kind = "dpo" if method.get("type") == "dpo" else "supervised"
    of_method = method.get(kind)
    newer = of_method.get("hyperparameters") if isinstance(of_method, dict) else None
    within = {key: each for key, each in values.items() if key in groups and isinstance(each, dict)}
    if isinstance(newer, dict) and newer:  # of an OpenAI job, which says the same in an older key too
        older = within.get("hyperparameters", {})
        within = {
            "hyperparameters": {key: value for key, value in older.items() if newer.get(key, "auto") == "auto"},
            f"method.{kind}.hyperparameters": {
                key: value for key, value in newer.items() if value != "auto" or older.get(key, "auto") == "auto"
            },
        }
    found = {inner: (f"{key}.{inner}", each) for key, group in within.items() for inner, each in group.items()}
    return found | {key: (key, value) for key, value in values.items() if key not in within}


def tool_of(document: Document, given: Mapping[str, Any], tools: Mapping[str, Tool], asked: str | None) -> Tool:
    """The tool whose configuration it is: the one asked for, or the one whose keys it has. Raises ConfigError."""
    if asked is not None:
        return tools[asked]
    likely: dict[str, tuple[int, int]] = {}  # keys that only it has, and all that it knows
    for name, tool in tools.items():
        keys = {*flattened(given, tool.groups), *given}
        likely[name] = (len(keys & {*tool.marks, *tool.groups}), len(keys & {*tool.table}))
    first, second = sorted(tools, key=lambda name: likely[name], reverse=True)[:2]
    if not likely[first][0] or likely[first] == likely[second]:
        raise ConfigError(
            f"{document.name}: the keys do not tell which tool it is for; say it with --from: {', '.join(tools)}"
        )
    return tools[first]
