"""Reports as pages of HTML that load nothing, of one look: frame.html is what they extend."""

from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template


@cache
def template(file: Path) -> Template:
    """A template, which may extend frame.html, or import what lies beside it, or in a folder beside its own."""
    return Environment(
        loader=FileSystemLoader([file.parent, file.parent.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template(file.name)
