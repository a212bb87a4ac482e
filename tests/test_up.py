"""The real servers and a real worker: a training that is cut short in every way goes on, and is registered once."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import psutil
import pytest
from servers import TUNEWRIGHT, Up, started, until
from test_flow import ROWS

from tunewright.artifacts import Base

TRAINING_SECONDS = 25.0  # of the training that is cut short, whatever this machine's speed


@pytest.fixture(scope="module")
def up(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with started(tmp_path_factory.mktemp("up"), tiny_base) as up:
        yield up


def test_a_run_in_a_terminal_uses_the_servers(up: Up) -> None:
    command = [*TUNEWRIGHT, "run", "tiny.yaml", "--until", "split", "-q"]
    environment = up.environment | {
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false"
    }  # no server of its own on their database
    subprocess.run(command, cwd=up.folder, env=environment, check=True)
    runs = up.ask("POST", "/flow_runs/filter", json={})
    assert [run["state"]["message"] for run in runs if run["deployment_id"] is None] == [
        "ended after split, as requested"
    ]


def test_a_training_that_is_cut_short_in_every_way_goes_on_and_is_registered_once(up: Up) -> None:
    assert up.ended(first := up.run())["type"] == "COMPLETED", up.state(first)["message"]
    (file,) = up.home.glob("artifacts/train/*/metrics.jsonl")
    seconds = [json.loads(line)["seconds"] for line in file.read_text().splitlines() if '"seconds"' in line]
    steps = round(TRAINING_SECONDS / min(seconds))  # the machine may have been busy here, and not be later
    assert up.versions() == 1

    def again() -> str:
        return up.run(max_steps=steps, learning_rate=0.0005)

    def kill(part: str) -> psutil.Process:
        trainer = up.further()
        victim = up.living()[part]
        victim.kill()
        until(lambda: not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE)
        return trainer

    run = again()
    kill("trainer")  # the same run goes on after each of the three
    for server, answers in (("prefect", up.opens_prefect), ("mlflow", up.opens_mlflow)):
        trainer = kill(server)
        trainer.suspend()  # else it might end before a slow machine has started the server again
        until(answers)
        trainer.resume()
    up.further()
    assert up.state(run)["type"] == "RUNNING"
    kill("flow")
    assert up.ended(run)["name"] == "Crashed"

    run = again()
    kill("worker")
    assert up.ended(run)["name"] == "Crashed"

    run = again()
    trainer = up.further()
    asked = time.monotonic()
    up.ask("POST", f"/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING"}})
    until(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE)
    assert time.monotonic() - asked < 10
    assert up.ended(run)["name"] == "Cancelled"

    run = again()
    up.further()
    os.kill(up.pid, signal.SIGKILL)
    until(lambda: up.living() == {})
    up.start()
    assert up.state(run)["name"] == "Crashed"

    done = up.progress()
    assert len(set(done)) < steps  # else it was over before it was cut short
    run = again()
    assert up.ended(run)["type"] == "COMPLETED"
    assert up.versions() == 2
    made = sorted(up.home.glob("artifacts/train/*/summary.json"), key=lambda each: each.stat().st_mtime)
    assert [json.loads(each.read_text())["steps"] for each in made] == [20, steps]
    log = (made[-1].parent / "trainer.log").read_text()
    assert log.count("attempt") >= 5, log
    splits = [json.loads(each.read_text())["rows"] for each in up.home.glob("artifacts/split/*/proof.json")]
    assert [sum(split.values()) for split in splits] == [len(ROWS)]


def test_a_run_over_its_budget_waits_in_prefect_without_a_process_until_somebody_resumes_it(up: Up) -> None:
    run = up.run({"prices": {"cpu": 1}, "budget": 1e-6}, max_steps=21)
    until(lambda: up.state(run)["name"] == "Suspended" and not {"flow", "trainer"} & up.living().keys())
    until(lambda: up.said([run], "operation.budget=1e-06: the run would cost up to"))
    assert up.stages(run).keys() == {"ingest", "base", "check", "dedupe", "split", "render"}
    up.ask("POST", f"/flow_runs/{run}/resume", json={"run_input": {"by": "Ann"}})
    assert up.ended(run)["type"] == "COMPLETED", up.state(run)["message"]
    assert up.said([run], "the cost was approved by Ann")
    assert "register" in up.stages(run)
