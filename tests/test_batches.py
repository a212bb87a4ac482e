"""However a step's rows are laid out and cut, the loss and the gradients are the same."""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tunewright.artifacts import IGNORED, Base
from tunewright.modeling import batches
from tunewright.modeling.batches import Batch, Collator, answer_loss, flash, num_labels, packed, padded
from tunewright.modeling.micro_batching import cut, group_cost, num_tokens, shared_prefix, side_by_side

Rows = list[dict[str, list[int]]]
LAYOUTS: dict[str, Callable[[Rows], Batch]] = {
    "shared": lambda rows: packed(rows, share=True),
    "grouped": lambda rows: packed(rows, share=True, a_group=0),  # a group for each length
    "packed": lambda rows: packed(rows, share=False),
    "padded": lambda rows: padded(rows, pad_token_id=2),
}
CASES = [
    (20, [(5, 3), (1, 7), (9, 1), (4, 4)]),
    (0, [(5, 3), (2, 7)]),
    (12, [(6, 2)]),
    (1, [(3, 3), (4, 2)]),
    (8, [(0, 3), (0, 5)]),  # the whole prompt is shared
]


def make_rows(prefix: int, lengths: list[tuple[int, int]], seed: int = 0) -> Rows:
    """Rows of a common prefix, then (own prompt, answer) tokens each."""
    rng = random.Random(seed)
    common = [rng.randrange(10, 200) for _ in range(prefix)]
    rows = []
    for i, (prompt, answer) in enumerate(lengths):
        own = [200 + i, *(rng.randrange(10, 200) for _ in range(prompt - 1))] if prompt else []
        told = [rng.randrange(10, 200) for _ in range(answer)]
        rows.append({"input_ids": common + own + told, "labels": [IGNORED] * (prefix + prompt) + told})
    return rows


def adapted(model: Any, layout: str) -> Any:
    """The model with an adapter that does something, and the attention of a layout."""
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    model.set_attn_implementation("sdpa" if layout == "padded" else batches.ATTENTION)
    return model.train()


def gradients(model: Any) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def loss_and_gradients(base: Base, rows: Rows, layout: str) -> tuple[float, torch.Tensor]:
    model = adapted(AutoModelForCausalLM.from_pretrained(base.weights), layout)
    loss = answer_loss(model, LAYOUTS[layout](rows))
    loss.backward()
    return loss.item(), gradients(model)


def assert_equal(ours: tuple[float, torch.Tensor], plain: tuple[float, torch.Tensor]) -> None:
    assert ours[0] == pytest.approx(plain[0], rel=1e-5)
    assert (ours[1] - plain[1]).norm() <= 1e-4 * plain[1].norm()
    assert plain[1].norm() > 0


@pytest.mark.parametrize("layout", ["shared", "grouped", "packed"])
@pytest.mark.parametrize(("prefix", "lengths"), CASES)
def test_a_layout_changes_neither_loss_nor_gradients(
    tiny_base: Base, layout: str, prefix: int, lengths: list[tuple[int, int]]
) -> None:
    rows = make_rows(prefix, lengths)
    assert_equal(loss_and_gradients(tiny_base, rows, layout), loss_and_gradients(tiny_base, rows, "padded"))


def test_several_answers_of_one_conversation_are_all_scored(tiny_base: Base) -> None:
    rows = make_rows(6, [(4, 8), (3, 9)])
    for row in rows:
        row["labels"][-3] = row["labels"][-4] = IGNORED
    shared, _ = loss_and_gradients(tiny_base, rows, "shared")
    assert shared == pytest.approx(loss_and_gradients(tiny_base, rows, "padded")[0], rel=1e-5)


def test_the_loss_and_its_gradient_are_those_of_the_library(tiny_base: Base) -> None:
    rows = make_rows(10, [(5, 5)])
    ids, labels = (torch.tensor([rows[0][name]]) for name in ("input_ids", "labels"))
    found = []
    for ours in (True, False):
        model = adapted(AutoModelForCausalLM.from_pretrained(tiny_base.weights), "padded")
        loss = answer_loss(model, padded(rows, 2)) if ours else model(input_ids=ids, labels=labels).loss
        loss.backward()
        found.append((loss.item(), gradients(model)))
    assert_equal(found[0], found[1])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_loss_in_pieces_is_torchs_own(monkeypatch: pytest.MonkeyPatch, precision: torch.dtype) -> None:
    monkeypatch.setattr("tunewright.modeling.batches.PIECE", 4)
    torch.manual_seed(0)
    labels = torch.tensor([[3, IGNORED, 7, 1, 1, IGNORED, 0, 9, 4]])
    results = []
    for ours in (True, False):
        torch.manual_seed(1)
        logits = torch.randn(1, 9, 20, requires_grad=True)

        def model(logits: torch.Tensor = logits, **_: Any) -> Any:
            return type("Output", (), {"logits": logits.to(precision)})

        if ours:
            loss = answer_loss(model, {"inputs": {}, "labels": labels, "answers": labels})
        else:
            scores = logits.to(precision).float().flatten(0, 1)
            loss = torch.nn.functional.cross_entropy(scores, labels.flatten(), ignore_index=IGNORED)
        loss.backward()
        assert logits.grad is not None
        results.append((loss.item(), logits.grad))
    tolerance = 1e-6 if precision == torch.float32 else 4e-3
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert (results[0][1] - results[1][1]).norm() <= tolerance * results[1][1].norm()


def test_every_label_is_scored_once() -> None:
    rows = make_rows(7, [(3, 4), (2, 6), (1, 1)])
    wanted = sorted(label for row in rows for label in row["labels"] if label != IGNORED)
    for batch in (*(lay(rows) for lay in LAYOUTS.values()), flash(rows)):
        assert sorted(batch["labels"][batch["labels"] != IGNORED].tolist()) == wanted
        assert num_labels(batch) == len(wanted)


def test_a_trained_stop_token_equal_to_the_pad_token_stays_trained() -> None:
    rows = [
        {"input_ids": [5, 6, 2], "labels": [IGNORED, IGNORED, 2]},
        {"input_ids": [5] * 6, "labels": [IGNORED] * 5 + [7]},
    ]
    batch = padded(rows, pad_token_id=2)
    assert batch["inputs"]["attention_mask"].sum(dim=1).tolist() == [2, 5]
    assert 2 in batch["labels"].tolist()[0]


def test_the_token_that_predicts_the_first_label_is_not_shared() -> None:
    rows = [{"input_ids": [1, 2, 3, 4], "labels": [IGNORED, IGNORED, IGNORED, 4]}] * 2
    assert shared_prefix(rows) == 2


def test_nothing_is_computed_behind_the_last_prediction() -> None:
    rows = make_rows(4, [(3, 2), (3, 2)])
    for row in rows:
        row["input_ids"] += [7, 8]
        row["labels"] += [IGNORED, IGNORED]
    assert padded(rows, 2)["inputs"]["input_ids"].shape == (2, 8)
    assert packed(rows, share=True)["inputs"]["input_ids"].shape == (1, 4 + 2 * 4)


def test_flash_rows_end_where_the_next_begins() -> None:
    rows = make_rows(2, [(1, 2), (3, 4)])
    inputs = flash(rows)["inputs"]
    assert inputs["cu_seq_lens_q"].tolist() == [0, 4, 12]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert inputs["position_ids"].tolist() == [[*range(4), *range(8)]]
    assert inputs["max_length_q"] == 8


@pytest.mark.parametrize(("layout", "max_tokens"), [("shared", 30), ("packed", 40), ("padded", 40)])
def test_a_micro_batch_computes_no_more_tokens_than_it_may(layout: Any, max_tokens: int) -> None:
    rng = random.Random(3)
    rows = make_rows(12, [(rng.randrange(1, 9), rng.randrange(1, 9)) for _ in range(40)])
    groups = cut(rows, layout, 64, max_tokens)
    assert sorted(map(repr, rows)) == sorted(repr(row) for group in groups for row in group)
    lay = Collator(layout, 2, 64)
    tokens = [lay.lay(group)["inputs"]["input_ids"].numel() for group in groups]
    assert max(tokens) <= max_tokens
    # cutting is close: no neighbours would have fitted together
    assert all(lay.lay(a + b)["inputs"]["input_ids"].numel() > max_tokens for a, b in itertools.pairwise(groups))


def test_a_row_of_more_tokens_than_allowed_stands_alone() -> None:
    rows = make_rows(0, [(30, 3), (2, 2), (2, 2)])
    assert sorted(len(group) for group in cut(rows, "packed", 8, 10)) == [1, 2]


def test_rows_that_begin_alike_are_cut_together() -> None:
    first, second = make_rows(10, [(3, 2)] * 3, seed=1), make_rows(10, [(3, 2)] * 3, seed=2)
    mixed = [row for pair in zip(first, second, strict=True) for row in pair]
    groups = cut(mixed, "shared", 3, None)
    assert [shared_prefix(group) for group in groups] == [10, 10]


def test_rows_stay_in_order_where_nothing_is_cut() -> None:
    rows = make_rows(3, [(4, 2), (1, 1)])
    assert cut(rows, "padded", 2, None) == [rows]


@pytest.mark.parametrize("prefix", [0, 12])
def test_groups_have_the_fewest_numbers_of_all_that_there_could_be(prefix: int) -> None:
    rng = random.Random(5)
    rows = make_rows(prefix, [(rng.randrange(1, 30), rng.randrange(1, 30)) for _ in range(9)])
    ordered = sorted(rows, key=num_tokens)

    def numbers(groups: Sequence[Sequence[Any]]) -> int:
        return sum(200 + len(group) * (num_tokens(group[-1]) - prefix) * num_tokens(group[-1]) for group in groups)

    def every(begin: int = 0) -> Iterator[list[Rows]]:
        if begin == len(ordered):
            yield []
        for end in range(begin + 1, len(ordered) + 1):
            yield from ([ordered[begin:end], *rest] for rest in every(end))

    groups = side_by_side(rows, prefix, 200)
    assert [row for group in groups for row in group] == ordered
    assert numbers(groups) == min(map(numbers, every()))
    assert 1 < len(groups) < len(rows)


def test_rows_are_grouped_where_calls_are_cheap_and_not_where_each_number_of_groups_is_compiled() -> None:
    rows = make_rows(0, [(250, 50), *[(20, 5)] * 15])
    groups = [len(side_by_side(rows, 0, group_cost("cpu", compiled=compiled))) for compiled in (False, True)]
    assert groups == [2, 1]
    assert len(side_by_side(rows, 0, group_cost("cuda", compiled=False))) == 2
    assert len(side_by_side(rows[1:] + make_rows(0, [(80, 5)]), 0, group_cost("cuda", compiled=False))) == 1
