"""Several ranks train as one process does, and where one is killed, the run resumes to the same bytes."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import MakeSplits, Once, base_in
from make_models import make_model
from safetensors.torch import load_file
from test_train import LONG, SMALL, curve, weights
from trained import WITH_DEEPSPEED, ZERO, Attempt, by_forks, done_once, in_this_process

from tunewright.artifacts import Adapter, Base, Scan, Tokens
from tunewright.config import Compute, Method, Model, Training
from tunewright.cost_model.case import BudgetCase
from tunewright.errors import ConfigError, TrainerDied, is_transient
from tunewright.modeling.batches import Collator, num_labels
from tunewright.modeling.compute import DdpMemory
from tunewright.modeling.micro_batching import shared_out
from tunewright.tasks.render import render
from tunewright.tasks.train import stage, trainer
from tunewright.tasks.train.stage import train
from tunewright.tasks.train.trainer import checkpoints, ranks, watch

ONE = Compute(threads=1, precision="float32")
FULL = Method(kind="full")
DROPPED = SMALL.model_copy(update={"dropout": 0.1})  # by a random state of each rank
PADDED = {"shared_prefix": False, "packing": False}


@pytest.fixture
def tokens(tiny_base: Base, make_splits: MakeSplits) -> Tokens:
    """Thirteen training rows of unlike lengths: in steps of four, the last of an epoch has one row for two ranks."""
    questions = [[f"the question number {i}" + " and more" * (i % 4), f"the answer {i % 3}"] for i in range(19)]
    splits = make_splits(train=questions[:13], validation=questions[13:16], test=questions[16:])
    return render.fn(splits, tiny_base, Model(base="tiny", max_length=256))


@pytest.mark.parametrize(
    ("method", "choice"),
    [
        pytest.param(SMALL, {"strategy": "ddp"}, id="lora-ddp"),
        pytest.param(SMALL, {"strategy": "ddp", **PADDED}, id="lora-ddp-padded"),
        pytest.param(FULL, {"strategy": "ddp"}, id="full-ddp"),
        pytest.param(Method(rank=2, alpha=4, init="pissa"), {"strategy": "ddp"}, id="pissa-ddp"),
        pytest.param(Method(kind="osf"), {"strategy": "ddp"}, id="osf-ddp"),
        pytest.param(Method(kind="qlora", rank=2, alpha=4, bits=8), {"strategy": "ddp"}, id="qlora-8-ddp"),
        pytest.param(Method(rank=2, alpha=4, init="eva"), {"strategy": "ddp"}, id="eva-ddp"),
        pytest.param(SMALL, {"strategy": "fsdp"}, id="lora-fsdp"),
        pytest.param(Method(rank=2, alpha=4, lora_plus=4.0, dora=True), {"strategy": "fsdp"}, id="dora-fsdp"),
        pytest.param(Method(kind="qlora", rank=2, alpha=4), {"strategy": "fsdp"}, id="qlora-fsdp"),
        pytest.param(Method(kind="spectrum"), {"strategy": "fsdp"}, id="spectrum-fsdp"),
        pytest.param(FULL, {"strategy": "fsdp", **PADDED}, id="full-fsdp-padded"),
        pytest.param(FULL, {"strategy": "fsdp", "checkpointing": True}, id="full-fsdp-checkpointing"),
        *(
            pytest.param(method, choice, id=name, marks=WITH_DEEPSPEED)
            for name, method, choice in (
                ("lora-zero2", SMALL, {"strategy": "zero2"}),
                ("qlora-zero2", Method(kind="qlora", rank=2, alpha=4), {"strategy": "zero2"}),
                ("full-zero2-offload", FULL, {"strategy": "zero2", "offload": True}),
                ("lora-zero3", SMALL, {"strategy": "zero3"}),
                ("dora-zero3", Method(rank=2, alpha=4, lora_plus=4.0, dora=True), {"strategy": "zero3"}),
                ("qlora-zero3", Method(kind="qlora", rank=2, alpha=4), {"strategy": "zero3"}),
                ("spectrum-zero3", Method(kind="spectrum"), {"strategy": "zero3"}),
                ("full-zero3-padded", FULL, {"strategy": "zero3", **PADDED}),
                ("full-zero3-offload", FULL, {"strategy": "zero3", "offload": True, "checkpointing": True}),
                ("lora-zero3-offload", SMALL, {"strategy": "zero3", "offload": True, "checkpointing": True}),
            )
        ),
    ],
)
def test_two_ranks_have_the_losses_and_weights_of_one_process(
    method: Method, choice: dict[str, Any], tokens: Tokens, tiny_base: Base, once: Once, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(
        learning_rate=1e-3, max_steps=6, batch=4, micro_batch=2, evaluate_every=2, best_by="token_f1", patience=None
    )
    monkeypatch.setattr(stage, "_attempt", by_forks)
    scan = Scan(
        stage="scan", num_modules=14, chosen=("model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj")
    )
    given = (tokens, tiny_base, method, training)
    two = train.fn(*given, ONE.model_copy(update={**choice, "devices": 2}), scan=scan)
    done_once(once, monkeypatch)
    one = train.fn(*given, ONE.model_copy(update={**choice, "strategy": "auto", "offload": False}), scan=scan)
    require_same(one, two)


@pytest.mark.parametrize(("method", "strategy"), [(SMALL, "ddp"), (FULL, "fsdp")], ids=["lora-ddp", "full-fsdp"])
def test_two_ranks_stop_early_after_the_same_step_with_the_same_best_weights(
    method: Method, strategy: str, tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(
        learning_rate=1e-3, max_steps=20, batch=4, micro_batch=2, evaluate_every=2, best_by="token_f1", patience=2
    )
    monkeypatch.setattr(stage, "_attempt", by_forks)
    two = train.fn(tokens, tiny_base, method, training, ONE.model_copy(update={"devices": 2, "strategy": strategy}))
    monkeypatch.setattr(stage, "_attempt", in_this_process)
    one = train.fn(tokens, tiny_base, method, training, ONE)
    assert one.stopped_early
    assert two.steps == one.steps == one.best_step + 4 < 20
    require_same(one, two)


def require_same(one: Adapter, two: Adapter) -> None:
    """Two trainings with the same losses and weights, within rounding, and the same configuration."""
    for name in ("loss", "grad_norm", "eval_loss", "eval_token_f1", "learning_rate"):
        ones, twos = ([line[name] for line in curve(adapter) if name in line] for adapter in (one, two))
        assert len(ones) >= 3
        assert twos == pytest.approx(ones, rel=1e-3), name
    assert two.best_step == one.best_step
    (file,) = (file.name for file in one.path("model").glob("*.safetensors"))
    of_one, of_two = (load_file(adapter.path("model") / file) for adapter in (one, two))
    assert of_one.keys() == of_two.keys()
    for name, tensor in of_one.items():
        assert tensor.dtype == of_two[name].dtype
        assert tensor.shape == of_two[name].shape
        assert (tensor - of_two[name]).abs().max() < 2e-3, name
    for file in one.path("model").glob("*config.json"):
        assert file.read_text() == (two.path("model") / file.name).read_text()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", *ZERO])
def test_a_rank_without_a_row_reaches_every_parameter(
    strategy: str, make_splits: MakeSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of RWKV's decay have no gradient in a row of one token; ranks that wait for it would wait for ever."""
    base = base_in(make_model("rwkv", tmp_path / "rwkv"), "rwkv")
    pairs = [[f"the question number {i}", f"the answer {i % 3}"] for i in range(9)]
    splits = make_splits(train=pairs[:5], validation=pairs[5:7], test=pairs[7:])
    tokens = render.fn(splits, base, Model(base="rwkv", max_length=256))
    training = Training(max_steps=2, batch=4, evaluate_every=2, patience=None)
    monkeypatch.setattr(stage, "_attempt", by_forks)
    trained = train.fn(tokens, base, FULL, training, ONE.model_copy(update={"devices": 2, "strategy": strategy}))
    assert trained.steps == 2


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", *ZERO])
@pytest.mark.parametrize("method", [SMALL, Method(kind="qlora", rank=2, alpha=4), FULL], ids=lambda method: method.kind)
def test_in_bfloat16_the_losses_differ_by_its_rounding(
    method: Method, strategy: Any, tokens: Tokens, tiny_base: Base, once: Once, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are generated in it as well."""
    training = Training(learning_rate=1e-3, max_steps=4, batch=4, evaluate_every=4, best_by="token_f1", patience=None)
    compute = Compute(threads=1, precision="bfloat16")
    monkeypatch.setattr(stage, "_attempt", by_forks)
    two = train.fn(tokens, tiny_base, method, training, compute.model_copy(update={"devices": 2, "strategy": strategy}))
    done_once(once, monkeypatch)
    one = train.fn(tokens, tiny_base, method, training, compute)
    for name in ("loss", "grad_norm", "eval_loss"):
        ones, twos = ([line[name] for line in curve(adapter) if name in line] for adapter in (one, two))
        assert twos == pytest.approx(ones, rel=0.02), name


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", *ZERO])
def test_two_ranks_name_the_rows_of_a_spike_and_go_on_as_one_process_does(
    strategy: str, tokens: Tokens, tiny_base: Base, once: Once, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "is_spike", lambda loss, before: True)
    training = Training(learning_rate=1e-2, max_steps=4, batch=4, evaluate_every=1, best_by="token_f1", patience=None)
    monkeypatch.setattr(stage, "_attempt", by_forks)
    two = train.fn(tokens, tiny_base, FULL, training, ONE.model_copy(update={"devices": 2, "strategy": strategy}))
    done_once(lambda name, make: once(f"spikes_{name}", make), monkeypatch)
    one = train.fn(tokens, tiny_base, FULL, training, ONE)
    require_same(one, two)
    worst = [[line["worst"] for line in curve(adapter) if "worst" in line] for adapter in (one, two)]
    assert len(worst[0]) == 4
    for ones, twos in zip(*worst, strict=True):
        assert [row for row, _ in ones] == [row for row, _ in twos]
        assert [loss for _, loss in ones] == pytest.approx([loss for _, loss in twos], rel=1e-3)


@pytest.mark.parametrize(
    ("method", "strategy", "attempt"),
    [
        pytest.param(DROPPED, "ddp", stage._attempt, id="lora-ddp"),
        pytest.param(DROPPED, "fsdp", by_forks, id="lora-fsdp"),
        pytest.param(FULL, "ddp", by_forks, id="full-ddp"),
        pytest.param(FULL, "fsdp", by_forks, id="full-fsdp"),
        pytest.param(DROPPED, "zero2", by_forks, id="lora-zero2", marks=WITH_DEEPSPEED),
        pytest.param(DROPPED, "zero3", stage._attempt, id="lora-zero3", marks=WITH_DEEPSPEED),
    ],
)
def test_where_a_rank_is_killed_the_others_end_and_the_run_resumes_to_the_same_bytes(
    method: Method,
    strategy: str,
    attempt: Attempt,
    tokens: Tokens,
    tiny_base: Base,
    home: Path,
    once: Once,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    two = ONE.model_copy(update={"devices": 2, "strategy": strategy})
    with monkeypatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
        done_once(once, patch, by_forks)
        undisturbed = train.fn(tokens, tiny_base, method, LONG, two)
    monkeypatch.setattr(stage, "_attempt", attempt)
    killer = kill_a_rank_after(home / "work", '"step": 7', signal.SIGKILL)
    with pytest.raises(TrainerDied, match="the trainer was killed by SIGKILL") as died:
        train.fn(tokens, tiny_base, method, LONG, two)
    assert is_transient(died.value)
    assert not any(process.is_running() for process in killer()), "the other rank ended with it"
    monkeypatch.setattr(stage, "_attempt", by_forks)
    resumed = train.fn(tokens, tiny_base, method, LONG, two)
    assert 6 <= json.loads(resumed.path("status.json").read_text())["resumed_from"] < 24
    assert weights(resumed) == weights(undisturbed)
    steps = [line["step"] for line in curve(resumed) if "loss" in line]
    assert steps == list(range(1, 25))


def test_a_resumed_training_keeps_the_strategy_that_it_began_with(
    tokens: Tokens, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, short = ONE.model_copy(update={"devices": 2}), LONG.model_copy(update={"max_steps": 4})

    def interrupted(job: trainer.Job, work: Path) -> int:
        assert by_forks(job, work) == trainer.FINISHED
        return trainer.INTERRUPTED

    monkeypatch.setattr(BudgetCase, "ddp", DdpMemory(peak=2, room=1))
    monkeypatch.setattr(stage, "_attempt", interrupted)
    with pytest.raises(TrainerDied, match="stopped and saved a checkpoint"):
        train.fn(tokens, tiny_base, SMALL, short, two)
    monkeypatch.setattr(BudgetCase, "ddp", DdpMemory(peak=2, room=2))  # another process ended meanwhile
    monkeypatch.setattr(stage, "_attempt", by_forks)
    status = json.loads(train.fn(tokens, tiny_base, SMALL, short, two).path("status.json").read_text())
    assert (status["resumed_from"], status["chosen"]["sharded"]) == (4, True)


def test_asked_to_stop_all_ranks_stop_after_the_same_step_with_one_checkpoint(
    tokens: Tokens, tiny_base: Base, home: Path
) -> None:
    long = LONG.model_copy(update={"max_steps": 4000, "evaluate_every": 4000})
    killer = kill_a_rank_after(home / "work", '"step": 3', signal.SIGTERM)
    with pytest.raises(TrainerDied, match="the trainer was stopped and saved a checkpoint"):
        train.fn(tokens, tiny_base, SMALL, long, ONE.model_copy(update={"devices": 2}))
    assert not any(process.is_running() for process in killer())
    (checkpoint,) = home.glob("work/train/*/checkpoints/checkpoint-*")
    assert not checkpoints.fault(checkpoint)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {file.name for file in checkpoint.iterdir()}


def kill_a_rank_after(work: Path, line: str, sent: signal.Signals) -> Callable[[], list[psutil.Process]]:
    """Sends a signal to the last rank once the metrics hold `line`; the ranks, once it is sent."""
    found: list[psutil.Process] = []

    def wait_and_kill() -> None:
        while not any(line in metrics.read_text() for metrics in work.glob("train/*/metrics.jsonl")):
            time.sleep(0.02)
        children = psutil.Process().children(recursive=True)
        found.extend(sorted(filter(_is_rank, children), key=lambda process: process.pid))
        found[-1].send_signal(sent)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()

    def ranks_after() -> list[psutil.Process]:
        thread.join()
        assert len(found) == 2
        return found

    return ranks_after


def _is_rank(process: psutil.Process) -> bool:
    return process.name().startswith("rank ") or ranks.MEETING in process.environ()


def test_every_row_is_computed_by_one_rank_and_every_rank_computes_as_often() -> None:
    for num_rows in range(1, 9):
        rows = [{"row_id": f"{at}", "input_ids": [7, at, 3, 4], "labels": [-100, -100, 3, 4]} for at in range(num_rows)]
        for number in range(1, 5):
            shares = [
                Collator("packed", 0, 2, rank=rank, ranks=number)(rows)["micro_batches"] for rank in range(number)
            ]
            assert len({len(share) for share in shares}) == 1
            batches = [batch for share in shares for batch in share]
            assert sum(map(num_labels, batches)) == 2 * num_rows
            seen = [batch["inputs"]["input_ids"][0].tolist() for batch in batches if num_labels(batch)]
            assert sorted(at for ids in seen for at in ids[1::3]) == [*range(num_rows)]


def test_rows_are_shared_out_evenly_by_their_tokens() -> None:
    cuts = [[{"input_ids": [1] * length, "labels": [-100] + [1] * (length - 1)}] for length in (9, 2, 8, 3)]
    assert [[len(rows[0]["input_ids"]) for rows in share] for share in shared_out(cuts, 2)] == [[9, 2], [8, 3]]


@pytest.mark.parametrize(
    ("settings", "method", "message"),
    [
        ({"strategy": "fsdp"}, SMALL, "compute.strategy=fsdp: there is one device; set compute.devices"),
        ({"devices": 2, "strategy": "fsdp"}, Method(init="pissa"), "method.init=pissa .* accepted: ddp"),
        ({"devices": 2, "strategy": "fsdp", "optimizer": "adamw_8bit"}, SMALL, "adamw_8bit .* accepted: ddp"),
        (
            {"devices": 2, "strategy": "fsdp"},
            Method(kind="qlora", bits=8),
            "compute.strategy=fsdp: method.bits=8 keeps scales .* accepted: ddp",
        ),
        ({"devices": 2, "strategy": "zero2"}, Method(kind="osf"), "compute.strategy=zero2: .* accepted: ddp"),
        ({"devices": 2, "offload": True}, SMALL, "compute.offload=true: compute.strategy=auto keeps .*=zero2 or zero3"),
    ],
)
def test_what_cannot_be_is_refused_before_training(
    settings: dict[str, Any], method: Method, message: str, tokens: Tokens, tiny_base: Base
) -> None:
    with pytest.raises(ConfigError, match=message):
        train.fn(tokens, tiny_base, method, LONG, ONE.model_copy(update=settings))
