"""Rows made from other rows: duplicates that should go, and rows that only look like duplicates and must stay."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

DUPLICATES = ("format", "edit_5", "edit_10", "truncation")  # all numbers and the answer are kept
LOOKALIKES = ("other_number", "other_slot", "other_answer")
FEWEST_WORDS = 20  # of a text that is edited: in a shorter one a word can be all that matters
NUM_PARTNERS = 5_000  # rows to make others from, at one time
TRIES = 20
FORMATS: tuple[Callable[[str], str], ...] = (
    str,
    str.upper,
    str.lower,
    str.title,
    lambda text: text.replace(" ", "  "),
    lambda text: text.replace(", ", " "),
    lambda text: text.rstrip(".?!。？"),  # noqa: RUF001 full-width stops are meant
    lambda text: f"{text} !!\n\n",
)


@dataclass(frozen=True)
class Row:
    """An instruction row."""

    source: str
    instruction: str  # the same in all rows of a source, or ""
    prompt: str
    answer: str
    earlier: tuple[str, ...] = ()  # the turns of a chat before the prompt
    slot: str = ""  # a name in the prompt that the answer repeats

    def turns(self) -> list[str]:
        """Return the texts of the turns, from the user and the assistant alternately."""
        return [*self.earlier, "\n".join(part for part in (self.instruction, self.prompt) if part), self.answer]

    def messages(self) -> list[dict[str, str]]:
        """The turns with their roles."""
        return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(self.turns())]

    def record(self) -> dict[str, Any]:
        """The row in the messages layout where there are earlier turns, else in the alpaca layout."""
        if self.earlier:
            return {"messages": self.messages(), "source": self.source}
        instruction, text = (self.instruction, self.prompt) if self.instruction else (self.prompt, "")
        return {"instruction": instruction, "input": text, "output": self.answer, "source": self.source}


@dataclass(frozen=True)
class Plant:
    """The truth about the row of a line, counted from 1: it was made from the row of `partner`."""

    line: int
    partner: int
    kind: str  # one of DUPLICATES or LOOKALIKES


class Planter:
    """Makes rows from earlier rows, from each at most one."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.partners: list[tuple[int, Row]] = []

    def keep(self, line: int, row: Row) -> None:
        """Offers the row of a line to make others from."""
        if len(self.partners) < NUM_PARTNERS:
            self.partners.append((line, row))
        else:
            self.partners[int(self.random.random() * NUM_PARTNERS)] = line, row

    def planted(self, line: int, new_name: str) -> tuple[Row, Plant] | None:
        """A row made from an earlier one; None where none was found that lends itself to the kind that was drawn."""
        kind = self.random.choice(DUPLICATES + LOOKALIKES)
        for _ in range(TRIES):
            place = self.random.randrange(len(self.partners))
            partner, row = self.partners[place]
            other = self._of_same_source(row)
            made = _made(kind, row, other, new_name, self.random) if other else None
            if made is not None and (made != row or kind == "format"):
                self.partners[place] = self.partners[-1]
                self.partners.pop()
                return made, Plant(line, partner, kind)
        return None

    def _of_same_source(self, row: Row) -> Row | None:
        drawn = (self.random.choice(self.partners)[1] for _ in range(2 * TRIES))
        return next((other for other in drawn if other.source == row.source and other != row), None)


def _made(kind: str, row: Row, other: Row, new_name: str, random: Random) -> Row | None:
    if kind == "format":
        return replace(row, prompt=random.choice(FORMATS)(row.prompt))
    if kind == "other_answer":
        return replace(row, answer=other.answer)
    if kind == "other_slot":
        prompt, answer = row.prompt.replace(row.slot, new_name), row.answer.replace(row.slot, new_name)
        return replace(row, prompt=prompt, answer=answer, slot=new_name) if row.slot else None
    if row.earlier:
        return None  # a share of the last turn is a smaller share of the row
    if kind == "other_number":
        changed = other_number(row.prompt, random)
    elif kind == "truncation":
        changed = truncated(row.prompt, random)
    else:
        changed = edited(row.prompt, {"edit_5": 0.05, "edit_10": 0.1}[kind], other.prompt, random)
    return replace(row, prompt=changed) if changed else None


def words_of(text: str) -> list[str]:
    """The words of a text; pairs of characters where it has no spaces."""
    return text.split() if " " in text else [text[i : i + 2] for i in range(0, len(text), 2)]


def edited(text: str, share: float, other: str, random: Random) -> str | None:
    """The text with that share of its words replaced (half of them), left out or followed by a word of `other`.

    Words with a digit or punctuation stay. None where the text is too short.
    """
    words, others = words_of(text), [word for word in words_of(other) if word.isalpha()]
    places = [place for place, word in enumerate(words) if word.isalpha()]
    num_edits = round(share * len(words))
    if len(words) < FEWEST_WORDS or len(places) < num_edits or not others:
        return None
    between = " " if " " in text else ""
    for place in random.sample(places, num_edits):
        new = random.choice(others)
        words[place] = random.choice([new, new, "", f"{words[place]}{between}{new}"])
    return between.join(word for word in words if word)


def truncated(text: str, random: Random) -> str | None:
    """The text without its last 5 to 15% of words; None where it is short or would lose a number."""
    words = words_of(text)
    kept = len(words) - max(1, int(random.uniform(0.05, 0.15) * len(words)))
    between = " " if " " in text else ""
    lost = between.join(words[kept:])
    if len(words) < FEWEST_WORDS or any(character.isdigit() for character in lost):
        return None
    return between.join(words[:kept])


def other_number(text: str, random: Random) -> str | None:
    """The text with one of its numbers changed; None where it has none."""
    found = list(re.finditer(r"\d+", text))
    if not found:
        return None
    one = random.choice(found)
    return f"{text[: one.start()]}{int(one[0]) + random.randrange(1, 9)}{text[one.end() :]}"
