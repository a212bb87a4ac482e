"""KTO's loss on answers that are desirable or undesirable, without pairs (arXiv 2402.01306).

It compares each answer's log-ratio of model and reference with the KL divergence of the two. That is estimated from
mismatched answers: behind each prompt the answer of another row. Which row is fixed by the data, so that the reference
of both answers is computed once.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import torch

from tunewright.artifacts import IGNORED
from tunewright.config import Preference
from tunewright.modeling.batches import Batch, Collator
from tunewright.modeling.micro_batching import Row
from tunewright.modeling.pairs import last_answer, two_rows
from tunewright.modeling.preferences import REFERENCE

MOST_TRIED = 16  # rows that are looked at for an answer to another prompt


class LabelledBatch(Batch):
    """A micro-batch of answers, each with its mismatched one, and the reference's log-likelihoods of both."""

    mismatched: Batch
    desirable: torch.Tensor  # [answers] bool
    reference: torch.Tensor  # [answers, 2], in nats


def labelled(rows: Iterable[Mapping[str, Any]], undesirable: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The answers of rows of TOKEN_SCHEMA with their label: the last one of each, and the rejected one of a pair.

    Rows for replay are left out. In the columns of a pair: `rejected_ids` are those of the mismatched answer.
    """
    found: list[dict[str, Any]] = []
    for row in rows:
        if not row["replay"]:
            found.append(_labelled(row, last_answer(row), desirable=True))
            if row["rejected_ids"] is not None:
                found.append(_labelled(row, row["rejected_ids"], desirable=False))
    found += [_labelled(row, last_answer(row), desirable=False) for row in undesirable]
    return _with_mismatched(found)


def _labelled(row: Mapping[str, Any], answer: Sequence[int], *, desirable: bool) -> dict[str, Any]:
    length = row["prompt_length"]
    return {
        "row_id": row["row_id"],
        "input_ids": [*row["input_ids"][:length], *answer],
        "labels": [IGNORED] * length + [*answer],
        "prompt_length": length,
        "desirable": desirable,
    }


def _with_mismatched(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each row with the answer of the next one that has another prompt, in an order that depends on the rows alone.

    It is cut where it would make a row longer than all others.
    """
    longest = max((len(row["input_ids"]) for row in rows), default=0)
    names = [sha256(f"{row['row_id']} {row['desirable']}".encode()).digest() for row in rows]
    order = sorted(range(len(rows)), key=names.__getitem__)
    for place, at in enumerate(order):
        row, prompt = rows[at], rows[at]["input_ids"][: rows[at]["prompt_length"]]
        next_ones = (rows[order[(place + step) % len(order)]] for step in range(1, MOST_TRIED + 1))
        others = [each for each in next_ones if each["input_ids"][: each["prompt_length"]] != prompt]
        other = others[0] if others else rows[order[(place + 1) % len(order)]]
        answer = other["input_ids"][other["prompt_length"] :]
        row["rejected_ids"] = answer[: max(1, longest - len(prompt))]
    return rows


class LabelledCollator(Collator):
    """A Collator of answers with labels: `micro_batch` and `max_tokens` count the answers without mismatched ones."""

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The step's batch, of rows as they were drawn."""
        return super().__call__([{"input_ids": row["input_ids"], "labels": row["labels"], "row": row} for row in rows])

    def _without_labels(self, rows: Sequence[Row]) -> LabelledBatch:
        """A micro-batch of which nothing is learned: it has no answers."""
        batch = self.lay(rows[:1])
        return {**batch, "desirable": batch["desirable"][:0], "reference": batch["reference"][:0]}

    def lay(self, rows: Sequence[Row]) -> LabelledBatch:
        """One micro-batch of the answers."""
        answers = [row["row"] for row in rows]
        own, mismatched = zip(*map(two_rows, answers), strict=True)
        return {
            **super().lay(own),
            "mismatched": super().lay(mismatched),
            "desirable": torch.tensor([row["desirable"] for row in answers]),
            "reference": torch.tensor([[row.get(name, 0.0) for name in REFERENCE] for row in answers]),
        }


def kto(log_ratios: torch.Tensor, desirable: torch.Tensor, kl: float, settings: Preference) -> torch.Tensor:
    """The loss of each answer [answers], by its log-ratio of model and reference, in nats [answers]."""
    value = settings.beta * (log_ratios - kl)
    gained = 1 - torch.sigmoid(torch.where(desirable, value, -value))
    return gained * torch.where(desirable, settings.desirable_weight, settings.undesirable_weight)
