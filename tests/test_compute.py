"""Compute choices by hardware, each with its reason; every choice trains to the same weights as the plain one."""

from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    Gemma2Config,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    T5Config,
)
from trl.trainer.sft_config import SFTConfig

from tunewright.artifacts import IGNORED, Base
from tunewright.config import Compute, Method, Training
from tunewright.cost_model.shapes import Config
from tunewright.errors import ConfigError
from tunewright.modeling import batches
from tunewright.modeling.batches import Collator, answer_loss, num_labels
from tunewright.modeling.batches.attention import _fused, attention
from tunewright.modeling.compute import Chosen, Device, choose
from tunewright.tasks.train.trainer.answer_trainer import AnswerTrainer
from tunewright.tasks.train.trainer.preparing import decoder_layers, fuse, prepare

CPU = Device(has_bfloat16=True, memory_bytes=16 * 10**9)
GPU = Device(
    kind="cuda",
    name="NVIDIA A100",
    has_bfloat16=True,
    memory_bytes=80 * 10**9,
    has_flash_attention=True,
    has_liger=True,
)


def chosen(
    device: Device = CPU,
    *,
    longest: int = 100,
    method: Method | None = None,
    config: Any = None,
    speed: Any = "auto",
    **compute: Any,
) -> Chosen:
    training = Training(speed=speed)
    return choose(config or LlamaConfig(), method or Method(), training, Compute(**compute), longest, device)


def test_auto_says_why_for_all_that_it_decided() -> None:
    parts = set(Chosen.model_fields) - {
        "because",
        "compile",
        "devices",
        "sharded",
        "zero",
        "offload",
    }  # off unless they are asked for
    assert set(chosen().because) == parts
    assert set(chosen(devices=2).because) == parts | {"sharded"}
    assert set(chosen(precision="float32", liger=False).because) == parts - {"precision", "liger"}


def test_on_a_cpu_rows_share_their_prefix_in_bfloat16_where_it_is_fast() -> None:
    assert (chosen().layout, chosen().precision, chosen().optimizer) == ("shared", "bfloat16", "adamw")
    assert chosen(Device()).precision == "float32"


def test_a_model_is_sharded_over_devices_where_it_does_not_fit_on_each() -> None:
    """Llama 7B of 32 layers: 13 GB in bfloat16 for an adapter, 108 GB to train all of it in float32."""
    assert not chosen(GPU, devices=2).sharded
    full = chosen(GPU, method=Method(kind="full"), devices=4)
    assert (full.sharded, full.checkpointing) == (True, False)
    assert full.because["sharded"].endswith("of 80.0 GB on each device")
    assert chosen(GPU, method=Method(kind="full"), devices=2).checkpointing, "half of it is still too much"
    assert not chosen(GPU, method=Method(kind="full"), devices=4, strategy="ddp").sharded
    assert chosen(GPU, devices=2, strategy="fsdp").sharded
    small = GPU.model_copy(update={"memory_bytes": 10 * 10**9})
    assert chosen(small, method=Method(init="olora"), devices=2).because["sharded"].startswith("what method.init=olora")


def test_deepspeed_is_used_where_it_is_installed() -> None:
    there = GPU.model_copy(update={"has_deepspeed": True})
    two, three = (chosen(there, devices=2, strategy=strategy, offload=True) for strategy in ("zero2", "zero3"))
    assert (two.zero, two.sharded, two.offload) == (2, False, True)
    assert (three.zero, three.sharded, three.offload) == (3, True, True)
    away = GPU.model_copy(update={"has_deepspeed": False})
    with pytest.raises(ConfigError, match=r"^compute.strategy=zero3: DeepSpeed is not installed; pip install 'tune"):
        chosen(away, devices=2, strategy="zero3")
    with pytest.raises(ConfigError, match=r"^compute.strategy=zero2: there is one device"):
        chosen(there, strategy="zero2")


def test_more_gpus_than_there_are_are_refused() -> None:
    two = GPU.model_copy(update={"count": 2})
    assert chosen(two, devices=2).devices == 2
    with pytest.raises(ConfigError, match=r"^compute.devices=3: this machine has 2 GPUs$"):
        chosen(two, devices=3)


def test_on_a_gpu_kernels_and_the_paged_optimizer_are_used() -> None:
    found = chosen(GPU, method=Method(kind="qlora"))
    assert (found.liger, found.optimizer, found.layout) == (True, "paged_adamw_8bit", "shared")
    assert chosen(GPU).optimizer == "adamw"


def test_plain_uses_nothing_of_what_was_left_open() -> None:
    found = chosen(GPU, speed="plain", method=Method(kind="qlora"))
    assert (found.layout, found.precision, found.optimizer) == ("padded", "float32", "adamw")
    assert not (found.liger or found.compile or found.checkpointing or found.fused)
    assert chosen(speed="plain", packing=True).layout == "packed"


def test_flash_attention_packs_long_rows_that_share_nothing() -> None:
    assert chosen(GPU, longest=8_000, shared_prefix=False).layout == "flash"
    assert chosen(GPU, longest=800, shared_prefix=False).layout == "packed"
    assert chosen(GPU, attention="flash_attention_2").layout == "flash"


@pytest.mark.parametrize(
    ("device", "settings", "words"),
    [
        (CPU, {"attention": "flash_attention_2"}, "compute.attention=flash_attention_2: needs a GPU"),
        (GPU, {"attention": "flash_attention_2", "precision": "float32"}, "needs bfloat16, not"),
        (CPU, {"liger": True}, "compute.liger=true: its kernels need a GPU"),
        (CPU, {"shared_prefix": True, "packing": False}, "compute.packing is false"),
        (CPU, {"shared_prefix": True, "attention": "eager"}, "compute.attention is eager"),
        (GPU, {"compile": True, "method": Method(kind="qlora")}, "quantized layers"),
        (CPU, {"packing": True, "config": BloomConfig()}, "models of type bloom have their own attention"),
        (CPU, {"attention": "sdpa", "config": Gemma2Config()}, "models of type gemma2 do not support it"),
        (CPU, {"config": T5Config()}, "model_type t5 is an encoder-decoder"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(device: Device, settings: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        chosen(device, **settings)


def test_a_sliding_window_is_no_obstacle_until_a_row_is_longer() -> None:
    config = MistralConfig(sliding_window=64)
    assert chosen(config=config, longest=64).layout == "shared"
    assert chosen(config=config, longest=65).layout == "padded"
    assert "rows are longer than sliding_window=64" in chosen(config=config, longest=65).because["shared_prefix"]


def test_attention_is_one_that_the_class_has() -> None:
    found = chosen(config=Gemma2Config())
    assert (found.layout, found.attention) == ("padded", "eager")
    assert found.because["attention"] == "models of type gemma2 have no other exact one"
    assert "NotImplementedError" in found.because["packing"]


def test_flash_attention_packs_no_model_whose_tokens_exchange_beside_attention() -> None:
    config = Lfm2Config(layer_types=["conv", "full_attention"] * 16)  # convolutions run over the ends of packed rows
    asked = chosen(GPU, attention="flash_attention_2", config=config)
    assert asked.layout == "padded"
    assert "other gradients" in asked.because["packing"]
    left = chosen(GPU, longest=8_000, shared_prefix=False, config=config)
    assert (left.layout, left.attention) == ("padded", "sdpa")
    with pytest.raises(ConfigError, match="other gradients"):
        chosen(GPU, attention="flash_attention_2", packing=True, config=config)


def test_flash_attention_packs_rows_that_are_longer_than_a_sliding_window() -> None:
    config = MistralConfig(sliding_window=64)
    assert chosen(GPU, attention="flash_attention_2", config=config, longest=65).layout == "flash"


@pytest.mark.parametrize("names", [("n_embd", "n_layer", "n_inner"), ("d_model", "n_layers", "intermediate_size")])
def test_a_configuration_with_names_of_its_own_is_sized_alike(names: tuple[str, ...]) -> None:
    common = {"model_type": "gpt2", "vocab_size": 32_000}
    usual = Config(common | {"hidden_size": 4_096, "num_hidden_layers": 32, "intermediate_size": 11_008})
    own = Config(common | dict(zip(names, (4_096, 32, 11_008), strict=True)))
    small = GPU.model_copy(update={"memory_bytes": 16 * 10**9})
    reason = chosen(small, config=own, longest=2_000).because["checkpointing"]
    assert reason == chosen(small, config=usual, longest=2_000).because["checkpointing"]
    assert "GB of 16.0 GB" in reason


def test_activations_are_computed_again_where_the_longest_row_would_not_fit() -> None:
    assert not chosen(GPU, longest=2_000).checkpointing
    assert chosen(GPU.model_copy(update={"memory_bytes": 16 * 10**9}), longest=2_000).checkpointing


def make_rows() -> list[dict[str, list[int]]]:
    rows = []
    for i in range(7):
        ids = [5, 6, 7, *(10 + (i * k) % 90 for k in range(1, 4 + 2 * i))]
        rows.append({"input_ids": ids, "labels": [IGNORED] * 4 + ids[4:]})
    return rows


def step(base: Base, *, micro_batch: int, max_tokens: int | None = None, **compute: Any) -> tuple[float, torch.Tensor]:
    """The loss and the gradients of a step in float32, its rows cut as told."""
    choice = chosen(precision="float32", **compute)
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_pretrained(base.weights)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).train()
    prepare(model, choice)
    if choice.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    cut = Collator(choice.layout, 2, micro_batch, max_tokens)(make_rows())["micro_batches"]
    num_items, total = sum(map(num_labels, cut)), 0.0
    for batch in cut:
        loss = answer_loss(model, batch, num_items)
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.fixture(scope="module")
def plain(tiny_base: Base) -> tuple[float, torch.Tensor]:
    return step(tiny_base, micro_batch=7, speed="plain")


@pytest.mark.parametrize(
    "options",
    [
        {"micro_batch": 7},
        {"micro_batch": 3},  # does not divide
        {"micro_batch": 1},
        {"micro_batch": 7, "max_tokens": 20},
        {"micro_batch": 3, "shared_prefix": False},
        {"micro_batch": 3, "packing": False},
        {"micro_batch": 7, "checkpointing": True},
        {"micro_batch": 3, "packing": False, "attention": "eager"},
    ],
    ids=str,
)
def test_a_step_is_the_same_however_it_is_computed(
    tiny_base: Base, plain: tuple[float, torch.Tensor], options: dict[str, Any]
) -> None:
    loss, gradients = step(tiny_base, **options)
    assert loss == pytest.approx(plain[0], rel=1e-5)
    assert (gradients - plain[1]).norm() <= 1e-4 * plain[1].norm()


def test_fused_adapters_and_norms_compute_what_the_librarys_do(tiny_base: Base) -> None:
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_base.weights, attn_implementation=batches.ATTENTION)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).train()
        if fused:
            assert fuse(model) == 2 * 7 + 2 * 2 + 1
        batch = Collator("shared", 2, 7)(make_rows())["micro_batches"][0]
        loss = answer_loss(model, batch)
        loss.backward()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert results[1][0] == pytest.approx(results[0][0], rel=1e-5)
    assert (results[1][1] - results[0][1]).norm() <= 1e-4 * results[0][1].norm()


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.1}])
def test_other_adapters_stay_the_librarys(tiny_base: Base, options: dict[str, Any]) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base.weights)
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", **options))
    assert fuse(model) == 2 * 2 + 1  # the norms


def test_products_of_small_blocks_attend_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for most in (0, 2**23):
        monkeypatch.setattr("tunewright.modeling.batches.attention.SCORES", most)
        torch.manual_seed(0)
        inputs = batches.packed(make_rows(), share=True)["inputs"]
        tokens = inputs["input_ids"].shape[1]
        states = [torch.randn(1, heads, tokens, 16).bfloat16().requires_grad_() for heads in (4, 2, 2)]
        query, key, value = states
        output, _ = attention(torch.nn.Module(), query, key, value, None, groups=inputs["groups"])
        output.float().square().sum().backward()
        results.append(torch.cat([output.flatten(), *(s.grad.flatten() for s in states if s.grad is not None)]).float())
    assert (results[0] - results[1]).norm() <= 1e-2 * results[0].norm()


def test_a_gpus_masked_attention_is_given_as_many_key_heads_as_query_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[bool, list[int]]] = []
    torchs = functional.scaled_dot_product_attention

    def note(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
        called.append(("attn_mask" in options, [states.shape[1] for states in (query, key, value)]))
        return torchs(query, key, value, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", note)
    inputs = batches.packed(make_rows(), share=True)["inputs"]
    tokens = inputs["input_ids"].shape[1]
    query, key, value = (torch.empty(1, heads, tokens, 16, device="meta") for heads in (4, 2, 2))
    groups: Any = [{name: table.to("meta") for name, table in group.items()} for group in inputs["groups"]]
    output, _ = attention(torch.nn.Module(), query, key, value, None, groups=groups)
    assert output.shape == (1, tokens, 4, 16)
    assert called == [(False, [4, 2, 2]), (True, [4, 4, 4])]  # a fused kernel takes fewer without a mask


def test_repeated_key_heads_attend_as_grouped_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, heads, length, 16) for heads, length in ((6, 5), (2, 7), (2, 7)))
    options: dict[str, Any] = {"attn_mask": torch.ones(5, 7, dtype=torch.bool).tril(2), "scale": 0.3, "dropout_p": 0.0}
    grouped = _fused(query, key, value, **options)
    monkeypatch.setattr("tunewright.modeling.batches.attention.GROUPING", ())
    torch.testing.assert_close(_fused(query, key, value, **options), grouped)


def test_in_bfloat16_the_logits_stay_so_and_the_gradients_are_those_of_float32_ones(
    tiny_base: Base, tmp_path: Path
) -> None:
    found = []
    for ours in (True, False):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_base.weights, dtype=torch.bfloat16)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        trainer: Any = AnswerTrainer(
            model=model,
            args=SFTConfig(str(tmp_path), bf16=True, use_cpu=True, gradient_checkpointing=False, report_to="none"),
            train_dataset=Dataset.from_list(make_rows()),
            processing_class=AutoTokenizer.from_pretrained(tiny_base.weights),
        )
        batch = Collator("padded", 2, 7)(make_rows())["micro_batches"][0]
        (before,) = trainer._terms(trainer.model, batch, [10])  # as an evaluation before training is
        model = trainer.accelerator.prepare(trainer.model)
        loss: Any = trainer._terms(model, batch, [10])[0] if ours else answer_loss(model, batch, 10)
        assert loss.grad_fn.gradient.dtype == (torch.bfloat16 if ours else torch.float32)
        assert before.item() == loss.item()
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])


def test_compiled_layers_train_as_the_others_do(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    # What dynamo and autograd make of the layers, without the compiler, which takes most of a minute for its code.
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    torch.compiler.reset()
    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_base.weights)
        adapter = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(model, adapter).train()
        prepare(model, chosen(compile=compiled, precision="float32"))
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        losses = []
        for rows in (make_rows(), make_rows()[2:6], make_rows()):  # of several lengths
            loss = answer_loss(model, Collator("shared", 2, 7)(rows)["micro_batches"][0])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        found.append((losses, torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])))
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    (plain, weights), (losses, learned) = found
    assert losses == pytest.approx(plain, rel=1e-5)
    assert plain[2] < plain[0] - 0.01
    assert (learned - weights).norm() <= 1e-5 * weights.norm()


def test_compiling_keeps_the_names_of_the_weights(tiny_base: Base, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_base.weights)
    names = set(model.state_dict())
    prepare(model, chosen(compile=True, precision="float32"))
    assert set(model.state_dict()) == names
    assert all(layer._compiled_call_impl is not None for layer in decoder_layers(model))
