"""A question and its answer so far."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from tunewright.artifacts import IGNORED

States = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer for one row, [heads, tokens, size]


@dataclass(eq=False)
class Answer:
    """A question, as the tokens of its prompt and of its reference with the stop token, and its answer so far."""

    prompt: list[int]
    reference: list[int]
    tokens: list[int] = field(default_factory=list)  # without the stop token
    stopped: bool = False  # by a stop token of its own
    nll: float = 0.0  # negative log-likelihood of the reference, summed over its tokens, in nats
    states: States = field(default_factory=list)  # of all tokens but the last, while the answer waits to go on

    @classmethod
    def of(cls, input_ids: Sequence[int], labels: Sequence[int], prompt_length: int) -> Self:
        """The question and the reference of a row of TOKEN_SCHEMA."""
        reference = [label for label in labels[prompt_length:] if label != IGNORED]
        return cls(prompt=list(input_ids[:prompt_length]), reference=reference)

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
            if not self.stopped:
                self.tokens.append(token)
            if self.stopped or len(self.tokens) >= max_new_tokens:
                return False
        return True


def agreed(draft: Sequence[int], likeliest: Sequence[int]) -> list[int]:
    """The likeliest tokens, one for each of the draft and for what follows it, up to the first that is another."""
    differs = (at for at, (a, b) in enumerate(zip(draft, likeliest, strict=False)) if a != b)
    return list(likeliest[: next(differs, len(draft)) + 1])
