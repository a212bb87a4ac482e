"""Questions and their answers so far, and which of them are read together: those whose prompts begin alike."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self

import torch

from tunewright.artifacts import IGNORED

if TYPE_CHECKING:
    from tunewright.modeling.chat import Chat

States = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer for one row, [heads, tokens, size]
WORTH = 512  # tokens that a group of its own has to save: about what its smaller batches cost
DEEPEST = 3  # groups within groups, each of which holds the states of what it shares


@dataclass(eq=False)
class Answer:
    """A question, as the tokens of its prompt and of its reference with the stop token, and its answer so far."""

    prompt: list[int]
    reference: list[int]
    tokens: list[int] = field(default_factory=list)  # without the stop token
    stopped: bool = False  # by a stop token of its own
    stop: int | None = None  # that token
    nll: float = 0.0  # negative log-likelihood of the reference, summed over its tokens, in nats
    served: list[float] | None = None  # log-likelihood of each token, the stop token too, by a server that drew it
    states: States = field(default_factory=list)  # of all tokens but the last, while the answer waits to go on

    @classmethod
    def of(cls, input_ids: Sequence[int], labels: Sequence[int], prompt_length: int) -> Self:
        """The question and the reference of a row of TOKEN_SCHEMA, with its reasoning where that is not trained."""
        end = next((at for at in range(len(labels), prompt_length, -1) if labels[at - 1] != IGNORED), prompt_length)
        return cls(prompt=list(input_ids[:prompt_length]), reference=list(input_ids[prompt_length:end]))

    @classmethod
    def to_prompts(cls, chat: "Chat", prompts: Sequence[str]) -> list[Self]:
        """The question of each prompt, a conversation of its own; as no answer is known, its reference is a stop."""
        asked = chat.texts([[{"role": "user", "content": prompt}] for prompt in prompts], ask=True)
        return [cls(prompt=ids, reference=[min(chat.stops.values())]) for ids in chat.ids(asked)]

    @property
    def mean_nll(self) -> float:
        """The negative log-likelihood of the reference per token, in nats."""
        return self.nll / len(self.reference)

    @property
    def num_read(self) -> int:
        """The tokens that are read to verify it: the last of the reference is only predicted."""
        return len(self.prompt) + len(self.reference) - 1

    def tail(self, length: int) -> list[int]:
        """The last tokens of the prompt and of what was answered."""
        missing = length - len(self.tokens)
        return self.prompt[-missing:] + self.tokens if missing > 0 else self.tokens[-length:]

    def is_reference(self, stops: Collection[int]) -> bool:
        """Return whether the answer equals its reference, token for token, and stopped there."""
        return self.stopped and self.tokens == [token for token in self.reference if token not in stops]

    def text(self, tokenizer: Any, reference: str, stops: Collection[int]) -> str:
        """As a server would send it; the reference's own text where it is that, token for token."""
        return reference if self.is_reference(stops) else tokenizer.decode(self.tokens, skip_special_tokens=True)

    def add(self, said: Sequence[int], stops: Collection[int], max_new_tokens: int) -> bool:
        """Adds what was said, up to where the answer has to end; whether it goes on."""
        for token in said:
            self.stopped = token in stops
            if self.stopped:
                self.stop = token
            else:
                self.tokens.append(token)
            if self.stopped or len(self.tokens) >= max_new_tokens:
                return False
        return True


def agreed(draft: Sequence[int], likeliest: Sequence[int]) -> list[int]:
    """The likeliest tokens, one for each of the draft and for what follows it, up to the first that is another."""
    differs = (at for at, (a, b) in enumerate(zip(draft, likeliest, strict=False)) if a != b)
    return list(likeliest[: next(differs, len(draft)) + 1])


@dataclass
class PrefixGroup:
    """Rows whose prompts begin with the same `length` tokens, and among them those that share more."""

    length: int
    rows: list[Answer] = field(default_factory=list)  # that are in no inner group
    inner: list["PrefixGroup"] = field(default_factory=list)


def grouped(rows: Sequence[Answer]) -> PrefixGroup:
    """All rows by what their prompts begin with."""
    ordered = sorted(rows, key=lambda row: row.prompt)
    return _group(ordered, _shared(ordered), DEEPEST)


def _group(rows: Sequence[Answer], length: int, depth: int) -> PrefixGroup:
    """A group of rows in the order of their prompts."""
    group = PrefixGroup(length)
    waiting = [(rows, length)] if depth else []
    group.rows = [] if depth else list(rows)
    while waiting:
        some, shared = waiting.pop()
        ends = [row for row in some if len(row.prompt) <= shared + 1]  # its last token predicts, so it is not shared
        group.rows += ends
        longer_ones = (row for row in some if len(row.prompt) > shared + 1)
        for _, going_on in groupby(longer_ones, lambda row, at=shared: row.prompt[at]):
            run = list(going_on)
            longer = _shared(run)
            if (len(run) - 1) * (longer - length) >= WORTH:
                group.inner.append(_group(run, longer, depth - 1))
            elif (len(run) - 1) * (max(len(row.prompt) for row in run) - length) >= WORTH:
                waiting.append((run, longer))
            else:
                group.rows += run
    return group


def batches(
    rows: Sequence[Answer], most: int, *, prefix: int, overhead: int, most_tokens: int | None
) -> list[list[Answer]]:
    """The rows by length in batches of at most `most`, for which the fewest tokens are computed, padding counted.

    A batch costs `overhead` tokens. The first `prefix` tokens of a row are not read, and a batch of more than one row
    holds no more than `most_tokens`.
    """
    ordered = sorted(rows, key=lambda row: -row.num_read)
    lengths = [row.num_read - prefix for row in ordered]
    fewest = [(0, 0)]  # for so many of the longest rows: the tokens, and where their last batch begins
    for end in range(1, len(rows) + 1):
        begins = [end - 1]
        for begin in range(end - 2, max(-1, end - most - 1), -1):
            if most_tokens and lengths[begin] * (end - begin) > most_tokens:
                break
            begins.append(begin)
        fewest.append(min((fewest[at][0] + overhead + lengths[at] * (end - at), at) for at in begins))
    cut, end = list[list[Answer]](), len(rows)
    while end:
        begin = fewest[end][1]
        cut.append(ordered[begin:end])
        end = begin
    return cut[::-1]


def _shared(ordered: Sequence[Answer]) -> int:
    """The tokens that all prompts begin with; the last token of a prompt predicts, so it is not shared."""
    first, last = ordered[0].prompt, ordered[-1].prompt
    shortest = min(len(row.prompt) for row in ordered) - 1
    return next((at for at in range(shortest) if first[at] != last[at]), shortest)
