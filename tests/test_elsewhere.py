"""A version is served by MLflow alone, on a machine without Tunewright and without the home where it was registered."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import waiting
import without_project
from registered import QUESTIONS

from tunewright.artifacts import Base, Registered
from tunewright.cli.up.service import services
from tunewright.config import Registry
from tunewright.machine import addresses
from tunewright.machine.addresses import Addresses
from tunewright.machine.ports import free_port
from tunewright.registry.tracking import connected

SERVE = "from mlflow.cli import cli; cli()"
until = partial(waiting.until, seconds=600.0)


@contextmanager
def running(
    command: list[str], folder: Path, environment: dict[str, str], is_ready: Callable[[], Any]
) -> Iterator[None]:
    with (folder / "output.log").open("ab") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        until(lambda: process.poll() is not None or is_ready())
        assert process.poll() is None, (folder / "output.log").read_text()
        yield
    finally:
        process.terminate()
        process.wait()


def answers(address: str) -> bool:
    try:
        return httpx.get(address).is_success
    except httpx.TransportError:
        return False


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder of another user, and an environment in which nothing of the project can be imported."""
    folder = tmp_path / "elsewhere"
    return folder, without_project.environment(folder)


def test_a_version_is_served_without_the_project_and_without_its_home(
    register_candidate: Callable[..., Registered],
    said: list[str],
    home: Path,
    elsewhere: tuple[Path, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register_candidate()
    folder, environment = elsewhere
    up = Addresses(pid=0, prefect="http://127.0.0.1:9", mlflow=f"http://127.0.0.1:{free_port()}", pool="none")
    _, server, _ = services(up)
    address = f"http://127.0.0.1:{(port := free_port())}"
    serve = [sys.executable, "-P", "-c", SERVE, "models", "serve", "--env-manager", "local", "--port", str(port)]
    credentials = {"MLFLOW_TRACKING_USERNAME": "any", "MLFLOW_TRACKING_PASSWORD": addresses.keep_password()}
    for name, value in {**credentials, "TUNEWRIGHT_TRACKING_HOSTS": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with running([*server.command], home, {**os.environ, **server.environment}, server.is_ready):
        registry = Registry(name="triage", tracking_uri=up.mlflow)
        with connected(registry) as client:
            assert client.get_model_version_download_uri("triage", "1").startswith("mlflow-artifacts:/")
            run_id = str(client.get_model_version("triage", "1").run_id)
            client.log_text(run_id, "seen", "by/both.txt")
            made = client.create_experiment("made through the server")
        (written,) = (home / "mlartifacts").rglob("both.txt")
        with connected(Registry(name="triage")) as client:
            assert [file.path for file in client.list_artifacts(run_id, "by")] == ["by/both.txt"]
            assert str(client.get_experiment(made).artifact_location).startswith(str(home / "mlartifacts"))
        command = [*serve, "--model-uri", "models:/triage/1"]
        theirs = {"MLFLOW_TRACKING_URI": up.mlflow, **credentials}
        with running(command, folder, environment | theirs, lambda: answers(f"{address}/ping")):
            rows = {"inputs": [{"prompt": text} for text in QUESTIONS]}
            got = httpx.post(f"{address}/invocations", json=rows, timeout=60).raise_for_status()
            long = {"inputs": [{"prompt": "hello"}, {"prompt": "where is my order? " * 999}]}
            refused = httpx.post(f"{address}/invocations", json=long, timeout=60)
            none = {"inputs": [{"prompt": "hello"}], "params": {"max_new_tokens": -1}}
            without = httpx.post(f"{address}/invocations", json=none, timeout=60)
    assert written.read_text() == "seen"
    assert got.json()["predictions"] == said, json.dumps(got.json())
    assert refused.status_code == 400
    assert re.search(
        r"Error: prompt 2 of 2 has [\d,]+ tokens; accepted: at most 2,042, the 2,048 that the base reads less "
        r"max_new_tokens=6; shorten the prompt, or send a smaller max_new_tokens$",
        refused.json()["message"],
    ), refused.text
    assert without.status_code == 400
    assert without.json()["message"].endswith("Error: max_new_tokens=-1; accepted: a whole number of at least 1")


def test_a_served_version_without_its_base_says_so(
    register_candidate: Callable[..., Registered],
    tiny_base: Base,
    home: Path,
    elsewhere: tuple[Path, dict[str, str]],
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(tiny_base.weights, tmp_path / "copied")
    register_candidate(base=tiny_base.model_copy(update={"reference": str(copy)}))
    shutil.rmtree(copy)
    folder, environment = elsewhere
    command = [sys.executable, "-P", "-c", SERVE, "models", "serve", "--env-manager", "local"]
    theirs = {"MLFLOW_TRACKING_URI": f"sqlite:///{home / 'mlflow.db'}"}
    command += ["--port", str(free_port()), "--model-uri", "models:/triage/1"]
    done = subprocess.run(command, cwd=folder, env=environment | theirs, capture_output=True, text=True, timeout=120)
    lines = done.stderr.splitlines()
    reason = next(at for at, line in enumerate(lines) if line.startswith("error: "))
    assert f"error: base {copy}: the model that was tuned has sha256 " in lines[reason]
    assert lines[reason].endswith(", and is not on this machine; set TUNEWRIGHT_BASE to the folder that has it")
    assert (done.returncode, lines[reason + 1]) == (1, "Traceback (most recent call last):"), "of MLflow's own command"
    assert done.stderr.count("Traceback (most recent call last):") == 1
    assert lines[-1].endswith("returned non zero return code. Return code = 1"), "as docs/approval.md says"
