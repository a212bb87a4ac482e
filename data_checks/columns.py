"""The plain columns that expectations look at, derived from the conversations of one batch of rows."""

import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from tunewright.data_checks.answers import cut_off, no_json, placeholder, refusal, stripped
from tunewright.data_checks.language import Language, language
from tunewright.privacy.personal import personal
from tunewright.privacy.secrets import secrets
from tunewright.tools.conversation import prompt_and_answer

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


def decomposed(text: str) -> str | None:
    """The first word whose characters NFC joins, as file names of macOS have them; the joined ones are other tokens."""
    if text.isascii() or unicodedata.is_normalized("NFC", text):
        return None
    words = (word for word in text.split() if len(unicodedata.normalize("NFC", word)) < len(word))
    return next((word[:MAX_CHARS] for word in words), None)


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


if TYPE_CHECKING:
    import pandas as pd

Turn = dict[str, str | None]

LANGUAGES, CONFIDENCE = ("prompt_language", "answer_language"), "_confidence"


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
    mojibake: str | None  # the first words that were decoded wrongly, and what they were: "cafÃ© for café"
    decomposed: (
        str | None
    )  # the first word that Unicode NFC makes shorter, as accents are characters of their own in it
    prompt_language: str | None  # ISO 639 code, of the last user turn that tells; None for too little text, code, JSON
    prompt_language_confidence: float | None  # 0.5 to 1
    answer_language: str | None  # likewise, of the last answer that tells
    answer_language_confidence: float | None
    secret: str | None  # one of each kind, masked: "AWS Access Key AKIA…, JSON Web Token eyJh…"
    personal: str | None  # one of each kind, masked: "e-mail address m…@g….com, phone number +4…18"
    refusal: str | None  # how the first answer that refuses begins: "I'm sorry, but I can't help"
    cut_off: str | None  # why an answer, the first such, stops before its end: "a code fence is left open"
    no_json: str | None  # why the last answer is no JSON object or array: "Expecting ',' delimiter at character 40"
    chosen_chars: int | None  # of a preference pair's last answer, without the space around it; None of other rows
    rejected_chars: int | None  # likewise, of its rejected answer
    identical: str | None  # that answer, where both are equal but for white space


@dataclass(frozen=True, slots=True)
class TurnTexts:
    """The turns of one row, in the parts that columns look at."""

    turns: Sequence[Turn]
    texts: list[str]
    asked: list[str]  # by the user
    answers: list[str]
    rejected: str | None  # of a preference pair; or, where it is `undesirable`, the last answer, which `answers` lacks
    undesirable: bool
    whole: str  # all texts, one below the other, with reasoning, the definitions of tools and the rejected answer

    @property
    def said(self) -> list[str]:
        """The texts of the turns and the rejected answer."""
        return self.texts if self.rejected is None else [*self.texts, self.rejected]


def derive(
    conversations: Sequence[list[Turn] | None],
    special_tokens: Sequence[str],
    wanted: Collection[str] | None = None,
    more: Sequence[Sequence[str]] = (),
    rejected: Sequence[str | None] = (),
    undesirable: Sequence[bool] = (),
) -> "pd.DataFrame":
    """A frame with the fields of Columns, or those of them that are `wanted`, one line a conversation, in order.

    `more` has the texts of each that are no message's, `rejected` the one of a preference pair that is among them;
    `undesirable` says whether the last answer is. What no answer should be, a rejected or undesirable one may be.
    """
    import pandas as pd  # a third of a second, and a run that checks nothing needs none

    special = _any_of(special_tokens)

    def special_token(row: TurnTexts) -> str | None:
        return next((found[0] for text in row.said if (found := special.search(text))), None)

    derived = _COLUMNS | {"special_token": special_token}
    names = [name for name in Columns._fields if wanted is None or name in wanted]
    rows = [
        _conversation(turns or [], texts or (), other, bool(unwanted))
        for turns, texts, other, unwanted in zip_longest(conversations, more, rejected, undesirable)
    ]
    # One column after the other is faster than one row after the other: a detector stays in the processor's caches.
    columns = {name: list(map(derived[name], rows)) for name in {name.removesuffix(CONFIDENCE) for name in names}}
    for name in {*LANGUAGES} & {*columns}:
        languages = columns[name]
        columns[name] = [language and language.code for language in languages]
        columns[name + CONFIDENCE] = [language and language.confidence for language in languages]
    return pd.DataFrame(columns, columns=names)


def _conversation(turns: Sequence[Turn], more: Sequence[str], rejected: str | None, undesirable: bool) -> TurnTexts:
    texts = [turn["content"] or "" for turn in turns]
    asked = [text for turn, text in zip(turns, texts, strict=True) if turn["role"] == "user"]
    answers = [text for turn, text in zip(turns, texts, strict=True) if turn["role"] == "assistant"]
    if undesirable and answers:
        rejected = answers.pop()
    return TurnTexts(turns, texts, asked, answers, rejected, undesirable, "\n".join([*texts, *more]))


def _identical(row: TurnTexts) -> str | None:
    if row.rejected is None or row.undesirable or not row.answers or row.answers[-1].split() != row.rejected.split():
        return None
    return row.answers[-1]


def language_of_prompt(asked: Sequence[str]) -> Language | None:
    """The language of the user's last turn, or of the last one before it that tells; None where none does.

    It is that of a turn's last paragraph, or of its first if that is unclear.
    """
    return _last_told(_language_of_turn, asked)


def _language_of_turn(text: str) -> Language | None:
    text = text.rstrip()
    last = text.rpartition("\n\n")[2]
    return language(last) or (language(text.partition("\n\n")[0]) if len(last) < len(text) else None)


def _last_told(language_of: Callable[[str], Language | None], texts: Sequence[str]) -> Language | None:
    return next(filter(None, map(language_of, reversed(texts))), None)


def _any_of(tokens: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted((re.escape(token) for token in tokens if token), key=len, reverse=True)
    return re.compile("|".join(longest_first) or r"(?!)")


def _first(found: Iterable[str | None]) -> str | None:
    return next(filter(None, found), None)


_COLUMNS: dict[str, Callable[[TurnTexts], Any]] = {
    "num_turns": lambda row: len(row.turns),
    "num_incomplete_turns": lambda row: sum(turn["role"] is None or turn["content"] is None for turn in row.turns),
    "roles": lambda row: " ".join(turn["role"] or "" for turn in row.turns),
    "shortest_user_turn": lambda row: min((len(stripped(text)) for text in row.asked), default=None),
    "shortest_answer": lambda row: min((len(stripped(text)) for text in row.answers), default=None),
    "placeholder": lambda row: _first(
        placeholder(text, row.texts[:at])
        for at, text in enumerate(row.texts[: len(row.texts) - row.undesirable])
        if row.turns[at]["role"] == "assistant"
    ),
    "prompt_chars": lambda row: sum(len(turn["content"] or "") for turn in prompt_and_answer(row.turns)[0]),
    "min_answer_chars": lambda row: min(map(len, row.answers), default=None),
    "max_answer_chars": lambda row: max(map(len, row.answers), default=None),
    "num_replacement_characters": lambda row: row.whole.count("\ufffd"),
    "mojibake": lambda row: _first(map(mojibake, row.said)),
    "decomposed": lambda row: _first(map(decomposed, row.said)),
    "prompt_language": lambda row: language_of_prompt(row.asked),
    "answer_language": lambda row: _last_told(language, row.answers),
    "secret": lambda row: ", ".join(map(str, secrets(row.whole))) or None,
    "personal": lambda row: ", ".join(map(str, personal(row.whole))) or None,
    "refusal": lambda row: _first(map(refusal, row.answers)),
    "cut_off": lambda row: _first(map(cut_off, row.answers)),
    "no_json": lambda row: no_json(row.answers[-1]) if row.answers else None,
    "chosen_chars": lambda row: (
        None if row.rejected is None or row.undesirable else len(stripped("".join(row.answers[-1:])))
    ),
    "rejected_chars": lambda row: None if row.rejected is None else len(stripped(row.rejected)),
    "identical": _identical,
}
