"""Whether a model is promoted that learnt nothing: the demo's answers are exchanged between the rows, in many seeds.

Each seed is a pipeline of its own, from the file to the verdict, with the demo's base, training and metrics; the
prompted baselines and the guardrails, which could only stop more of them, are left out. It prints one JSON object a
seed, and exits with 1 where a model was promoted.

    .venv/bin/python benchmarks/shuffled_labels.py --seeds 10
    .venv/bin/python benchmarks/shuffled_labels.py --file intents.jsonl     # rows of instruction, input and output
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import pipelines

SETTINGS = {
    "evaluation.contenders": "[]",
    "evaluation.shots": "8",  # the default: without contenders another number is refused
    "evaluation.forgetting": "false",
    "training.evaluate_every": "20",
    "gate.guardrails": "[]",
}


def shuffled(file: Path, seed: int) -> str:
    """The rows of a JSONL file, each with the answer of another one."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    answers = [row["output"] for row in rows]
    random.Random(seed).shuffle(answers)
    return "".join(
        json.dumps(row | {"output": answer}, ensure_ascii=False) + "\n"
        for row, answer in zip(rows, answers, strict=True)
    )


def run(file: Path, folder: Path, seed: int, steps: int) -> dict[str, Any]:
    """The JSON of a run on the file's rows, shuffled by the seed."""
    name = f"shuffled-{seed}"
    (folder / f"{name}.jsonl").write_text(shuffled(file, seed), encoding="utf-8")
    described = folder / f"{name}.yaml"
    pipelines.write(described, pipelines.demo() | {"data": {"sources": [{"path": f"{name}.jsonl"}]}})
    changes = SETTINGS | {"registry.name": name, "training.max_steps": str(steps)}
    return pipelines.run(described, folder / "home", *(f"{key}={value}" for key, value in changes.items()))


def main() -> int:
    """Prints the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=pipelines.DEMO.parent / "demo" / "messages.jsonl")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    promoted = 0
    with tempfile.TemporaryDirectory() as place:
        for seed in range(options.seeds):
            verdict = run(options.file, Path(place), seed, options.steps)["verdict"]
            told = {key: verdict[key] for key in ("decision", "metric", "differences", "reason")}
            print(json.dumps({"seed": seed} | told, ensure_ascii=False), flush=True)
            promoted += verdict["decision"] == "promote"
    print(json.dumps({"seeds": options.seeds, "promoted": promoted}))
    return int(promoted > 0)


if __name__ == "__main__":
    sys.exit(main())
