"""Answers that the model in training drew, several to each prompt, and how much better each was than its group.

All answers of a step are drawn together, so that each knows its share of the loss: what its micro-batches are cut like
does not count.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tunewright.artifacts import IGNORED
from tunewright.config import Grpo
from tunewright.modeling.batches import Batch, Collator
from tunewright.modeling.micro_batching import Row

FIGURES = ("kl", "clipped_share", "vllm_gap")  # that are measured beside the loss
LEAST = 1e-4  # that is added to a standard deviation, as TRL does


class DrawnBatch(Batch):
    """A micro-batch of drawn answers.

    `advantages` and `weights` [answers]; `drawn`, `reference` and `served` [positions] are the log-likelihoods by the
    model that drew the answers, by the one before its first step, and as a vLLM server drew them, zeros where the loss
    needs none.
    """

    advantages: torch.Tensor
    weights: torch.Tensor
    drawn: torch.Tensor
    reference: torch.Tensor
    served: torch.Tensor


class DrawnCollator(Collator):
    """A Collator of drawn answers: rows with `advantage`, `weight`, and the log-likelihoods that the loss needs."""

    def _without_labels(self, rows: Sequence[Row]) -> DrawnBatch:
        """A micro-batch of which nothing is learned."""
        batch = self.lay(rows[:1])
        return {**batch, "labels": torch.full_like(batch["labels"], IGNORED)}

    def plain(self, rows: Sequence[Row]) -> Batch:
        """One micro-batch of answers of which nothing else is known yet."""
        return super().lay(rows)

    def lay(self, rows: Sequence[Row]) -> DrawnBatch:
        """One micro-batch of the answers."""
        laid = super().lay(rows)
        return {
            **laid,
            "advantages": torch.tensor([row["advantage"] for row in rows]),
            "weights": torch.tensor([row["weight"] for row in rows]),
            "drawn": of_positions(laid, [row.get("drawn") for row in rows]),
            "reference": of_positions(laid, [row.get("reference") for row in rows]),
            "served": of_positions(laid, [row.get("served") for row in rows]),
        }


def of_positions(batch: Batch, values: Sequence[Sequence[float] | None]) -> torch.Tensor:
    """The values of each answer's tokens at their positions in a batch: [positions], zeros elsewhere."""
    answers, is_scored = batch["answers"].flatten(), batch["labels"].flatten() != IGNORED
    found = torch.zeros(len(answers))
    for number, each in enumerate(values):
        if each is not None:
            found[(answers == number) & is_scored] = torch.tensor(each, dtype=found.dtype)
    return found


def of_answers(batch: Batch, found: torch.Tensor, number: int) -> list[list[float]]:
    """The values [positions] of a batch's labelled positions, of each of so many answers in its tokens' order."""
    answers, is_scored = batch["answers"].flatten(), batch["labels"].flatten() != IGNORED
    return [found[(answers == at) & is_scored].tolist() for at in range(number)]


def advantages(rewards: torch.Tensor, settings: Grpo) -> torch.Tensor:
    """How much better than its group each answer is, of rewards [prompts, group]: [prompts, group]."""
    above = rewards - rewards.mean(dim=1, keepdim=True)
    if settings.scale == "none":
        return above
    spread = rewards.std() if settings.scale == "batch" else rewards.std(dim=1, keepdim=True)
    return above / (spread + LEAST)


def weights(sizes: Sequence[int], settings: Grpo) -> list[float]:
    """The share of the loss that each token of an answer has, of answers of so many tokens."""
    if settings.loss == "dapo":
        return [1 / sum(sizes)] * len(sizes)
    return [1 / (len(sizes) * (size if settings.loss == "grpo" else settings.max_new_tokens)) for size in sizes]


def as_rows(asked: Mapping[str, Any], answers: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows of tokens of the answers to a prompt, each with the stop token that ended it."""
    rows = list[dict[str, Any]]()
    for answer in answers:
        tokens = [*answer.tokens, *([answer.stop] if answer.stopped else [])]
        ids = [*answer.prompt, *tokens]
        labels = [IGNORED] * len(answer.prompt) + tokens
        row = {"row_id": asked["row_id"], "input_ids": ids, "labels": labels, "num_tokens": len(tokens)}
        rows.append(row | {"served": answer.served})
    return rows
