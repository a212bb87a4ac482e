"""Spectrum's picks are those of the paper's formula, whatever the machine, and the scan of a base is done once."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeSplits
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tunewright import config
from tunewright.artifacts import Base
from tunewright.config import Compute, Data, Method, Model, Settings, Source, Training
from tunewright.errors import ConfigError
from tunewright.flows.calls import Plan, Run, stages
from tunewright.serving import load_weights
from tunewright.tasks.render import render
from tunewright.tasks.scan import markdown, scan
from tunewright.tasks.scan.spectrum import NO_NOISE, choose, measure, ranking, singular_values
from tunewright.tasks.train.stage import train

TYPES = (
    "mlp.down_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "self_attn.k_proj",
    "self_attn.o_proj",
    "self_attn.q_proj",
    "self_attn.v_proj",
)


def by_the_formula(matrix: np.ndarray) -> float:
    """SNR as the paper has it, from the eigenvalues of the Gram matrix and sums in plain Python."""
    small = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values = sorted(math.sqrt(max(v, 0.0)) for v in np.linalg.eigvalsh(small @ small.T))

    def quartile(share: float) -> float:
        at = share * (len(values) - 1)
        low = int(at)
        return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])

    scale = (quartile(0.75) - quartile(0.25)) / 1.349
    edge = scale * (1 + math.sqrt(min(matrix.shape) / max(matrix.shape)))
    return sum(v for v in values if v > edge) / sum(v for v in values if v <= edge) / values[-1]


@pytest.fixture
def base(tiny_base: Base, tmp_path: Path) -> Base:
    """The tiny base with signal in some of its matrices, so that the ratios differ."""
    weights = tmp_path / "weights"
    weights.mkdir()
    for file in tiny_base.weights.iterdir():
        (weights / file.name).write_bytes(file.read_bytes())
    tensors = load_file(weights / "model.safetensors")
    random = np.random.default_rng(3)
    for name in [name for name in tensors if "proj" in name]:
        rows, columns = tensors[name].shape
        signal = np.outer(random.normal(size=rows), random.normal(size=columns)) * random.random() / 30
        tensors[name] = (tensors[name] + signal).astype(np.float32)
    save_file(tensors, weights / "model.safetensors", {"format": "pt"})
    return tiny_base.model_copy(update={"folder": weights, "weights_digest": "of the louder one"})


def test_the_ratios_are_those_of_the_formula(base: Base) -> None:
    found = scan.fn(base, share=0.5)
    ratios = json.loads(found.path("scan.json").read_text())
    assert len(ratios) == found.num_modules == 14
    with safe_open(base.weights / "model.safetensors", "np") as tensors:
        for module, snr in ratios.items():
            expected = by_the_formula(tensors.get_tensor(f"{module}.weight").astype(np.float64))
            assert snr == pytest.approx(expected, rel=5e-6)  # six digits


def test_of_each_type_the_layer_with_the_higher_ratio_learns(base: Base) -> None:
    found = scan.fn(base, share=0.5)
    ratios = json.loads(found.path("scan.json").read_text())
    both = {kind: [f"model.layers.{layer}.{kind}" for layer in (0, 1)] for kind in TYPES}
    assert set(found.chosen) == {max(modules, key=lambda module: ratios[module]) for modules in both.values()}
    assert json.loads(found.path("chosen.json").read_text()) == list(found.chosen)
    assert {module.split(".")[2] for module in found.chosen} == {"0", "1"}


def test_a_last_digit_does_not_decide() -> None:
    values = np.linspace(3, 0.5, 40)
    other = values * (1 + 1e-13)
    assert measure("m", 40, 60, values) == measure("m", 40, 60, other)
    tied = {f"model.layers.{layer}.mlp.up_proj": 0.5 for layer in (3, 1, 2, 0)}
    assert choose(tied, 0.5) == ("model.layers.1.mlp.up_proj", "model.layers.0.mlp.up_proj")


def test_float32_weights_and_threads_change_no_ratio(base: Base) -> None:
    import torch

    matrix = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    one = measure("m", 96, 64, singular_values(matrix))
    assert one == measure("m", 96, 64, np.linalg.svd(matrix.double().numpy(), compute_uv=False))
    assert one == measure("m", 96, 64, singular_values(matrix.float()))


def test_a_matrix_without_noise_comes_first_and_one_of_zeros_last() -> None:
    ratios = {
        "layers.0.q": measure("a", 4, 4, np.zeros(4)).snr,
        "layers.1.q": measure("b", 4, 4, np.array([3.0, 2.0, 1.0, 0.5])).snr,
        "layers.2.q": measure("c", 4, 4, np.ones(4)).snr,
    }
    assert ratios["layers.2.q"] == NO_NOISE
    assert ranking(ratios) == {"q": ["layers.2.q", "layers.1.q", "layers.0.q"]}


@pytest.mark.parametrize(("share", "number"), [(0.25, 7), (0.3, 9), (0.29, 8), (0.01, 1), (1.0, 30)])
def test_a_share_is_rounded_down_to_at_least_one(share: float, number: int) -> None:
    ratios = {f"layers.{layer}.mlp.up_proj": layer / 30 for layer in range(30)}
    assert choose(ratios, share) == tuple(f"layers.{layer}.mlp.up_proj" for layer in range(30 - number, 30))


def test_another_share_computes_no_singular_value_again(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    half = scan.fn(base, share=0.5)
    monkeypatch.setattr("tunewright.tasks.scan.spectrum.singular_values", None)
    whole = scan.fn(base, share=1.0)
    assert len(whole.chosen) == 14
    assert whole.path("scan.json").read_bytes() == half.path("scan.json").read_bytes()


def test_it_holds_the_device_that_it_computes_on(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    holders: list[str] = []

    def watched(matrix: Any) -> np.ndarray:
        holders.append((config.device_locks() / "cpu.lock").read_text())
        return singular_values(matrix)

    monkeypatch.setattr("tunewright.tasks.scan.spectrum.singular_values", watched)
    scan.fn(base, share=0.5)
    assert len(holders) == 14
    assert all(holders)


def test_killed_in_the_middle_it_goes_on_where_it_was(base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []

    def until_the_fifth(matrix: Any) -> np.ndarray:
        measured.append(matrix)
        if len(measured) == 5:
            raise KeyboardInterrupt
        return singular_values(matrix)

    monkeypatch.setattr("tunewright.tasks.scan.spectrum.singular_values", until_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        scan.fn(base, share=0.5)
    found = scan.fn(base, share=0.5)
    assert len(measured) == 5 + 10
    monkeypatch.undo()
    undisturbed = scan.fn(base.model_copy(update={"weights_digest": "of a twin"}), share=0.5)
    assert undisturbed.digest == found.digest


def test_a_base_whose_files_lack_a_module_is_refused_in_one_line(base: Base) -> None:
    tensors = load_file(base.weights / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base.weights / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"the base has no tensor model.layers.1.mlp.up_proj.weight in its files"):
        scan.fn(base, share=0.5)


def test_the_page_and_the_table_show_what_learns(base: Base) -> None:
    found = scan.fn(base, share=0.5)
    page = found.path("report.html").read_text()
    assert page.count('class="pick"') == len(found.chosen) == 7
    assert page.count('class="under"') == 14
    assert "src=" not in page
    assert "href=" not in page
    table = markdown(found).splitlines()
    assert table[0].startswith("7 of 14 modules are trained")
    assert [line.split(" | ")[0].strip("| ") for line in table[4:]] == list(TYPES)


def test_what_was_chosen_is_what_trains(base: Base, make_splits: MakeSplits) -> None:
    questions = [[f"the question number {i}", f"the answer {i % 3}"] for i in range(12)]
    splits = make_splits(train=questions[:8], validation=questions[8:10], test=questions[10:])
    tokens = render.fn(splits, base, Model(base="tiny", max_length=256))
    picked = scan.fn(base, share=0.5)
    training = Training(learning_rate=0.001, max_steps=2, batch=4, evaluate_every=2)
    adapter = train.fn(tokens, base, Method(kind="spectrum", share=0.5), training, Compute(threads=1), picked)
    before, after = load_weights(base.weights, None), load_weights(base.weights, adapter.path("model"))
    changed = {name for name, tensor in after.state_dict().items() if not tensor.equal(before.state_dict()[name])}
    assert changed == {f"{module}.weight" for module in picked.chosen}


def test_only_a_run_with_spectrum_has_the_stage() -> None:
    settings = Settings(data=Data(sources=(Source(path="x"),)), model=Model(base="y"))
    spectrum = settings.model_copy(update={"method": Method(kind="spectrum")})
    assert "scan" not in stages(settings)
    assert stages(spectrum)[6:8] == ("scan", "train")
    for call in (Run, Plan):
        with pytest.raises(
            ConfigError, match=r"scan is a stage with method.kind=spectrum only, which is not set; accepted: ingest, "
        ):
            call(settings, "scan")
    assert "scan" not in Plan(settings, "train").stages
