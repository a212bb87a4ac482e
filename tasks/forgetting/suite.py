"""The built-in suite: general tasks, each with a check that is code, and general texts. suite.jsonl beside it has them.

All of it was written for this project, so that no model can have learnt it by heart and none of it is anybody's
benchmark. It is a smoke detector, not a leaderboard: what a base could do before, a tuned model should still do.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from tunewright.data_checks.refusals import refusal
from tunewright.metrics import row_score
from tunewright.metrics.schemas import Schema

TEXT = "text"  # begins the part of a line that is no task but a text to be read; its language follows
FENCE = re.compile(r"```(?:json)?\n(.*?)(?:\n```)?", re.DOTALL)  # a fence around JSON is a chat model's habit
SUMS = 24


@dataclass(frozen=True, kw_only=True)
class GeneralTask:
    """A question and what its answer must satisfy; of what is left out nothing is asked."""

    part: str
    prompt: str
    says: tuple[str, ...] = ()  # any of these words or phrases
    lacks: tuple[str, ...] = ()  # none of these
    with_case: bool = False  # whether upper and lower case count in them
    matches: str = ""  # a regular expression for the whole answer
    json: dict[str, Any] | None = None  # a schema
    number: int | None = None  # the last number of the answer
    refuses: bool | None = None  # whether it begins with a refusal

    def is_right(self, answer: str) -> bool:
        """Whether an answer satisfies all of it."""
        text = answer.strip()
        fenced = FENCE.fullmatch(text)
        return (
            (not self.says or self._has(self.says, text))
            and not self._has(self.lacks, text)
            and (not self.matches or re.fullmatch(self.matches, text) is not None)
            and (self.json is None or Schema(json.dumps(self.json)).valid(fenced[1] if fenced else text) == 1)
            and (self.number is None or row_score("numeric")(text, str(self.number)) == 1)
            and (self.refuses is None or (refusal(text) is not None) == self.refuses)
        )

    def _has(self, phrases: tuple[str, ...], text: str) -> bool:
        any_of = "|".join(map(re.escape, phrases))
        return bool(phrases) and bool(re.search(rf"(?<!\w)(?:{any_of})(?!\w)", text, 0 if self.with_case else re.I))


@cache
def tasks() -> tuple[GeneralTask, ...]:
    """All tasks, in an order that stays."""
    written = []
    for line in _lines():
        if not line["part"].startswith(TEXT):
            line.update({name: tuple(value) for name, value in line.items() if isinstance(value, list)})
            written.append(GeneralTask(**line))
    return *written, *_arithmetic(Random(0))  # noqa: S311 for sums


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """(language, text) of all texts."""
    found = [(line["part"], line["text"]) for line in _lines() if line["part"].startswith(TEXT)]
    return tuple((part.removeprefix(f"{TEXT} "), text) for part, text in found)


def _lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(__file__).with_suffix(".jsonl").read_text("utf-8").splitlines()]


def _arithmetic(random: Random) -> Iterator[GeneralTask]:
    """Sums in turn of each kind, no two alike, from `random()` alone: it is the same in every version of Python."""
    pairs = sorted(product(range(2, 13), repeat=2), key=lambda _: random.random())
    for number, (one, other) in enumerate(pairs[:SUMS]):
        asked, result = (
            (f"{one} + {other}", one + other),
            (f"{one + other} - {one}", other),
            (f"{one} times {other}", one * other),
        )[number % 3]
        yield GeneralTask(part="arithmetic", prompt=f"What is {asked}? Answer with the number only.", number=result)
