"""Excerpts of texts for display, without secrets or personal data."""

from collections.abc import Collection, Mapping, Sequence

from tunewright.errors import visible
from tunewright.privacy.personal import personal
from tunewright.privacy.secrets import secrets

TEXT_CHARS = 500  # of a row


def excerpt(turns: Sequence[Mapping[str, str | None]]) -> str:
    """Both ends of each turn, so that the answer is seen below a long prompt, and what is asked after a long preface.

    At most TEXT_CHARS characters; long turns have the room that short ones leave.
    """
    texts = [masked(turn["content"] or "") for turn in turns]
    room, most = TEXT_CHARS - 15 * len(texts), 20
    for waiting, length in zip(range(len(texts), 0, -1), sorted(map(len, texts)), strict=True):
        most = max(room // waiting, 20)
        if length > most:
            break
        room -= length
    shown = (f"{turn['role']}: {ends(text, most)}" for turn, text in zip(turns, texts, strict=True))
    return "\n".join(shown)[:TEXT_CHARS]


def masked(text: str, known: Collection[str] = ()) -> str:
    """The text; or, where it holds secrets or personal data, only which. `known` are secrets of the texts beside it."""
    found = (*secrets(text), *personal(text))
    if found:
        return f"(not shown, it holds: {', '.join(map(str, found))})"
    return "(not shown, it repeats a secret)" if any(value in text for value in known) else text


def clipped(text: str, length: int) -> str:
    """The text, or its beginning with an ellipsis."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def ends(text: str, length: int) -> str:
    """The text, or its beginning and its end with an ellipsis between."""
    half = (length - 1) // 2
    return text if len(text) <= length else f"{text[: length - 1 - half]}…{text[-half:]}"


def in_a_line(value: object, known: Collection[str] = ()) -> str:
    """A value of a column for a sentence: masked, visible, on one line, at most 100 characters."""
    return clipped(visible(" ".join(masked(str(value), known).split())), 100)
