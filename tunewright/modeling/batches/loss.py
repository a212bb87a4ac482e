"""The loss on a batch's answers."""

from typing import Any

import torch

from tunewright.artifacts import IGNORED
from tunewright.modeling.batches.layouts import Batch

PIECE = 256  # positions whose probabilities over the vocabulary are held in float32 at once


def num_labels(batch: Batch) -> int:
    """How many labels a batch scores."""
    return int(batch["labels"].ne(IGNORED).sum())


def answer_loss(model: Any, batch: Batch, num_items: int | None = None) -> torch.Tensor:
    """The mean cross-entropy over the batch's labels, or their sum over `num_items`: a scalar in nats per token."""
    logits = model(**batch["inputs"], use_cache=False).logits.flatten(0, 1)
    labels = batch["labels"].to(logits.device).flatten()
    if num_items is None:
        num_items = num_labels(batch)
    return _CrossEntropy.apply(logits, labels, 1 / max(1, num_items))


class _CrossEntropy(torch.autograd.Function):
    """The sum of the cross-entropies in float32, scaled, piece by piece.

    Forward knows the gradient already, so that nothing of the vocabulary's width is kept in float32: a third of the
    memory, and a fraction of the passes, of torch's own on bfloat16 logits.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor, scale: float) -> torch.Tensor:
        total = torch.zeros((), device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for at in range(0, len(labels), PIECE):
            target = labels[at : at + PIECE, None]
            scored = target != IGNORED
            target = target.clamp(min=0)
            likelihoods = torch.log_softmax(logits[at : at + PIECE], dim=-1, dtype=torch.float32)
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
