"""bfloat16 beside float32 on this machine: the time of training and of answers, and what they come to.

`compute.precision` and `evaluation.precision` are bfloat16 by default where the processor multiplies it faster. Both
sides train the demo's model for the same steps by the trainer's own process, one after another, and the model that the
demo trained answers the same rows in both. What is compared is the time of the processors. It exits with 1 where
bfloat16 is the default here and is slower.

    .venv/bin/python benchmarks/precision.py            # needs an earlier `make demo`, whose model and rows it reads
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from evaluation import newest, ours, questions
from trainings import job_of, train

from tunewright import config
from tunewright.artifacts import Adapter, Base, Tokens
from tunewright.config import Compute, Method
from tunewright.modeling.compute import cpu_has_bfloat16

Precision = Literal["float32", "bfloat16"]

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
RATE, LAYERS = 2e-3, 15  # the demo's


def training(options: argparse.Namespace, base: Base, tokens: Tokens) -> dict[str, Any]:
    """Seconds of the processors and validation loss, by precision."""
    seconds, losses = dict.fromkeys(PRECISIONS, 0.0), {}
    with tempfile.TemporaryDirectory() as place:
        for repeat in range(options.repeats):
            for precision in PRECISIONS[:: 1 if repeat % 2 else -1]:
                job = job_of(
                    base.weights,
                    tokens.folder,
                    steps=options.steps,
                    batch=8,
                    rate=RATE,
                    method=Method(layers=LAYERS),
                    compute=Compute(precision=precision, threads=options.threads),
                )
                folder = Path(place, f"{precision}-{repeat}")
                seconds[precision] += train(job, folder)[1]
                summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
                losses[precision] = round(summary["best_validation_loss"], 4)
    return {"steps": options.steps * options.repeats, **_compared(seconds), "best_validation_loss": losses}


def answering(options: argparse.Namespace, base: Base, adapter: Adapter) -> dict[str, Any]:
    """Seconds of the processors, and how many answers are others, by precision."""
    import torch

    from tunewright.modeling.models import load_model

    asked = questions(options, base)["tuned"]
    stops = json.loads(adapter.path("contract.json").read_text(encoding="utf-8"))["stop_token_ids"]
    seconds, said = dict.fromkeys(PRECISIONS, 0.0), {}
    models = {each: load_model(base, adapter.path("model"), dtype=getattr(torch, each)) for each in PRECISIONS}
    for model in models.values():
        ours(model, asked[:2], stops, options)  # warms up
    for repeat in range(options.repeats):
        for precision in PRECISIONS[:: 1 if repeat % 2 else -1]:
            begun = time.process_time()
            said[precision] = ours(models[precision], asked, stops, options)
            seconds[precision] += time.process_time() - begun
    differing = sum(map(list.__ne__, *said.values()))
    return {"rows": len(asked), **_compared(seconds), "differing_answers": differing}


def _compared(seconds: Mapping[Precision, float]) -> dict[str, Any]:
    float32, bfloat16 = (seconds[each] for each in PRECISIONS)
    ratio = round(float32 / bfloat16, 2)
    return {"cpu_seconds": {name: round(value, 1) for name, value in seconds.items()}, "ratio": ratio}


def main() -> int:
    """Prints one JSON object each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=config.home())
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=60, help="of test and validation")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    options.batch, options.max_new_tokens, options.shots = 16, 32, 8
    config.quiet_libraries()
    import torch

    torch.set_num_threads(options.threads)
    base, adapter, tokens = (
        newest(options.home, stage, kind) for stage, kind in (("base", Base), ("train", Adapter), ("render", Tokens))
    )
    found = {"training": training(options, base, tokens), "answers": answering(options, base, adapter)}
    print(json.dumps({"default": PRECISIONS[cpu_has_bfloat16()]} | found, indent=1))
    return int(cpu_has_bfloat16() and any(part["ratio"] < 1 for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
