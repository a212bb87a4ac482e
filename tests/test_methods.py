"""Each method trains what it says and nothing else, learns, and is saved as what answers like the trained model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MakeSplits
from make_models import make_model
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from tunewright.artifacts import Base
from tunewright.config import Compute, Method, Model, Training
from tunewright.cost_model.learning import learning
from tunewright.cost_model.shapes import shape_in
from tunewright.errors import ConfigError
from tunewright.modeling import methods
from tunewright.modeling.compute import Chosen
from tunewright.modeling.methods import adapter, modules
from tunewright.modeling.methods.adapter import lora_plus_optimizer
from tunewright.serving import load_weights
from tunewright.tasks.render import render
from tunewright.tasks.train.trainer import FINISHED, Job, checkpoints
from tunewright.tasks.train.trainer.fit import fit, save

SMALL: dict[str, Any] = {"rank": 4, "alpha": 8}
ADAPTERS = {
    "lora": Method(**SMALL),
    "dropout": Method(**SMALL, dropout=0.3),
    "rslora": Method(**SMALL, rslora=True),
    "dora": Method(**SMALL, dora=True),
    "pissa": Method(**SMALL, init="pissa"),
    "pissa, rslora": Method(**SMALL, init="pissa", rslora=True),
    "olora": Method(**SMALL, init="olora"),
    "eva": Method(**SMALL, init="eva", dora=True, rslora=True, layers=1, target="q_proj, down_proj"),
    "lora+": Method(**SMALL, lora_plus=16),
    "attention": Method(**SMALL, target="attention"),
    "last layer": Method(**SMALL, layers=1, target="down_proj, self_attn.q_proj"),
}
PACKED = {
    "qlora 4": Method(kind="qlora", **SMALL),
    "qlora 8": Method(kind="qlora", **SMALL, bits=8),
    "qlora 4, dora": Method(kind="qlora", **SMALL, dora=True),
    "qlora 4, eva": Method(kind="qlora", **SMALL, init="eva", layers=1, target="down_proj"),
}
WHOLE = {"full": Method(kind="full"), "spectrum": Method(kind="spectrum"), "osf": Method(kind="osf", share=0.5)}
METHODS = ADAPTERS | PACKED | WHOLE
PICKED = ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj")


def chosen(precision: Any = "float32") -> Chosen:
    return Chosen(
        precision=precision,
        shared_prefix=False,
        packing=False,
        checkpointing=False,
        attention="sdpa",
        liger=False,
        compile=False,
        fused=False,
        optimizer="adamw",
        because={},
    )


def rows() -> torch.Tensor:
    return torch.randint(5, 400, (8, 40), generator=torch.Generator().manual_seed(0))


def load(base: Base, method: Method, precision: str = "float32") -> Any:
    torch.manual_seed(0)
    picked = PICKED if method.kind == "spectrum" else ()
    return methods.load_trainable(base.weights, method, chosen(precision), picked, rows().tolist()).train()


def learn(model: Any, method: Method, steps: int = 8, precision: str = "float32") -> list[float]:
    """The losses of some steps on the same rows."""
    options: dict[str, Any] = {"lr": 0.001 if method.kind == "full" or method.lora_plus else 0.01}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(learning, **options)
    if method.lora_plus:
        optimizer = lora_plus_optimizer(model, method.lora_plus, torch.optim.AdamW, options)
    losses = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model(input_ids=rows(), labels=rows()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=rows()).logits.float()


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "bfloat16") for name in METHODS), ("lora", "float32"), ("qlora 4", "float32")]
)
def test_every_method_learns_and_changes_only_what_it_says(tiny_base: Base, name: str, precision: str) -> None:
    method = METHODS[name]
    model = load(tiny_base, method, precision)
    before = weights_of(model)
    losses = learn(model, method, precision=precision)
    assert losses[-1] < losses[0] - 0.02
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert changed == learns
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("method", [*ADAPTERS.values(), *WHOLE.values()], ids=[*ADAPTERS, *WHOLE])
def test_what_is_saved_answers_on_the_untouched_base_as_the_trained_model_does(
    tiny_base: Base, method: Method, tmp_path: Path
) -> None:
    untouched = load_weights(tiny_base.weights, None, dtype=torch.float32)
    model = load(tiny_base, method)
    torch.testing.assert_close(logits(model), logits(untouched), atol=1e-5, rtol=1e-4)
    learn(model.train(), method)
    trained = logits(model)
    assert (trained - logits(untouched)).abs().max() > 0.01
    save(model, tmp_path / "model", "org/base", "float32")
    torch.testing.assert_close(
        logits(load_weights(tiny_base.weights, tmp_path / "model", dtype=torch.float32)), trained, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["pissa", "olora", "eva"])
def test_every_adapter_is_saved_as_a_plain_one(tiny_base: Base, tmp_path: Path, name: str) -> None:
    method = ADAPTERS[name]
    save(load(tiny_base, method), tmp_path / "model", "org/base", "float32")
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["init_lora_weights"] is True
    assert config["eva_config"] is None
    assert config["base_model_name_or_path"] == "org/base"
    assert config["r"] == method.rank * (2 if method.init in {"pissa", "olora"} else 1)
    assert str(tmp_path) not in (tmp_path / "model" / "adapter_config.json").read_text()


@pytest.mark.parametrize("name", ["lora", "pissa", "eva"])
def test_equal_seeds_give_equal_bytes(tiny_base: Base, tmp_path: Path, name: str) -> None:
    for copy in ("one", "other"):
        model = load(tiny_base, ADAPTERS[name])
        learn(model, ADAPTERS[name], steps=2)
        save(model, tmp_path / copy, "org/base", "float32")
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


def test_in_bfloat16_an_adapter_that_was_taken_out_loses_no_more_than_rounding(tiny_base: Base) -> None:
    untouched = load_weights(tiny_base.weights, None, dtype=torch.bfloat16)
    for name in ("pissa", "olora"):
        with torch.autocast("cpu", torch.bfloat16):
            difference = logits(load(tiny_base, ADAPTERS[name], "bfloat16")) - logits(untouched)
        assert difference.abs().max() < 0.02 * logits(untouched).abs().max() + 0.01


def test_spectrum_saves_the_modules_that_learned_and_no_others(tiny_base: Base, tmp_path: Path) -> None:
    model = load(tiny_base, WHOLE["spectrum"], "bfloat16")
    save(model, tmp_path / "model", "org/base", "bfloat16")
    (file,) = (tmp_path / "model").iterdir()
    saved = load_file(file)
    assert saved.keys() == {f"{name}.weight" for name in PICKED}
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_osf_keeps_the_main_directions_better_than_lora_and_saves_weights(tiny_base: Base, tmp_path: Path) -> None:
    """Adam scales each number of a projected gradient by itself, so that a part of a step leaves the minor ones."""
    before = load_file(tiny_base.weights / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    main, _, other = torch.linalg.svd(before[name].float())
    share = {}
    for method in (WHOLE["osf"], ADAPTERS["lora"]):
        model = load(tiny_base, method)
        learn(model, method)
        save(model, tmp_path / method.kind, "org/base", "float32")
        after = load_weights(tiny_base.weights, tmp_path / method.kind, dtype=torch.float32)
        after = after.merge_and_unload() if hasattr(after, "peft_config") else after
        change = after.state_dict()[name] - before[name].float()
        half = len(before[name]) // 2
        share[method.kind] = ((main[:, :half].T @ change @ other[:half].T).norm() / change.norm()).item()
    assert share["osf"] < 0.5 * share["lora"]
    assert {file.name for file in (tmp_path / "osf").iterdir()} == {"trained.safetensors"}


@pytest.mark.parametrize("architecture", ["gemma2", "mixtral", "mamba", "mpt"])
def test_osf_learns_and_is_saved_on_other_architectures(architecture: str, tmp_path: Path) -> None:
    base = make_model(architecture, tmp_path / architecture)
    model = methods.load_trainable(base, WHOLE["osf"], chosen()).train()
    ids = rows()[:2, :12] % 200
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    trained = model.eval()(input_ids=ids).logits.detach()
    save(model, tmp_path / "model", "org/base", "float32")
    reloaded = load_weights(base, tmp_path / "model", dtype=torch.float32)
    torch.testing.assert_close(reloaded(input_ids=ids).logits, trained, atol=1e-4, rtol=1e-4)


def test_a_base_whose_modules_cannot_be_decomposed_is_refused_by_plan_and_trainer(tmp_path: Path) -> None:
    base = make_model("gpt2", tmp_path / "gpt2")
    with pytest.raises(ValueError, match="the base has Conv1D modules, which PEFT does not decompose"):
        methods.load_trainable(base, WHOLE["osf"], chosen())
    with pytest.raises(ConfigError, match="PEFT does not decompose the modules of gpt2; accepted: lora, full"):
        learning(shape_in(base), WHOLE["osf"])


def test_tensors_of_another_model_are_not_laid_over_a_base(tiny_base: Base, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"model.layers.7.mlp.up_proj.weight": torch.zeros(2, 2)}, tmp_path / "trained.safetensors")
    with pytest.raises(ValueError, match=r"the base has no tensor model.layers.7.mlp.up_proj.weight"):
        load_weights(tiny_base.weights, tmp_path)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_the_trained_share_is_that_of_the_modules(tiny_base: Base, method: Method) -> None:
    model, plain = load(tiny_base, method), load_weights(tiny_base.weights, None)
    learning, total = methods.trained_share(model)
    layers = modules.linear_modules(plain)
    whole = plain.num_parameters()
    if method.kind == "full":
        expected = whole
    elif method.kind == "spectrum":
        expected = sum(layers[name].weight.numel() for name in PICKED)
    elif method.kind == "osf":  # half of the directions, with their singular values
        shapes = [layers[name].weight.shape for name in modules.targets(plain, method)]
        expected = sum(min(shape) // 2 * (sum(shape) + 1) for shape in shapes)
    else:
        names = modules.targets(plain, method)
        expected = sum(method.rank * sum(layers[name].weight.shape) for name in names)
        expected += sum(layers[name].out_features for name in names) if method.dora else 0
    assert learning == expected
    assert total == whole + (learning if method.kind in {"lora", "qlora", "osf"} else 0)


def test_a_packed_base_stays_packed_and_nothing_of_it_grows(tiny_base: Base) -> None:
    model = load(tiny_base, PACKED["qlora 4"], "bfloat16")
    frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
    assert {p.dtype for name, p in frozen.items() if "base_layer" in name} == {torch.uint8}
    assert {p.dtype for name, p in frozen.items() if "base_layer" not in name} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["qlora 4", "qlora 8", "qlora 4, dora"])
def test_an_evaluation_changes_no_gradient_of_a_packed_base(tiny_base: Base, name: str) -> None:
    model = load(tiny_base, PACKED[name], "bfloat16")

    def gradients() -> list[torch.Tensor]:
        model.train().zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            model(input_ids=rows(), labels=rows()).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    before = gradients()
    with torch.autocast("cpu", torch.bfloat16):
        logits(model)
    assert all(torch.equal(one, other) for one, other in zip(before, gradients(), strict=True))


@pytest.mark.parametrize("name", ["adamw_torch", "adamw_8bit", "paged_adamw_8bit"])
def test_with_lora_plus_the_b_matrices_learn_faster_under_every_optimizer(tiny_base: Base, name: str) -> None:
    from transformers import Trainer, TrainingArguments

    model = load(tiny_base, ADAPTERS["lora+"])
    arguments = TrainingArguments(optim=name, learning_rate=0.001, use_cpu=True, report_to="none")
    optimizer = lora_plus_optimizer(model, 16, *Trainer.get_optimizer_cls_and_kwargs(arguments, model))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(rate == (0.016 if "lora_B" in name else 0.001) for name, rate in rates.items())
    model(input_ids=rows(), labels=rows()).loss.backward()
    before = weights_of(model)
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("q_proj, mlp.up_proj", {"q_proj", "up_proj"}),
    ],
)
def test_a_target_is_all_linear_modules_attention_or_names(tiny_base: Base, target: str, names: set[str]) -> None:
    plain = load_weights(tiny_base.weights, None)
    found = modules.targets(plain, Method(target=target, layers=1))
    assert {name.rpartition(".")[2] for name in found} == names
    assert {modules.layer_of(name) for name in found} == {1}


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"target": "q_proj, c_attn"}, "the base has no c_attn in its layers; it has down_proj, gate_proj"),
        ({"layers": 3}, "method.layers=3: the base has only 2 layers"),
        ({"init": "pissa", "rank": 33}, "method.rank=33: method.init=pissa allows at most 32"),
        ({"kind": "osf", "share": 0.98}, "method.share=0.98: a module of the base has 32 directions, of which none"),
        ({"init": "eva", "rank": 64}, "the training rows have fewer than the 1024 tokens"),
    ],
)
def test_what_the_base_does_not_have_is_refused(tiny_base: Base, method: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tiny_base, Method(**method))


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixtral of two layers of four experts each."""
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 256}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
    folder = tmp_path_factory.mktemp("experts")
    MixtralForCausalLM(MixtralConfig(**sizes)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["lora", "qlora", "spectrum"])
def test_experts_that_do_not_learn_are_told_once(experts: Path, caplog: pytest.LogCaptureFixture, kind: Any) -> None:
    picked = ("model.layers.0.self_attn.q_proj",) if kind == "spectrum" else ()
    methods.load_trainable(experts, Method(kind=kind), chosen(), picked)
    (told,) = [record.message for record in caplog.records if record.name == "tunewright"]
    # of each: gate and up, and down
    assert f"method.kind={kind} does not train" in told
    assert f" its {2 * 4 * 3 * 32 * 48:,} expert weights" in told
    assert ("or quantize" in told) == (kind == "qlora")


def test_where_all_weights_learn_or_there_are_no_experts_nothing_is_told(
    tiny_base: Base, experts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    methods.load_trainable(experts, WHOLE["full"], chosen())
    load(tiny_base, ADAPTERS["lora"])
    assert not [record for record in caplog.records if record.name == "tunewright"]


def test_where_there_is_a_gpu_an_adapter_begins_on_it(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(LlamaForCausalLM, "to", lambda _, device: happened.append(f"moved to {device}"))
    monkeypatch.setattr(adapter, "_take_out", lambda *_: happened.append("taken out"))
    load(tiny_base, ADAPTERS["pissa"])
    assert happened == ["moved to cuda", "taken out"]


def test_directions_that_do_not_settle_are_given_up(tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "PATIENCE", 1)
    with pytest.raises(ValueError, match="4 directions did not converge in 1 batches of training rows"):
        load(tiny_base, ADAPTERS["eva"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "qlora", "init": "pissa"}, "init=pissa changes the base's weights, which qlora quantizes"),
        ({"kind": "qlora", "init": "olora"}, "init=olora changes the base's weights"),
        ({"init": "olora", "dora": True}, "init=olora with dora gives no adapter of the original base"),
        ({"kind": "qlora", "bits": 8, "dora": True}, "accepted: dora with bits=4"),
        ({"kind": "osf", "share": 1.0}, "share=1 leaves no direction as it is; accepted with osf: below 1"),
        ({"kind": "spectrum", "rank": 8}, "rank=8 has no effect with kind=spectrum, which uses share"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Method(**settings)


# eva has dora as well, and olora is taken out of the weights as pissa is.
RESUMED = ("dropout", "pissa", "eva", "lora+", "qlora 4", "spectrum", "osf", "full")


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_from_its_checkpoint_each_comes_to_the_same_bytes(
    tiny_base: Base, make_splits: MakeSplits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    questions = [[f"the question number {i}", f"the answer {i % 3}"] for i in range(12)]
    splits = make_splits(train=questions[:8], validation=questions[8:10], test=questions[10:])
    tokens = render.fn(splits, tiny_base, Model(base="tiny", max_length=256))
    job = Job(
        weights=tiny_base.weights,
        reference="org/base",
        train=tokens.path("train.parquet"),
        validation=tokens.path("validation.parquet"),
        pad_token_id=2,
        stop_token_ids=(2,),
        method=METHODS[name],
        modules=PICKED if name == "spectrum" else (),
        training=Training(learning_rate=0.005, max_steps=4, batch=4, evaluate_every=2, patience=None),
        compute=Compute(threads=1),
        micro_batch=4,
    )
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    whole.mkdir()
    seal = checkpoints.seal

    def keep(checkpoint: Path, *rest: Any) -> None:
        seal(checkpoint, *rest)
        if checkpoint.name == "checkpoint-2":
            shutil.copytree(checkpoint, resumed / "checkpoints" / checkpoint.name)

    monkeypatch.setattr(checkpoints, "seal", keep)
    assert fit(job, whole) == FINISHED
    monkeypatch.undo()
    assert fit(job, resumed) == FINISHED
    assert json.loads((resumed / "status.json").read_text())["resumed_from"] == 2
    for file in (whole / "model").iterdir():
        assert file.read_bytes() == (resumed / "model" / file.name).read_bytes()
