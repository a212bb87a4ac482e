"""Drafts for an answer: the tokens that followed the same context before."""

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from tunewright.generation.rows import Answer

CONTEXTS = (6, 3, 2)  # tokens that have to be the same, the most first
LEARNT = 100_000  # tokens that are remembered, a few tens of megabytes
LONGEST = 16  # draft
FIRST = (1, 1)  # tokens of a kind that were right and drafts that were wrong, before any was tried


class Draft(NamedTuple):
    """Likely next tokens, and how they were found: by how long a context, and where."""

    tokens: list[int]
    kind: tuple[int, str]


NONE = Draft([], (0, "nowhere"))


class Drafts:
    """Earlier answers by their n-grams, and how often drafts of each kind were right."""

    def __init__(self) -> None:
        self.text: list[int] = []
        self.places: dict[tuple[int, ...], int] = {}  # n-gram -> where it ended the last time
        self.seen: dict[tuple[int, str], tuple[int, int]] = {}  # kind -> right tokens, wrong drafts

    def remember(self, row: Answer, said: Sequence[int]) -> None:
        """Remembers what was said, or was to be said, to the row's prompt."""
        if len(self.text) > LEARNT:
            self.text, self.places = [], {}
        lead = row.prompt[-CONTEXTS[0] :]
        begin = len(self.text) + len(lead)
        self.text += [*lead, *said]
        for end in range(begin, len(self.text)):
            for length in CONTEXTS:
                self.places[tuple(self.text[end - length : end])] = end

    def draft(self, row: Answer) -> Draft:
        """Draft the row's next tokens: at most LONGEST, perhaps none."""
        for length in CONTEXTS:
            context = row.tail(length)
            if found := _after(row.reference, context):
                return Draft(found, (length, "reference"))
            if end := self.places.get(tuple(context)):
                return Draft(self.text[end : end + LONGEST], (length, "answers"))
            if found := _after(row.prompt, context):
                return Draft(found, (length, "prompt"))
        return NONE

    def tried(self, draft: Draft, num_tried: int, num_right: int) -> None:
        """Learns how many of a draft's first tokens were right."""
        right, wrong = self.seen.get(draft.kind, FIRST)
        self.seen[draft.kind] = right + num_right, wrong + (num_right < num_tried)

    def chance(self, draft: Draft) -> float:
        """Return the probability that a token is right if those before it in the draft are."""
        right, wrong = self.seen.get(draft.kind, FIRST)
        return right / (right + wrong)


def _after(tokens: Sequence[int], context: Sequence[int]) -> list[int]:
    """Return the tokens after the last occurrence of the context."""
    text, part = array("i", tokens[:-1]).tobytes(), array("i", context).tobytes()
    at = text.rfind(part)
    while at % 4 and at >= 0:
        at = text.rfind(part, 0, at + len(part) - 1)
    begin = at // 4 + len(context)
    return list(tokens[begin : begin + LONGEST]) if at >= 0 else []
