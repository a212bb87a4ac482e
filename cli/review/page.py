"""The page on which a person chooses between two answers, and that saves the choices as a table."""

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright.reports.pages import template

if TYPE_CHECKING:
    from tunewright.evidence.review import BlindPair

HERE = Path(__file__).parent


def write(file: Path, asked: "Sequence[BlindPair]") -> None:
    """Write the page. It loads nothing, and its policy allows no script but its own."""
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    pairs = [
        {"pair": each.id, "asked": each.pair.conversation, "reference": each.pair.reference, "answers": each.answers}
        for each in asked
    ]
    page = template(HERE / "page.html").render(pairs=pairs, script=script, digest=digest, title=file.stem)
    file.write_text(page, encoding="utf-8")
