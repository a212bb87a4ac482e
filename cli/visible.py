"""Printing for all commands: text from outside cannot control the terminal, and all tables have one style."""

import json
import os
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from tunewright.errors import STEERING, visible


def is_plain() -> bool:
    """Whether the environment asks for no styles (NO_COLOR, https://no-color.org): rich leaves bold and dim on."""
    return bool(os.environ.get("NO_COLOR"))


def as_line(value: Any) -> str:
    """A value as JSON on one line, in which such characters are escapes: the same to a program."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(f"\\u{ord(each):04x}" if ord(each) in STEERING else each for each in text)


class Visible(Console):
    """A console that prints no control character but those of its own styles, and under NO_COLOR none at all."""

    def __init__(self, **options: Any) -> None:
        if is_plain():
            options["color_system"] = None
        super().__init__(**options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is printed, each as visible text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def plain_table(*columns: str) -> Table:
    """A table without lines, whose cells wrap."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
