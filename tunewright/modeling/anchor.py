"""The KL divergence from the base on general rows, which holds a model to what it said there before its training.

KL(tuned || base) at each token of their answers, over the base's likeliest tokens one by one and all others together.
That is a lower bound of the divergence over the whole vocabulary, exact where the base leaves the others nothing. So
the base's part is computed once, and no second model is held.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch

from tunewright.artifacts import IGNORED
from tunewright.modeling.batches import PIECE, Batch, Collator, scored
from tunewright.modeling.micro_batching import Row

LIKELIEST = 64  # tokens of the base at each place, which have nearly all of its probability
LEAST = 1e-6  # of all other tokens together, below what float32 tells from none
# Of a general row: the ids of those tokens [places x tokens], flat, and their log-likelihoods.
COLUMNS = {"likeliest": pa.int32(), "base": pa.float32()}


class AnchoredBatch(Batch):
    """A micro-batch, the places of the answers of its general rows among those that are scored, and what the base says
    there: its likeliest tokens [places, tokens] and their log-likelihoods.
    """

    places: torch.Tensor
    likeliest: torch.Tensor
    base: torch.Tensor


class AnchoredCollator(Collator):
    """A Collator of rows that say whether they are general ones, by `replay`; those then have COLUMNS, if measured."""

    def _without_labels(self, rows: Sequence[Row]) -> AnchoredBatch:
        """As of a Collator, without places."""
        batch: Any = self.lay(rows[:1])
        none = {name: batch[name][:0] for name in ("places", *COLUMNS)}
        batch |= {**none, "labels": torch.full_like(batch["labels"], IGNORED)}
        return batch

    def lay(self, rows: Sequence[Row]) -> AnchoredBatch:
        """One micro-batch of the rows."""
        batch = super().lay(rows)
        answers = batch["answers"].flatten().where(batch["labels"].flatten() != IGNORED, -1)
        places, found = [torch.zeros(0, dtype=torch.long)], {name: list[torch.Tensor]() for name in COLUMNS}
        for at, row in enumerate(rows):
            if row["replay"]:
                places.append((answers == at).nonzero().squeeze(1))
                for name in COLUMNS if row.get("likeliest") else ():
                    found[name].append(torch.tensor(row[name]).view(len(places[-1]), -1))
        said = {name: torch.cat(some) if some else torch.zeros(0, 1) for name, some in found.items()}
        return {**batch, "places": torch.cat(places), "likeliest": said["likeliest"].long(), "base": said["base"]}


def likeliest(model: Any, batch: AnchoredBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's likeliest tokens [places, tokens] at the places of a batch, and their log-likelihoods."""
    logits = scored(model, batch)[0][batch["places"]]
    pieces = [_log_softmax(piece).topk(min(LIKELIEST, logits.shape[-1])) for piece in logits.split(PIECE)]
    return torch.cat([found.indices for found in pieces]), torch.cat([found.values for found in pieces])


def divergence(logits: torch.Tensor, batch: AnchoredBatch) -> torch.Tensor:
    """The sum of the KL divergences at the places, by all logits of the batch: a scalar in nats."""
    at = batch["places"].to(logits.device)
    return _Divergence.apply(logits[at], batch["likeliest"].to(logits.device), batch["base"].to(logits.device))


class _Divergence(torch.autograd.Function):
    """The sum of the divergences in float32, piece by piece; forward knows the gradient already, as in _CrossEntropy.

    By a logit of the token t it is p(t) (c(t) - KL), with c the log-ratio of model and base of the token, or of all
    others together.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for at in range(0, len(logits), PIECE):
            chosen, reference = tokens[at : at + PIECE], base[at : at + PIECE]
            likelihoods = _log_softmax(logits[at : at + PIECE])
            own = likelihoods.gather(1, chosen)
            others = _of_others(own)
            gaps, gap = own - reference, others - _of_others(reference)
            each = (own.exp() * gaps).sum(1, keepdim=True) + others.exp() * gap
            total += each.sum()
            if gradient is not None:
                piece = likelihoods.exp_().mul_(gap - each)
                gradient[at : at + PIECE] = piece.scatter_(1, chosen, own.exp() * (gaps - each))
        ctx.gradient = gradient
        return total

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(outer[0]), None, None


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32)


def _of_others(likelihoods: torch.Tensor) -> torch.Tensor:
    """The log-likelihood [places, 1] of all tokens but those of `likelihoods` [places, tokens] together."""
    return (1 - likelihoods.exp().sum(1, keepdim=True)).clamp(min=LEAST).log()
