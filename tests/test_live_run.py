"""A run in MLflow while it goes on: fed through kills and outages without a lost or doubled point, ended truthfully."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import waiting
import yaml
from browsing import browser
from mlflow import MlflowClient
from playwright.sync_api import expect
from servers import TUNEWRIGHT, free_port, make_home
from test_flow import DATA, ROWS

from tunewright.artifacts import Base
from tunewright.config import Registry
from tunewright.machine import addresses
from tunewright.registry import live_run, tracking
from tunewright.registry.address import by_environment
from tunewright.registry.candidate import CURVES, Point, curves
from tunewright.registry.live_run import LiveRun
from tunewright.registry.run_writer import GrowingCurves, RunEnding, RunFacts, RunWriter
from tunewright.registry.tracking import connected

STEPS = 300
until = partial(waiting.until, every=0.3)  # to ask MLflow more often takes a third of a core


class Pipeline:
    """A pipeline of a tiny base in a folder, which `tunewright run` trains in a process of its own."""

    def __init__(self, folder: Path, base: Base, **sections: Any) -> None:
        self.folder = folder
        (folder / DATA).write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
        parameters = {
            "data": {"sources": [{"path": DATA}]},
            "model": {"base": base.reference, "max_length": 128},
            "method": {"rank": 2, "alpha": 4},
            "training": {
                "learning_rate": 0.001,
                "max_steps": STEPS,
                "batch": 4,
                "evaluate_every": 20,
                "patience": None,
            },
            "compute": {"threads": 1},
            "evaluation": {"max_new_tokens": 4, "contenders": [], "forgetting": False},
            "gate": {"metric": "perplexity", "confidence": 0.8},
            **sections,
        }
        entrypoint = "tunewright.flows.finetune.finetune"
        deployment = {"name": "tiny", "entrypoint": entrypoint, "parameters": parameters}
        (folder / "tiny.yaml").write_text(yaml.safe_dump({"deployments": [deployment]}))

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*TUNEWRIGHT, "run", "tiny.yaml", "--json", *options],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TMPDIR": str(self.folder)},
            stdout=subprocess.PIPE,
            stderr=(self.folder / "run.log").open("a"),
            text=True,
            start_new_session=True,
        )

    @property
    def steps(self) -> int:
        """The last step that the trainer has written."""
        for file in self.folder.glob("home/work/train/*/metrics.jsonl"):
            lines = file.read_text().splitlines()
            with suppress(ValueError, IndexError):
                return json.loads(lines[-1])["step"]
        return 0

    @property
    def metrics(self) -> Path:
        (file,) = self.folder.glob("home/artifacts/train/*/metrics.jsonl")
        return file


def trainer_of(process: subprocess.Popen[str]) -> psutil.Process | None:
    with suppress(psutil.Error):
        for child in psutil.Process(process.pid).children(recursive=True):
            if "tunewright.tasks.train.trainer.__main__" in child.cmdline():
                return child
    return None


@contextmanager
def ended_at_last(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Leaves nothing of a run behind."""
    try:
        yield process
    finally:
        with suppress(psutil.Error):
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
        process.wait()


def the_run(client: MlflowClient) -> Any:
    """The only run of the experiment, once there is one."""
    experiment = client.get_experiment_by_name("tiny")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    assert len(found) <= 1
    return found[0] if found else None


def history(client: MlflowClient, run_id: str, key: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run_id, key)]


def local(home: Path) -> MlflowClient:
    uri = f"sqlite:///{home / 'mlflow.db'}"
    return MlflowClient(uri, uri)


class Server:
    """MLflow's own server, as a team runs one."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        shutil.copy(database, folder / "team.db")

    def start(self) -> None:
        stored = ("--backend-store-uri", f"sqlite:///{self.folder / 'team.db'}")
        files = ("--serve-artifacts", "--artifacts-destination", str(self.folder / "team"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1", *stored, *files],
            cwd=self.folder,
            stdout=(self.folder / "server.log").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def answers(self) -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{self.uri}/health").is_success
        return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, mlflow_database: Path) -> Iterator[Server]:
    server = Server(tmp_path, mlflow_database)
    server.start()
    until(server.answers)
    yield server
    server.kill()


def test_a_run_is_watched_while_it_trains_and_neither_an_outage_nor_a_kill_costs_or_doubles_a_point(
    server: Server, tmp_path: Path, tiny_base: Base, home: Path, ready: tuple[Path, ...]
) -> None:
    make_home(home, ready)
    pipeline = Pipeline(tmp_path, tiny_base, registry={"tracking_uri": server.uri})
    client = MlflowClient(server.uri)
    with ended_at_last(pipeline.start("--set", "training.learning_rate=0.002")) as process:
        until(lambda: (run := the_run(client)) and "validation/loss" in run.data.metrics)
        run = until(lambda: (run := the_run(client)).data.tags["progress"].startswith("train: step ") and run)
        assert run.info.status == "RUNNING"
        trainer = until(lambda: trainer_of(process))
        trainer.suspend()  # so that it is seen as it trains, however slow the page is
        assert pipeline.steps < STEPS
        assert run.info.run_name.startswith("tiny learning_rate=0.002 20")
        assert run.data.params["training.learning_rate"] == "0.002"
        assert {"tunewright.code", "tunewright.version", "prefect.flow_run_id"} <= run.data.tags.keys()
        (files,) = run.inputs.dataset_inputs
        assert [*json.loads(files.dataset.source)["files"]] == [DATA]
        until(lambda: "system/cpu_utilization_percentage" in client.get_run(run.info.run_id).data.metrics)
        with browser() as chromium:
            page = chromium.new_page()
            place = f"{server.uri}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
            page.goto(f"{place}/model-metrics?{tracking.AS_TRAINING}")
            expect(page.get_by_text("grad_norm").first).to_be_visible()
            expect(page.get_by_text("loss", exact=True).first).to_be_visible()

        server.kill()
        trainer.resume()
        before = pipeline.steps
        until(lambda: pipeline.steps > before + 20)  # it waits for nobody
        trainer.kill()  # and goes on from its checkpoint, where it writes steps again that MLflow has
        until(lambda: (now := trainer_of(process)) and now.pid != trainer.pid)
        server.start()
        until(server.answers)
        output = process.communicate()[0]
        assert process.returncode == 0, output
    made = json.loads(output)
    assert made["model"]["run_id"] == run.info.run_id
    run = the_run(client)
    assert run.info.status == "FINISHED"
    assert run.data.tags["verdict"]
    assert not {"progress", "error"} & run.data.tags.keys()
    expected = curves(pipeline.metrics, 1000)
    for key in {*CURVES.values()} & {point.key for point in expected}:
        found = history(client, run.info.run_id, key)
        assert Counter(step for step, _ in found) == Counter(point.step for point in expected if point.key == key)
    losses = {point.step: point.value for point in expected if point.key == "train/loss"}
    assert dict(history(client, run.info.run_id, "train/loss")) == losses
    times = [point.timestamp for point in client.get_metric_history(run.info.run_id, "train/loss")]
    assert times == sorted(times)
    assert [*(home / "live_runs").iterdir()] == []


def test_a_run_that_is_stopped_or_killed_ends_so_and_goes_on_in_the_same_run(
    tmp_path: Path, tiny_base: Base, home: Path, ready: tuple[Path, ...]
) -> None:
    make_home(home, ready)
    pipeline, client = Pipeline(tmp_path, tiny_base), local(home)

    def trains() -> Any:
        run = the_run(client)
        return run if run and run.info.status == "RUNNING" and "train/loss" in run.data.metrics else None

    with ended_at_last(pipeline.start("--until", "train")) as process:
        first = until(trains)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    run = the_run(client)
    assert (run.info.status, run.data.tags["failed_stage"]) == ("KILLED", "train")
    assert run.data.tags["error"] == "stopped by a signal: cancelled, or its worker ended; the next run resumes"

    with ended_at_last(pipeline.start("--until", "train")) as process:
        run = until(trains)
        assert (run.info.run_id, run.info.end_time) == (first.info.run_id, 0), "no end, which its last attempt had"
        assert "error" not in run.data.tags
        trainer = until(lambda: trainer_of(process))
        process.kill()
        trainer.wait()
    assert the_run(client).info.status == "RUNNING"  # nobody was left to say otherwise
    live_run.finish_left()  # as `up` does
    run = the_run(client)
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", live_run.KILLED)

    with ended_at_last(pipeline.start("--until", "train")) as process:
        output = process.communicate()[0]
        assert process.returncode == 0, output
    run = the_run(client)
    assert (run.info.run_id, run.info.status) == (first.info.run_id, "FINISHED")
    found = history(client, run.info.run_id, "train/loss")
    assert sorted(found) == [
        (point.step, point.value) for point in curves(pipeline.metrics, 1000) if point.key == "train/loss"
    ]
    assert [*(home / "live_runs").iterdir()] == []


@pytest.fixture
def facts(home: Path, mlflow_database: Path) -> RunFacts:
    home.mkdir()
    shutil.copy(mlflow_database, home)
    registry = Registry(name="tiny", curve_points=10)
    tags = {"tunewright.home": live_run.place()}
    return RunFacts(key="k", name="tiny", registry=registry, params={"a": "1"}, tags=tags, files={}, columns=())


def test_what_may_have_arrived_is_sent_again_and_stands_there_once(facts: RunFacts, home: Path) -> None:
    writer, client = RunWriter(facts, time.time()), local(home)
    with connected(facts.registry) as own:
        points = [Point("train/loss", 2.0, 1, 1.0), Point("train/loss", 1.0, 2, 2.0), Point("system/cpu", 5.0, 0, 3.0)]
        writer.pending = [*points]
        writer.send(own)
        writer.pending = [*points, Point("train/loss", 0.5, 3, 4.0)]  # its answer was lost
        writer.doubt()
        writer.send(own)
        resumed = RunWriter(facts, time.time())  # by another process, whose trainer took step 3 again
        resumed.pending = [Point("train/loss", 0.5, 3, 9.0), Point("train/loss", 0.25, 4, 10.0)]
        resumed.send(own)
    run = the_run(client)
    assert history(client, run.info.run_id, "train/loss") == [(1, 2.0), (2, 1.0), (3, 0.5), (4, 0.25)]
    assert history(client, run.info.run_id, "system/cpu") == [(0, 5.0)]


def test_a_run_that_was_killed_after_its_decision_stays_finished_and_one(facts: RunFacts, home: Path) -> None:
    writer, client = RunWriter(facts, time.time()), local(home)
    with connected(facts.registry) as own:
        writer.send(own)
        own.set_terminated(str(writer.run_id), "FINISHED")
    (home / "live_runs").mkdir()
    left = live_run.KeptRun(facts=facts, began=writer.began, metrics=None, ending=None, run_id=writer.run_id)
    (home / "live_runs" / "k.json").write_text(left.model_dump_json())
    live_run.finish_left()
    run = the_run(client)
    assert (run.info.run_id, run.info.status) == (writer.run_id, "FINISHED")
    assert "error" not in run.data.tags
    assert [*(home / "live_runs").iterdir()] == []


def test_a_metrics_file_is_read_as_it_grows_and_again_where_a_trainer_resumes(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {step}, "planned": 9, "time": {step}.5, "loss": 1.0}}\n' for step in range(1, 6)]
    growing = GrowingCurves(file, 10)
    assert growing.new() == []
    file.write_text("".join(lines[:2]) + lines[2][:9])
    assert growing.new() == [Point("train/loss", 1.0, 1, 1.5), Point("train/loss", 1.0, 2, 2.5)]
    file.write_text("".join(lines[:3]))
    assert growing.new() == [Point("train/loss", 1.0, 3, 3.5)]
    (tmp_path / "new").write_text("".join(lines))
    (tmp_path / "new").rename(file)
    assert [point.step for point in growing.new()] == [1, 2, 3, 4, 5]


def test_a_run_that_fails_while_mlflow_is_gone_is_told_of_later(facts: RunFacts, home: Path) -> None:
    gone = facts.model_copy(update={"registry": Registry(name="tiny", tracking_uri="http://127.0.0.1:9")})
    live = LiveRun()
    live.describe = lambda: gone
    live.enters("check")
    began = time.monotonic()
    live.begins()
    assert time.monotonic() - began < 1
    live.end(RunEnding(status="FAILED", when=1_000.0, stage="check", error="9 rows fail"), patience=0.5)
    assert time.monotonic() - began < 5
    (file,) = until(lambda: [*(home / "live_runs").glob("*.json")])
    until(lambda: not live.goes_on)
    left = live_run.KeptRun.model_validate_json(file.read_bytes())
    back = left.model_copy(update={"facts": facts, "began": 900.0})
    file.write_text(back.model_dump_json())
    live_run.finish_left()
    run = the_run(local(home))
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FAILED", 900_000, 1_000_000)
    assert (run.data.tags["failed_stage"], run.data.tags["error"]) == ("check", "9 rows fail")
    assert run.data.tags["mlflow.note.content"] == "Failed in check: 9 rows fail"
    assert not file.exists()


def test_an_end_that_comes_while_the_run_is_kept_is_kept_as_well(facts: RunFacts, home: Path) -> None:
    live = LiveRun()
    live.describe = lambda: facts
    live._is_given_up = True  # nothing is sent any more
    hold = live._hold

    def hold_and_end(lock: Any) -> RunWriter:
        writer = hold(lock)
        live.ending = RunEnding(status="FAILED", when=1_000.0, stage="check", error="9 rows fail")
        return writer

    live._hold = hold_and_end
    live._work()
    (file,) = (home / "live_runs").glob("*.json")
    assert live_run.KeptRun.model_validate_json(file.read_bytes()).ending == live.ending


def test_the_machine_is_sampled_on_where_its_clock_is_set_back(
    facts: RunFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, began, steps, pauses = LiveRun(), time.time(), list[int](), iter(range(5))

    class SetBack:
        """The machine, whose clock goes back by a day as it is sampled."""

        def sample(self, now: float, step: int) -> list[Point]:
            steps.append(step)
            monkeypatch.setattr(live_run.time, "time", lambda: began - 86_400)
            return []

    def pause(_: float) -> None:
        if next(pauses, None) is None:
            live.ending = RunEnding(status="FINISHED", when=began)

    monkeypatch.setattr(live_run, "SystemMetrics", SetBack)
    monkeypatch.setattr(live_run, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(live_run.time, "sleep", pause)
    live._sample(RunWriter(facts, began))
    assert len(steps) > 1 and min(steps) >= 0


def test_threads_that_need_the_password_leave_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    up = addresses.Addresses(pid=1, prefect="http://127.0.0.1:1", mlflow="http://127.0.0.1:2", pool="local")
    monkeypatch.setattr(addresses, "running", lambda: up)
    monkeypatch.setattr(addresses, "password", lambda: "secret")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first, second = (tracking._password_for(up.mlflow) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "secret"
    second.__exit__(None, None, None)
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:2")  # which makes these credentials this server's
    with tracking._password_for(up.mlflow):
        assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me" and "MLFLOW_TRACKING_PASSWORD" not in os.environ
    assert by_environment(Registry()).tracking_uri is None, (
        "in the home of up its database is opened, without a password"
    )
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
