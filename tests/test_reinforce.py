"""Training on rewards: the reward rises, it resumes to the same bytes, and a failing reward names its row."""

import json
import math
import signal
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from conftest import MakeSplits
from safetensors.torch import load_file
from trained import ZERO_DEVICES, by_forks, fork_trainers, in_this_process, kill_trainer_after
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunewright.artifacts import Adapter, Base, Scan, Tokens
from tunewright.config import Compute, Grpo, Method, Model, Training
from tunewright.errors import ConfigError, TrainerDied
from tunewright.generation import Answer
from tunewright.metrics.rewards import Rewards
from tunewright.tasks.reinforce import reinforce
from tunewright.tasks.render import render
from tunewright.tasks.train import stage as train_stage
from tunewright.tasks.train.stage import train
from tunewright.tasks.train.trainer.drawing import Drawing
from tunewright.tasks.train.trainer.watch import Watch

SFT = Training(learning_rate=0.01, max_steps=12, batch=4, evaluate_every=3, patience=None)
LENGTHS = "lengths:short"  # a reward function of the team's, which likes short answers
GRPO = Grpo(rewards={LENGTHS: 1.0}, group=6, batch=2, max_new_tokens=12, learning_rate=0.01, max_steps=12)
SMALL = Method(rank=2, alpha=4)
ONE_THREAD = Compute(threads=1)


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    rows = [[f"the question number {i}", f"yes, the answer is the {i % 3} again"] for i in range(18)]
    return render.fn(make_splits(rows[:12], rows[12:15], rows[15:]), tiny_base, Model(base="tiny", max_length=256))


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer is a fork of this process: test_train.py has those that are started."""
    fork_trainers(monkeypatch)


@pytest.fixture(autouse=True)
def lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with a reward function, which this process finds in a folder of its own."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "lengths.py").write_text("def short(answer):\n    return -len(answer) / 100\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "lengths", raising=False)
    return folder / "lengths.py"


def lines(adapter: Adapter) -> list[dict[str, Any]]:
    return [json.loads(line) for line in adapter.path("metrics.jsonl").read_text().splitlines()]


def test_the_reward_rises_from_where_sft_ended(tokens: Tokens, tiny_base: Base, home: Path) -> None:
    full = Method(kind="full")
    first = train.fn(tokens, tiny_base, full, SFT.model_copy(update={"learning_rate": 0.003}), ONE_THREAD)
    settings = GRPO.model_copy(update={"max_steps": 40, "learning_rate": 0.003})
    made = reinforce.fn(tokens, tiny_base, full, settings, settings.schedule(SFT), ONE_THREAD, begins_as=first)
    steps = [line for line in lines(made) if "loss" in line]
    early, late = steps[:10], steps[-10:]
    for figure, sign in (("reward", 1), ("answer_tokens", -1)):
        gain = fmean(line[figure] for line in late) - fmean(line[figure] for line in early)
        assert sign * gain > 0, figure
    evaluated = [line["eval_reward"] for line in lines(made) if "eval_reward" in line]
    assert made.best_by == "reward" and made.best_value == pytest.approx(max(evaluated))
    assert len(steps[0]["sample"]["answers"]) == len(steps[0]["sample"]["rewards"]) == GRPO.group
    assert made.rewards == (LENGTHS,)
    page = made.path("curves.html").read_text()
    assert "Training on rewards" in page and "Answers that were drawn" in page


@pytest.mark.parametrize("changed", [{}, {"iterations": 3, "beta": 0.1, "loss": "grpo", "clip_high": 0.3}])
def test_killed_in_the_middle_it_resumes_to_the_same_bytes(
    changed: dict[str, Any], tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Grpo.model_validate(GRPO.model_dump() | {"max_steps": 24, "scale": "batch"} | changed)
    given = (tokens, tiny_base, SMALL, settings, settings.schedule(SFT), ONE_THREAD)
    with monkeypatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
        undisturbed = reinforce.fn(*given)
    killer = kill_trainer_after(home, '"step": 7', signal.SIGKILL, "reinforce")
    with pytest.raises(TrainerDied, match="SIGKILL"):
        reinforce.fn(*given)
    killer.join()
    resumed = reinforce.fn(*given)
    assert 6 <= json.loads(resumed.path("status.json").read_text())["resumed_from"] < 24
    assert resumed.digest == undisturbed.digest


def test_stopped_between_two_steps_on_the_same_answers_it_goes_on_with_them(
    tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Grpo.model_validate(GRPO.model_dump() | {"max_steps": 30, "iterations": 5})
    given = (tokens, tiny_base, SMALL, settings, settings.schedule(SFT), ONE_THREAD)
    with monkeypatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
        undisturbed = reinforce.fn(*given)
    killer = kill_trainer_after(home, '"step": 7', signal.SIGTERM, "reinforce")
    with pytest.raises(TrainerDied, match="saved a checkpoint"):
        reinforce.fn(*given)
    killer.join()
    resumed = reinforce.fn(*given)
    assert lines(resumed)[-1]["epoch"] == pytest.approx(6 * 2 / 12, abs=0.01)  # draws, of two of twelve prompts each
    assert json.loads(resumed.path("status.json").read_text())["resumed_from"] % 5
    assert resumed.digest == undisturbed.digest


@pytest.mark.parametrize("kind", ["qlora", "full", "spectrum", "osf"])
def test_each_kind_of_method_learns_from_rewards(
    kind: Any, tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stage, "_attempt", in_this_process)
    method = Method(kind=kind, rank=2, alpha=4) if kind == "qlora" else Method(kind=kind)
    chosen = Scan(num_modules=1, chosen=("model.layers.0.mlp.down_proj",)) if kind == "spectrum" else None
    settings = GRPO.model_copy(update={"max_steps": 3, "beta": 0.05})
    made = reinforce.fn(tokens, tiny_base, method, settings, settings.schedule(SFT), ONE_THREAD, scan=chosen)
    steps = [line for line in lines(made) if "loss" in line]
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["kl"] > 0


@pytest.mark.parametrize(
    ("several", "strategy"), [("devices", "auto"), ("devices", "fsdp"), ("nodes", "auto"), *ZERO_DEVICES]
)
def test_two_processes_come_to_the_weights_of_one(
    tokens: Tokens, tiny_base: Base, home: Path, several: str, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    beta = 0.05 if strategy == "auto" else 0.0  # which the other strategies refuse
    settings = Grpo.model_validate(GRPO.model_dump() | {"iterations": 2, "beta": beta, "max_steps": 4})
    found = []
    for number, attempt in ((1, in_this_process), (2, by_forks)):
        monkeypatch.setattr(train_stage, "_attempt", attempt)
        how = strategy if number > 1 else "auto"
        compute = Compute.model_validate({"threads": 1, "precision": "float32", several: number, "strategy": how})
        made = reinforce.fn(tokens, tiny_base, SMALL, settings, settings.schedule(SFT), compute)
        found.append((made, load_file(made.path("model") / "adapter_model.safetensors")))
    (one, of_one), (two, of_two) = found
    for name, tensor in of_one.items():
        assert torch.allclose(of_two[name], tensor, atol=1e-4), f"{name} differs"
    assert two.best_value == pytest.approx(one.best_value, rel=1e-3)


def test_the_first_rank_of_a_sharded_model_alone_rewards_the_answers_that_all_draw(
    tokens: Tokens, tiny_base: Base, home: Path, lengths: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank's reward may be another one, such as a judge's; here no step is better than none."""
    called = tmp_path / "called"
    lengths.write_text(
        f"import os\n\n\ndef short(answer):\n    open({str(called)!r}, 'a').write(os.environ['RANK'])\n    return 1.0\n"
    )
    monkeypatch.setattr(train_stage, "_attempt", by_forks)
    settings = GRPO.model_copy(update={"max_steps": 1})
    compute = Compute(threads=1, precision="float32", devices=2, strategy="fsdp")
    method = SMALL.model_copy(update={"init": "eva"})
    made = reinforce.fn(tokens, tiny_base, method, settings, settings.schedule(SFT), compute)
    assert {*called.read_text()} == {"0"}
    assert (made.best_step, made.best_value) == (0, 1.0)


def test_answers_that_the_base_cannot_read_are_refused(tokens: Tokens, tiny_base: Base, home: Path) -> None:
    settings = GRPO.model_copy(update={"max_new_tokens": 2_040})
    with pytest.raises(ConfigError, match=r"grpo\.max_new_tokens=2040: a prompt has (\d+) tokens, .* reads 2048"):
        reinforce.fn(tokens, tiny_base, SMALL, settings, settings.schedule(SFT), ONE_THREAD)


def test_a_reward_of_calls_is_refused_where_no_row_has_tools(tokens: Tokens, tiny_base: Base, home: Path) -> None:
    settings = GRPO.model_copy(update={"rewards": {"numeric": 1.0, "tool_call": 0.5}})
    with pytest.raises(
        ConfigError, match=r"^grpo\.rewards=tool_call: no training row has tools; accepted: a reward of"
    ):
        reinforce.fn(tokens, tiny_base, SMALL, settings, settings.schedule(SFT), ONE_THREAD)


def test_a_loss_that_is_no_number_ends_it_with_the_rows() -> None:
    watch = Watch(section="grpo")
    watch.stop_naming()
    rows = [{"row_id": f"{row}" * 64} for row in "aab"]  # several answers to one prompt
    with pytest.raises(FloatingPointError, match=r"its rows: a{12}, b{12}\. Try a lower grpo\.learning_rate"):
        watch.step(rows, math.nan, 3)


def test_a_reward_that_fails_names_the_function_and_the_row(
    tokens: Tokens, tiny_base: Base, home: Path, lengths: Path
) -> None:
    lengths.write_text("def short(answer, reference):\n    return 1 / (reference.count('2') - 1)\n")
    with pytest.raises(ConfigError) as error:
        reinforce.fn(tokens, tiny_base, SMALL, GRPO, GRPO.schedule(SFT), ONE_THREAD)
    said = str(error.value)
    assert said.startswith(f"grpo.rewards={LENGTHS} fails on an answer to row ")
    assert "ZeroDivisionError" in said and "Traceback" not in said


def test_where_no_step_is_better_the_weights_from_before_are_kept(
    tokens: Tokens, tiny_base: Base, home: Path, lengths: Path
) -> None:
    lengths.write_text("def short(answer):\n    return 1.0\n")  # of which there is nothing to learn
    first = train.fn(tokens, tiny_base, SMALL, SFT, ONE_THREAD)
    settings = GRPO.model_copy(update={"max_steps": 4})
    made = reinforce.fn(tokens, tiny_base, SMALL, settings, settings.schedule(SFT), ONE_THREAD, begins_as=first)
    assert (made.best_step, made.best_value) == (0, 1.0)
    before, after = (load_file(each.path("model") / "adapter_model.safetensors") for each in (first, made))
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert [warning.partition(":")[0] for warning in made.warnings] == ["rewards without differences"]


def test_it_shows_that_it_is_at_work_after_each_pass_of_a_draw(tiny_base: Base) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_base.weights, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_base.weights)
    rows = [
        {"row_id": f"{at}" * 64, "answer": Answer([5, 6, 7, at], [11, 2]), "reference": "yes"} for at in range(8, 12)
    ]
    rewards = Rewards({"chrf": 1.0}, "")
    drawing = Drawing(GRPO, rewards, [rows, rows], tokenizer=tokenizer, stops=[2], seed=0, batch=8)
    beats = list[int]()
    drawing.beat = lambda: beats.append(1)
    drawing.draw(model, 0)
    assert len(beats) > GRPO.max_new_tokens / 2
