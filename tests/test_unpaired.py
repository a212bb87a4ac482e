"""KTO's loss on desirable and undesirable answers: the same however they are laid out and cut, and that of TRL."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from test_preferences import BEHIND, distance, make_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunewright.artifacts import IGNORED, Base
from tunewright.config import Preference
from tunewright.modeling.batches import ATTENTION
from tunewright.modeling.micro_batching import Layout
from tunewright.modeling.objectives import LabelObjective
from tunewright.modeling.preferences import REFERENCE
from tunewright.modeling.unpaired import LabelledCollator, labelled

KTO = Preference(method="kto", desirable_weight=1.0, undesirable_weight=1.5)


def make_answers() -> list[dict[str, Any]]:
    """Answers of both labels, with those that they are mismatched with."""
    rows = [{**pair, "row_id": f"row {at}", "replay": False} for at, pair in enumerate(make_pairs(5))]
    return labelled(rows[:3], [{**row, "rejected_ids": None} for row in rows[3:]])


@pytest.fixture
def model(tiny_base: Base) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(tiny_base.weights, dtype=torch.float32).eval()


def measured(
    model: Any, answers: Sequence[Mapping[str, Any]], layout: Layout = "padded", micro_batch: int = 8
) -> tuple[float, torch.Tensor, Mapping[str, tuple[float, float]]]:
    """The loss of a step, its gradient, and the figures beside it."""
    model.set_attn_implementation(ATTENTION if layout in ("shared", "packed") else "sdpa")
    model.zero_grad()
    objective, loss = LabelObjective(KTO), 0.0
    batches = LabelledCollator(layout, 0, micro_batch)(answers)["micro_batches"]
    with torch.no_grad():
        total, number = (sum(each) for each in zip(*(objective.divergence(model, b) for b in batches), strict=True))
    objective.kl = max(0.0, total / number)
    for batch in batches:
        (own,) = objective.terms(model, batch, (len(answers),))
        own.backward()
        loss += own.item()
    return loss, torch.cat([p.grad.flatten().clone() for p in model.parameters()]), objective.figures()


def test_each_answer_has_its_label_and_one_that_does_not_belong_to_its_prompt() -> None:
    answers = make_answers()
    assert [answer["desirable"] for answer in answers] == [True, False] * 3 + [False] * 2
    prompts = [answer["input_ids"][: answer["prompt_length"]] for answer in answers]
    own = [answer["input_ids"][answer["prompt_length"] :] for answer in answers]
    assert all(BEHIND not in answer for answer in own)  # what the template writes behind an answer is not part of it
    assert all(a["labels"] == [IGNORED] * len(p) + o for a, p, o in zip(answers, prompts, own, strict=True))
    longest = max(len(answer["input_ids"]) for answer in answers)
    for answer, prompt in zip(answers, prompts, strict=True):
        others = [o for p, o in zip(prompts, own, strict=True) if p != prompt]
        assert any(answer["rejected_ids"] == o[: longest - len(prompt)] for o in others)


def test_one_prompt_for_all_answers_and_rows_for_replay() -> None:
    pairs = make_pairs(3)
    same = [{**pairs[0], "row_id": name, "replay": False, "rejected_ids": None} for name in "ab"]
    one, other = labelled([*same, {**pairs[1], "row_id": "general", "replay": True}], [])
    assert one["rejected_ids"] == other["input_ids"][other["prompt_length"] :]


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("micro_batch", [8, 3, 1])
def test_the_update_is_the_same_in_each_layout(model: Any, layout: Layout, micro_batch: int) -> None:
    answers = [answer | {REFERENCE[0]: -30.0, REFERENCE[1]: -40.0} for answer in make_answers()]
    loss, gradient, figures = measured(model, answers, layout, micro_batch)
    expected, of_expected, of_figures = measured(model, answers)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert distance(gradient, of_expected) < 1e-5
    for name, (total, number) in of_figures.items():
        assert figures[name] == pytest.approx((total, number), rel=1e-4), name
    assert [of_figures[name][1] for name in ("reward_chosen", "reward_rejected", "reward_accuracy")] == [3, 5, 8]


def padded(rows: Sequence[tuple[list[int], list[int]]], prefix: str) -> dict[str, torch.Tensor]:
    """Prompts with answers, as TRL's collator lays them."""
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids, mask, answers = [], [], []
    for prompt, answer in rows:
        rest = [0] * (longest - len(prompt) - len(answer))
        ids.append([*prompt, *answer, *rest])
        mask.append([1] * (len(prompt) + len(answer)) + rest)
        answers.append([0] * len(prompt) + [1] * len(answer) + rest)
    named = {"input_ids": ids, "attention_mask": mask, "completion_mask": answers}
    return {f"{prefix}{name}": torch.tensor(values) for name, values in named.items()}


@pytest.mark.parametrize("shift", [0.02, -0.02])  # the estimated KL divergence is above 0, and below it
def test_loss_and_gradient_are_those_of_trl(shift: float, model: Any, tiny_base: Base, tmp_path: Path) -> None:
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

    answers = make_answers()
    reference: Any = AutoModelForCausalLM.from_pretrained(tiny_base.weights, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(abs(shift) * torch.randn_like(parameter))
    ours, reference = (model, reference) if shift > 0 else (reference, model)
    theirs: Any = KTOTrainer(
        model=ours,
        ref_model=reference,
        args=KTOConfig(
            str(tmp_path),
            per_device_train_batch_size=len(answers),
            undesirable_weight=KTO.undesirable_weight,
            use_cpu=True,
            gradient_checkpointing=False,
            bf16=False,
            report_to="none",
            disable_dropout=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": "one", "completion": "two", "label": True}] * 2),  # none is read
        processing_class=AutoTokenizer.from_pretrained(tiny_base.weights),
    )
    prompts = [answer["input_ids"][: answer["prompt_length"]] for answer in answers]
    own = [(prompt, answer["input_ids"][len(prompt) :]) for prompt, answer in zip(prompts, answers, strict=True)]
    mismatched = [(prompt, answer["rejected_ids"]) for prompt, answer in zip(prompts, answers, strict=True)]
    labels = {"label": torch.tensor([answer["desirable"] for answer in answers])}
    inputs = padded(own, "") | padded(mismatched, "KL_") | labels
    ours.zero_grad()
    expected = theirs._compute_loss(ours, inputs, False)
    expected = expected[0] if isinstance(expected, tuple) else expected
    expected.backward()
    of_expected = torch.cat([p.grad.flatten().clone() for p in ours.parameters()])
    kl = theirs._metrics["train" if ours.training else "eval"]["kl"][-1]
    assert (kl > 0) == (shift > 0), kl
    with torch.no_grad():
        known = torch.stack(theirs.compute_ref_log_probs(reference, inputs), dim=1).tolist()
    answers = [each | dict(zip(REFERENCE, both, strict=True)) for each, both in zip(answers, known, strict=True)]
    loss, gradient, figures = measured(ours, answers, "shared")
    assert figures["kl"][0] / figures["kl"][1] == pytest.approx(kl, rel=1e-4, abs=1e-6)
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert distance(gradient, of_expected) < 1e-4


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            {"method": "kto", "loss": "ipo"},
            "loss=ipo has no effect with method=kto; leave it out, or set method to dpo",
        ),
        ({"method": "dpo", "undesirable_weight": 2}, "undesirable_weight=2.0 has no effect with method=dpo"),
    ],
)
def test_settings_that_do_nothing_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Preference(**given)
