"""Answers that are drawn at random, by the passes of greedy decoding.

A token is drawn as the likeliest one after each logit has its own noise added, of the Gumbel distribution: the
probabilities are those of the softmax (Gumbel 1954; Maddison et al., arXiv 1411.0030). The noise depends on the seed,
the question, the number of the answer and the place alone, so that drafts can be verified as in greedy decoding, and
answers do not depend on what they are drawn together with, but for rounding.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

import torch

from tunewright.generation import plain
from tunewright.generation.decoding import Greedy
from tunewright.generation.rows import Answer


class Sampling(Greedy):
    """Answers by `model` at a temperature, as Greedy's otherwise; `seed` names the draw."""

    def __init__(self, model: Any, *, temperature: float, seed: str, **rest: Any) -> None:
        super().__init__(model, **rest)
        self.temperature, self.seed = temperature, seed
        self.names: dict[Answer, str] = {}

    def draw(
        self,
        asked: Sequence[Answer],
        names: Sequence[str],
        number: int,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[list[Answer]]:
        """So many answers to each question; equal names draw equal answers to equal questions."""
        drawn = [
            [Answer(prompt=each.prompt, reference=each.reference[:1]) for _ in range(number)] for each in asked
        ]  # a reference is no more than a draft here: of a random answer it is seldom right for long
        for name, each, answers in zip(names, asked, drawn, strict=True):
            self.names |= {answer: f"{self.seed} {name} {at}" for at, answer in enumerate(answers)}
            self.drafts.remember(each, each.reference)
        self.answer([answer for answers in drawn for answer in answers], on_progress=on_progress)
        for each, answers in zip(asked, drawn, strict=True):
            for answer in answers:
                answer.reference = each.reference
        return drawn

    def _answer_by_library(self, rows: Sequence[Answer], *, generate: bool, pads: bool) -> None:
        at_once = self.batch if pads else 1
        with torch.random.fork_rng():
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                torch.manual_seed(number_of(self.names[some[0]]))
                plain.generate_whole(self.model, some, sorted(self.stops), self.max_new_tokens, self.temperature)
                self.on_progress(start + len(some))

    def _next(self, logits: torch.Tensor, rows: Sequence[Answer], places: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(logits.device)
        noise = torch.empty(logits.shape[-1], device=logits.device)
        chosen = torch.zeros(logits.shape[:2], dtype=torch.long, device=logits.device)
        for at, row in enumerate(rows):
            for column, place in enumerate(places[at].tolist()):
                if place >= 0:
                    generator.manual_seed(number_of(f"{self.names[row]} {place}"))
                    noise.exponential_(generator=generator)
                    chosen[at, column] = (logits[at, column].float() / self.temperature - noise.log()).argmax()
        return chosen


def number_of(name: str) -> int:
    """Return a seed for a name."""
    return int.from_bytes(sha256(name.encode()).digest()[:7])
