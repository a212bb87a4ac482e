"""The cost and the result of a training that goes on from the champion, beside one that begins as the base.

The champion is trained on the rows of a night before, a share of the training rows drawn by a fixed seed; then all
rows are trained on from the base, and from the champion for as many steps and for fewer. Each is trained by the
trainer's own process; what it saved is loaded anew and asked: the loss on the validation rows, and the share of test
rows that it answers exactly.

    .venv/bin/python benchmarks/start.py --tokens .tunewright/artifacts/render/KEY --base FOLDER --steps 120
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from trainings import Judge, job_of, train

from tunewright.config import Method, quiet_libraries

PARTS = (1, 2, 4)  # a training from the champion has all steps, half of them, a quarter


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True, help="a folder that render made")
    parser.add_argument("--base", type=Path, required=True, help="a folder with the base's safetensors")
    parser.add_argument("--before", type=float, default=0.8, help="the share of the rows that the champion has seen")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--layers", type=int, help="how many of the last layers learn; all where it is left out")
    parser.add_argument("--rows", type=int, help="validation and test rows to ask, all where it is left out")
    options = parser.parse_args()
    quiet_libraries()
    base, tokens = options.base.absolute(), options.tokens.absolute()
    judge = Judge(base, tokens, json.loads((tokens / "contract.json").read_text(encoding="utf-8")), options.rows)
    rows = pq.read_table(tokens / "train.parquet")
    seen = sorted(random.Random(0).sample(range(len(rows)), round(options.before * len(rows))))
    print("| begins as | rows | steps | CPU seconds | validation loss | exact match |\n|---|---:|---:|---:|---:|---:|")
    print("| *the base itself* | | | | {:.4f} | {:.3f} |".format(*judge(None)), flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pq.write_table(rows.take(seen), folder / "seen.parquet")
        pq.write_table(
            pq.read_table(tokens / "validation.parquet").slice(0, options.rows), folder / "validation.parquet"
        )
        champion = folder / "champion" / "model"

        def trained(name: str, steps: int, num_rows: int, *, begins_as: Path | None) -> None:
            job = job_of(
                base,
                tokens,
                steps=steps,
                batch=options.batch,
                rate=options.rate,
                method=Method(layers=options.layers),
                begins_as=begins_as,
            )
            of = folder / "seen.parquet" if num_rows < len(rows) else job.train
            work = folder / name
            job = job.model_copy(update={"train": of, "validation": folder / "validation.parquet"})
            _, cpu_seconds, _ = train(job, work)
            start = "the champion" if begins_as else "the base"
            loss, exact = judge(work / "model")
            print(f"| {start} | {num_rows} | {steps} | {cpu_seconds:.0f} | {loss:.4f} | {exact:.3f} |", flush=True)

        trained("champion", options.steps, len(seen), begins_as=None)
        trained("base", options.steps, len(rows), begins_as=None)
        for part in PARTS:
            trained(f"part-{part}", options.steps // part, len(rows), begins_as=champion)


if __name__ == "__main__":
    main()
