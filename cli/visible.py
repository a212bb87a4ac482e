"""Text of strangers in a terminal: what would steer it is shown as a character of its own."""

import json
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tunewright.privacy.excerpts import STEERING, visible


def as_line(value: Any) -> str:
    """A value as JSON on one line, in which such characters are escapes: the same to a program."""
    text = json.dumps(value, ensure_ascii=False)
    return "".join(f"\\u{ord(each):04x}" if ord(each) in STEERING else each for each in text)


class Visible(Console):
    """A console that prints no control character but those of its own styles."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of what is printed, each as visible text."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))
