"""Training reaches its planned end or says that it did not, and a killed run comes to the same weights."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeSplits
from safetensors.torch import load_file

from tasks import trainer
from tasks.artifacts import Adapter, Base, Tokens
from tasks.caching import digest_of
from tasks.config import Compute, Method, Model, Training
from tasks.errors import TrainerDied, TrainingError, is_transient
from tasks.render import render
from tasks.train import train

QUICK = Training(learning_rate=0.01, max_steps=6, batch=4, evaluate_every=2, patience=None)
SMALL = Method(rank=2, alpha=4)
ONE_THREAD = Compute(threads=1)


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    questions = [[f"the question number {i}", f"the answer {i % 3}"] for i in range(18)]
    splits = make_splits(train=questions[:12], validation=questions[12:15], test=questions[15:])
    return render.fn(splits, tiny_base, Model(base="tiny", max_length=256))


def weights(adapter: Adapter) -> str:
    return digest_of(adapter.path("model") / "adapter_model.safetensors")


def curve(adapter: Adapter) -> list[dict[str, Any]]:
    return [json.loads(line) for line in adapter.path("metrics.jsonl").read_text().splitlines()]


def kill_trainer_after(home: Path, line: str, sent: signal.Signals) -> threading.Thread:
    """Sends a signal to the trainer once its metrics hold `line`."""

    def wait_and_kill() -> None:
        while True:
            for metrics in home.glob("work/train/*/metrics.jsonl"):
                if line in metrics.read_text():
                    os.kill(trainer_process(), sent)
                    return
            time.sleep(0.02)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def trainer_process() -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, parent = (
                (folder / "cmdline").read_bytes(),
                (folder / "stat").read_text().rpartition(")")[2].split()[1],
            )
        except OSError:
            continue
        if b"tasks.trainer" in command and int(parent) == os.getpid():
            return int(folder.name)
    raise AssertionError("no trainer runs")


def test_a_run_ends_at_its_planned_step_with_the_best_weights_and_its_curves(tokens: Tokens, tiny_base: Base) -> None:
    adapter = train.fn(tokens, tiny_base, SMALL, QUICK, ONE_THREAD)
    assert adapter.steps == 6
    looks = {line["step"]: line["eval_loss"] for line in curve(adapter) if "eval_loss" in line}
    assert list(looks) == [2, 4, 6]
    assert adapter.best_step == min(looks, key=lambda step: looks[step])
    assert adapter.best_validation_loss == pytest.approx(min(looks.values()))
    assert [line["step"] for line in curve(adapter) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    config = json.loads((adapter.path("model") / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == tiny_base.reference
    page = adapter.path("curves.html").read_text()
    assert f"<b>{adapter.best_step}</b>" in page
    assert page.count("<svg") >= 5
    assert {"grad_norm", "learning_rate", "tokens_per_second", "rows_per_second", "memory_bytes"} <= curve(adapter)[
        0
    ].keys()
    assert adapter.path("contract.json").read_bytes() == tokens.path("contract.json").read_bytes()


def test_killed_in_the_middle_it_resumes_to_the_same_bytes(
    tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = QUICK.model_copy(update={"max_steps": 24})
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
    undisturbed = train.fn(tokens, tiny_base, SMALL, long, ONE_THREAD)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(home))
    killer = kill_trainer_after(home, '"step": 7', signal.SIGKILL)
    with pytest.raises(TrainerDied, match="SIGKILL") as died:
        train.fn(tokens, tiny_base, SMALL, long, ONE_THREAD)
    assert is_transient(died.value)
    killer.join()
    resumed = train.fn(tokens, tiny_base, SMALL, long, ONE_THREAD)
    status = json.loads((resumed.path("status.json")).read_text())
    assert 6 <= status["resumed_from"] < 24
    assert weights(resumed) == weights(undisturbed)
    assert resumed.digest == undisturbed.digest
    steps = [line["step"] for line in curve(resumed) if "loss" in line]
    assert steps == sorted(set(steps)) == list(range(1, 25))


def test_asked_to_stop_it_saves_a_checkpoint_and_says_that_it_is_not_done(
    tokens: Tokens, tiny_base: Base, home: Path
) -> None:
    long = QUICK.model_copy(update={"max_steps": 400, "evaluate_every": 400})
    killer = kill_trainer_after(home, '"step": 3', signal.SIGTERM)
    with pytest.raises(TrainerDied, match="asked to stop"):
        train.fn(tokens, tiny_base, SMALL, long, ONE_THREAD)
    killer.join()
    assert len(list(home.glob("work/train/*/checkpoints/checkpoint-*/manifest.json"))) == 1
    assert not list(home.glob("artifacts/train/*/manifest.json"))


def test_it_stops_early_and_keeps_the_best_step(tokens: Tokens, tiny_base: Base) -> None:
    hot = Training(learning_rate=1.0, max_steps=40, batch=4, evaluate_every=1, patience=2)
    adapter = train.fn(tokens, tiny_base, SMALL, hot, ONE_THREAD)
    assert adapter.stopped_early
    assert adapter.steps == adapter.best_step + 2 < 40


def test_out_of_memory_halves_the_rows_on_the_device_and_keeps_the_batch(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import train as stage

    tried: list[int] = []

    def attempt(job: trainer.Job, work: Path) -> int:
        tried.append(job.micro_batch)
        return trainer.OUT_OF_MEMORY if job.micro_batch > 1 else original(job, work)

    original: Callable[[trainer.Job, Path], int] = stage._attempt
    monkeypatch.setattr(stage, "_attempt", attempt)
    adapter = train.fn(tokens, tiny_base, SMALL, QUICK, ONE_THREAD)
    assert tried == [4, 2, 1]
    assert adapter.steps == 6


def test_a_failed_trainer_is_reported_with_its_error_and_not_retried(
    tokens: Tokens, tiny_base: Base, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_base.weights, broken)
    for file in broken.glob("*token*"):
        file.unlink()
    base = tiny_base.model_copy(update={"folder": broken})
    with pytest.raises(TrainingError, match=r"training did not finish: ValueError: .*tokenizer") as failed:
        train.fn(tokens, base, SMALL, QUICK, ONE_THREAD)
    assert not is_transient(failed.value)


@pytest.mark.parametrize("method", [Method(kind="full"), Method(kind="qlora", rank=2, alpha=4, target="attention")])
def test_full_and_qlora_train_too(tokens: Tokens, tiny_base: Base, method: Method) -> None:
    adapter = train.fn(tokens, tiny_base, method, QUICK, ONE_THREAD)
    saved = load_file(next(adapter.path("model").glob("*.safetensors")))
    adapted = any("lora" in name for name in saved)
    assert adapted == (method.kind == "qlora")
    assert not any("gate_proj" in name for name in saved) or method.kind == "full"
    losses = [line["loss"] for line in curve(adapter) if "loss" in line]
    assert losses[-1] < losses[0]


def test_shared_and_plain_batches_train_alike(tokens: Tokens, tiny_base: Base) -> None:
    shared, plain = (
        curve(train.fn(tokens, tiny_base, Method(kind="full"), QUICK.model_copy(update={"speed": speed}), ONE_THREAD))
        for speed in ("auto", "plain")
    )
    for one, other in zip(shared, plain, strict=True):
        name = "loss" if "loss" in one else "eval_loss"
        assert one[name] == pytest.approx(other[name], rel=0.02)  # bfloat16 where the hardware has it
