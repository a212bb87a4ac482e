"""Training reaches its planned end or says that it did not, and a killed run comes to the same weights."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import waiting
from conftest import MakeSplits, Once, base_in
from safetensors.torch import load_file
from trained import done_once, fork_trainers, in_this_process, kill_trainer_after

from tunewright.artifacts import Adapter, Base, Tokens
from tunewright.cli import interrupts
from tunewright.config import Compute, Method, Model, Training
from tunewright.errors import ConfigError, TrainerDied, TrainerFailed, TrainingError, is_transient
from tunewright.modeling.models import load_model, load_tokenizer
from tunewright.store import shared
from tunewright.store.caching import digest_of, seconds_of
from tunewright.tasks.render import render
from tunewright.tasks.train import heartbeat, trainer
from tunewright.tasks.train import stage as train_stage
from tunewright.tasks.train.heartbeat import Heartbeat
from tunewright.tasks.train.stage import train
from tunewright.tasks.train.trainer import checkpoints

QUICK = Training(learning_rate=0.01, max_steps=6, batch=4, evaluate_every=2, patience=None)
LONG = QUICK.model_copy(update={"max_steps": 24})
SMALL = Method(rank=2, alpha=4)
ONE_THREAD = Compute(threads=1)


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    questions = [[f"the question number {i}", f"the answer {i % 3}"] for i in range(18)]
    splits = make_splits(train=questions[:12], validation=questions[12:15], test=questions[15:])
    return render.fn(splits, tiny_base, Model(base="tiny", max_length=256))


@pytest.fixture
def undisturbed(tokens: Tokens, tiny_base: Base, home: Path, once: Once, monkeypatch: pytest.MonkeyPatch) -> Adapter:
    """A training of LONG that nothing has cut short."""
    with monkeypatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
        done_once(once, patch, train_stage._attempt)
        return train.fn(tokens, tiny_base, SMALL, LONG, ONE_THREAD)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer is a fork of this process: the test of one that is killed has those that are started."""
    fork_trainers(monkeypatch)


def weights(adapter: Adapter) -> str:
    (file,) = adapter.path("model").glob("*.safetensors")
    return digest_of(file)


def curve(adapter: Adapter) -> list[dict[str, Any]]:
    return [json.loads(line) for line in adapter.path("metrics.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("forked")
def test_a_run_ends_at_its_planned_step_with_the_best_weights_and_its_curves(tokens: Tokens, tiny_base: Base) -> None:
    adapter = train.fn(tokens, tiny_base, SMALL, QUICK, ONE_THREAD)
    assert adapter.steps == 6
    looks = {line["step"]: line["eval_loss"] for line in curve(adapter) if "eval_loss" in line}
    assert list(looks) == [2, 4, 6]
    assert adapter.best_step == min(looks, key=lambda step: looks[step])
    assert adapter.best_validation_loss == pytest.approx(min(looks.values()))
    assert [line["step"] for line in curve(adapter) if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert curve(adapter)[0]["learning_rate"] == QUICK.learning_rate, "a warm-up of less than a step is none"
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
    tokens: Tokens, tiny_base: Base, home: Path, undisturbed: Adapter
) -> None:
    mapped: list[str] = []
    killer = kill_trainer_after(
        home, '"step": 7', signal.SIGKILL, see=lambda pid: mapped.append(Path(f"/proc/{pid}/maps").read_text())
    )
    with pytest.raises(TrainerDied, match="SIGKILL") as died:
        train.fn(tokens, tiny_base, SMALL, LONG, ONE_THREAD)
    assert is_transient(died.value)
    killer.join()
    assert ["/torch/" in mapped[0], "/scipy/" in mapped[0]] == [True, False], "the trainer needs no half second for it"
    (kept,) = home.glob("work/train/*/seconds.json")
    earlier = float(kept.read_text())
    resumed = train.fn(tokens, tiny_base, SMALL, LONG, ONE_THREAD)
    status = json.loads((resumed.path("status.json")).read_text())
    assert 6 <= status["resumed_from"] < 24
    assert resumed.earlier_seconds == round(earlier, 1) > 0
    assert resumed.train_seconds > resumed.earlier_seconds, "the time of both attempts"
    assert seconds_of(resumed) > resumed.train_seconds - 0.1
    assert weights(resumed) == weights(undisturbed)
    assert resumed.digest == undisturbed.digest
    steps = [line["step"] for line in curve(resumed) if "loss" in line]
    assert steps == sorted(set(steps)) == list(range(1, 25))


@pytest.mark.usefixtures("forked")
def test_a_run_that_sigterm_ends_goes_on_at_another_machine_from_the_step_it_was_at(
    tokens: Tokens, tiny_base: Base, home: Path, undisturbed: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is taken away before a copy of the newest checkpoint is due."""
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "store"))
    shared._opened.cache_clear()
    run = os.fork()
    if not run:
        try:
            with interrupts.raised(by=[signal.SIGTERM]):
                train.fn(tokens, tiny_base, SMALL, LONG, ONE_THREAD)
        except KeyboardInterrupt as error:
            os._exit(128 + interrupts.number_of(error))
        finally:
            os._exit(1)
    waiting.until(
        lambda: any('"step": 7' in each.read_text() for each in home.glob("work/train/*/metrics.jsonl")), every=0.02
    )
    os.kill(run, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(run, 0)[1]) == 128 + signal.SIGTERM

    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "another machine"))
    resumed = train.fn(tokens, tiny_base, SMALL, LONG, ONE_THREAD)
    assert 7 <= json.loads(resumed.path("status.json").read_text())["resumed_from"] < 24
    assert weights(resumed) == weights(undisturbed) and resumed.digest == undisturbed.digest


@pytest.mark.usefixtures("forked")
def test_checkpoints_between_evaluations_are_resumed_from_and_change_nothing(
    tokens: Tokens, tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seldom = LONG.model_copy(update={"evaluate_every": 20})
    with monkeypatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
        without = train.fn(tokens, tiny_base, SMALL, seldom, ONE_THREAD)
    each_step: Any = {"checkpoint_minutes": 1e-6}
    killer = kill_trainer_after(home, '"step": 7', signal.SIGKILL)
    with pytest.raises(TrainerDied, match="SIGKILL; the training resumes from its last valid checkpoint"):
        train.fn(tokens, tiny_base, SMALL, seldom, ONE_THREAD, **each_step)
    killer.join()
    resumed = train.fn(tokens, tiny_base, SMALL, seldom, ONE_THREAD, **each_step)
    assert 6 <= json.loads(resumed.path("status.json").read_text())["resumed_from"] < 20
    assert (resumed.key, resumed.digest) == (without.key, without.digest)


@pytest.mark.usefixtures("forked")
def test_killed_before_its_first_checkpoint_it_says_that_it_starts_again(
    tokens: Tokens, tiny_base: Base, home: Path
) -> None:
    seldom = LONG.model_copy(update={"evaluate_every": 24})
    killer = kill_trainer_after(home, '"step": 2', signal.SIGKILL)
    with pytest.raises(TrainerDied, match=r"SIGKILL; the training starts again from step 1.*checkpoint_minutes"):
        train.fn(tokens, tiny_base, SMALL, seldom, ONE_THREAD)
    killer.join()


@pytest.mark.usefixtures("forked")
def test_a_trainer_that_hangs_is_ended_and_resumes_to_the_same_bytes(
    tokens: Tokens, tiny_base: Base, home: Path, undisturbed: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "IDLE_SECONDS", 3.0)
    stopper = kill_trainer_after(home, '"step": 7', signal.SIGSTOP)
    with pytest.raises(TrainerDied, match=r"the trainer hung: no file written for \d s; it was killed") as hung:
        train.fn(tokens, tiny_base, SMALL, LONG, ONE_THREAD)
    stopper.join()
    assert is_transient(hung.value)
    resumed = train.fn(tokens, tiny_base, SMALL, LONG, ONE_THREAD)
    assert json.loads((resumed.path("status.json")).read_text())["resumed_from"] >= 6
    assert resumed.digest == undisturbed.digest


def test_one_that_works_without_writing_is_waited_for_longer_and_one_that_was_not_looked_at_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    computed = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(heartbeat, "cpu_seconds", lambda pid: computed[0])

    def silence(seconds: int, share: float, step_seconds: float = 0.0) -> int | None:
        """After how many silent seconds it is said to hang."""
        beat = Heartbeat(tmp_path, os.getpid())
        (tmp_path / "alive").touch()
        os.utime(tmp_path / "alive", (clock[0], clock[0]))
        for second in range(seconds):
            clock[0] += 1
            computed[0] += share
            if beat.hangs(step_seconds):
                return second
        return None

    assert silence(400, share=0.0) == pytest.approx(300, abs=3)
    assert silence(1700, share=0.9) is None
    assert silence(1900, share=0.9) == pytest.approx(1800, abs=3)
    assert silence(2500, share=0.9, step_seconds=100.0) is None
    beat = Heartbeat(tmp_path, os.getpid())
    for _ in range(20):  # a laptop that sleeps for an hour at a time
        clock[0] += 3600
        assert not beat.hangs(0.0)


def test_one_that_writes_is_at_work_although_the_clock_was_set_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    (tmp_path / "checkpoint").touch()
    beat = Heartbeat(tmp_path, os.getpid())
    for second in range(2000):
        clock[0] += 1
        (tmp_path / "metrics.jsonl").touch()
        os.utime(tmp_path / "metrics.jsonl", (second, second))  # long before the checkpoint was written
        assert not beat.hangs(0.0)


@pytest.mark.usefixtures("forked")
def test_asked_to_stop_it_saves_a_checkpoint_and_says_that_it_is_not_done(
    tokens: Tokens, tiny_base: Base, home: Path
) -> None:
    long = QUICK.model_copy(update={"max_steps": 400, "evaluate_every": 400})
    killer = kill_trainer_after(home, '"step": 3', signal.SIGTERM)
    with pytest.raises(TrainerDied, match="the trainer was stopped"):
        train.fn(tokens, tiny_base, SMALL, long, ONE_THREAD)
    killer.join()
    (checkpoint,) = home.glob("work/train/*/checkpoints/checkpoint-*/manifest.json")
    stage: Any = train.fn
    found = stage.look_up(tokens, tiny_base, SMALL, long, ONE_THREAD)
    assert checkpoints.newest_sealed(found.work / "checkpoints") == checkpoints.steps(checkpoint.parent) >= 3
    assert not list(home.glob("artifacts/train/*/manifest.json"))
    assert not [*home.rglob("README.md")], "no checkpoint has a model card"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training without a process of its own."""
    monkeypatch.setattr(train_stage, "_attempt", in_this_process)


@pytest.mark.usefixtures("here")
def test_it_stops_early_and_keeps_the_best_step(tokens: Tokens, tiny_base: Base) -> None:
    hot = Training(learning_rate=1.0, max_steps=40, batch=4, evaluate_every=1, patience=2)
    adapter = train.fn(tokens, tiny_base, SMALL, hot, ONE_THREAD)
    assert adapter.stopped_early
    assert adapter.steps == adapter.best_step + 2 < 40


@pytest.mark.usefixtures("here")
def test_a_pad_token_that_the_model_has_no_vector_for_is_not_used(
    tiny_base: Base, make_splits: MakeSplits, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base.weights, folder)
    tokenizer = load_tokenizer(tiny_base)
    assert tokenizer.add_special_tokens({"pad_token": "<|nothing|>"}) == 1  # as transformers does for Qwen2
    tokenizer.save_pretrained(folder)
    base = base_in(folder, "padded")
    splits = make_splits(train=[["one", "two"]], validation=[["three", "four"]], test=[["five", "six"]])
    tokens = render.fn(splits, base, Model(base=str(folder), max_length=256))
    contract = json.loads(tokens.path("contract.json").read_text())
    assert contract["pad_token_id"] in contract["stop_token_ids"]
    made = train.fn(tokens, base, Method(kind="full"), Training(max_steps=1, batch=1), ONE_THREAD)
    assert load_model(base, made.path("model")).config.pad_token_id == contract["pad_token_id"]


@pytest.mark.usefixtures("forked")
def test_out_of_memory_halves_the_rows_on_the_device_and_keeps_the_batch(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.tasks.train import stage as stage

    tried: list[int] = []

    def attempt(job: trainer.Job, work: Path) -> int:
        tried.append(job.micro_batch)
        return trainer.OUT_OF_MEMORY if job.micro_batch > 1 else original(job, work)

    original: Callable[[trainer.Job, Path], int] = stage._attempt
    monkeypatch.setattr(stage, "_attempt", attempt)
    adapter = train.fn(tokens, tiny_base, SMALL, QUICK, ONE_THREAD)
    assert tried == [4, 2, 1]
    assert adapter.steps == 6


@pytest.fixture
def job(tmp_path: Path) -> trainer.Job:
    """A job whose files are not there: for a trainer that is not started."""
    return trainer.Job(
        weights=tmp_path,
        reference="base",
        train=tmp_path / "train.parquet",
        validation=tmp_path / "validation.parquet",
        pad_token_id=0,
        stop_token_ids=(0,),
        method=SMALL,
        modules=(),
        training=QUICK,
        compute=ONE_THREAD,
        micro_batch=1,
    )


@pytest.mark.parametrize("kills", [1, 0])
def test_ended_by_the_kernel_for_want_of_memory_is_out_of_memory_and_by_a_person_is_not(
    job: trainer.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    from tunewright.tasks.train import stage as stage

    @contextlib.contextmanager
    def killed(job: trainer.Job, work: Path, part: None) -> Iterator[subprocess.Popen[bytes]]:
        with subprocess.Popen(["sleep", "60"]) as process:
            process.kill()
            yield process

    counted = iter((5, 5 + kills))
    monkeypatch.setattr(stage, "started", killed)
    monkeypatch.setattr(stage.machine, "oom_kills", lambda: next(counted))
    (tmp_path / "trainer.log").write_text(stage.ATTEMPT)
    wanted = r"out of memory .*the kernel killed the trainer.*compute\.checkpointing=true" if kills else "SIGKILL"
    with pytest.raises(TrainingError, match=wanted) as failed:
        stage.run_trainer(job, tmp_path)
    assert is_transient(failed.value) == (not kills)


@pytest.mark.parametrize("log", ["", "attempt of 2026-01-02\n"])
def test_a_trainer_that_wrote_nothing_is_told(
    job: trainer.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: str
) -> None:
    from tunewright.tasks.train import stage as stage

    monkeypatch.setattr(stage, "_attempt", lambda job, work: trainer.FAILED)
    (tmp_path / "trainer.log").write_text(log.replace("attempt of ", stage.ATTEMPT))
    with pytest.raises(TrainerFailed, match=r"training did not finish: no output; full output: .*trainer\.log"):
        stage.run_trainer(job, tmp_path)


@pytest.mark.parametrize(
    ("method", "compute", "advice"),
    [
        (SMALL, ONE_THREAD, "compute.checkpointing=true, method.kind=qlora, a lower method.rank"),
        (Method(kind="qlora"), ONE_THREAD, "compute.checkpointing=true, a lower method.rank"),
        (
            Method(kind="spectrum"),
            ONE_THREAD.model_copy(update={"checkpointing": True}),
            "method.kind=qlora, a lower method.share",
        ),
        (Method(kind="full"), ONE_THREAD, "compute.checkpointing=true, method.kind=qlora"),
    ],
)
def test_out_of_memory_advises_what_acts_with_the_method_and_is_not_set(
    job: trainer.Job,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Method,
    compute: Compute,
    advice: str,
) -> None:
    from tunewright.tasks.train import stage as stage

    monkeypatch.setattr(stage, "_attempt", lambda *_: trainer.OUT_OF_MEMORY)
    (tmp_path / "error.json").write_text(json.dumps({"type": "OutOfMemory", "message": "no room"}))
    with pytest.raises(TrainingError) as failed:
        stage.run_trainer(job.model_copy(update={"method": method, "compute": compute}), tmp_path)
    assert str(failed.value) == (
        f"out of memory with training.micro_batch=1 (OutOfMemory: no room): use {advice}, or a smaller model.base"
    )


def test_each_attempt_is_one_process_on_the_gpu_that_is_shown_first_and_adds_to_the_log(
    job: trainer.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.tasks.train import stage as stage

    program = tmp_path / "python"
    program.write_text('#!/bin/sh\necho "$CUDA_VISIBLE_DEVICES $@"\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    for shown in ("3,1", ""):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
        with stage.started(job, tmp_path) as process:
            assert process.wait(20) == 0
    command = f" -P -m tunewright.tasks.train.trainer.__main__ {tmp_path / 'job.json'} {os.getpid()}"
    lines = (tmp_path / "trainer.log").read_text().splitlines()
    assert [lines[1], lines[3]] == [f"3{command}", command]
    assert all(line.startswith("--- attempt of 20") and line.endswith("micro_batch=1") for line in lines[::2])


def test_a_trainer_whose_parent_died_before_it_could_ask_to_be_ended_with_it_ends_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "tunewright.tasks.train.trainer.__main__", str(tmp_path / "job.json"), "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(trainer.__file__).parents[2])}
    assert subprocess.run(command, env=environment, timeout=60).returncode == trainer.INTERRUPTED


@pytest.fixture
def process(job: trainer.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`process(fit)` is the trainer's main program in this process, with `fit()` for what it does; its exit code."""
    from tunewright.tasks.train.trainer import __main__ as program

    monkeypatch.setattr(program, "end_with_parent", lambda by: None)
    monkeypatch.setattr(program, "WAIT_SECONDS", 0.0)
    (tmp_path / "job.json").write_text(job.model_dump_json())

    def process(fit: Callable[[], int]) -> int:
        monkeypatch.setattr(program, "_fit", lambda *_: fit())
        return program.main(tmp_path / "job.json", os.getppid())

    return process


@pytest.mark.parametrize(
    ("method", "compute", "packed", "needed"),
    [
        (SMALL, ONE_THREAD, False, False),
        (Method(kind="full"), ONE_THREAD, False, False),
        (SMALL, ONE_THREAD, True, True),
        (Method(kind="qlora"), ONE_THREAD, False, True),
        (SMALL, ONE_THREAD.model_copy(update={"optimizer": "adamw_8bit"}), False, True),
    ],
)
def test_only_a_trainer_that_packs_weights_or_moments_imports_bitsandbytes(
    job: trainer.Job,
    tiny_base: Base,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Method,
    compute: Compute,
    packed: bool,
    needed: bool,
) -> None:
    from tunewright.tasks.train.trainer import __main__ as program

    config = json.loads((tiny_base.weights / "config.json").read_text()) | (
        {"quantization_config": {}} if packed else {}
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    found: list[bool] = []

    def fit(*_: Any) -> int:
        found.append(importlib.util.find_spec("bitsandbytes") is not None)
        return trainer.FINISHED

    monkeypatch.setattr("tunewright.tasks.train.trainer.fit.fit", fit)
    monkeypatch.setitem(sys.modules, "bitsandbytes", importlib.import_module("bitsandbytes"))
    assert program._fit(job.model_copy(update={"method": method, "compute": compute}), tmp_path) == trainer.FINISHED
    assert found == [needed]


def test_two_trainers_do_not_work_in_one_folder(process: Callable[..., int], tmp_path: Path) -> None:
    codes: list[int] = []

    def fit() -> int:
        codes.append(process(lambda: trainer.FINISHED))
        return trainer.FINISHED

    assert process(fit) == trainer.FINISHED
    assert codes == [trainer.FAILED]
    assert "another trainer is running in" in (tmp_path / "error.json").read_text()
    assert process(lambda: trainer.FINISHED) == trainer.FINISHED


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), 77),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"), 77),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), 77),
        (OSError(12, "Cannot allocate memory"), 77),
        (MemoryError(), 77),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), 1),
        (ValueError("no"), 1),
    ],
)
def test_whatever_library_runs_out_of_memory_it_is_told_from_other_errors(
    process: Callable[..., int], error: Exception, code: int
) -> None:
    def fit() -> int:
        raise error

    assert (trainer.OUT_OF_MEMORY, trainer.FAILED) == (77, 1)
    assert process(fit) == code


def test_settings_that_the_trainer_refuses_are_the_settings_fault(process: Callable[..., int], tmp_path: Path) -> None:
    from tunewright.tasks.train import stage as stage

    def fit() -> int:
        raise ConfigError("compute.liger=true: why")

    failure = stage._failure(process(fit), tmp_path)
    assert isinstance(failure, ConfigError)
    assert str(failure) == "compute.liger=true: why"


def test_a_seed_that_numpy_does_not_take_is_refused_with_what_it_takes() -> None:
    assert Training(seed=2**32 - 1).seed == 4_294_967_295
    with pytest.raises(ValueError, match="less than or equal to 4294967295"):
        Training(seed=2**32)


@pytest.mark.usefixtures("forked")
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


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("method", [Method(kind="full"), Method(kind="qlora", rank=2, alpha=4, target="attention")])
def test_full_and_qlora_train_too(tokens: Tokens, tiny_base: Base, method: Method) -> None:
    adapter = train.fn(tokens, tiny_base, method, QUICK, ONE_THREAD)
    saved = load_file(next(adapter.path("model").glob("*.safetensors")))
    adapted = any("lora" in name for name in saved)
    assert adapted == (method.kind == "qlora")
    assert not any("gate_proj" in name for name in saved) or method.kind == "full"
    losses = [line["loss"] for line in curve(adapter) if "loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.usefixtures("here")
def test_shared_and_plain_batches_train_alike(tokens: Tokens, tiny_base: Base) -> None:
    exact = ONE_THREAD.model_copy(update={"precision": "float32"})
    shared, plain = (
        curve(train.fn(tokens, tiny_base, Method(kind="full"), QUICK.model_copy(update={"speed": speed}), exact))
        for speed in ("auto", "plain")
    )
    for one, other in zip(shared, plain, strict=True):
        name = "loss" if "loss" in one else "eval_loss"
        assert one[name] == pytest.approx(other[name], rel=1e-4)


def test_an_unknown_error_of_the_trainer_is_shown_in_part(tmp_path: Path) -> None:
    (tmp_path / "error.json").write_text(
        json.dumps({"type": "RuntimeError", "message": "bad\nrow " + "its text " * 100})
    )
    failure = str(train_stage._failure(1, tmp_path))
    assert failure.startswith("training did not finish: RuntimeError: bad row its text")
    assert failure.endswith(f"…; full output: {tmp_path / 'trainer.log'}")
    assert len(failure) < 300 + len(str(tmp_path))
