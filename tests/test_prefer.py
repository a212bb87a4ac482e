"""Training on preference pairs: it moves the model to the chosen answers, resumes to the same bytes, and is TRL's."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from conftest import MakeSplits
from safetensors.torch import load_file
from trained import ZERO_DEVICES, by_forks, fork_trainers, in_this_process, kill_trainer_after

from tunewright.artifacts import Adapter, Base, Scan, Tokens
from tunewright.config import Compute, Method, Model, Preference, Training
from tunewright.cost_model.case import ground_of
from tunewright.errors import ConfigError, DataError, TrainerDied
from tunewright.tasks.prefer import prefer
from tunewright.tasks.render import render
from tunewright.tasks.train import stage as train_stage
from tunewright.tasks.train.stage import train
from tunewright.tools.conversation import Conversation

SFT = Training(learning_rate=0.01, max_steps=6, batch=4, evaluate_every=3, patience=None)
DPO = Preference(method="dpo", learning_rate=0.01, max_steps=8)
KTO = Preference(method="kto", learning_rate=0.01, max_steps=12)
SMALL = Method(rank=2, alpha=4)
ONE_THREAD = Compute(threads=1)


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer is a fork of this process: test_train.py has those that are started."""
    fork_trainers(monkeypatch)


def pair(question: str, chosen: str, rejected: str) -> Conversation:
    asked = [{"role": "user", "content": question}, {"role": "assistant", "content": chosen}]
    return Conversation(asked, rejected=rejected)


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    rows = [pair(f"the question number {i}", f"yes, the answer {i % 3}", f"no answer to {i}") for i in range(18)]
    splits = make_splits(rows[:12], rows[12:15], rows[15:])
    return render.fn(splits, tiny_base, Model(base="tiny", max_length=256))


def lines(adapter: Adapter) -> list[dict[str, Any]]:
    return [json.loads(line) for line in adapter.path("metrics.jsonl").read_text().splitlines()]


def test_pairs_are_trained_from_where_sft_ended(tokens: Tokens, tiny_base: Base, home: Path) -> None:
    assert (tokens.num_pairs, tokens.num_validation_pairs, tokens.num_test_pairs) == (12, 3, 3)
    first = train.fn(tokens, tiny_base, SMALL, SFT, ONE_THREAD)
    made = prefer.fn(tokens, tiny_base, SMALL, DPO, DPO.schedule(SFT), ONE_THREAD, begins_as=first)
    steps = [line for line in lines(made) if "loss" in line]
    assert steps[0]["reward_margin"] == pytest.approx(0, abs=0.01)  # the model is still the reference
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=0.01)
    last = [line for line in lines(made) if "eval_loss" in line][-1]
    assert last["eval_reward_margin"] > 0.1 and last["eval_reward_accuracy"] == 1.0
    assert made.digest != first.digest
    assert (made.preference, first.preference) == ("dpo", "")


def test_labelled_answers_are_trained_and_no_reference_is_undesirable(
    tiny_base: Base, make_splits: MakeSplits, home: Path
) -> None:
    def row(i: int) -> Conversation:
        said = f"no answer to {i}" if i % 2 else f"yes, the answer {i % 3}"
        asked = [{"role": "user", "content": f"the question number {i}"}, {"role": "assistant", "content": said}]
        return Conversation(asked, undesirable=bool(i % 2))

    rows = [*map(row, range(36))]
    rows[1][-1]["content"] = "no " * 40
    tokens = render.fn(make_splits(rows[:24], rows[24:30], rows[30:]), tiny_base, Model(base="tiny", max_length=256))
    assert (tokens.num_train, tokens.num_validation, tokens.num_test) == (12, 3, 3)
    assert (tokens.num_undesirable, tokens.num_validation_undesirable, tokens.num_test_undesirable) == (12, 3, 3)
    references = pq.read_table(tokens.path("test.parquet"))["reference"].to_pylist()
    assert all(said.startswith("yes") for said in references)
    page = tokens.path("report.html").read_text()
    assert (
        "<b>12</b><span>more training rows with an undesirable answer, of at most" in page
        and page.count(">undesirable answer, ") == 2
    )

    ground = ground_of(tiny_base, tokens)
    assert ground.longest < 80 and ground.of_preference(KTO).longest > 100, "the plan sees the long undesirable answer"

    first = train.fn(tokens, tiny_base, SMALL, SFT, ONE_THREAD)
    made = prefer.fn(tokens, tiny_base, SMALL, KTO, KTO.schedule(SFT), ONE_THREAD, begins_as=first)
    steps = [line for line in lines(made) if "loss" in line]
    assert steps[0]["loss"] == pytest.approx(0.5, abs=0.01)  # the model is still the reference
    last = [line for line in lines(made) if "eval_loss" in line][-1]
    assert last["eval_reward_chosen"] > last["eval_reward_rejected"] and last["eval_reward_accuracy"] == 1.0
    assert last["eval_kl"] >= 0 and made.preference == "kto"
    page = made.path("curves.html").read_text()
    assert "Loss on labelled answers" in page and "Validation reward of undesirable answers" in page


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_killed_in_the_middle_it_resumes_to_the_same_bytes(
    method: Any, tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Preference(method=method, learning_rate=0.01, max_steps=24)
    given = (tokens, tiny_base, SMALL, settings, settings.schedule(SFT), ONE_THREAD)
    with monkeypatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
        undisturbed = prefer.fn(*given)
    killer = kill_trainer_after(home, '"step": 7', signal.SIGKILL, "prefer")
    with pytest.raises(TrainerDied, match="SIGKILL"):
        prefer.fn(*given)
    killer.join()
    resumed = prefer.fn(*given)
    assert 6 <= json.loads(resumed.path("status.json").read_text())["resumed_from"] < 24
    assert resumed.digest == undisturbed.digest


@pytest.mark.parametrize("kind", ["qlora", "full", "spectrum", "osf"])
def test_each_kind_of_method_goes_on_from_its_sft(
    kind: Any, tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_stage, "_attempt", in_this_process)
    method = Method(kind=kind, rank=2, alpha=4) if kind == "qlora" else Method(kind=kind)
    chosen = Scan(num_modules=1, chosen=("model.layers.0.mlp.down_proj",)) if kind == "spectrum" else None
    rest = (ONE_THREAD.model_copy(update={"precision": "float32"}), chosen)
    first = train.fn(tokens, tiny_base, method, SFT, *rest)
    settings = Preference(method="dpo", learning_rate=1e-8, max_steps=1)
    made = prefer.fn(tokens, tiny_base, method, settings, settings.schedule(SFT), *rest, begins_as=first)
    before, after = (load_file(next(each.path("model").glob("*.safetensors"))) for each in (first, made))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.allclose(after[name].float(), tensor.float(), atol=1e-6), f"{name} began elsewhere"


def test_a_rejected_answer_that_is_too_long_is_told_by_its_own_length(
    tiny_base: Base, make_splits: MakeSplits, home: Path
) -> None:
    rows = [pair(f"the question number {i}", "yes", "no" if i else "no " * 200) for i in range(18)]
    splits = make_splits(rows[:12], rows[12:15], rows[15:])
    with pytest.raises(DataError, match=r"1 of 18 rows is longer than model\.max_length=64 .*raise model") as error:
        render.fn(splits, tiny_base, Model(base="tiny", max_length=64))
    needed = re.search(r"it has (\d+); .*raise model.max_length to (\d+),", str(error.value))
    assert needed and needed[1] == needed[2] and int(needed[1]) > 200
    assert render.fn(splits, tiny_base, Model(base="tiny", max_length=int(needed[1]))).num_pairs == 12


def test_rows_without_pairs_are_refused_in_a_line(tiny_base: Base, make_splits: MakeSplits, home: Path) -> None:
    rows = [[f"the question number {i}", f"the answer {i % 3}"] for i in range(18)]
    tokens = render.fn(make_splits(rows[:12], rows[12:15], rows[15:]), tiny_base, Model(base="tiny", max_length=256))
    with pytest.raises(ConfigError, match=r"preference\.method=dpo: no training row has a rejected answer"):
        prefer.fn(tokens, tiny_base, SMALL, DPO, DPO.schedule(SFT), ONE_THREAD)
    with pytest.raises(ConfigError, match=r"preference\.method=kto: no training row has an undesirable answer"):
        prefer.fn(tokens, tiny_base, SMALL, KTO, KTO.schedule(SFT), ONE_THREAD)


def test_a_split_of_undesirable_answers_alone_is_refused(tiny_base: Base, make_splits: MakeSplits) -> None:
    unwanted = Conversation(
        [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "no"}], undesirable=True
    )
    wanted = ["another question", "yes"]
    with pytest.raises(DataError, match="leaves no row in test: all of its rows have undesirable answers") as error:
        render.fn(make_splits([wanted], [wanted], [unwanted]), tiny_base, Model(base="tiny", max_length=256))
    assert not error.value.see


@pytest.mark.parametrize("settings", [DPO.model_copy(update={"sft_weight": 0.5}), KTO], ids=["dpo", "kto"])
@pytest.mark.parametrize(
    ("several", "strategy"), [("devices", "auto"), ("devices", "fsdp"), ("nodes", "auto"), *ZERO_DEVICES]
)
def test_two_processes_come_to_the_weights_of_one(
    settings: Preference,
    tokens: Tokens,
    tiny_base: Base,
    home: Path,
    several: str,
    strategy: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for number, attempt in ((1, in_this_process), (2, by_forks)):
        monkeypatch.setattr(train_stage, "_attempt", attempt)
        how = strategy if number > 1 else "auto"
        compute = Compute.model_validate({"threads": 1, "precision": "float32", several: number, "strategy": how})
        made = prefer.fn(tokens, tiny_base, SMALL, settings, settings.schedule(SFT), compute)
        found.append((made, load_file(made.path("model") / "adapter_model.safetensors")))
    (one, of_one), (two, of_two) = found
    for name, tensor in of_one.items():
        assert torch.allclose(of_two[name], tensor, atol=1e-4), f"{name} differs"
    assert two.best_value == pytest.approx(one.best_value, rel=1e-3)
    assert [line["loss"] for line in lines(two) if "loss" in line] == pytest.approx(
        [line["loss"] for line in lines(one) if "loss" in line], abs=1e-3
    )
