"""An imported configuration as a deployment file, checked as any other, and the list of what became of each key."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from tunewright.accepted import shown
from tunewright.cli import deployment_file
from tunewright.cli.deployment_file import ENTRYPOINT, keys, strict_yaml
from tunewright.cli.imports.importing import Imported, KeyEnd
from tunewright.cli.visible import plain_table
from tunewright.config import outside
from tunewright.flows.parameters import written

SECRET = re.compile(r"token|secret|password|api_key|webhook", re.I)


def text_of(found: Imported) -> str:
    """The deployment file: each value with where it came from, and at the end what has no counterpart."""
    lines = [
        f"# Imported by tunewright import from {found.file}, {found.tool.title}; comments name the keys there.",
        "deployments:",
        f"  - name: {_scalar(found.name)}",
        f"    entrypoint: {ENTRYPOINT}",
        "    parameters:",
    ]
    for section, values in found.parameters().items():
        lines.append(f"      {section}:")
        for name, value in values.items():
            if name == "sources":
                lines.append("        sources:")
                pairs = zip(value, found.of_sources, strict=True)
                lines += [f"          - {_scalar(source)}{_comment(key)}" for source, key in pairs]
            else:
                lines.append(f"        {name}: {_scalar(value)}{_comment(found.origins[f'{section}.{name}'])}")
    lines += [f"# note: {_line(said)}" for said in _remarks(found, "set")]
    lines += [f"# no counterpart: {_line(said)}" for said in _remarks(found, "no counterpart")]
    lines += [f"# not known: {_line(end.key)}" for end in found.ends if end.treatment is None]
    return "".join(f"{line}\n" for line in lines)


def check(found: Imported, text: str, output: Path) -> None:
    """Load the text as any deployment file. Raises ConfigError where that is refused."""
    document = strict_yaml.parse(text, str(output))
    keys.check(document)
    deployment_file.load(document)


def show(console: Console, found: Imported) -> None:
    """The list: what is set, what is not needed and why, what is lost, and what is not known."""
    table = plain_table(found.tool.title, "Tunewright")
    for end in _of(found, "set"):
        ours = ", ".join(f"{key}={written(value)}" for key, value in _plain(end))
        table.add_row(Text(_named(end)), Text(ours or "data.sources"))
    console.print(table)
    for kind, title in (
        ("set", "set, with a note"),
        ("no counterpart", "no counterpart"),
        ("not needed", "not needed"),
    ):
        if said := [*_remarks(found, kind)]:
            console.print()
            console.print(Text(title, "bold"))
        for each in said:
            console.print(Text(f"  {each}"), soft_wrap=kind == "set")
    if unknown := [end for end in found.ends if end.treatment is None]:
        console.print()
        console.print(Text("not known: a typing error, or newer than this list", "bold yellow"))
        console.print(Text(f"  {', '.join(map(_named, unknown))}"))
    if found.empty:
        console.print()
        console.print(Text(f"empty there: {', '.join(found.empty)}", "dim"))


def as_json(found: Imported, text: str, output: Path | None) -> dict[str, Any]:
    """The list for a program."""
    return {
        "tool": found.tool.name,
        "deployment": found.name,
        "file": None if output is None else str(output),
        "text": text,
        "keys": [
            {
                "key": end.key,
                "becomes": end.treatment.kind if end.treatment else "not known",
                "settings": dict(_plain(end)),
                "why": end.treatment.why if end.treatment else "",
            }
            for end in found.ends
        ],
        "empty": found.empty,
    }


def _of(found: Imported, kind: str) -> list[KeyEnd]:
    return [end for end in found.ends if end.treatment and end.treatment.kind == kind]


def _plain(end: KeyEnd) -> Iterator[tuple[str, Any]]:
    for key, value in (end.treatment.values if end.treatment else {}).items():
        yield (
            key,
            value if not isinstance(value, dict | list) else yaml.safe_dump(value, default_flow_style=True).strip(),
        )


def _remarks(found: Imported, kind: str) -> Iterator[str]:
    """Lines on the keys of a kind, those with the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for end in _of(found, kind):
        if end.treatment and end.treatment.why:
            by_reason.setdefault(end.treatment.why, []).append(_named(end) if kind != "not needed" else end.key)
    for why, names in by_reason.items():
        yield f"{', '.join(dict.fromkeys(names))}: {why}"


def _named(end: KeyEnd) -> str:
    """A key with its value, unless that is long or may be a secret."""
    if SECRET.search(end.key) or end.value is None or isinstance(end.value, dict | list) or len(str(end.value)) > 60:
        return end.key
    return outside.without_credentials(f"{end.key}={written(end.value)}")


def _scalar(value: Any) -> str:
    """A value on one line, as YAML reads it."""
    plain = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return plain.strip().removesuffix("\n...").strip()


def _comment(origin: str) -> str:
    return f"  # {_line(origin)}" if origin else ""


def _line(text: str) -> str:
    """A text as one printable line of a comment."""
    plain = outside.without_credentials(" ".join(text.split()))
    return plain if plain.isprintable() else shown(plain)
