"""The plain columns that expectations look at, derived from the conversations in one pass."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

Turn = dict[str, str | None]

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

_WORDS = re.compile(PLACEHOLDER_WORDS, re.IGNORECASE)
_FORMS = re.compile("|".join(PLACEHOLDER_FORMS), re.IGNORECASE | re.DOTALL)
_NOTHING = "\u200b\u200c\u200d\u2060\ufeff"  # zero-width characters, which str.strip() leaves alone


class Columns(NamedTuple):
    """One row's columns; None where the row has nothing to look at, which an expectation passes over."""

    num_turns: int
    num_incomplete_turns: int  # without a role or a content
    roles: str  # "system user assistant"
    shortest_user_turn: int | None  # characters without the space around them
    shortest_answer: int | None  # likewise
    placeholder: str | None  # the first answer that is one
    prompt_chars: int  # of all turns before the last answer
    min_answer_chars: int | None  # of one answer, as it stands
    max_answer_chars: int | None
    special_token: str | None  # the first one that a text holds
    num_replacement_characters: int


def derive(conversations: Sequence[list[Turn] | None], special_tokens: Sequence[str]) -> pd.DataFrame:
    """A frame with the fields of Columns, one line a conversation, in order."""
    longest_first = sorted((re.escape(token) for token in special_tokens if token), key=len, reverse=True)
    special = re.compile("|".join(longest_first) or r"(?!)")
    return pd.DataFrame([_columns(turns or [], special) for turns in conversations], columns=list(Columns._fields))


def prompt_and_answer(turns: Sequence[Turn]) -> tuple[Sequence[Turn], Turn | None]:
    """The turns before the last answer, and that answer: all turns and None where the assistant says nothing."""
    for position in reversed(range(len(turns))):
        if turns[position]["role"] == "assistant":
            return turns[:position], turns[position]
    return turns, None


def _columns(turns: list[Turn], special: re.Pattern[str]) -> Columns:
    texts = [turn["content"] or "" for turn in turns]
    asked = [len(_stripped(turn["content"] or "")) for turn in turns if turn["role"] == "user"]
    answers = [turn["content"] or "" for turn in turns if turn["role"] == "assistant"]
    prompt, _ = prompt_and_answer(turns)
    found = next(filter(None, map(special.search, texts)), None)
    return Columns(
        num_turns=len(turns),
        num_incomplete_turns=sum(turn["role"] is None or turn["content"] is None for turn in turns),
        roles=" ".join(turn["role"] or "" for turn in turns),
        shortest_user_turn=min(asked, default=None),
        shortest_answer=min((len(_stripped(answer)) for answer in answers), default=None),
        placeholder=_placeholder(turns),
        prompt_chars=sum(len(turn["content"] or "") for turn in prompt),
        min_answer_chars=min(map(len, answers), default=None),
        max_answer_chars=max(map(len, answers), default=None),
        special_token=found[0] if found else None,
        num_replacement_characters=sum(text.count("\ufffd") for text in texts),
    )


def _placeholder(turns: list[Turn]) -> str | None:
    for position, turn in enumerate(turns):
        if turn["role"] == "assistant":
            answer = _stripped(turn["content"] or "")
            is_word = _WORDS.fullmatch(answer) and not _named_before(answer, turns[:position])
            if is_word or _FORMS.fullmatch(answer):
                return answer
    return None


def _named_before(answer: str, turns: list[Turn]) -> bool:
    word = re.compile(rf"(?<!\w){re.escape(answer)}(?!\w)", re.IGNORECASE)
    return any(word.search(turn["content"] or "") for turn in turns)


def _stripped(text: str) -> str:
    return text.strip().strip(_NOTHING).strip()
