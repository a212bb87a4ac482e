"""Which modules have the most signal in their weights, and so learn with method.kind=spectrum.

The singular values of every linear module are computed once for a base (spectrum.py); another share only chooses anew.
report.html shows the ratios as a table and as a map of layers and types.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tunewright.artifacts import Base, Scan
from tunewright.modeling.methods.modules import layer_of, type_of
from tunewright.reports.pages import template
from tunewright.store.stage import stage
from tunewright.tasks.scan.spectrum import Spectrum, Weights, choose, ranking, spectra

CELL, GAP = 22, 2  # pixels of the map
LABEL_WIDTH, HEAD = 150, 24
BLOCKS = "▁▂▃▄▅▆▇█"


class Cell(NamedTuple):
    """One module on the map."""

    spectrum: Spectrum
    x: int
    y: int
    level: float  # its place among its type: 0 for the lowest ratio, 1 for the highest
    is_chosen: bool


def write_report(file: Path, spectra: Sequence[Spectrum], chosen: Sequence[str], share: float) -> None:
    """Writes the page; it needs nothing but itself."""
    snr = {one.module: one.snr for one in spectra}
    levels, kinds = _levels(snr), list(ranking(snr))
    layers = sorted({layer_of(one.module) for one in spectra})
    cells = [
        Cell(
            spectrum=one,
            x=LABEL_WIDTH + layers.index(layer_of(one.module)) * (CELL + GAP),
            y=HEAD + kinds.index(type_of(one.module)) * (CELL + GAP),
            level=levels[one.module],
            is_chosen=one.module in chosen,
        )
        for one in spectra
    ]
    page = template(Path(__file__).with_name("report.html")).render(
        cells=cells,
        kinds=[_kind(name, cells) for name in kinds],
        layers=[(number, LABEL_WIDTH + at * (CELL + GAP) + CELL // 2) for at, number in enumerate(layers)],
        labels=[(name, HEAD + at * (CELL + GAP) + CELL // 2) for at, name in enumerate(kinds)],
        width=LABEL_WIDTH + len(layers) * (CELL + GAP),
        height=HEAD + len(kinds) * (CELL + GAP),
        size=CELL,
        head=HEAD,
        share=share,
        parameters=sum(c.spectrum.rows * c.spectrum.columns for c in cells if c.is_chosen),
        ranked=sorted(cells, key=lambda cell: (type_of(cell.spectrum.module), -cell.spectrum.snr, cell.x)),
    )
    file.write_text(page, encoding="utf-8")


def _levels(snr: dict[str, float]) -> dict[str, float]:
    """Each module's place among its type, from 0 for the lowest ratio to 1: ratios alone may differ a thousandfold."""
    levels = {}
    for modules in ranking(snr).values():
        steps = max(1, len(modules) - 1)
        levels |= {module: 1 - place / steps for place, module in enumerate(modules)}
    return levels


def _kind(name: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """A module type as the page shows it: the shape, the ratios and the layers that were chosen."""
    own = [cell for cell in cells if type_of(cell.spectrum.module) == name]
    ratios = [cell.spectrum.snr for cell in own]
    shape = f"{own[0].spectrum.rows:,} x {own[0].spectrum.columns:,}"
    layers = sorted(layer_of(cell.spectrum.module) for cell in own if cell.is_chosen)
    figures = {"low": min(ratios), "high": max(ratios), "num_modules": len(own)}
    return {"name": name, "shape": shape, "layers": layers, **figures}


def markdown(scan: Scan) -> str:
    """A table of the module types: the places of all layers as a strip of bars, and the layers that learn."""
    snr: dict[str, float] = json.loads(scan.path("scan.json").read_text(encoding="utf-8"))
    levels, chosen = _levels(snr), set(scan.chosen)
    lines = [
        f"{len(chosen):,} of {scan.num_modules:,} modules are trained: the highest signal-to-noise ratios by type.",
        "",
        "| type | rank by layer, first to last | lowest ratio | highest | trained layers |",
        "|---|---|---:|---:|---|",
    ]
    for kind, modules in ranking(snr).items():
        ordered = sorted(modules, key=layer_of)
        bars = "".join(BLOCKS[round(levels[module] * (len(BLOCKS) - 1))] for module in ordered)
        layers = ", ".join(str(layer_of(module)) for module in ordered if module in chosen)
        lines.append(f"| {kind} | `{bars}` | {snr[modules[-1]]:.4g} | {snr[modules[0]]:.4g} | {layers} |")
    return "\n".join(lines)


@stage("share={share}", volatile=("report",))
def scan(folder: Path, base: Base, share: float) -> Scan:
    """The modules that learn with spectrum, and the ratio of each that was looked at."""
    found = spectra.record(Weights(digest=base.weights_digest, folder=base.weights)).read()
    snr = {one.module: one.snr for one in found}
    chosen = choose(snr, share)
    (folder / "scan.json").write_text(json.dumps(snr, indent=1), encoding="utf-8")
    (folder / "chosen.json").write_text(json.dumps(chosen, indent=1), encoding="utf-8")
    write_report(folder / "report.html", found, chosen, share)
    return Scan(num_modules=len(snr), chosen=chosen)
