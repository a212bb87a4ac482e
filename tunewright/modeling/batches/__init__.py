"""Batches of tokenized rows in several layouts, and the loss on their answers: the same loss and gradients in each.

padded: rows padded on the right to the longest. packed: rows one after another in one sequence, where each sees itself
alone; those of like length attend side by side. shared: packed, and what all of them begin with is there once. flash:
packed, for FlashAttention.

The rows of an optimizer step are cut into micro-batches; however they are cut and laid out, the update is the same.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tunewright.artifacts import IGNORED
from tunewright.modeling.batches.attention import ATTENTION
from tunewright.modeling.batches.layouts import AttentionGroup, Batch, flash, packed, padded
from tunewright.modeling.micro_batching import GROUP, Layout, Row, cut, shared_out

__all__ = [
    "ATTENTION",
    "AttentionGroup",
    "Batch",
    "Collator",
    "answer_likelihoods",
    "answer_loss",
    "cross_entropy",
    "flash",
    "num_labels",
    "packed",
    "padded",
    "scored",
    "token_likelihoods",
]
PIECE = 256  # positions whose probabilities over the vocabulary are held in float32 at once


class Collator:
    """Makes {"micro_batches": [Batch, ...]} of a step's rows: at most `micro_batch` rows and `max_tokens` tokens each.

    A row alone may have more tokens. Tokens are those that are computed: with padding, and a shared prefix once.
    `a_group` is what packed rows are grouped by (tunewright/modeling/micro_batching.py). Of several `ranks` it makes
    the micro-batches of the one with the number `rank`.
    """

    def __init__(
        self,
        layout: Layout,
        pad_token_id: int,
        micro_batch: int,
        max_tokens: int | None = None,
        a_group: int | None = GROUP["cpu"],
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.layout: Layout = layout
        self.pad_token_id, self.micro_batch, self.max_tokens = pad_token_id, micro_batch, max_tokens
        self.a_group = a_group
        self.rank, self.ranks = rank, ranks

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The step's batch, of rows as they were drawn."""
        cuts = cut(rows, self.layout, self.micro_batch, self.max_tokens, self.ranks)
        shares = shared_out(cuts, self.ranks)
        own = [self.lay(micro_batch) for micro_batch in shares[self.rank]]
        idle = max(map(len, shares)) - len(own)
        return {"micro_batches": own + [self._without_labels(cuts[0])] * idle}

    def _without_labels(self, rows: Sequence[Row]) -> Batch:
        """A micro-batch of which nothing is learned: a rank computes it while the others compute their last one.

        As one of real rows it reaches every parameter that these do: the ranks sum the gradients of all of them.
        """
        batch = self.lay(rows[:1])
        return {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}

    def lay(self, rows: Sequence[Row]) -> Batch:
        """One micro-batch of the rows."""
        if self.layout == "padded":
            return padded(rows, self.pad_token_id)
        if self.layout == "flash":
            return flash(rows)
        return packed(rows, share=self.layout == "shared", a_group=self.a_group)


def num_labels(batch: Batch) -> int:
    """Count the labels of a batch."""
    return int(batch["labels"].ne(IGNORED).sum())


def answer_loss(model: Any, batch: Batch, num_items: float | None = None) -> torch.Tensor:
    """The mean cross-entropy over the batch's labels, or their sum over `num_items`: a scalar in nats per token."""
    return cross_entropy(*scored(model, batch), num_labels(batch) if num_items is None else num_items)


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, num_items: float) -> torch.Tensor:
    """The sum of the cross-entropies of the labels over `num_items`, by what `scored` gives: a scalar in nats."""
    return _CrossEntropy.apply(logits, labels, 1 / max(1, num_items))


def answer_likelihoods(model: Any, batch: Batch, number: int) -> torch.Tensor:
    """The log-likelihood of each of so many answers, summed over its tokens: [number] in nats, in float32."""
    logits, labels = scored(model, batch)
    return _LogLikelihoods.apply(logits, labels, batch["answers"].to(logits.device).flatten(), number)


def token_likelihoods(model: Any, batch: Batch, temperature: float = 1.0) -> torch.Tensor:
    """The log-likelihood of each label at a temperature: [positions] in nats, in float32, 0 where there is no label."""
    logits, labels = scored(model, batch)
    scaled = logits if temperature == 1.0 else logits / temperature
    return _LogLikelihoods.apply(scaled, labels, torch.arange(len(labels), device=logits.device), len(labels))


def scored(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of the scored positions [positions, vocabulary], and their labels [positions]."""
    logits = model(**batch["inputs"], use_cache=False).logits.flatten(0, 1)
    return logits, batch["labels"].to(logits.device).flatten()


def _pieces(
    logits: torch.Tensor, labels: torch.Tensor
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(first position, labels [positions, 1], which are scored, log-likelihoods of all tokens), a piece at a time."""
    for at in range(0, len(labels), PIECE):
        target = labels[at : at + PIECE, None]
        likelihoods = torch.log_softmax(logits[at : at + PIECE], dim=-1, dtype=torch.float32)
        yield at, target.clamp(min=0), target != IGNORED, likelihoods


class _CrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies in float32, scaled, piece by piece.

    Forward knows the gradient already, so that nothing of the vocabulary's width is kept in float32: a third of the
    memory, and a fraction of the passes, of torch's own on bfloat16 logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, scale: float) -> torch.Tensor:
        total = torch.zeros((), device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for at, target, scored, likelihoods in _pieces(logits, labels):
            total -= (likelihoods.gather(1, target) * scored).sum()
            if gradient is not None:
                probabilities = likelihoods.exp_()
                probabilities.scatter_add_(1, target, -torch.ones_like(target, dtype=torch.float32))
                torch.mul(probabilities, scored * scale, out=probabilities)
                gradient[at : at + PIECE] = probabilities
        ctx.gradient = gradient
        return total * scale

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(outer[0]), None, None


class _LogLikelihoods(torch.autograd.Function):
    """The sums of the log-likelihoods of each answer's labels in float32, piece by piece as in _CrossEntropy."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, answers: torch.Tensor, number: int
    ) -> torch.Tensor:
        sums = torch.zeros(number, device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for at, target, scored, likelihoods in _pieces(logits, labels):
            sums.index_add_(0, answers[at : at + PIECE], (likelihoods.gather(1, target) * scored).squeeze(1))
            if gradient is not None:
                probabilities = likelihoods.exp_().neg_()
                probabilities.scatter_add_(1, target, torch.ones_like(target, dtype=torch.float32))
                torch.mul(probabilities, scored, out=probabilities)
                gradient[at : at + PIECE] = probabilities
        ctx.gradient, ctx.answers = gradient, answers
        return sums

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(outer[0][ctx.answers, None]), None, None, None
