"""Whether a model is promoted that learnt nothing: the demo's answers are exchanged between the rows, in many seeds.

Each seed is a pipeline of its own, from the file to the verdict, with the demo's base, training and metrics; the
prompted baselines and the guardrails, which could only stop more of them, are left out. It prints one JSON object a
seed, and exits with 1 where a model was promoted.

    .venv/bin/python benchmarks/shuffled_labels.py --seeds 10
    .venv/bin/python benchmarks/shuffled_labels.py --file intents.jsonl     # rows of instruction, input and output
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "deployments" / "demo.yaml"
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
    """The verdict on the file's rows, shuffled by the seed."""
    name = f"shuffled-{seed}"
    (folder / f"{name}.jsonl").write_text(shuffled(file, seed), encoding="utf-8")
    (deployment,) = yaml.safe_load(DEMO.read_text(encoding="utf-8"))["deployments"]
    parameters = deployment["parameters"] | {"data": {"sources": [{"path": f"{name}.jsonl"}]}}
    described = {"deployments": [{"name": name, "entrypoint": deployment["entrypoint"], "parameters": parameters}]}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    changes = SETTINGS | {"registry.name": name, "training.max_steps": str(steps)}
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("tunewright"), "run", f"{name}.yaml", "--json"),
            *(f"--set={key}={value}" for key, value in changes.items()),
        ],
        cwd=folder,
        env=os.environ | {"TUNEWRIGHT_HOME": str(folder / "home")},
        stdout=subprocess.PIPE,
        check=False,  # the exit code tells the verdict
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    """Prints the verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=ROOT / "deployments" / "demo" / "messages.jsonl")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    promoted = 0
    with tempfile.TemporaryDirectory() as place:
        for seed in range(options.seeds):
            found = run(options.file, Path(place), seed, options.steps)
            if "error" in found:
                raise SystemExit(found["error"])
            verdict = found["verdict"]
            told = {key: verdict[key] for key in ("decision", "metric", "differences", "reason")}
            print(json.dumps({"seed": seed} | told, ensure_ascii=False), flush=True)
            promoted += verdict["decision"] == "promote"
    print(json.dumps({"seeds": options.seeds, "promoted": promoted}))
    return int(promoted > 0)


if __name__ == "__main__":
    sys.exit(main())
