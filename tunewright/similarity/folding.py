"""Conversations as UTF-8 bytes in which only what ASCII has is left to fold: the input of hashing.py.

Text that is ASCII, most of it as a rule, is used where Arrow holds it; nothing of it is copied or decoded.
"""

import re
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

APOSTROPHES = "'\u2019\u02bc`"
VARIANTS = "\ufe0e\ufe0f"  # how an emoji is drawn
# Scripts without spaces, a character a word: Thai and Lao, Myanmar, Khmer, kana, Han and its supplements.
SPACELESS_RANGES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
FULL_STOPS = "。！？："  # noqa: RUF001 full-width, which end a sentence without white space
OPERATORS = {"×": "*", "÷": "/", "\u0085": "\n", "\u2028": "\n", "\u2029": "\n", "\u1680": " "}  # noqa: RUF001


@dataclass(frozen=True)
class Folded:
    """Conversations: message i is data[starts[i]:starts[i + 1]], row j has the messages rows[j]..rows[j + 1]."""

    data: np.ndarray  # uint8
    starts: np.ndarray  # (messages + 1,) int64
    rows: np.ndarray  # (rows + 1,) int64

    @property
    def prompts(self) -> np.ndarray:
        """(rows, 2): the messages of each row but its last, the answer."""
        return np.stack([self.rows[:-1], np.maximum(self.answers, self.rows[:-1])], axis=1)

    @property
    def answers(self) -> np.ndarray:
        """(rows,): the last message of each row."""
        return self.rows[1:] - 1


def fold(text: str) -> str:
    """NFKC, case folded, with ASCII digits; the full stops of scripts without spaces end a line."""
    for stop in FULL_STOPS:
        text = text.replace(stop, f"{stop}\n")
    text = unicodedata.normalize("NFKC", text)
    if _may_be_translated().search(text):  # few texts are, and to look is faster
        text = text.translate(_translated())
    return text.casefold()


def fold_messages(messages: pa.ChunkedArray | pa.Array) -> Folded:
    """The folded conversations of a messages column (tunewright.artifacts.MESSAGES)."""
    lists = messages.combine_chunks() if isinstance(messages, pa.ChunkedArray) else messages
    rows = np.asarray(lists.offsets).astype(np.int64)
    contents = lists.flatten().field("content")
    return _folded(contents, rows - rows[0])


def fold_texts(texts: Iterable[str]) -> Folded:
    """Each text as a conversation of one message and an empty answer."""
    contents = [part for text in texts for part in (text, "")]
    return _folded(pa.array(contents, pa.string()), np.arange(0, len(contents) + 1, 2))


def _folded(contents: pa.Array, rows: np.ndarray) -> Folded:
    contents = pc.fill_null(contents, "").cast(pa.large_string())
    other = pc.invert(pc.string_is_ascii(contents))  # pyright: ignore[reportAttributeAccessIssue]
    texts = pa.array([fold(text) for text in contents.filter(other).to_pylist()], contents.type)
    if len(texts):
        contents = pc.replace_with_mask(contents, other, texts)  # pyright: ignore[reportAttributeAccessIssue]
    data, starts = bytes_of(contents)
    return Folded(data=data, starts=starts, rows=rows)


def bytes_of(contents: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """(bytes,) uint8 where Arrow holds texts (large_string without nulls), and (texts + 1,) where each begins."""
    _, offsets, data = contents.buffers()
    starts = np.frombuffer(offsets, np.int64)[contents.offset : contents.offset + len(contents) + 1]
    return np.frombuffer(data or b"", np.uint8), starts


@cache
def _translated() -> dict[int, str]:
    digits = {code: str(unicodedata.decimal(chr(code))) for code in range(0x80, 0x20000) if chr(code).isdecimal()}
    return digits | {ord(character): plain for character, plain in OPERATORS.items()}


@cache
def _may_be_translated() -> re.Pattern[str]:
    """A character of _translated, or any of the planes above, by which re would look much slower."""
    basic = "".join(chr(code) for code in _translated() if code < 0x10000)
    return re.compile(f"[{re.escape(basic)}\U00010000-\U0010ffff]")


@cache
def character_classes() -> np.ndarray:
    """(characters,) uint8: what each is to words.

    Letters and digits are parts of them, punctuation parts them, and a symbol is one: < is not >, nor a smile a frown.
    """
    from tunewright.similarity.hashing import DROPPED, SPACE, SPACELESS, SYMBOL, WORD

    categories = [unicodedata.category(chr(code)) for code in range(sys.maxunicode + 1)]
    kinds = {"L": WORD, "M": WORD, "N": WORD, "P": SPACE, "S": SYMBOL, "Z": SPACE, "C": SPACE, "Cf": DROPPED}
    classes = np.array([kinds.get(category, kinds[category[0]]) for category in categories], np.uint8)
    classes[[ord(character) for character in APOSTROPHES + VARIANTS]] = DROPPED
    for first, last in SPACELESS_RANGES:
        letters = classes[first : last + 1]
        letters[letters == WORD] = SPACELESS
    return classes
