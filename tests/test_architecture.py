"""Every architecture that transformers can train is computed in ways that are exact for it, or refused in one line."""

import json
import random
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from decoded import generated, likelihood
from make_models import ARCHITECTURES, REFUSED, make_model
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM

from tunewright import config
from tunewright.artifacts import IGNORED
from tunewright.config import Compute, Method, Training
from tunewright.errors import ConfigError
from tunewright.generation import Answer, Greedy
from tunewright.modeling import architecture, models
from tunewright.modeling.architecture import Architecture, checks, probe
from tunewright.modeling.architecture.tiny import tiny
from tunewright.modeling.batches import ATTENTION, Collator, answer_loss
from tunewright.modeling.compute import Chosen, Device, choose
from tunewright.modeling.methods import load_trainable
from tunewright.serving import answer as served
from tunewright.serving import load_weights
from tunewright.tasks.train.trainer.fit import save
from tunewright.tasks.train.trainer.preparing import prepare

STOP = 2
FULL = {"falcon_alibi", "mamba", "mpt"}  # that learn with all weights in this test, the others with an adapter


def rows(draw: random.Random) -> list[dict[str, list[int]]]:
    """Rows longer than the windows, which begin alike; two prompts have the same length."""
    common = [draw.randrange(10, 400) for _ in range(20)]
    made = []
    for prompt, answer in ((9, 4), (3, 7), (14, 2), (8, 5)):
        ids = common + [draw.randrange(10, 400) for _ in range(prompt + answer)]
        made.append({"input_ids": ids, "labels": [IGNORED] * (20 + prompt) + ids[20 + prompt :]})
    return made


def loss_and_gradient(model: Any, batches: list[Any], num_items: int) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = torch.stack([answer_loss(model, batch, num_items) for batch in batches]).sum()
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def trained(weights: Path, method: Method, given: list[Any]) -> tuple[Any, Chosen]:
    """A model after two steps in the way that is chosen for it, whose gradients are those of each row alone."""
    config = AutoConfig.from_pretrained(weights)
    longest = max(len(row["input_ids"]) for row in given)
    chosen = choose(config, method, Training(), Compute(precision="float32"), longest, Device())
    torch.manual_seed(0)
    model = load_trainable(weights, method, chosen)
    prepare(model, chosen)
    num_items = sum(label != IGNORED for row in given for label in row["labels"])
    batch = Collator(chosen.layout, 0, len(given))(given)["micro_batches"]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(2):
        loss, gradient = loss_and_gradient(model, batch, num_items)
        optimizer.step()
    model.eval()
    loss, gradient = loss_and_gradient(model, batch, num_items)
    model.set_attn_implementation(chosen.attention)
    alone = [Collator("padded", 0, 1).lay([row]) for row in given]
    plain_loss, plain_gradient = loss_and_gradient(model, alone, num_items)
    assert loss == pytest.approx(plain_loss, rel=1e-4)
    assert 0 < (gradient - plain_gradient).norm() + 1e-9 <= 1e-3 * plain_gradient.norm()
    return model, chosen


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_an_architecture_trains_exactly_and_answers_the_same_when_it_is_loaded_again(name: str, tmp_path: Path) -> None:
    weights = make_model(name, tmp_path / "base")
    models.identity(str(weights))  # does not refuse it
    given = rows(random.Random(0))
    method = Method(kind="full") if name in FULL else Method(rank=2, alpha=8)
    model, chosen = trained(weights, method, given)
    save(model, tmp_path / "tuned", str(weights), chosen.precision)

    loaded = load_weights(weights, tmp_path / "tuned", dtype=torch.float32)
    merged = loaded.merge_and_unload() if isinstance(loaded, PeftModel) else loaded  # as it is evaluated
    prompts = [row["input_ids"][:-4] for row in given]
    asked = [Answer(prompt, [*prompt[-3:], STOP]) for prompt in prompts]
    Greedy(merged, stops=[STOP], max_new_tokens=6, batch=3).answer(asked)
    for row in asked:
        said = generated(merged, row.prompt, [STOP], 6)
        assert row.tokens == [token for token in said if token != STOP]
        assert row.nll == pytest.approx(likelihood(merged, row.prompt, row.reference), rel=1e-3)
    again = load_weights(weights, tmp_path / "tuned", dtype=torch.float32)
    at_once = len(prompts) if architecture.of(again.config).pads_left else 1
    assert served(again, prompts, [STOP], 6, batch=at_once) == [row.tokens for row in asked]


def test_ways_are_chosen_by_what_the_class_does() -> None:
    def found(name: str, longest: int) -> Architecture:
        return architecture.of(AutoConfig.for_model(**({"model_type": name} | ARCHITECTURES[name])), longest)

    for name in ("llama", "qwen3", "gpt2", "phi3", "olmoe", "opt"):
        assert found(name, 100) == Architecture(attention="sdpa", decoding="shared", pads_left=True)
    assert found("mistral", 16) == found("llama", 16).model_copy(update={"windows": {"sliding_window": 16}})
    assert (found("mistral", 17).decoding, bool(found("mistral", 17).packing)) == ("library", True)
    assert found("gemma2", 10).attention == found("bloom", 10).attention == "eager"
    assert found("mamba", 10).unreached == ("dt_proj",)
    assert found("llama4_text", 10).unreached == ("router",)
    assert not found("rwkv", 10).pads_left
    assert "have their own attention" in found("falcon", 10).packing


@pytest.mark.parametrize("name", ["mamba", "mamba2", "lfm2", "qwen3_next", "recurrent_gemma"])
def test_rows_whose_tokens_exchange_beside_attention_lie_apart(name: str) -> None:
    found = architecture.of(AutoConfig.for_model(**({"model_type": name} | ARCHITECTURES[name])))
    assert "gets other gradients this way" in found.packing
    assert found.decoding == "library"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "t5"} | REFUSED["t5"] | {"is_encoder_decoder": True},
            "model_type t5 is an encoder-decoder; acc",
        ),
        ({"model_type": "bert"} | REFUSED["bert"], "model_type bert lets a token attend to later tokens"),
        (
            {"model_type": "gemma3", "vision_config": {}, "text_config": {}},
            "gemma3 reads more than text; accepted: text",
        ),
        ({"model_type": "vit"}, "model_type vit is not a causal language model"),
        (
            {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "m.M"}},
            "brings code of its own .auto_map., which",
        ),
        ({"model_type": "mine"}, r"model_type mine is not known in transformers \d"),
        ({"hidden_size": 4}, "its config.json has no model_type"),
        (
            {"model_type": "llama", "hidden_size": 100, "num_attention_heads": 7},
            "takes no such config.json .*multiple of",
        ),
        (
            {"model_type": "gpt2", "max_position_embeddings": {}, "vocab_size": 263, "hidden_size": 8}
            | {"num_attention_heads": 2, "num_hidden_layers": 1},
            "model_type gpt2 takes no such config.json .*n_positions",
        ),
        ([], "config.json is not a JSON object; copy it again"),
    ],
)
def test_what_is_no_model_of_text_is_refused_in_one_line(config: Any, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match=words) as refused:
        models.identity(str(tmp_path))
    assert str(refused.value).startswith(f"model.base={tmp_path}: ")
    assert "\n" not in str(refused.value)


def test_what_was_found_is_kept_in_the_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"model_type": "llama", "hidden_size": 96, "num_attention_heads": 6, "vocab_size": 77}
    found = architecture.probe(fields)
    (file,) = (home / "architectures").iterdir()
    assert Architecture.model_validate_json(file.read_bytes()) == found
    architecture._kept.cache_clear()
    monkeypatch.setattr("tunewright.modeling.architecture._probed", lambda *_: pytest.fail("it was computed again"))
    assert architecture.probe(fields) == found
    file.write_text("{")
    architecture._kept.cache_clear()
    monkeypatch.setattr("tunewright.modeling.architecture._probed", lambda *_: found)
    assert architecture.probe(fields) == found
    assert Architecture.model_validate_json(file.read_bytes()) == found


def test_a_probe_changes_nothing_outside_and_runs_in_any_mode_of_torchs() -> None:
    fields = {"model_type": "qwen2", "hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 2}
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert architecture.probe(fields).decoding == "shared"
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2", "falcon", "mamba2", "gemma2", "deepseek_v3", "phi3"])
def test_a_model_of_full_size_is_reduced_to_a_tiny_one_of_its_kind(name: str) -> None:
    fields = AutoConfig.for_model(name).to_dict()
    small: Any = AutoConfig.for_model(**tiny(fields, ()))
    with torch.device("meta"):
        assert AutoModelForCausalLM.from_config(small).num_parameters() < 30_000_000
    assert architecture.probe(fields).attention in ("sdpa", "eager")
    assert "no tiny model" not in architecture.probe(fields).packing


def test_a_class_that_cannot_be_checked_is_left_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LARGEST", 10)
    found = architecture.probe({"model_type": "llama", "hidden_size": 128, "num_attention_heads": 2})
    assert (found.refused, found.attention, found.decoding) == ("", "sdpa", "library")
    assert found.packing.startswith("no tiny model of type llama could be made to check it (ValueError: a tiny model")


@pytest.mark.parametrize("name", ["deepseek_v3", "llama"])
def test_packed_rows_are_computed_in_bfloat16_too(name: str, tmp_path: Path) -> None:
    model = load_weights(make_model(name, tmp_path), None, dtype=torch.bfloat16)
    given = rows(random.Random(0))
    losses = list[float]()
    ways: Any = (("padded", "sdpa"), ("packed", ATTENTION), ("shared", ATTENTION))
    for layout, attention in ways:
        model.set_attn_implementation(attention)
        losses.append(answer_loss(model, Collator(layout, 0, len(given)).lay(given)).item())
    assert losses == pytest.approx([losses[0]] * 3, rel=0.02)


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe"])
def test_a_mixture_whose_config_asks_for_the_loss_of_its_routers_answers(name: str, tmp_path: Path) -> None:
    model = load_weights(make_model(name, tmp_path, output_router_logits=True), None)
    assert model.config.get_text_config().output_router_logits is False
    assert all(served(model, [[3, 4, 5], [6, 7]], [STOP], 6, batch=2))


def test_a_class_that_changes_its_weights_when_it_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = AutoConfig.for_model(**({"model_type": "rwkv"} | ARCHITECTURES["rwkv"])).to_dict()
    assert not checks.checked(tiny(fields, ())).refused
    monkeypatch.setattr(checks, "as_stored", lambda model: model)
    assert "rwkv changes its weights during generation" in checks.checked(tiny(fields, ())).refused


def test_a_class_whose_generate_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = AutoConfig.for_model(**({"model_type": "llama"} | ARCHITECTURES["llama"])).to_dict()
    monkeypatch.setattr("transformers.LlamaForCausalLM.generate", lambda *_, **__: 1 / 0)
    assert "llama cannot generate (ZeroDivisionError: " in checks.checked(tiny(fields, ())).refused


def test_a_base_of_pickles_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_model("qwen2", tmp_path / "team" / "my base's")
    monkeypatch.chdir(tmp_path)  # where the command is called, beside the folder of the deployment file
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    only = pytest.raises(ConfigError, match=r"only pytorch_model.bin, which can run code when read; to convert it")
    with config.working_in(tmp_path / "team"), only as e:
        models.identity("my base's")
    command, _, base = str(e.value).partition("running any: ")[2].rpartition(", then model.base=")
    subprocess.run(shlex.split(command.replace("python", sys.executable, 1)), check=True, capture_output=True)
    converted: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "team" / base, use_safetensors=True)
    with config.working_in(tmp_path / "team"):
        assert models.identity(base)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(converted(ids).logits, model(ids).logits)


def test_millions_of_labels_are_refused_before_transformers_makes_them() -> None:
    fields = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    refused = probe({**fields, "num_labels": 10_000_000}).refused
    assert refused == "its config.json has num_labels=10000000; accepted: a whole number from 0 to 10,000"


def test_what_a_probe_keeps_is_in_a_home_for_its_owner_alone(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = home / "new"
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(new))
    architecture._kept.cache_clear()
    probe({"model_type": "none of ours"})
    assert [*new.glob("architectures/*.json")]
    assert new.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("depth", [21, 200, 500, 900, 100_000])
@pytest.mark.parametrize("wrap", [lambda inner: {"a": inner}, lambda inner: [inner]], ids=["objects", "lists"])
def test_a_field_that_is_nested_without_end_is_one_line(depth: int, wrap: Callable[[Any], Any]) -> None:
    fields = {"model_type": "llama", **ARCHITECTURES["llama"], "vocab_size": 50}
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    said = probe(fields | {"odd": value}).refused
    while isinstance(value, dict | list):  # freed from outside in, as Python recurses too
        value = value["a"] if isinstance(value, dict) else value[0]
    assert said == "its config.json has 'odd' nested over 20 deep; accepted: at most 20 lists and objects"
