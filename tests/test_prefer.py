"""Training on preference pairs: it moves the model to the chosen answers, resumes to the same bytes, and is TRL's."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSplits

from tunewright.artifacts import Adapter, Base, Tokens
from tunewright.config import Compute, Method, Model, Preference, Training
from tunewright.store.caching import digest_of
from tunewright.tasks.prefer import prefer
from tunewright.tasks.render import render
from tunewright.tasks.train.stage import train
from tunewright.tools.conversation import Conversation

SFT = Training(learning_rate=0.01, max_steps=6, batch=4, evaluate_every=3, patience=None)
DPO = Preference(method="dpo", learning_rate=0.01, max_steps=8)
SMALL = Method(rank=2, alpha=4)
ONE_THREAD = Compute(threads=1)


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
    assert digest_of(made.path("model") / "adapter_model.safetensors") != digest_of(
        first.path("model") / "adapter_model.safetensors"
    )
