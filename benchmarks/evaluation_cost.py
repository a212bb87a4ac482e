"""Seconds of all evaluation beside those of the training, and whether stopping early changes the verdict.

A file of rows goes through the pipeline with the demo's base and 200 steps of 16 rows, with every other setting of
training and evaluation as it is by default. Then the same candidate is decided once more with `evaluation.complete`,
for which the prompted baselines answer all test rows. It exits with 1 where evaluation took longer than training, or
the verdicts differ.

    .venv/bin/python benchmarks/evaluation_cost.py --file intents.jsonl     # rows of instruction, input and output
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pipelines

EVALUATION = {"prompt", "evaluate", "forgetting", "decide"}  # stages
TEST_ROWS, VALIDATION_ROWS = 300, 300


def described(file: Path, rows: int, steps: int, batch: int) -> dict[str, Any]:
    """The parameters of a pipeline of the rows."""
    return {
        "data": {"sources": [{"path": str(file.absolute())}], "limit": rows},
        "split": {"test": round(TEST_ROWS / rows, 4), "validation": round(VALIDATION_ROWS / rows, 4)},
        "model": pipelines.demo()["model"],
        "training": {"max_steps": steps, "batch": batch},
        "registry": {"name": "bench"},
    }


def told(found: dict[str, Any]) -> dict[str, Any]:
    """The verdict of a run, the seconds of its training and of each stage of its evaluation, and the rows answered."""
    seconds: dict[str, float] = {}
    for call in found["stages"]:
        if call["stage"] in EVALUATION and call["state"] == "ran":
            name = " ".join(filter(None, (call["stage"], call.get("of"))))
            seconds[name] = round(seconds.get(name, 0) + call["seconds"], 1)
    part = {name: each["num_rows"] for name, each in found.get("answered_in_part", {}).items()}
    return {
        "decision": found["verdict"]["decision"],
        "training_rows": found["rows"]["train"],
        "test_rows": found["rows"]["test"],
        "training_seconds": round(found["training"]["seconds"], 1),
        "evaluation_seconds": round(sum(seconds.values()), 1),
        "stages": seconds,
        "scores": found["scores"],
        "answered_in_part": part,
    }


def main() -> int:
    """Prints one JSON object a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=4_200, help="records to read")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        bench, home = Path(place, "bench.yaml"), Path(place, "home")
        pipelines.write(bench, described(options.file, options.rows, options.steps, options.batch))
        first = told(pipelines.run(bench, home))
        print(json.dumps(first, indent=1), flush=True)
        complete = told(pipelines.run(bench, home, "evaluation.complete=true"))
        print(json.dumps(complete, indent=1), flush=True)
    is_cheaper = first["evaluation_seconds"] < first["training_seconds"]
    return 0 if is_cheaper and first["decision"] == complete["decision"] else 1


if __name__ == "__main__":
    sys.exit(main())
