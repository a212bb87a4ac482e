"""Overhead of orchestration: the train stage inside a flow, compared with the same trainer process alone.

The base and the rows are those of an earlier run. The stage's time is everything between its start and its artifact:
the flow run's task, the process, the checks of memory, the page, copying, hashing, syncing. The time around the process
is also measured within one run, so that a busy machine does not hide it, and reported as a share of a job of five
minutes: it does not grow with the steps. Prefect's own start and end occur once a run and are reported apart.

    .venv/bin/python benchmarks/overhead.py                # needs an earlier `make demo`; a few steps, a minute or two
    .venv/bin/python benchmarks/overhead.py --steps 100    # as long a job as wanted
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from training import newest as newest_folder

REFERENCE_SECONDS = 300.0


def newest(home: Path, stage: str) -> Any:
    """The record of a stage's newest artifact."""
    from tunewright.artifacts import Base, Tokens

    folder = newest_folder(home, stage)
    record = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["record"] | {"folder": folder}
    return {"base": Base, "render": Tokens}[stage].model_validate(record)


def staged(base: Any, tokens: Any, training: Any, compute: Any) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds of the flow run, of the stage in it and of the process in that, and the trainer's job."""
    from prefect import flow

    from tunewright.config import Method
    from tunewright.tasks.train import stage as stage

    seconds: dict[str, float] = {}
    jobs: list[Any] = []
    original = stage.run_trainer

    def run_trainer(job: Any, work: Path) -> None:
        jobs.append(job)
        started, cpu = time.monotonic(), time.process_time()
        original(job, work)
        seconds["process"], seconds["watching"] = time.monotonic() - started, time.process_time() - cpu

    stage.run_trainer = run_trainer

    @flow(name="overhead")
    def overhead() -> None:
        started = time.monotonic()
        stage.train(tokens, base, Method(), training, compute)
        seconds["stage"] = time.monotonic() - started

    started = time.monotonic()
    overhead()
    seconds["flow"] = time.monotonic() - started
    return seconds, json.loads(jobs[0].model_dump_json())


def alone(job: dict[str, Any]) -> float:
    """Seconds of the trainer process by itself, on the same job."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "job.json")
        file.write_text(json.dumps(job), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_WAIT_POLICY": "passive"}
        started = time.monotonic()
        with Path(folder, "log").open("w") as log:
            command = [sys.executable, "-m", "tunewright.tasks.train.trainer", str(file)]
            subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
        return time.monotonic() - started


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(os.environ.get("TUNEWRIGHT_HOME") or ".tunewright"))
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()

    from tunewright import config

    config.quiet_libraries()
    base, tokens = newest(arguments.home.absolute(), "base"), newest(arguments.home.absolute(), "render")
    with tempfile.TemporaryDirectory() as home:
        os.environ["TUNEWRIGHT_HOME"] = home
        training = config.Training(max_steps=arguments.steps, evaluate_every=arguments.steps, patience=None)
        seconds, job = staged(base, tokens, training, config.Compute())
        process = alone(job)
    around = seconds["stage"] - seconds["process"] + seconds["watching"]
    print(
        json.dumps(
            {
                "trainer_alone_seconds": round(process, 2),
                "stage_seconds": round(seconds["stage"], 2),
                "stage_over_alone": round(seconds["stage"] / process, 4),
                "around_the_process_seconds": round(around, 2),
                "share_of_5_minutes": round(around / REFERENCE_SECONDS, 4),
                "start_and_end_of_the_flow_seconds": round(seconds["flow"] - seconds["stage"], 2),
            }
        )
    )


if __name__ == "__main__":
    main()
