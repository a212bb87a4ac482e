"""Repairs of texts, only those that the settings ask for: each changes what is trained, so each is counted."""

import unicodedata
from collections.abc import Sequence

from tunewright.config import Repair


def repaired(text: str, repairs: Sequence[Repair]) -> tuple[str, list[Repair]]:
    """The text after `repairs`, and those that changed something; mojibake is undone before NFC composes."""
    made: list[Repair] = []
    if text.isascii():
        return text, made
    for repair in ("mojibake", "nfc"):
        if repair in repairs:
            better = _decoded_rightly(text) if repair == "mojibake" else unicodedata.normalize("NFC", text)
            if better != text:
                text, made = better, [*made, repair]
    return text, made


def _decoded_rightly(text: str) -> str:
    """Undoes a decoding by the wrong table ("cafÃ©"), and nothing else: quotes, ligatures and HTML stay."""
    import ftfy

    return ftfy.fix_encoding(text)
