"""Runs of the demo's pipeline with other rows or settings, as a user starts them: what several benchmarks share."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "deployments" / "demo.yaml"


def demo() -> dict[str, Any]:
    """The parameters of the demo's deployment."""
    (deployment,) = yaml.safe_load(DEMO.read_text(encoding="utf-8"))["deployments"]
    return deployment["parameters"]


def write(file: Path, parameters: dict[str, Any]) -> None:
    """Write a deployment file of these parameters; the deployment has the file's name."""
    deployment = {"name": file.stem, "entrypoint": "tunewright.flows.finetune.finetune", "parameters": parameters}
    file.write_text(yaml.safe_dump({"deployments": [deployment]}), encoding="utf-8")


def run(file: Path, home: Path, *changes: str, until: str = "") -> dict[str, Any]:
    """The JSON of a run of a deployment file. Ends the benchmark with its error where it fails."""
    command = [Path(sys.executable).with_name("tunewright"), "run", file, "--json"]
    done = subprocess.run(
        [*command, *(("--until", until) if until else ()), *(f"--set={change}" for change in changes)],
        cwd=file.parent,
        env=os.environ | {"TUNEWRIGHT_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=False,  # the exit code tells the verdict
    )
    found = json.loads(done.stdout.splitlines()[-1])
    if "error" in found:
        raise SystemExit(found["error"])
    return found
