"""The signal-to-noise ratio of a weight matrix, from its singular values, and which modules learn by it.

This is Spectrum (arXiv 2406.06623); section 4.2 takes of each type of module the top share by that ratio. Ranked are
the linear modules of the layers. The authors' script ranks norms as well, whose ratio is infinite, and lets the
embeddings and the head learn whatever theirs is, since it adds tokens to the base; here no token is added, and what has
no rank among its like stays as it is.

As the authors' own script computes it: the scale of the noise is the singular values' interquartile range / 1.349, the
edge of what noise alone would give is scale * (1 + sqrt(beta)), by Marchenko and Pastur without the factor 1/sqrt(n),
with beta the smaller split over the larger; the ratio is the sum of the values above the edge over the sum of the
others, over the largest value. All in float64 and kept to six digits, so that neither the machine nor a last digit
decides what is chosen.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from tunewright.artifacts import Artifact
from tunewright.cost_model import on_devices
from tunewright.errors import ConfigError
from tunewright.modeling.methods.modules import type_of
from tunewright.modeling.models import device_to_load
from tunewright.reports.progress import Countdown
from tunewright.store.caching import cached, work_folder

DIGITS = 6
NO_NOISE = 1e300  # where no value is noise: JSON has no infinity


class Weights(BaseModel, frozen=True):
    """A base's weights: the digest is the key, and where they lie is not."""

    digest: str
    folder: Path


class Spectrum(BaseModel, frozen=True):
    """Summary of the singular values of one matrix."""

    module: str
    rows: int
    columns: int
    largest: float
    edge: float
    num_above: int  # singular values above the edge
    snr: float


class Spectra(Artifact, frozen=True):
    """spectra.jsonl: the Spectrum of each linear module in a base's layers, in the model's order."""

    num_modules: int

    def read(self) -> list[Spectrum]:
        """All of them."""
        lines = self.path("spectra.jsonl").read_text(encoding="utf-8").splitlines()
        return [Spectrum.model_validate_json(line) for line in lines]


def ranking(snr: Mapping[str, float]) -> dict[str, list[str]]:
    """Module type -> its modules, the highest ratio first, then by name."""
    types: dict[str, list[str]] = {}
    for module in sorted(snr, key=lambda module: (-snr[module], module)):
        types.setdefault(type_of(module), []).append(module)
    return {kind: types[kind] for kind in sorted(types)}


def choose(snr: Mapping[str, float], share: float) -> tuple[str, ...]:
    """The modules that learn, in the order of `snr`: of n of a type the first share * n, rounded down, at least one."""
    chosen: set[str] = set()
    for modules in ranking(snr).values():
        chosen.update(modules[: max(1, math.floor(len(modules) * share + 1e-9))])  # 0.29 of 100 is 28.999…
    return tuple(module for module in snr if module in chosen)


def measure(module: str, rows: int, columns: int, values: np.ndarray) -> Spectrum:
    """The spectrum of a matrix of that shape, from its singular values (float64, largest first)."""
    low, high = np.quantile(values, [0.25, 0.75])
    beta = min(rows, columns) / max(rows, columns)
    edge = (high - low) / 1.349 * (1 + math.sqrt(beta))
    signal, noise, largest = values[values > edge].sum(), values[values <= edge].sum(), values[0]
    snr = signal / noise / largest if noise > 0 else NO_NOISE if largest > 0 else 0.0
    figures = {"largest": largest, "edge": edge, "snr": snr}
    rounded = {name: float(f"{value:.{DIGITS}g}") for name, value in figures.items()}
    return Spectrum(module=module, rows=rows, columns=columns, num_above=int((values > edge).sum()), **rounded)


def singular_values(matrix: Any) -> np.ndarray:
    """The singular values of a torch matrix, in float64 and from the largest; on the run's GPU where there is one."""
    import torch

    matrix = matrix.to(device_to_load(), torch.float64)
    return torch.linalg.svdvals(matrix).cpu().numpy()


def linear_shapes(weights: Path) -> dict[str, tuple[int, int]]:
    """The linear modules in the layers of a folder's model, with the shape of their weight; no weights are read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tunewright.modeling.methods.modules import linear_modules

    config = AutoConfig.from_pretrained(weights, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: (module.weight.shape[0], module.weight.shape[1]) for name, module in linear_modules(model).items()}


def _files_of(weights: Path, modules: Sequence[str]) -> dict[str, Path]:
    """The file that each module's weight lies in. Raises ConfigError where one lies in none."""
    from safetensors import safe_open

    places: dict[str, Path] = {}
    for file in sorted(weights.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            places |= dict.fromkeys(opened.keys(), file)
    missing = [module for module in modules if f"{module}.weight" not in places]
    if missing or not modules:
        what = f"no tensor {missing[0]}.weight in its files" if missing else "no linear modules in its layers"
        raise ConfigError(f"method.kind=spectrum: the base has {what}; accepted for it are lora and full")
    return {module: places[f"{module}.weight"] for module in modules}


def _measured(weights: Path, modules: dict[str, tuple[int, int]]) -> Iterator[Spectrum]:
    from safetensors import safe_open

    for module, file in _files_of(weights, list(modules)).items():
        with safe_open(file, "pt") as opened:
            matrix = opened.get_tensor(f"{module}.weight")
        rows, columns = matrix.shape
        yield measure(module, rows, columns, singular_values(matrix))


@cached(libraries=("torch", "transformers", "safetensors"))
def spectra(folder: Path, weights: Weights) -> Spectra:
    """The spectrum of each linear module of a base's layers; killed, it goes on where it was."""
    work = work_folder(folder)
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "spectra.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines(keepends=True) if kept.exists() else []
    done = [line for line in lines if line.endswith("\n")]  # the last may be cut off
    shapes = linear_shapes(weights.folder)
    left = dict(list(shapes.items())[len(done) :])
    countdown = Countdown(len(shapes), "modules", "scan-progress")
    costs = {module: rows * columns * min(rows, columns) for module, (rows, columns) in left.items()}
    all_costs, measured = sum(costs.values()), 0
    with kept.open("w", encoding="utf-8") as file, on_devices():
        file.writelines(done)
        file.flush()
        for number, spectrum in enumerate(_measured(weights.folder, left), len(done) + 1):
            file.write(spectrum.model_dump_json() + "\n")
            file.flush()
            measured += costs[spectrum.module]
            countdown.tell(number, measured / all_costs)
    kept.rename(folder / "spectra.jsonl")
    return Spectra(num_modules=len(shapes))
