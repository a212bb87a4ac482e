"""Every method on the same rows, from the same seed and for the same steps: what it trains, costs and comes to.

Each is trained by the trainer's own process, one after another; then what it saved is loaded anew and asked: the loss
on the validation rows, and the share of sealed test rows that it answers exactly. `before` is the base itself.

    .venv/bin/python benchmarks/methods.py --tokens .tunewright/artifacts/render/KEY --base FOLDER --steps 90

Learning rates are not tuned, so that the table shows that each method learns and what it costs, not which is best;
`--rates 1e-4 3e-4 1e-3` tries others.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trainings import Judge, job_of, train

from tunewright.config import Compute, Method, home, quiet_libraries

METHODS = {
    "full": Method(kind="full"),
    "lora": Method(),
    "lora, rslora": Method(rslora=True),
    "lora, dora": Method(dora=True),
    "lora, pissa": Method(init="pissa"),
    "lora, olora": Method(init="olora"),
    "lora, eva": Method(init="eva"),
    "lora, lora+": Method(lora_plus=16),
    "qlora 4": Method(kind="qlora"),
    "qlora 8": Method(kind="qlora", bits=8),
    "spectrum": Method(kind="spectrum"),
}
# By rule of thumb: what learns in the base itself or begins as its main directions takes smaller
# steps, and so does what the scale or the rate of the B matrices makes larger.
RATES = dict.fromkeys(METHODS, 1e-3) | {
    "full": 1e-4,
    "spectrum": 2e-4,
    "lora, rslora": 3e-4,
    "lora, pissa": 3e-4,
    "lora, olora": 3e-4,
    "lora, lora+": 3e-4,
}


class Line(NamedTuple):
    """Results of one method."""

    method: str
    learning_rate: float
    trained: int
    share: float
    loss_before: float
    loss_after: float
    exact_match: float
    seconds: float
    cpu_seconds: float
    peak_bytes: int  # of the trainer's process, or on a GPU of what its tensors took there


def modules_of(method: Method, base: Path) -> tuple[str, ...]:
    """The modules that learn with spectrum; the scan of a base is kept in the home folder."""
    if method.kind != "spectrum":
        return ()
    from tunewright.serving import weights_digest
    from tunewright.tasks.scan.spectrum import Weights, choose, spectra

    found = spectra.record(Weights(digest=weights_digest(base), folder=base)).read()
    return choose({one.module: one.snr for one in found}, method.share)


def run(arguments: argparse.Namespace) -> list[Line]:
    """One line a method, in their order; each is shown as it is done."""
    import pyarrow.parquet as pq

    base, tokens = arguments.base.absolute(), arguments.tokens.absolute()
    contract = json.loads((tokens / "contract.json").read_text(encoding="utf-8"))
    judge = Judge(base, tokens, contract, arguments.rows)
    before, exact = judge(None)
    print(
        f"before: validation loss {before:.4f}, exact match {exact:.3f}, {arguments.steps} steps of {arguments.batch}"
    )
    lines = []
    wanted = [(name, rate) for name in arguments.methods or METHODS for rate in arguments.rates or [RATES[name]]]
    for name, rate in wanted:
        method = METHODS[name]
        job = job_of(
            base,
            tokens,
            steps=arguments.steps,
            batch=arguments.batch,
            rate=rate,
            method=method,
            modules=modules_of(method, base),
            compute=Compute(threads=arguments.threads),
        )
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "work")
            validation = Path(place, "validation.parquet")
            pq.write_table(pq.read_table(job.validation).slice(0, arguments.rows), validation)
            seconds, cpu_seconds, peak = train(job.model_copy(update={"validation": validation}), folder)
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            after, exact = judge(folder / "model")
        learning = summary["learning_parameters"]
        share = learning / summary["parameters"]
        lines.append(Line(name, rate, learning, share, before, after, exact, seconds, cpu_seconds, peak))
        show(lines[-1:], is_first=len(lines) == 1)
    return lines


def show(lines: Sequence[Line], *, is_first: bool) -> None:
    """Prints lines of the table, under its head where they are the first."""
    if is_first:
        print(
            f"{'method':<14}{'rate':>8}{'trained':>13}{'share':>8}{'loss before':>13}{'after':>9}{'exact':>8}"
            f"{'seconds':>9}{'of CPU':>9}{'peak GB':>9}"
        )
    for line in lines:
        print(
            f"{line.method:<14}{line.learning_rate:>8.0e}{line.trained:>13,}{line.share:>8.2%}{line.loss_before:>13.4f}"
            f"{line.loss_after:>9.4f}{line.exact_match:>8.3f}{line.seconds:>9.1f}"
            f"{line.cpu_seconds:>9.1f}{line.peak_bytes / 1e9:>9.2f}",
            flush=True,
        )


def main() -> None:
    """Prints the table, and with --json one object a method as well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True, help="a folder that render made")
    parser.add_argument("--base", type=Path, required=True, help="a folder with the base's safetensors")
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rows", type=int, help="validation and test rows to ask, all where it is left out")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--methods", nargs="*", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--rates", nargs="*", type=float, help="learning rates to try in place of each method's own")
    parser.add_argument("--json", type=Path, help="a file to write")
    arguments = parser.parse_args()
    quiet_libraries()
    home().mkdir(parents=True, exist_ok=True)
    lines = run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps([line._asdict() for line in lines], indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
