"""Estimates of training: parameter counts match the real model, and memory the tensors that autograd keeps."""

import importlib
import json
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_models import make_model
from make_payloads import make_contract

from tunewright import cost_model
from tunewright.artifacts import IGNORED, TOKEN_SCHEMA, Base, Tokens
from tunewright.cli import plan
from tunewright.config import Compute, Method, Training
from tunewright.cost_model import devices, shapes, timing, work
from tunewright.cost_model.learning import learning
from tunewright.cost_model.memory import NF4, Load, Memory, activations, disk_bytes, memory
from tunewright.cost_model.money import Price
from tunewright.errors import ConfigError
from tunewright.modeling import architecture, batches, methods, micro_batching
from tunewright.modeling import compute as speed
from tunewright.tasks.train import calibration

ROOT = Path(__file__).parent.parent
GB = 1_000_000_000
WIDE = {
    "vocab_size": 1_000,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
}
ROWS, LENGTH, LABELLED = 4, 64, 8
METHODS = [
    Method(),
    Method(target="attention"),
    Method(target="q_proj, down_proj", rank=4),
    Method(layers=1),
    Method(dora=True),
    Method(dropout=0.1),
    Method(kind="qlora"),
    Method(kind="qlora", bits=8),
    Method(kind="full"),
    Method(kind="spectrum", share=0.34),
    Method(kind="osf", share=0.3),
]


def name_of(method: Method) -> str:
    """Return the fields that are not at their defaults, as JSON."""
    return method.model_dump_json(exclude_defaults=True)


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a llama wide enough for activations to outweigh everything small."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    LlamaForCausalLM(LlamaConfig(**WIDE)).to(torch.bfloat16).save_pretrained(folder)  # pyright: ignore[reportArgumentType]
    return folder


def chosen(weights: Path, method: Method, compute: Compute | None = None, **device: Any) -> speed.Chosen:
    """How it is computed here, or on another device."""
    here = speed.Device(**({"has_bfloat16": True, "memory_bytes": 32 * GB} | device))
    return speed.choose(shapes.config_in(weights), method, Training(), compute or Compute(), LENGTH, here)


def token_rows(number: int, length: int = LENGTH, prefix: int = 0) -> list[dict[str, Any]]:
    """Rows that begin with so many tokens alike."""
    return [
        {
            "input_ids": [7] * prefix + [10 + row] + [5] * (length - prefix - 1),
            "labels": [IGNORED] * (length - LABELLED) + [5] * LABELLED,
        }
        for row in range(number)
    ]


def modules(weights: Path, method: Method) -> tuple[str, ...]:
    """Those that spectrum trains."""
    return tuple(sorted(matrix.path for matrix in learning(shapes.shape_in(weights), method).matrices))


def ground(base: Base, rows: list[dict[str, Any]], number: int = 100) -> cost_model.Ground:
    """The base and rows to reckon with."""
    return cost_model.Ground(
        shape=shapes.shape_in(base.weights),
        config=shapes.config_in(base.weights),
        source="render",
        num_rows=number,
        num_validation=10,
        rows=rows,
        longest=max(len(row["input_ids"]) for row in rows),
    )


def estimated(
    ground: cost_model.Ground,
    method: Method,
    training: Training,
    compute: Compute,
    machine: devices.Machine,
    rate: calibration.Rate | None = None,
) -> cost_model.Estimate:
    """Estimate the memory and time of a training."""
    return cost_model.estimate(cost_model.BudgetCase(ground, method, training, compute, machine), rate)


def with_free(free: float, **device: Any) -> devices.Machine:
    """A machine with so many bytes free."""
    return devices.Machine(speed.Device(has_bfloat16=True, memory_bytes=int(free), **device), int(free), 100.0, True)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_the_parameters_that_learn_are_those_of_the_real_model(wide_base: Path, method: Method) -> None:
    shape = shapes.shape_in(wide_base)
    of_spectrum = modules(wide_base, method) if method.kind == "spectrum" else ()
    model = methods.load_trainable(wide_base, method, chosen(wide_base, method), of_spectrum)
    learns, total = methods.trained_share(model)
    assert learning(shape, method).num_learning == learns
    adapter = learns if learning(shape, method).is_adapter else 0
    assert shape.num_parameters == total - adapter
    assert learning(shape, method).num_parameters(shape) == total, "a plan and a run name the same share"


SWITCHES = {
    "padded": {"shared_prefix": False, "packing": False},
    "packed": {"shared_prefix": False, "packing": True},
    "shared": {"shared_prefix": True},
}


def kept_and_predicted(
    weights: Path, method: Method, how: speed.Chosen, rows: list[dict[str, Any]], a_group: int | None = None
) -> tuple[int, int]:
    """The bytes that autograd keeps of a forward pass on the rows, and what they are predicted to be."""
    import torch

    from tunewright.tasks.train.trainer.preparing import prepare

    of_spectrum = modules(weights, method) if method.kind == "spectrum" else ()
    model = methods.load_trainable(weights, method, how, of_spectrum).train()
    prepare(model, how)
    batch = batches.Collator(how.layout, 0, ROWS, a_group=a_group).lay(rows)
    kept: dict[int, torch.Tensor] = {}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=how.precision == "bfloat16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        batches.answer_loss(model, batch)
    shape, what = shapes.shape_in(weights), learning(shapes.shape_in(weights), method)
    load = work.load(rows, how.layout, a_group, is_whole_step=True)
    copies = 2 * (shape.num_linear + shape.num_embedding if method.kind == "full" else what.num_learning)
    predicted = activations(shape, method, how, load, what) + (copies if how.precision == "bfloat16" else 0)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), predicted


@pytest.mark.parametrize("layout", SWITCHES)
@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_activations_are_the_tensors_that_autograd_keeps(wide_base: Path, method: Method, layout: str) -> None:
    how = chosen(wide_base, method, Compute.model_validate(SWITCHES[layout]))
    rows = token_rows(ROWS, prefix=16 if layout == "shared" else 0)
    measured, predicted = kept_and_predicted(wide_base, method, how, rows)
    assert predicted / measured == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("compute", [*SWITCHES.values(), {"attention": "eager"}], ids=str)
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
@pytest.mark.parametrize("scores", [0, 2**23])
def test_attention_of_unlike_rows_keeps_what_is_counted(
    wide_base: Path, compute: dict[str, Any], precision: str, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.modeling.batches.attention.SCORES", scores)
    monkeypatch.setattr("tunewright.cost_model.memory.SCORES", scores)
    how = chosen(wide_base, Method(target="attention"), Compute.model_validate(compute | {"precision": precision}))
    rows = [row for length in (40, 44, 120, 128) for row in token_rows(1, length, prefix=16)]
    measured, predicted = kept_and_predicted(wide_base, Method(target="attention"), how, rows, a_group=2_000)
    assert predicted / measured == pytest.approx(1, abs=0.04)


def test_a_gpu_repeats_key_heads_behind_a_prefix_and_keeps_no_second_adapter(
    wide_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.cost_model.memory.SCORES", 0)
    shape, how = shapes.shape_in(wide_base), chosen(wide_base, Method())
    more = []
    for prefix in (16, 0):
        load = Load(tokens=64, scored=8, groups=((2, 40),), prefix=prefix)
        here, there = (memory(shape, Method(init="pissa"), how, load, kind) for kind in ("cpu", "cuda"))
        more.append(there.activations - here.activations)
        assert here.adapter == 2 * there.adapter == 8 * learning(shape, Method()).num_learning
    wide, narrow = 256, 64
    assert more == [3 * 2 * 2 * 80 * (wide - narrow), 0]


def test_a_gguf_file_tells_the_shape_of_its_model(wide_base: Path, tmp_path: Path) -> None:
    import gguf
    import numpy as np

    names = {theirs: ours for ours, theirs in (("attn_q", "q_proj"), ("attn_k", "k_proj"), ("attn_v", "v_proj"))}
    names |= {"o_proj": "attn_output", "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    shape = shapes.shape_in(wide_base)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_embedding_length(256)
    writer.add_feed_forward_length(640)
    writer.add_head_count(8)
    writer.add_head_count_kv(2)
    writer.add_token_list(["a", "bc"] * 500)
    writer.add_tensor("token_embd.weight", np.zeros((1_000, 256), np.float16))
    writer.add_tensor("output_norm.weight", np.zeros(shape.num_others, np.float32))
    for matrix in shape.matrices:
        tensor = np.zeros((matrix.outputs, matrix.inputs), np.float16)
        writer.add_tensor(f"blk.{matrix.layer}.{names[matrix.name]}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = shapes.shape_of_gguf(tmp_path / "model.gguf")
    placeless = [matrix._replace(path="") for matrix in shape.matrices]
    assert [matrix._replace(path="") for matrix in read.matrices] == placeless
    assert read.model_copy(update={"matrices": shape.matrices}) == shape


def gguf_text(text: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text


def gguf_file(*settings: bytes, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(settings)) + b"".join(settings)


LLAMA = gguf_text(b"general.architecture") + struct.pack("<I", 8) + gguf_text(b"llama")
HIDDEN = gguf_text(b"llama.embedding_length")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "does not begin with the magic bytes of a GGUF file"),
        (b"GGUF", "is cut off"),
        (gguf_file((2**62).to_bytes(8, "little")), "declares 4,611,686,018,427,387,904 bytes, more than the file"),
        (gguf_file(gguf_text(b"a") + struct.pack("<IIQ", 9, 10, 2**62)), r"declares [\d,]+ bytes, more than the file"),
        (gguf_file(gguf_text(b"a") + struct.pack("<I", 99)), "has a setting of type 99; accepted: 0 to 12"),
        (gguf_file(gguf_text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5_000), "is nested too deep"),
        (gguf_file(LLAMA, tensors=2**62), "is cut off"),
        (gguf_file(), "has general.architecture=None, which is not a name"),
        (gguf_file(LLAMA, HIDDEN + struct.pack("<IQ", 10, 2**62)), "has llama.embedding_length=4611686018427387904, "),
        (gguf_file(LLAMA, HIDDEN + struct.pack("<I", 8) + gguf_text(b"x")), "has llama.embedding_length='x', which is"),
    ],
    ids=["empty", "cut", "text", "array", "kind", "deep", "tensors", "nothing", "size", "no number"],
)
def test_a_gguf_header_that_lies_is_one_line_at_once(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(shapes.NoShape, match=rf"^{file}: its header {said}[^\n]*; accepted: a whole GGUF file$"):
        shapes.shape_of_gguf(file)


def test_a_layer_of_a_number_that_python_does_not_read_is_no_layer(tmp_path: Path) -> None:
    tensor = gguf_text(b"blk." + b"9" * 5_000 + b".attn_q.weight") + struct.pack("<IQQIQ", 2, 8, 8, 0, 0)
    (tmp_path / "a.gguf").write_bytes(gguf_file(LLAMA, tensors=1) + tensor)
    with pytest.raises(shapes.NoShape, match=r"a\.gguf has no layers of linear modules$"):
        shapes.shape_of_gguf(tmp_path / "a.gguf")


def test_a_gguf_tensor_of_a_layer_far_away_is_one_line(tmp_path: Path) -> None:
    tensor = gguf_text(b"blk.999999999.attn_q.weight") + struct.pack("<IQQIQ", 2, 8, 8, 0, 0)
    (tmp_path / "model.gguf").write_bytes(gguf_file(LLAMA, tensors=1) + tensor)
    with pytest.raises(shapes.NoShape, match="has tensors of layer 999999999, but only 1 matrices in its layers"):
        shapes.shape_of_gguf(tmp_path / "model.gguf")


def test_a_config_tells_the_shape_of_a_llama(wide_base: Path, table: ModuleType) -> None:
    config = json.loads((wide_base / "config.json").read_text())
    assert table.llama_like(config).num_parameters == shapes.shape_in(wide_base).num_parameters


@pytest.mark.parametrize("layout", ["padded", "packed", "shared", "flash"])
@pytest.mark.parametrize("max_tokens", [None, 150])
def test_rows_are_counted_as_they_lie(layout: Any, max_tokens: int | None) -> None:
    drawn = random.Random(1)
    rows = [
        {"input_ids": ids, "labels": [IGNORED] * (len(ids) - 4) + ids[-4:]}
        for length in range(10, 60, 2)
        for ids in [[1] * drawn.choice([0, 4, 8]) + [drawn.randrange(3) for _ in range(length)]]
    ]
    collator = batches.Collator(layout, 0, 4, max_tokens, a_group=500)
    for micro_batch in micro_batching.cut(rows, layout, 4, max_tokens):
        batch, load = collator.lay(micro_batch), work.load(micro_batch, layout, 500, is_whole_step=False)
        assert load.tokens == batch["inputs"]["input_ids"].numel()
        assert load.scored == batch["labels"].numel()
        if groups := batch["inputs"].get("groups"):
            assert load.apart == sum(group["row_tokens"].numel() for group in groups)
            assert load.seen == sum(len(group["row_tokens"]) * group["visible"].numel() for group in groups)


def test_weights_of_nf4_take_4_127_bits(wide_base: Path) -> None:
    assert pytest.approx(4.127, abs=0.0005) == NF4 * 8
    shape, load = shapes.shape_in(wide_base), Load(tokens=8, scored=4, groups=((1, 8),))
    packed, byte = (
        memory(shape, method, chosen(wide_base, method), load, "cuda").weights
        for method in (Method(kind="qlora"), Method(kind="qlora", bits=8))
    )
    rest = 2 * (shape.num_parameters - shape.num_linear)
    assert packed == pytest.approx(shape.num_linear * 4.127 / 8 + rest, rel=1e-4)
    assert byte == shape.num_linear + rest
    method = Method(kind="qlora", bits=8)
    from_file = memory(shape, method, chosen(wide_base, method), load, "cpu").weights
    assert from_file == byte + 2 * shape.num_linear  # the file that was packed stays mapped


def test_over_several_devices_memory_is_sharded_or_gradients_are_there_twice(wide_base: Path) -> None:
    shape, load, method = shapes.shape_in(wide_base), Load(tokens=8, scored=4, groups=((1, 8),)), Method(kind="full")
    one, copied, sharded = (
        memory(shape, method, chosen(wide_base, method, Compute(**settings)), load, "cuda")
        for settings in ({}, {"devices": 4, "strategy": "ddp"}, {"devices": 4, "strategy": "fsdp"})
    )
    assert copied.gradients == 2 * one.gradients
    assert (copied.weights, copied.optimizer) == (one.weights, one.optimizer)
    assert (sharded.gradients, sharded.optimizer) == (one.gradients // 4, one.optimizer // 4)
    assert one.weights / 4 < sharded.weights <= one.weights
    assert one.activations == copied.activations == sharded.activations


def test_deepspeed_shards_the_states_and_the_weights_and_moves_them_to_the_main_memory(wide_base: Path) -> None:
    shape, load, method = shapes.shape_in(wide_base), Load(tokens=8, scored=4, groups=((1, 8),)), Method(kind="full")
    bucket = 4 * speed.BUCKET

    def by(strategy: str, *, offload: bool = False, precision: str = "float32") -> Memory:
        settings = {"devices": 4, "strategy": strategy, "offload": offload, "precision": precision}
        found = chosen(wide_base, method, Compute.model_validate(settings), has_deepspeed=True)
        return memory(shape, method, found, load, "cuda")

    ddp, two, three = by("ddp"), by("zero2"), by("zero3")
    assert (two.weights, two.gradients - bucket) == (ddp.weights, ddp.gradients // 2 // 4)
    assert two.optimizer == three.optimizer == (ddp.optimizer + 4 * shape.num_parameters) // 4
    assert (three.weights, three.gradients) == (two.weights, two.gradients), "a bucket holds all of so small a model"
    moved = by("zero2", offload=True)
    assert (moved.weights, moved.gradients, moved.optimizer) == (two.weights, bucket, 0)
    assert by("zero2", precision="bfloat16").weights == two.weights // 2


def test_a_step_is_shared_out_over_the_devices(tiny_base: Base) -> None:
    stands, training = ground(tiny_base, token_rows(64)), Training(batch=16, max_steps=10, micro_batch="auto")
    one, four = Compute(), Compute(devices=4)
    gpu, cpu = with_free(10 * GB, kind="cuda"), with_free(10 * GB)
    rates = {compute.devices: timing.rate_of(100.0, compute.devices) for compute in (one, four)}
    alone, shared = (estimated(stands, Method(), training, each, gpu, rates[each.devices]) for each in (one, four))
    assert (alone.micro_batch, shared.micro_batch) == (16, 4)
    assert estimated(stands, Method(), Training(batch=16), four, gpu).micro_batch == 4
    assert alone.seconds
    assert shared.seconds
    launched = 10 * stands.shape.num_layers * timing.LAUNCHING[0]  # of kernels, as many on each device
    assert shared.seconds[0] - launched == pytest.approx((alone.seconds[0] - launched) / 4)
    assert shared.free == 10 * GB
    assert estimated(stands, Method(), training, four, cpu).free == 2.5 * GB, "processes share a CPU's memory"
    on_two = Compute(devices=2, nodes=2)
    price, of_two = Price(1.0, "h100"), estimated(stands, Method(), training, on_two, gpu, rates[4])
    assert of_two == shared, "devices of several machines count as those of one"
    assert of_two.cost(price) == (price.of(shared.seconds[0], 4), price.of(shared.seconds[1], 4))
    assert estimated(stands, Method(), training, on_two, cpu).free == 5 * GB


def test_what_learns_takes_sixteen_bytes_and_less_with_8_bit_moments(wide_base: Path) -> None:
    shape, load = shapes.shape_in(wide_base), Load(tokens=8, scored=4, groups=((1, 8),))
    method = Method(kind="full")
    whole = memory(shape, method, chosen(wide_base, method), load, "cuda")
    assert whole.weights + whole.gradients + whole.optimizer == 16 * shape.num_parameters
    eight_bit = chosen(wide_base, method, Compute(optimizer="adamw_8bit"))
    small = memory(shape, method, eight_bit, load, "cuda")
    embedding = 8 * shape.num_embedding  # transformers leaves an embedding's in float32
    assert small.optimizer - embedding < (whole.optimizer - embedding) / 3.9
    assert small.optimizer > embedding
    saved = disk_bytes(shape, method, chosen(wide_base, method)) - disk_bytes(shape, method, eight_bit)
    assert saved == pytest.approx(4 * (whole.optimizer - small.optimizer), abs=4)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_checkpointing_takes_less_and_longer_rows_more(wide_base: Path, kind: Any) -> None:
    shape, method = shapes.shape_in(wide_base), Method(kind=kind)
    short, long = (Load(tokens=4 * n, scored=32, groups=((4, n),)) for n in (128, 256))
    off = chosen(wide_base, method, Compute(checkpointing=False))
    on = chosen(wide_base, method, Compute(checkpointing=True))
    assert memory(shape, method, on, long).activations < 0.6 * memory(shape, method, off, long).activations
    assert memory(shape, method, off, short).peak < memory(shape, method, off, long).peak


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_parts_of_memory_that_plan_shows_add_up_to_the_peak_at_least(
    wide_base: Path, kind: Any, device: Any
) -> None:
    shape, method = shapes.shape_in(wide_base), Method(kind=kind)
    load = Load(tokens=4 * 256, scored=32, groups=((4, 256),))
    needed = memory(shape, method, chosen(wide_base, method), load, device)
    assert sum(needed.parts.values()) + needed.holes >= needed.peak - len(needed.parts)
    assert (needed.holes > 0) == (device == "cpu")


def test_automatic_micro_batches_are_as_large_as_memory_allows(tiny_base: Base) -> None:
    stands, compute = ground(tiny_base, token_rows(40, 400)), Compute(shared_prefix=False, precision="float32")
    of_eight = Training(batch=32, micro_batch=8)
    free = estimated(stands, Method(), of_eight, compute, with_free(GB)).peak / 0.849
    training = Training(batch=32, micro_batch="auto")
    auto = estimated(stands, Method(), training, compute, with_free(free))
    assert (auto.micro_batch, auto.fits) == (8, True)
    more = Training(batch=32, micro_batch=9)
    assert not estimated(stands, Method(), more, compute, with_free(free)).fits
    assert estimated(stands, Method(), training, compute, with_free(100 * GB)).micro_batch == 32
    assert estimated(stands, Method(), training, compute, with_free(GB / 10)).micro_batch == 1


def test_what_does_not_fit_is_said_with_settings_that_do(tiny_base: Base) -> None:
    stands, training = ground(tiny_base, token_rows(40, 400)), Training(batch=64)
    compute = Compute(checkpointing=False, shared_prefix=False)
    peak = estimated(stands, Method(), training, compute, with_free(GB)).peak
    machine = with_free(0.99 * peak)
    would = estimated(stands, Method(), training, compute, machine)
    changes = cost_model.remedies(cost_model.BudgetCase(stands, Method(), training, compute, machine))
    said = cost_model.shortage(would, changes)
    assert said.startswith("training will not fit: about ")
    assert "training.micro_batch=" in said
    assert "compute.checkpointing=true" in said
    size = int(changes[0].removeprefix("training.micro_batch="))
    assert 1 <= size < 64
    fewer = training.model_copy(update={"micro_batch": size})
    assert estimated(stands, Method(), fewer, compute, machine).fits
    tight = estimated(stands, Method(), training, compute, with_free(1.05 * peak))
    assert cost_model.shortage(tight, []).startswith("training may not fit")
    assert cost_model.shortage(estimated(stands, Method(), training, compute, with_free(100 * GB)), []) == ""


def test_time_follows_the_work_and_the_rate(tiny_base: Base) -> None:
    stands, machine = ground(tiny_base, token_rows(40)), with_free(10 * GB)
    rate = calibration.Rate(1e9, 2e9, "a test")
    training = Training(batch=10, max_steps=10, evaluate_every=10)
    once = estimated(stands, Method(rank=1), training, Compute(), machine, rate=rate)
    assert once.seconds == (once.flops / 2e9, once.flops / 1e9)
    twice = training.model_copy(update={"max_steps": 20})
    assert estimated(stands, Method(rank=1), twice, Compute(), machine, rate=rate).flops == pytest.approx(
        2 * once.flops
    )
    full = estimated(stands, Method(kind="full"), training, Compute(), machine, rate=rate)
    assert 1.1 < full.flops / once.flops < 2


def test_shared_prefixes_take_fewer_tokens(tiny_base: Base) -> None:
    rows, machine = token_rows(40, prefix=48), with_free(10 * GB)
    shared = estimated(ground(tiny_base, rows), Method(), Training(), Compute(), machine)
    apart = estimated(ground(tiny_base, rows), Method(), Training(), Compute(shared_prefix=False), machine)
    assert apart.work.computed_tokens == LENGTH - 1  # nothing comes after the last token
    assert shared.work.computed_tokens == LENGTH - 1 - 48 * 15 / 16
    assert shared.peak < apart.peak


@pytest.mark.parametrize(
    ("asked", "near"), [("rtx-4900", "rtx-4090"), ("4090", "rtx-4090"), ("a100", "a100-40gb"), ("RTX 509", "rtx-5090")]
)
def test_a_device_that_is_not_known_is_one_line_with_the_nearest(asked: str, near: str) -> None:
    with pytest.raises(ConfigError, match=rf"--device {asked}: unknown device; did you mean {near}\? accepted: cpu, "):
        devices.machine(asked)


def test_a_named_card_is_judged_with_its_own_hardware() -> None:
    card = devices.machine("T4")
    assert (card.device.kind, card.device.has_bfloat16, card.is_here) == ("cuda", False, False)
    assert devices.machine("RTX 4090") == devices.machine("rtx-4090")
    assert devices.machine("cpu").device.kind == "cpu"


def test_adapters_of_modules_that_are_not_there_are_refused(wide_base: Path) -> None:
    with pytest.raises(ConfigError, match="no c_attn in its layers; it has down_proj"):
        learning(shapes.shape_in(wide_base), Method(target="c_attn"))
    with pytest.raises(ConfigError, match="the base has only 3 layers"):
        learning(shapes.shape_in(wide_base), Method(layers=4))


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    """Render's artifact of 24 short rows."""
    folder = tmp_path / "tokens"
    folder.mkdir()
    rest = {"cluster": 0, "prompt_length": LENGTH - LABELLED, "reference": ""}
    rows = [rest | row | {"row_id": str(at)} for at, row in enumerate(token_rows(24))]
    for split in ("train", "validation"):
        pq.write_table(pa.Table.from_pylist(rows, TOKEN_SCHEMA), folder / f"{split}.parquet")
    make_contract().save(folder)
    counts = {"num_train": 24, "num_validation": 24, "num_test": 0, "num_quarantined": 0, "num_trained_tokens": 192}
    made = {"stage": "render", "digest": "abc", "folder": folder, "reasons": {}, "longest": LENGTH}
    return Tokens.model_validate(made | counts)


def test_a_calibration_times_real_steps_and_is_kept(
    tiny_base: Base, tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.cost_model.case import ground_of

    (tmp_path / "datasets.py").write_text("raise ImportError('a file of the user, of a library's name')")
    monkeypatch.chdir(tmp_path)
    stands, machine = ground_of(tiny_base, tokens), devices.machine("cpu")
    training, compute = Training(batch=4), Compute(threads=1)
    assert (
        calibration.measured(tiny_base, tokens, cost_model.BudgetCase(stands, Method(), training, compute, machine))
        is None
    )
    rate = calibration.calibrate(tiny_base, tokens, cost_model.BudgetCase(stands, Method(), training, compute, machine))
    assert rate.low == rate.high > 1e6
    assert (
        calibration.measured(tiny_base, tokens, cost_model.BudgetCase(stands, Method(), training, compute, machine))
        == rate
    )
    other = calibration.measured(
        tiny_base, tokens, cost_model.BudgetCase(stands, Method(kind="full"), training, compute, machine)
    )
    assert other
    assert other.low == rate.low
    assert other.source.endswith("with lora")
    for change in ({"threads": 2}, {"precision": "float32"}, {"compile": True}, {"devices": 2}):
        another = compute.model_copy(update=change)
        assert (
            calibration.measured(tiny_base, tokens, cost_model.BudgetCase(stands, Method(), training, another, machine))
            is None
        )


def test_a_calibration_has_no_more_rows_on_the_device_than_memory_allows(
    tiny_base: Base, tokens: Tokens, tmp_path: Path
) -> None:
    from tunewright.cost_model.case import ground_of

    stands, training = ground_of(tiny_base, tokens), Training(batch=8, micro_batch="auto")
    sizes = [
        calibration._job(
            tmp_path, tiny_base, tokens, cost_model.BudgetCase(stands, Method(), training, Compute(), with_free(free))
        ).micro_batch
        for free in (GB / 10, 100 * GB)
    ]
    assert sizes == [1, 8]


def test_an_earlier_run_on_the_same_rows_is_a_rate(tiny_base: Base, tokens: Tokens, home: Path) -> None:
    from tunewright.cost_model.case import ground_of

    folder = home / "artifacts" / "train" / "one"
    folder.mkdir(parents=True)
    read = {"base": f"base {tiny_base.digest}", "tokens": "render abc", "method.kind": "lora", "method.rank": 4}
    (folder / "manifest.json").write_text(json.dumps({"ingredients": read | {"training.batch": 4}, "seconds": 47.2}))
    (folder / "status.json").write_text('{"device": "cpu"}')
    (folder / "trainer.log").write_text("--- attempt of 2026-01-01 00:00:00, training.micro_batch=4\n")
    lines = [
        {"step": step, "loss": 1.0, "rows_per_second": speed, "tokens_per_second": 10 * speed}
        for step, speed in enumerate((1.0, 8.0, 8.0))
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    stands, machine = ground_of(tiny_base, tokens), devices.machine("cpu")
    rate = calibration.measured(
        tiny_base, tokens, cost_model.BudgetCase(stands, Method(), Training(), Compute(), machine)
    )
    expected = 8 * cost_model.BudgetCase(stands, Method(rank=4), Training(batch=4), Compute(), machine).flops_a_row
    assert rate == calibration.Rate(
        expected, expected, "an earlier run of 3 steps on this machine (the whole stage with loading: 47 s)"
    )
    with (folder / "trainer.log").open("a") as log:
        log.write("--- attempt of 2026-01-01 00:01:00, training.micro_batch=4\n")
    resumed = calibration.measured(
        tiny_base, tokens, cost_model.BudgetCase(stands, Method(), Training(), Compute(), machine)
    )
    assert resumed and resumed.source == "an earlier run of 3 steps on this machine", "no time of lost attempts"
    rates = plan._Rates(
        cost_model.BudgetCase(stands, Method(), Training(), Compute(), machine), {"base": tiny_base, "render": tokens}
    )
    (note,) = rates.calibrate("x.yaml")
    assert note.startswith("--calibrate is not needed: an earlier run")
    assert not (home / "calibrations").exists()
    other_rows = tokens.model_copy(update={"digest": "def"})
    for there in (other_rows, None):
        found = calibration.measured(
            tiny_base, there, cost_model.BudgetCase(stands, Method(), Training(), Compute(), machine)
        )
        assert found
        assert found.source == "an earlier run of 3 steps on this machine, with other rows"
        speed = expected * 10 / stands.row_tokens
        assert [found.low, found.high] == pytest.approx([0.8 * speed, 1.2 * speed])
    another = Compute(precision="float32")
    assert (
        calibration.measured(tiny_base, tokens, cost_model.BudgetCase(stands, Method(), Training(), another, machine))
        is None
    )


def test_training_begins_with_a_micro_batch_that_fits_and_no_warning(tiny_base: Base, tokens: Tokens) -> None:
    found = cost_model.before_training(tiny_base, tokens, Method(), Training(micro_batch="auto"), Compute())
    assert found == (16, None, "")
    found = cost_model.before_training(tiny_base, tokens, Method(), Training(), Compute(devices=2))
    assert found.ddp and found.ddp.fits


def test_a_size_that_is_no_number_is_one_line(tiny_base: Base, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base.weights, base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"intermediate_size": "=1+1"}))
    with pytest.raises(shapes.NoShape, match=r"intermediate is '=1[+]1', not a number that the estimate can use$"):
        shapes.shape_in(base)


def test_a_base_that_cannot_be_reckoned_with_trains_as_it_is_set(
    tiny_base: Base, tokens: Tokens, tmp_path: Path
) -> None:
    base = tiny_base.model_copy(update={"folder": make_model("mamba", tmp_path / "mamba")})
    with pytest.raises(shapes.NoShape, match="has no num_attention_heads in its config"):
        shapes.shape_in(base.weights)
    for micro_batch, size in ((3, 3), ("auto", 8)):
        training = Training.model_validate({"batch": 8, "micro_batch": micro_batch})
        assert cost_model.before_training(base, tokens, Method(), training, Compute()) == (size, None, "")


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "gpt_neo", "bloom", "mpt"])
def test_a_base_whose_config_has_names_of_its_own_is_counted(kind: str, tmp_path: Path) -> None:
    weights = make_model(kind, tmp_path / kind)
    shape = shapes.shape_in(weights)
    assert (shape.hidden, shape.heads, shape.num_layers) == (32, 4, 2)
    assert {(matrix.outputs, matrix.inputs) for matrix in shape.matrices} >= {(32, 128), (128, 32)}
    for method in (Method(rank=2), Method(kind="full")):
        learns, total = methods.trained_share(methods.load_trainable(weights, method, chosen(weights, method)))
        assert learning(shape, method).num_learning == learns
    assert shape.num_parameters == total


@pytest.mark.parametrize("kind", ["gpt_neo", "granitemoehybrid"])
def test_plan_goes_by_all_that_a_base_says_of_itself_before_a_run_has_made_it(kind: str, tmp_path: Path) -> None:
    weights = make_model(kind, tmp_path / kind)
    assert not architecture.of(shapes.config_at(str(weights), None)).refused
    assert "takes no such config.json" in architecture.of(shapes.shape_in(weights).config).refused  # as it was before


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_experts_are_counted_and_said_not_to_learn(tiny_base: Base, tmp_path: Path, kind: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    mixture = {"num_local_experts": 4} if kind == "mixtral" else {"num_experts": 4, "moe_intermediate_size": 32}
    small = WIDE | {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    config = AutoConfig.for_model(kind, **small, **mixture, num_experts_per_tok=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    shape = shapes.shape_in(tmp_path)
    model = methods.load_trainable(tmp_path, Method(), chosen(tmp_path, Method()))
    learns, total = methods.trained_share(model)
    assert (learning(shape, Method()).num_learning, shape.num_parameters) == (learns, total - learns)
    assert learning(shape, Method(kind="full")).num_learning == total - learns
    experts = sum(tensor.numel() for name, tensor in model.named_parameters() if ".experts." in name)
    routers = sum(tensor.numel() for name, tensor in model.named_parameters() if name.endswith("mlp.gate.weight"))
    assert (shape.num_expert, shape.expert_share) == (experts + routers, 0.5)
    stands = ground(tiny_base.model_copy(update={"folder": tmp_path}), token_rows(4))
    said = [
        " ".join(estimated(stands, Method(kind=kind), Training(), Compute(), with_free(GB)).notes)
        for kind in ("lora", "qlora", "full")
    ]
    assert f"mixture of experts: lora does not train its {shape.num_expert:,} expert weights" in said[0]
    assert "qlora does not train or quantize its" in said[1]
    assert "experts" not in said[2]


def test_few_of_many_rows_are_made_lists_of_python(tmp_path: Path) -> None:
    length, number = 4, 3 * work.SAMPLE
    rows = pa.table({"input_ids": [[row] * length for row in range(number)], "labels": [[0] * length] * number})
    pq.write_table(rows, tmp_path / "rows.parquet", row_group_size=1_000)
    counted, drawn = work.rows_of_render(tmp_path / "rows.parquet")
    assert (counted, len(drawn)) == (number, work.SAMPLE)
    assert len({row["input_ids"][0] for row in drawn}) == work.SAMPLE
    assert drawn[-1]["input_ids"][0] > 0.99 * number
    assert work.tokens_of_render(tmp_path / "rows.parquet") == length * number


GPUS = """0, GPU-aaa1, NVIDIA A100-SXM4-80GB, 81920, 80000, 8.0
1, GPU-bbb2, Tesla T4, 15360, 15000, 7.5
2, GPU-ccc3, NVIDIA GB10, [N/A], [N/A], 12.1
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An nvidia-smi that tells of three GPUs."""
    file = tmp_path / "bin" / "nvidia-smi"
    file.parent.mkdir()
    file.write_text(f"#!/bin/sh\ncat <<'END'\n{GPUS}END\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{file.parent}{os.pathsep}{os.environ['PATH']}")
    return file


@pytest.mark.parametrize(
    ("shown", "name"),
    [(None, "NVIDIA A100-SXM4-80GB"), ("1,0", "Tesla T4"), ("GPU-bbb", "Tesla T4"), ("", "cpu"), ("-1", "cpu")],
)
def test_the_device_here_is_that_which_training_takes(
    driver: Path, monkeypatch: pytest.MonkeyPatch, shown: str | None, name: str
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    found = devices.machine()
    assert found.device.name == name
    assert name != "Tesla T4" or (found.free_bytes, found.device.has_bfloat16) == (15_000 * 1024**2, False)


def test_a_part_of_a_divided_gpu_is_told_by_torch(
    driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho NVIDIA A100-SXM4-80GB MIG 3g.40gb,40000,39000,8.0\n")
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-abc")
    found = devices.machine()
    assert (found.device.kind, found.free_bytes, found.teraflops) == ("cuda", 39_000 * 1024**2, 0.0)
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert devices.machine().device.kind == "cpu"


def test_a_gpu_without_memory_of_its_own_has_the_machines(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    found, processors = devices.machine(), devices.machine("cpu")
    assert (found.device.kind, found.device.memory_bytes) == ("cuda", processors.device.memory_bytes)
    assert found.free_bytes == pytest.approx(processors.free_bytes, rel=0.2)


def test_a_driver_that_does_not_answer_is_no_gpu(driver: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], *, timeout: float, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(subprocess, "run", hang)
    assert devices.machine().device.kind == "cpu"


@pytest.fixture(scope="module")
def table() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("memory_table")


def test_the_page_about_memory_has_the_figures_of_the_code(table: ModuleType) -> None:
    page = (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")
    assert "\n".join(table.lines()) in page


def test_the_weights_of_a_70b_model_are_more_than_24_gb(table: ModuleType) -> None:
    shape = table.shape_of("Llama-2-70B")
    assert shape.num_parameters == 68_976_648_192
    assert shape.num_linear * NF4 > 35 * GB
    assert table.shape_of("Llama-2-7B").num_parameters == 6_738_415_616
    assert table.shape_of("Llama-3-8B").num_parameters == 8_030_261_248


def two_rows(base: Base, table: ModuleType, length: int) -> cost_model.Ground:
    """Two rows of that length for an 8B model."""
    shape = table.shape_of("Llama-3-8B")
    return replace(ground(base, token_rows(2, length), number=2), shape=shape, config=shape.config)


@pytest.mark.parametrize("kind", ["lora", "qlora", "full", "spectrum"])
def test_auto_takes_a_strategy_that_fits_wherever_one_does(
    kind: str, tiny_base: Base, table: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "DRAWN", 8)
    method, training = Method.model_validate({"kind": kind}), Training(batch=2)
    for length in (100, 1_000):
        stands = two_rows(tiny_base, table, length)
        for free in (16, 24, 48, 80, 141):
            ddp, fsdp, auto = (
                estimated(
                    stands,
                    method,
                    training,
                    Compute.model_validate({"devices": 2, "strategy": strategy}),
                    with_free(free * GB, kind="cuda"),
                )
                for strategy in ("ddp", "fsdp", "auto")
            )
            assert auto.fits == (ddp.fits or fsdp.fits), (length, free)
            assert auto.chosen.sharded != ddp.fits, "it shards where it has to"
            assert auto.chosen.because["sharded"].endswith("GB may be filled on each device")


def test_where_sharding_is_not_enough_offloading_is_named(tiny_base: Base, table: ModuleType) -> None:
    card, stands = with_free(40 * GB, kind="cuda", has_deepspeed=False), two_rows(tiny_base, table, 100)
    two = cost_model.BudgetCase(stands, Method(kind="full"), Training(batch=2), Compute(devices=2), card)
    assert not cost_model.estimate(two).fits
    assert cost_model.remedies(two)[0] == "compute.strategy=zero3 compute.offload=true"
    one = replace(two, compute=Compute())
    assert "zero3" not in " ".join(cost_model.remedies(one)), "one device has nothing to shard over"


def test_evaluation_is_named_where_it_takes_more_than_training(tiny_base: Base, table: ModuleType) -> None:
    stands = replace(ground(tiny_base, token_rows(4)), shape=table.shape_of("Llama-2-7B"))
    training, compute, card = Training(batch=1), Compute(checkpointing=True), devices.machine("rtx-4060")
    packed = estimated(stands, Method(kind="qlora"), training, compute, card)
    assert packed.peak < card.free_bytes < 13.5 * GB < packed.evaluation
    assert packed.notes == (
        f"evaluation and serving load the whole base in bfloat16, which takes more memory than training: at least "
        f"{packed.evaluation / GB:.1f} GB; {card.free_bytes / GB:.1f} GB are free",
    )
    assert estimated(stands, Method(kind="full"), training, compute, card).notes == ()
