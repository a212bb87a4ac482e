"""Answers that say nothing or stop in the middle: placeholders and cut-off answers.

Both are sure rather than complete: an answer that somebody could have meant is neither.
"""

import json
import re
from collections.abc import Mapping, Sequence

# A placeholder is a whole answer, in any case and without the space around it, that somebody meant to replace.
# A word can be an honest answer too: it counts only where no turn before it names it ("Answer with a city or none").
PLACEHOLDER_WORDS = r"todo|tbd|tba|tbc|fixme|none|null|nil|nan|n/?a|not applicable"
PLACEHOLDER_FORMS = (
    r"placeholder|dummy|lorem ipsum\b.*",
    r"(your |the )?(answer|response|output|text) (goes )?here",
    r"<\s*((your|the|insert) )?(answer|response|output|completion|text|placeholder)( here)?\s*>",
    r"\[\s*insert\b[^\]]*\]|\[\s*(your|enter|fill in)\s[^\]]*\]",
    r"x{3,}|[-\u2013\u2014_]+|\.{2,}|\u2026+|\?{2,}",
)

# Words that prose does not end with, in English, German, French, Spanish, Italian, Portuguese and Dutch. One that is
# another word in another of these languages is left out, and so are single letters, which may be labels.
UNFINISHED = re.compile(
    r"and|or|nor|but|the|of|because|which|whose|than|your|their|our|my|its|und|oder|aber|der|dem|eine|einen|einem|einer"
    r"|von|weil|dass|sowie|et|ou|mais|le|les|une|des|avec|dont|leur|pero|el|del|una|unas|unos|ma|gli|della|degli|os|uma"
    r"|dos|das|het|een|omdat"
)
MIN_PROSE = 80  # characters of an answer whose last word tells; below, it may be a label or a list
CAP_SPAN = 50  # lengths below the longest that it is compared with

_WORDS = re.compile(PLACEHOLDER_WORDS, re.IGNORECASE)
_FORMS = re.compile("|".join(PLACEHOLDER_FORMS), re.IGNORECASE | re.DOTALL)
_NOTHING = "\u200b\u200c\u200d\u2060\ufeff"  # zero-width characters, which str.strip() leaves alone
_SENTENCE = re.compile(r"[^\W\d_]{2}[.!?][\"')\]]?\s")
_JSON = re.compile(r"\s*(?:\{\s*(?:\"|$)|\[\s*(?:[\[{\"]|$))")


def placeholder(answer: str, before: Sequence[str]) -> str | None:
    """The answer, stripped, where it is nothing but a placeholder; `before` are the texts of the turns before it."""
    said = stripped(answer)
    if _WORDS.fullmatch(said):
        named = re.compile(rf"(?<!\w){re.escape(said)}(?!\w)", re.IGNORECASE)
        return None if any(named.search(text) for text in before) else said
    return said if _FORMS.fullmatch(said) else None


def cut_off(answer: str) -> str | None:
    """Why an answer stops before its end: an open code fence, open JSON, or prose that ends within a sentence."""
    text = answer.rstrip()
    if text.count("```") % 2:
        return "a code fence is left open"
    if _JSON.match(text):
        return "its JSON is left open" if _is_open_json(text) else None
    if len(text) < MIN_PROSE or not (text[-1] == "," or text[-1].isalpha()) or not _SENTENCE.search(text):
        return None
    last = text.rsplit(None, 1)[-1]
    if last.endswith(","):  # verses and the greeting of a letter do, on short lines
        return None if "\n" in text[-MIN_PROSE:] else "it ends with a comma"
    return f"it ends with {last}" if UNFINISHED.fullmatch(last) else None


def length_cap(lengths: Mapping[int, int], min_share: float = 0.01) -> int | None:
    """The length at which answers were capped, of how many answers have each length; None where they were not.

    It is the longest, if at least ten answers and `min_share` of all have it to the character, and ten times as many as
    have any length shortly below it: lengths that nobody capped thin out towards the longest.
    """
    longest = max(lengths, default=0)
    nearby = [lengths.get(length, 0) for length in range(longest - CAP_SPAN, longest)]
    enough = max(10, min_share * sum(lengths.values()), 10 * max(nearby))
    return longest if len(lengths) > 1 and lengths.get(longest, 0) >= enough else None


def stripped(text: str) -> str:
    """The text without the white space and the zero-width characters around it."""
    return text.strip().strip(_NOTHING).strip()


def _is_open_json(text: str) -> bool:
    """Whether the JSON at the beginning of `text` goes on past its end."""
    try:
        json.JSONDecoder().raw_decode(text.lstrip())
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc) or error.msg.startswith("Unterminated string")
    except RecursionError:  # nested deeper than anybody writes
        return False
    return False
