"""Losses on preference pairs: the same however the pairs are laid out and cut, and those of TRL."""

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunewright.artifacts import IGNORED, Base
from tunewright.config import Preference
from tunewright.errors import ConfigError
from tunewright.metrics import choose
from tunewright.modeling.batches import ATTENTION
from tunewright.modeling.micro_batching import Layout
from tunewright.modeling.objectives import PairObjective
from tunewright.modeling.pairs import Pair, answers_of
from tunewright.modeling.preferences import LOSSES, REFERENCE, PairCollator

STOP, BEHIND = 2, 9  # the stop token of an answer, and what the template writes behind it


def make_pairs(number: int = 7, longest: int = 9) -> list[dict[str, Any]]:
    """Pairs whose prompts begin alike; answers of a stop token alone are among them."""
    draw = random.Random(1)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(10, 90) for _ in range(draw.randrange(least, most))]

    pairs = []
    for _ in range(number):
        prompt, chosen, rejected = (
            [5, 6, 7, 8, *tokens(1, 12)],
            [*tokens(0, longest), STOP],
            [*tokens(0, longest), STOP],
        )
        pairs.append(
            {
                "input_ids": [*prompt, *chosen, BEHIND],
                "labels": [IGNORED] * len(prompt) + chosen + [IGNORED],
                "prompt_length": len(prompt),
                "rejected_ids": rejected,
            }
        )
    return pairs


@pytest.fixture
def model(tiny_base: Base) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(tiny_base.weights, dtype=torch.float32).eval()


def measured(
    model: Any, pairs: Sequence[Pair], settings: Preference, layout: Layout = "padded", micro_batch: int = 7
) -> tuple[float, torch.Tensor]:
    """The loss of a step and its gradient."""
    model.set_attn_implementation(ATTENTION if layout in ("shared", "packed") else "sdpa")
    model.zero_grad()
    objective, loss = PairObjective(settings), 0.0
    batches = PairCollator(layout, 0, micro_batch)(pairs)["micro_batches"]
    totals = [sum(sizes) for sizes in zip(*map(objective.sizes, batches), strict=True)]
    for batch in batches:
        own: Any = sum(objective.terms(model, batch, totals))
        own.backward()
        loss += own.item()
    return loss, torch.cat([p.grad.flatten().clone() for p in model.parameters()])


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("micro_batch", [7, 3, 1])
@pytest.mark.parametrize(
    "settings", [Preference(method="dpo", sft_weight=0.5), Preference(method="orpo")], ids=["dpo", "orpo"]
)
def test_the_update_is_the_same_in_each_layout(
    model: Any, layout: Layout, micro_batch: int, settings: Preference
) -> None:
    pairs = [pair | {REFERENCE[0]: -30.0, REFERENCE[1]: -31.5} for pair in make_pairs()]
    loss, gradient = measured(model, pairs, settings, layout, micro_batch)
    expected, of_expected = measured(model, pairs, settings, "padded", 1)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert distance(gradient, of_expected) < 1e-5


def test_a_second_answer_does_not_see_the_first(model: Any) -> None:
    one, *_ = make_pairs(1)
    _, rejected = answers_of(one)
    settings = Preference(method="orpo")
    objective = PairObjective(settings)
    seen = []
    for chosen in ([11, 12, 13, STOP], [71, 72, 73, STOP]):
        length = one["prompt_length"]
        prompt = one["input_ids"][:length]
        pair = {
            "input_ids": prompt + chosen,
            "labels": [IGNORED] * length + chosen,
            "prompt_length": length,
            "rejected_ids": rejected,
        }
        model.set_attn_implementation(ATTENTION)
        (batch,) = PairCollator("shared", 0, 1)([pair])["micro_batches"]
        objective.terms(model, batch, (1, 1))
        seen.append(objective.figures()["reward_rejected"][0])
    assert seen[0] == pytest.approx(seen[1], abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_loss_and_gradient_of_dpo_are_those_of_trl(loss: Any, model: Any, tiny_base: Base, tmp_path: Path) -> None:
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    smoothing = 0.1 if loss in ("robust", "exo_pair") else 0.0
    pairs = make_pairs()
    rows = [
        {"prompt_ids": pair["input_ids"][: pair["prompt_length"]]}
        | dict(zip(("chosen_ids", "rejected_ids"), answers_of(pair), strict=True))
        for pair in pairs
    ]
    reference = AutoModelForCausalLM.from_pretrained(tiny_base.weights, dtype=torch.float32)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    theirs: Any = DPOTrainer(
        model=model,
        ref_model=reference,
        args=DPOConfig(
            str(tmp_path),
            loss_type=[loss],
            label_smoothing=smoothing,
            use_cpu=True,
            gradient_checkpointing=False,
            bf16=False,
            report_to="none",
            disable_dropout=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": "one", "chosen": "two", "rejected": "three"}]),  # none is read
        processing_class=AutoTokenizer.from_pretrained(tiny_base.weights),
    )
    inputs = theirs.data_collator(rows)
    model.zero_grad()
    expected = theirs._compute_loss(model, inputs, False)
    expected.backward()
    of_expected = torch.cat([p.grad.flatten().clone() for p in model.parameters()])
    known = torch.stack(theirs.compute_ref_log_probs(reference, inputs), dim=1).tolist()

    pairs = [pair | dict(zip(REFERENCE, both, strict=True)) for pair, both in zip(pairs, known, strict=True)]
    settings = Preference(method="dpo", loss=loss, label_smoothing=smoothing)
    found, gradient = measured(model, pairs, settings, "shared")
    assert found == pytest.approx(expected.item(), rel=1e-4)
    assert distance(gradient, of_expected) < 1e-4


def test_the_preference_in_orpo_is_that_of_trl(model: Any, tiny_base: Base, tmp_path: Path) -> None:
    """TRL trains the prompt as well; here the loss on the chosen answers is, as everywhere, on the answers alone."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    pairs, tokenizer = make_pairs(), AutoTokenizer.from_pretrained(tiny_base.weights)
    theirs: Any = ORPOTrainer(
        model=model,
        args=ORPOConfig(str(tmp_path), use_cpu=True, gradient_checkpointing=False, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list([{"prompt": "one", "chosen": "two", "rejected": "three"}]),  # none is read
        processing_class=tokenizer,
    )
    batch: dict[str, Any] = {}
    for at, name in enumerate(("chosen", "rejected")):
        answers = [answers_of(pair)[at] for pair in pairs]
        prompts = [pair["input_ids"][: pair["prompt_length"]] for pair in pairs]
        longest = max(len(a) + len(b) for a, b in zip(prompts, answers, strict=True))
        rows = [(a + b, [IGNORED] * len(a) + b) for a, b in zip(prompts, answers, strict=True)]
        batch[f"{name}_input_ids"] = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
        batch[f"{name}_attention_mask"] = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i, _ in rows])
        batch[f"{name}_labels"] = torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in rows])
    model.zero_grad()
    chosen, rejected, *_ = theirs.concatenated_forward(model, batch)
    sizes = torch.tensor([len(answers_of(pair)[0]) for pair in pairs])
    losses, *_ = theirs.odds_ratio_loss(chosen, rejected)
    expected = -losses.mean() - (chosen * sizes).sum() / sizes.sum()
    expected.backward()
    of_expected = torch.cat([p.grad.flatten().clone() for p in model.parameters()])
    found, gradient = measured(model, pairs, Preference(method="orpo"), "shared")
    assert found == pytest.approx(expected.item(), rel=1e-4)
    assert distance(gradient, of_expected) < 1e-4


@pytest.mark.parametrize(
    ("references", "num_pairs", "decides"),
    [
        (["It is a long answer of many words that nobody would call short at all."] * 4, 4, "preference_accuracy"),
        (["It is a long answer of many words that nobody would call short at all."] * 4, 3, "chrf"),
        (["12", "13", "14", "15"], 4, "numeric"),
    ],
)
def test_pairs_decide_where_no_metric_of_the_answers_says_much(
    references: list[str], num_pairs: int, decides: str
) -> None:
    choice = choose(["auto"], references, num_pairs=num_pairs)
    assert choice.decides == decides
    assert ("preference_margin" in choice.names) == (num_pairs == 4)


def test_a_metric_of_pairs_is_refused_where_rows_have_none() -> None:
    with pytest.raises(
        ConfigError, match=r"preference_accuracy is not meaningful: 1 of 2 rows have no rejected answer"
    ):
        choose(["preference_accuracy"], ["one", "two"], num_pairs=1)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"beta": 0.2}, "beta=0.2 has no effect with method=none"),
        (
            {"method": "orpo", "loss": "ipo"},
            "loss=ipo has no effect with method=orpo; leave it out, or set method to dpo",
        ),
        ({"method": "dpo", "label_smoothing": 0.1}, "label_smoothing=0.1 has no effect with loss=sigmoid"),
        ({"method": "dpo", "loss": "exo_pair"}, "loss=exo_pair needs label_smoothing above 0"),
    ],
)
def test_settings_that_do_nothing_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Preference(**given)


def test_settings_may_stay_where_the_method_is_switched_off() -> None:
    assert Preference(method="none", beta=0.2, epochs=2).beta == 0.2
