"""Both layouts of a batch give the same loss and the same gradients."""

import random
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tasks import batches
from tasks.artifacts import IGNORED, Base
from tasks.batches import answer_loss, plain_batch, shared_batch, shared_prefix


def make_rows(prefix: int, lengths: list[tuple[int, int]], seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows of a common prefix, then (own prompt, answer) tokens each."""
    rng = random.Random(seed)
    common = [rng.randrange(10, 200) for _ in range(prefix)]
    rows = []
    for i, (prompt, answer) in enumerate(lengths):
        own = [200 + i, *(rng.randrange(10, 200) for _ in range(prompt - 1))] if prompt else []
        told = [rng.randrange(10, 200) for _ in range(answer)]
        rows.append({"input_ids": common + own + told, "labels": [IGNORED] * (prefix + prompt) + told})
    return rows


def loss_and_gradients(base: Base, batch: dict[str, torch.Tensor], attention: str) -> tuple[float, torch.Tensor]:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base.weights, attn_implementation=attention)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    loss = answer_loss(model.train(), batch)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize(
    ("prefix", "lengths"),
    [
        (20, [(5, 3), (1, 7), (9, 1), (4, 4)]),
        (0, [(5, 3), (2, 7)]),
        (12, [(6, 2)]),
        (1, [(3, 3), (4, 2)]),
        (8, [(0, 3), (0, 5)]),  # the whole prompt is shared
    ],
)
def test_a_shared_prefix_changes_neither_loss_nor_gradients(
    tiny_base: Base, prefix: int, lengths: list[tuple[int, int]]
) -> None:
    rows = make_rows(prefix, lengths)
    shared, shared_gradients = loss_and_gradients(tiny_base, shared_batch(rows), batches.ATTENTION)
    plain, plain_gradients = loss_and_gradients(tiny_base, plain_batch(rows, pad_token_id=2), "sdpa")
    assert shared == pytest.approx(plain, rel=1e-5)
    assert (shared_gradients - plain_gradients).norm() <= 1e-4 * plain_gradients.norm()
    assert plain_gradients.norm() > 0


def test_several_answers_of_one_conversation_are_all_scored(tiny_base: Base) -> None:
    rows = make_rows(6, [(4, 8), (3, 9)])
    for row in rows:
        row["labels"][-3] = row["labels"][-4] = IGNORED
    shared, _ = loss_and_gradients(tiny_base, shared_batch(rows), batches.ATTENTION)
    plain, _ = loss_and_gradients(tiny_base, plain_batch(rows, pad_token_id=2), "sdpa")
    assert shared == pytest.approx(plain, rel=1e-5)


def test_the_loss_is_that_of_the_library(tiny_base: Base) -> None:
    rows = make_rows(10, [(5, 5)])
    model = AutoModelForCausalLM.from_pretrained(tiny_base.weights)
    ids, labels = (torch.tensor([rows[0][name]]) for name in ("input_ids", "labels"))
    expected = model(input_ids=ids, labels=labels).loss.item()
    assert answer_loss(model, plain_batch(rows, pad_token_id=2)).item() == pytest.approx(expected, rel=1e-5)


def test_every_label_is_scored_once() -> None:
    rows = make_rows(7, [(3, 4), (2, 6), (1, 1)])
    wanted = sorted(label for row in rows for label in row["labels"] if label != IGNORED)
    for batch in (shared_batch(rows), plain_batch(rows, pad_token_id=2)):
        assert sorted(batch["labels"][batch["labels"] != IGNORED].tolist()) == wanted


def test_a_trained_stop_token_equal_to_the_pad_token_stays_trained() -> None:
    rows = [
        {"input_ids": [5, 6, 2], "labels": [IGNORED, IGNORED, 2]},
        {"input_ids": [5] * 6, "labels": [IGNORED] * 5 + [7]},
    ]
    batch = plain_batch(rows, pad_token_id=2)
    assert batch["attention_mask"].sum(dim=1).tolist() == [3, 6]
    assert 2 in batch["labels"].tolist()[0]


def test_the_token_that_predicts_the_first_label_is_not_shared() -> None:
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [IGNORED, IGNORED, IGNORED, 4]}] * 2
    assert shared_prefix(rows) == 2


def test_a_model_with_a_sliding_window_says_why_it_cannot_share(tiny_base: Base) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base.weights)
    assert batches.can_share(model, longest=100) == ""
    model.config.sliding_window = 64
    assert "slides over 64 tokens and a row has 100" in batches.can_share(model, longest=100)
