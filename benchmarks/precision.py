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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pipelines
from evaluation import newest, ours, questions, timed
from trainings import job_of, train

from tunewright import config
from tunewright.artifacts import Adapter, Base, Tokens
from tunewright.artifacts.payloads import Contract, TrainingSummary
from tunewright.config import Compute, Method
from tunewright.modeling.compute import cpu_has_bfloat16

Precision = Literal["float32", "bfloat16"]

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def turns(repeats: int) -> Iterator[Precision]:
    """Both precisions so many times; the first one of a turn is the second one of the next."""
    for repeat in range(repeats):
        yield from PRECISIONS[:: 1 if repeat % 2 else -1]


def training(options: argparse.Namespace, base: Base, tokens: Tokens) -> dict[str, Any]:
    """Seconds of the processors and validation loss, by precision."""
    demo, seconds, losses = pipelines.demo(), dict.fromkeys(PRECISIONS, 0.0), {}
    with tempfile.TemporaryDirectory() as place:
        for number, precision in enumerate(turns(options.repeats)):
            job = job_of(
                base.weights,
                tokens.folder,
                steps=options.steps,
                batch=demo["training"]["batch"],
                rate=demo["training"]["learning_rate"],
                method=Method(**demo["method"]),
                compute=Compute(precision=precision, threads=options.threads),
            )
            folder = Path(place, str(number))
            seconds[precision] += train(job, folder)[1]
            losses[precision] = round(TrainingSummary.load_from(folder).best_validation_loss, 4)
    return {"steps": options.steps * options.repeats, **_compared(seconds), "best_validation_loss": losses}


def answering(options: argparse.Namespace, base: Base, adapter: Adapter) -> dict[str, Any]:
    """Seconds of the processors, and how many answers are others, by precision."""
    import torch

    from tunewright.modeling.models import load_model

    asked = questions("tuned", options, base)
    stops = Contract.load(adapter).stop_token_ids
    seconds, said = dict.fromkeys(PRECISIONS, 0.0), {}
    models = {each: load_model(base, adapter.path("model"), dtype=getattr(torch, each)) for each in PRECISIONS}
    for model in models.values():
        ours(model, asked[:2], stops, options)  # warms up
    for precision in turns(options.repeats):
        said[precision], took = timed(ours, models[precision], asked, stops, options)
        seconds[precision] += took
    differing = sum(map(list.__ne__, *said.values()))
    return {"rows": len(asked), **_compared(seconds), "differing_answers": differing}


def _compared(seconds: Mapping[Precision, float]) -> dict[str, Any]:
    ratio = round(seconds["float32"] / seconds["bfloat16"], 2)
    return {"cpu_seconds": {name: round(value, 1) for name, value in seconds.items()}, "ratio": ratio}


def main() -> int:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=config.home())
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=60, help="of test and validation")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.set_defaults(batch=16, max_new_tokens=32, shots=8)  # what `questions` and `ours` read
    options = parser.parse_args()
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
