"""DeepSpeed's ZeRO: its configuration is valid, and a training by it goes on from wherever it was left.

That it trains as one process does is in test_ranks.py.
"""

import importlib
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from test_ranks import kill_a_rank_after, tokens
from test_train import LONG, SMALL, curve, weights
from trained import WITH_DEEPSPEED, ZERO, by_forks

from tunewright.artifacts import Adapter, Base, Tokens
from tunewright.config import Compute
from tunewright.errors import TrainerDied, TrainingError
from tunewright.modeling.compute import Chosen
from tunewright.tasks.train import stage, trainer
from tunewright.tasks.train.stage import train
from tunewright.tasks.train.trainer import zero
from tunewright.tasks.train.trainer.answer_trainer import AnswerTrainer

__all__ = ["tokens"]

# https://www.deepspeed.ai/docs/config-json
DOCUMENTED = {
    "": {
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        *("bf16", "data_types", "communication_data_type", "zero_optimization", "zero_allow_untested_optimizer"),
        "zero_force_ds_cpu_optimizer",
    },
    "bf16": {"enabled"},
    "data_types": {"grad_accum_dtype"},
    "zero_optimization": {
        *("stage", "reduce_bucket_size", "offload_optimizer", "offload_param"),
        *("stage3_param_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
    },
    "offload_optimizer": {"device", "pin_memory"},
    "offload_param": {"device", "pin_memory"},
}
STEPS = 40
CASES = [(2, False), (2, True), (3, False), (3, True)]


def made(stage_of_zero: int, *, offload: bool) -> dict[str, Any]:
    fields = {"precision": "bfloat16", "attention": "sdpa", "optimizer": "adamw", "because": {}}
    switches = dict.fromkeys(("shared_prefix", "packing", "checkpointing", "liger", "compile", "fused"), False)
    chosen = Chosen.model_validate({**fields, **switches, "devices": 2, "zero": stage_of_zero, "offload": offload})
    return zero.configuration(chosen, 32)


@pytest.mark.parametrize(("number", "offload"), CASES)
def test_the_configuration_has_documented_keys_only(number: int, offload: bool) -> None:
    def look(name: str, section: dict[str, Any]) -> None:
        assert section.keys() <= DOCUMENTED[name]
        for key, value in section.items():
            if isinstance(value, dict):
                look(key, value)

    look("", made(number, offload=offload))


@WITH_DEEPSPEED
@pytest.mark.parametrize(("number", "offload"), CASES)
def test_deepspeed_reads_the_configuration_as_it_was_meant(number: int, offload: bool) -> None:
    DeepSpeedConfig = importlib.import_module("deepspeed.runtime.config").DeepSpeedConfig  # noqa: N806 a class
    filled = {"train_batch_size": 4, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 1}
    read = DeepSpeedConfig(
        made(number, offload=offload) | filled | {"gradient_clipping": 1.0, "bf16": {"enabled": True}}
    )
    assert read.zero_optimization_stage == number
    assert read.bfloat16_config.enabled
    assert read.grad_accum_dtype == "fp32"
    of_zero: Any = read.zero_config
    assert (of_zero.offload_optimizer.device == "cpu") == offload
    assert (of_zero.offload_param is not None and of_zero.offload_param.device == "cpu") == (offload and number == 3)
    if number == 3:
        assert of_zero.param_persistence_threshold == 320


def trained(tokens: Tokens, base: Base, strategy: str, **more: Any) -> Adapter:
    """A training that evaluates after each step."""
    compute = {"threads": 1, "precision": "float32", "devices": 2, "strategy": strategy, **more}
    training = LONG.model_copy(update={"max_steps": STEPS, "evaluate_every": 1, "patience": None})
    return train.fn(tokens, base, SMALL, training, Compute.model_validate(compute))


@pytest.mark.parametrize("strategy", ZERO)
def test_left_in_the_middle_or_at_its_end_it_comes_to_the_same_bytes(
    strategy: str, tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(job: trainer.Job, work: Path) -> int:
        assert by_forks(job, work) == trainer.FINISHED
        (work / "summary.json").unlink()
        shutil.rmtree(work / "model")
        return by_forks(job, work)

    with monkeypatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
        patch.setattr(stage, "_attempt", twice)
        undisturbed = trained(tokens, tiny_base, strategy)
    assert f'"resumed_from": {STEPS}' in undisturbed.path("status.json").read_text()
    monkeypatch.setattr(stage, "_attempt", by_forks)
    kill_a_rank_after(home / "work", '"step": 3', signal.SIGTERM)
    with pytest.raises(TrainerDied, match="the trainer was stopped and saved a checkpoint"):
        trained(tokens, tiny_base, strategy)
    resumed = trained(tokens, tiny_base, strategy)
    assert '"resumed_from": 0' not in resumed.path("status.json").read_text()
    assert weights(resumed) == weights(undisturbed)
    for name in ("loss", "eval_loss"):
        ones, others = ([line[name] for line in curve(each) if name in line] for each in (undisturbed, resumed))
        assert ones == others
        assert len(ones) == STEPS


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("strategy", ZERO)
def test_a_gradient_that_is_no_number_ends_the_training(
    strategy: str,
    precision: str,
    tokens: Tokens,
    tiny_base: Base,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    terms = AnswerTrainer._terms

    def broken(*args: Any) -> list[torch.Tensor]:
        return [term + (term * 0).sqrt() for term in terms(*args)]

    monkeypatch.setattr(AnswerTrainer, "_terms", broken)
    monkeypatch.setattr(stage, "_attempt", by_forks)
    with pytest.raises(TrainingError, match="training did not finish"):
        trained(tokens, tiny_base, strategy, precision=precision)
    assert "the gradient is NaN or infinite at step 1; its rows: " in capfd.readouterr().err
