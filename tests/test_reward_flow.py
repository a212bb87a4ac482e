"""The pipeline on rewards: SFT, then the model's own answers, then a verdict as of any other candidate."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Harness, Once
from mlflow import MlflowClient
from orders import ROWS
from prefect import State
from trained import done_once

from tunewright.artifacts import Base
from tunewright.comparison import VariantComparison
from tunewright.config import (
    Compute,
    Data,
    Evaluation,
    Gate,
    Grpo,
    Method,
    Model,
    Registry,
    Settings,
    Source,
    Split,
    Training,
)
from tunewright.errors import ConfigError
from tunewright.flows.calls import stages
from tunewright.flows.compare import compare
from tunewright.flows.finetune import finetune, plan
from tunewright.flows.outcome import Outcome
from tunewright.registry.tracking import connected


@pytest.fixture(scope="module")
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness():
        yield


@pytest.fixture
def settings(tiny_base: Base) -> Settings:
    return Settings(
        data=Data(sources=(Source(path="rows.jsonl"),)),
        model=Model(base=tiny_base.reference, max_length=256),
        split=Split(test=0.3, decontaminate="report"),
        method=Method(rank=2, alpha=4),
        training=Training(learning_rate=0.01, max_steps=4, batch=8, evaluate_every=2),
        grpo=Grpo(
            rewards={"exact_match": 1, "own_rewards:brief": 0.1}, group=3, batch=2, max_new_tokens=4, max_steps=4
        ),
        compute=Compute(threads=1),
        evaluation=Evaluation(max_new_tokens=4, contenders=(), forgetting=False),
        gate=Gate(confidence=0.8, guardrails=()),
        registry=Registry(name="rewards"),
    )


@pytest.fixture(autouse=True)
def _place(
    server: None, home: Path, once: Once, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    done_once(once, monkeypatch)
    monkeypatch.chdir(tmp_path)
    home.mkdir(exist_ok=True)
    shutil.copy(mlflow_database, home)
    Path("rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    Path("own_rewards.py").write_text("def brief(answer):\n    return 1 / (1 + len(answer))\n")
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)
    monkeypatch.syspath_prepend(tmp_path)


def run(settings: Settings) -> State[Any]:
    sections = {name: getattr(settings, name) for name in Settings.model_fields}
    return finetune(**sections, until="register", refresh=(), return_state=True)


def with_grpo(settings: Settings, **changed: Any) -> Settings:
    return settings.model_copy(update={"grpo": settings.grpo.model_copy(update=changed)})


def test_rewards_come_to_a_verdict_and_another_group_trains_them_alone(settings: Settings) -> None:
    done = Outcome.of(run(settings).result())
    assert [each.stage for each in done.trainings] == ["train", "reinforce"]
    assert done.verdict and done.verdict.metric == "exact_match"
    printed = done.as_json()
    assert (printed["training"]["method"], printed["grpo"]["method"]) == ("lora", "grpo")
    assert printed["grpo"]["best_validation_loss"] == pytest.approx(-printed["grpo"]["best_value"])

    assert done.registered
    with connected(settings.registry) as client:
        assert isinstance(client, MlflowClient)
        curve = client.get_metric_history(done.registered.run_id, "grpo/reward")
        assert [point.step for point in curve] == [1, 2, 3, 4]
        looked = client.get_metric_history(done.registered.run_id, "grpo/validation_reward")
        assert looked[0].step == 0  # before the first step, to compare with
        there = client.get_run(done.registered.run_id).data
        assert {"train/loss", "grpo/answer_tokens", "grpo/validation/best_reward"} <= there.metrics.keys()
        assert "Training on rewards (exact_match, own_rewards:brief), 4 steps" in there.tags["mlflow.note.content"]

    assert {step.state for step in plan(settings, "register", ())} == {"cached"}
    would = {step.name: step for step in plan(with_grpo(settings, group=4, learning_rate=0.1), "register", ())}
    assert (would["render"].state, would["train"].state) == ("cached", "cached")
    assert would["reinforce"].because == ["grpo.group: 3 -> 4", "grpo.learning_rate: 2e-05 -> 0.1"]

    Path("own_rewards.py").write_text("def brief(answer):\n    return 2 / (1 + len(answer))\n")
    again = {step.name: step for step in plan(settings, "register", ())}
    assert again["train"].state == "cached"
    assert again["reinforce"].because == ["grpo.rewards: the code of a function of yours is new or changed"]


def test_rewards_alone_train_from_the_base(settings: Settings) -> None:
    done = Outcome.of(run(with_grpo(settings, after_sft=False)).result())
    assert [each.stage for each in done.trainings] == ["reinforce"]
    assert "training" not in done.as_json()


def test_variants_are_ranked_by_the_validation_reward(settings: Settings) -> None:
    variants = {f"group={number}": with_grpo(settings, group=number) for number in (2, 3)}
    state: Any = compare(settings, variants, return_state=True)
    found: VariantComparison = state.result()
    assert {trial.measure for ranked in found.ranked for trial in ranked.trials} == {"reward"}
    for ranked in found.ranked:
        (trial,) = ranked.trials
        assert trial.value == max(each.value for each in trial.evaluations if each.step > 0)


def test_without_rewards_the_stage_is_refused(settings: Settings) -> None:
    plain = settings.model_copy(update={"grpo": Grpo()})
    with pytest.raises(ConfigError, match=r"^reinforce is a stage with grpo\.rewards only"):
        stages(plain, "reinforce")
