"""Texts that were decoded wrongly, such as "cafÃ©" for "café", as ftfy can tell and repair them."""

import re
from functools import cache

MAX_CHARS = 40  # of an example


def mojibake(text: str) -> str | None:
    """The first words of `text` that ftfy decodes anew, as "cafÃ© for café"; None where it leaves the text as it is."""
    if text.isascii() or not _suspect().search(text):
        return None
    from ftfy import fix_encoding
    from ftfy.badness import is_bad

    repaired = fix_encoding(text) if is_bad(text) else text
    if repaired == text:
        return None
    same = next((n for n, pair in enumerate(zip(text, repaired, strict=False)) if pair[0] != pair[1]), len(repaired))
    word = max(text.rfind(" ", 0, same), text.rfind("\n", 0, same)) + 1
    start = max(word, same - MAX_CHARS // 2)
    return " for ".join(_words(changed[start:], same - start) for changed in (text, repaired))


@cache
def _suspect() -> re.Pattern[str]:
    """A tenth of the cost of ftfy.badness.is_bad, and true of every text that it is true of.

    It takes one of these characters beside another that is not ASCII, or one that is bad by itself.
    """
    from ftfy.badness import MOJIBAKE_CATEGORIES as CHARACTERS

    kinds = "bad law currency start_punctuation end_punctuation numeric box upper_accented"
    telling = "".join(CHARACTERS[kind] for kind in kinds.split()) + "\u00d8\u00d9\u0402"
    alone = CHARACTERS["c1"] + "\u0152\u0153\u00c2\u00c3"
    return re.compile(f"[^\0-\x7f](?:(?<=[{telling}])[^\0-\x7f]|[{telling}]|(?<=[{alone}]))")


def _words(text: str, first: int) -> str:
    """The beginning of `text`, up to the white space after position `first`."""
    end = next((n for n, character in enumerate(text) if n > first and character.isspace()), len(text))
    return text[: min(end, MAX_CHARS)].strip()
