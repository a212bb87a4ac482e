"""Rewards, answers drawn at random, and the loss on them: it is TRL's, however the answers are laid out and cut."""

import random
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunewright.artifacts import IGNORED, Base
from tunewright.config import Data, Grpo, Model, Preference, Settings, Source
from tunewright.config.grpo import REWARDS
from tunewright.errors import ConfigError
from tunewright.generation import Answer, Sampling
from tunewright.metrics.catalogue import PER_ROW
from tunewright.metrics.rewards import Rewards, own_rewards
from tunewright.modeling import groups
from tunewright.modeling.batches import ATTENTION
from tunewright.modeling.groups import DrawnCollator
from tunewright.modeling.micro_batching import Layout
from tunewright.modeling.objectives import RewardObjective

STOP = 2
CLIPPED = {"iterations": 2, "clip": 0.1, "clip_high": 0.15, "beta": 0.2}


@pytest.fixture
def model(tiny_base: Base) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_pretrained(tiny_base.weights, dtype=torch.float32).eval()


def drawn_rows(settings: Grpo) -> list[dict[str, Any]]:
    """Answers to two prompts, of which one is cut, with what the loss needs to know of them."""
    draw = random.Random(1)
    rows = []
    for prompt in ([5, 6, 7, 8, 9], [5, 6, 7, 40, 41, 42]):
        for number in range(3):
            answer = [draw.randrange(10, 90) for _ in range(draw.randrange(2, 7))] + ([STOP] if number else [])
            rows.append(
                {
                    "input_ids": prompt + answer,
                    "labels": [IGNORED] * len(prompt) + answer,
                    "num_tokens": len(answer),
                    "prompt": prompt,
                    "drawn": [-6 + draw.random() / 2 for _ in answer],
                    "reference": [-6 + draw.random() / 2 for _ in answer],
                }
            )
    rewards = torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.9, 0.4]])
    above = groups.advantages(rewards, settings).flatten().tolist()
    shares = groups.weights([row["num_tokens"] for row in rows], settings)
    return [row | {"advantage": one, "weight": share} for row, one, share in zip(rows, above, shares, strict=True)]


def measured(
    model: Any, rows: list[dict[str, Any]], settings: Grpo, layout: Layout = "padded", micro_batch: int = 6
) -> tuple[float, torch.Tensor]:
    """The loss of a step and its gradient."""
    model.set_attn_implementation(ATTENTION if layout in ("shared", "packed") else "sdpa")
    model.zero_grad()
    objective, loss = RewardObjective(settings), 0.0
    for batch in DrawnCollator(layout, 0, micro_batch)(rows)["micro_batches"]:
        (own,) = objective.terms(model, batch, objective.sizes(batch))
        own.backward()
        loss += own.item()
    return loss, torch.cat([p.grad.flatten().clone() for p in model.parameters()])


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("micro_batch", [6, 4, 1])
def test_the_update_is_the_same_in_each_layout(model: Any, layout: Layout, micro_batch: int) -> None:
    settings = Grpo(rewards={"exact_match": 1}, temperature=0.7, **CLIPPED)
    loss, gradient = measured(model, drawn_rows(settings), settings, layout, micro_batch)
    expected, of_expected = measured(model, drawn_rows(settings), settings, "padded", 1)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert distance(gradient, of_expected) < 1e-5


@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("rest", [{}, CLIPPED], ids=["one iteration", "clipped, with a reference"])
def test_loss_and_gradient_are_those_of_trl(
    loss: Any, scale: Any, rest: dict[str, Any], model: Any, tiny_base: Base, tmp_path: Path
) -> None:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    settings = Grpo(
        rewards={"exact_match": 1}, group=3, loss=loss, scale=scale, temperature=0.7, max_new_tokens=9, **rest
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_base.weights)
    theirs: Any = GRPOTrainer(
        model=model,
        reward_funcs=lambda **_: [0.0],
        args=GRPOConfig(
            str(tmp_path),
            loss_type=loss,
            epsilon=settings.clip,
            epsilon_high=settings.clip_high,
            beta=settings.beta,
            temperature=settings.temperature,
            num_generations=3,
            per_device_train_batch_size=6,
            max_completion_length=settings.max_new_tokens,
            use_cpu=True,
            gradient_checkpointing=False,
            bf16=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{"prompt": "none is read"}]),
        processing_class=tokenizer,
    )
    theirs.current_gradient_accumulation_steps = 1
    rows = drawn_rows(settings)
    longest = [max(len(row["prompt"]) for row in rows), max(row["num_tokens"] for row in rows)]
    inputs: dict[str, Any] = {"advantages": torch.tensor([row["advantage"] for row in rows])}

    def padded(name: str, values: list[list[Any]], length: int, *, left: bool = False) -> None:
        inputs[name] = torch.tensor(
            [[0] * (length - len(v)) + v if left else v + [0] * (length - len(v)) for v in values]
        )

    prompts, answers = [row["prompt"] for row in rows], [row["labels"][len(row["prompt"]) :] for row in rows]
    padded("prompt_ids", prompts, longest[0], left=True)
    padded("prompt_mask", [[1] * len(prompt) for prompt in prompts], longest[0], left=True)
    padded("completion_ids", answers, longest[1])
    padded("completion_mask", [[1] * len(answer) for answer in answers], longest[1])
    if settings.iterations > 1:
        padded("old_per_token_logps", [row["drawn"] for row in rows], longest[1])
        padded("ref_per_token_logps", [row["reference"] for row in rows], longest[1])
    inputs["num_items_in_batch"] = inputs["completion_mask"].sum()
    model.train()
    model.zero_grad()
    expected = theirs._compute_loss(model, inputs)
    expected.backward()
    of_expected = torch.cat([p.grad.flatten().clone() for p in model.parameters()])
    found, gradient = measured(model, rows, settings, "shared")
    assert found == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert distance(gradient, of_expected) < 1e-4


def test_groups_are_compared_as_trl_does() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.5], [0.2, 0.2, 0.2]])
    found = groups.advantages(rewards, Grpo(rewards={"chrf": 1}))
    assert found[0].tolist() == pytest.approx([0.5 / 0.5001, -0.5 / 0.5001, 0.0])
    assert found[1].tolist() == [0.0, 0.0, 0.0]


def answers_of(model: Any, seed: str, names: list[str], number: int, **rest: Any) -> list[list[list[int]]]:
    given = {"stops": [STOP], "max_new_tokens": 6, "batch": 16, "temperature": 1.0} | rest
    asked = [Answer(prompt=[5, 6, 7, 8], reference=[11, 12, STOP]) for _ in names]
    drawn = Sampling(model, seed=seed, **given).draw(asked, names, number)
    return [[answer.tokens for answer in answers] for answers in drawn]


def test_answers_are_drawn_by_the_models_own_probabilities(model: Any) -> None:
    """The first tokens of many answers, as often as the softmax at the temperature says."""
    number, temperature = 3_000, 0.3
    (drawn,) = answers_of(model, "0", ["one"], number, max_new_tokens=1, temperature=temperature, batch=500)
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, 8]])).logits[0, -1]
    expected = torch.softmax(logits / temperature, 0)
    seen = Counter(tokens[0] if tokens else STOP for tokens in drawn)
    likely = [token for token in range(len(expected)) if expected[token] * number > 10]
    assert len(likely) > 5
    for token in likely:
        chance = expected[token].item()
        error = (chance * (1 - chance) / number) ** 0.5
        assert abs(seen[token] / number - chance) < 5 * error, token


def test_a_drawn_answer_is_the_reference_only_where_it_is_all_of_it(model: Any) -> None:
    """Its text is that of the reference then, and so is its reward."""
    asked = Answer(prompt=[5, 6, 7, 8], reference=[11, 12, STOP])
    ((answer,),) = Sampling(model, seed="0", temperature=1.0, stops=[STOP], max_new_tokens=3, batch=1).draw(
        [asked], ["one"], 1
    )
    answer.tokens, answer.stopped = [11], True
    assert not answer.is_reference([STOP])
    answer.tokens = [11, 12]
    assert answer.is_reference([STOP])


def test_an_answer_depends_on_its_seed_and_name_alone(model: Any) -> None:
    both = answers_of(model, "3", ["one", "two"], 4)
    assert answers_of(model, "3", ["two"], 4)[0] == both[1]
    assert answers_of(model, "3", ["one", "two"], 4, batch=1) == both
    assert answers_of(model, "4", ["one", "two"], 4) != both
    assert both[0] != both[1]


def test_a_model_that_the_library_decodes_draws_as_well(model: Any) -> None:
    found = answers_of(model, "3", ["one"], 6, way="library")
    assert len({*map(tuple, found[0])}) > 1
    assert answers_of(model, "3", ["one"], 6, way="library") == found


def test_rewards_are_weighted_and_see_no_reasoning() -> None:
    rewards = Rewards({"exact_match": 1.0, "json_valid": 0.5}, "")
    answers = ['<think>so be it</think>\n\n{"a": 1}', '{"a": 2}', "none"]
    found = rewards(["r1", "r2", "r3"], ["p"] * 3, answers, ['{"a": 1}'] * 3)
    assert found == [1.5, 0.5, 0.0]


def test_a_function_that_fails_on_a_made_up_answer_may_be_right_for_real_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_exit.py").write_text("def f(reference):\n    raise SystemExit('no ' + reference)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [name for name, _ in own_rewards(["own_exit:f"])] == ["own_exit:f"]
    with pytest.raises(ConfigError, match=r"=own_exit:f fails on an answer to row abc, .*SystemExit: no b"):
        Rewards({"own_exit:f": 1.0}, "")(["abc"], ["p"], ["a"], ["b"])


def test_every_metric_of_one_answer_can_be_a_reward() -> None:
    assert {*REWARDS} == {*PER_ROW, "schema_valid"} - {"length_ratio"}  # more is not better


def test_answers_are_held_against_the_schema() -> None:
    schema = '{"type": "object", "required": ["a"]}'
    assert Rewards({"schema_valid": 2.0}, schema)(["r"] * 2, [""] * 2, ['{"a": 1}', '{"b": 1}'], [""] * 2) == [2.0, 0.0]


@pytest.mark.parametrize(
    ("code", "named", "says"),
    [
        (
            "def f(answer, colour): return 1.0",
            "f",
            "grpo.rewards=own_reward:f asks for colour; accepted: a function of",
        ),
        ("def polite(answer): return 1.0", "polit", "did you mean own_reward:polite?"),
        ("polite = 3", "polite", "polite is not a function"),
        (
            "def polite(answer): pass",
            "polite",
            "own_reward:polite gives None for a made-up answer; accepted:",
        ),
        ("def polite(**given): return float('nan')", "polite", "own_reward:polite gives nan for a made-up answer"),
        ("1 / 0", "f", "grpo.rewards=own_reward:f cannot be imported: ZeroDivisionError"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused_before_anything_runs(
    code: str, named: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_reward.py").write_text(code + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_reward", raising=False)
    with pytest.raises(ConfigError, match=re.escape(says)):
        own_rewards([f"own_reward:{named}"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"group": 4}, "group=4 has no effect without rewards"),
        ({"rewards": {"exact": 1}}, "'exact' is not a reward function; accepted: exact_match,"),
        ({"rewards": {"chrf": 0}}, "chrf has the weight 0; accepted: a finite number other than 0"),
        ({"rewards": {"chrf": 1}, "clip": 0.3}, "clip=0.3 has no effect with iterations=1"),
    ],
)
def test_settings_that_do_nothing_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Grpo(**given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"grpo": Grpo(rewards={"schema_valid": 1})}, "grpo.rewards: schema_valid needs evaluation.json_schema"),
        (
            {"grpo": Grpo(rewards={"chrf": 1}, after_sft=False), "preference": Preference(method="dpo")},
            "grpo.after_sft=false has no effect with preference.method=dpo",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(given: dict[str, Any], says: str) -> None:
    data, model = Data(sources=(Source(path="rows.jsonl"),)), Model(base="tiny")
    with pytest.raises(ValueError, match=re.escape(says)):
        Settings(data=data, model=model, **given)
