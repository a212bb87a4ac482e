"""Which modules have the most signal in their weights, and so learn with method.kind=spectrum.

The singular values of every linear module are computed once for a base (spectrum.py); another share only chooses anew.
report.html shows the ratios as a table and as a map of layers and types.
"""

import json
from pathlib import Path

from tunewright.artifacts import Base, Scan
from tunewright.store.stage import stage
from tunewright.tasks.scan.report import write_report
from tunewright.tasks.scan.spectrum import Weights, choose, spectra


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
