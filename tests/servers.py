"""A `tunewright up` of a test: the real servers, a real worker, and a deployment of a tiny pipeline."""

import base64
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import psutil
import waiting
import yaml
from mlflow import MlflowClient
from prefect.client.base import PrefectHttpxSyncClient
from test_flow import DATA, ROWS

from tunewright.artifacts import Base
from tunewright.cli.up import processes
from tunewright.machine.addresses import Addresses

SECONDS = 900.0  # a bound on what hangs: a busy machine may take minutes
until = partial(waiting.until, seconds=SECONDS, every=0.5)  # to ask the server more often slows it down
TUNEWRIGHT = (sys.executable, "-c", "from tunewright.cli.main import main; main()")
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
_GIVEN: set[int] = set()  # ports
PARTS = {
    "trainer": "tunewright.tasks.train.trainer",
    "flow": "prefect.engine",
    "worker": "worker start",
    "prefect": "prefect_app",
    "mlflow": "mlflow server",
}


class Up(NamedTuple):
    """A `tunewright up` at work in a folder, and what a person would do with it."""

    folder: Path
    ports: tuple[int, int]
    settings: Mapping[str, str] = {}  # of the environment, beside those that each test has

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        paths = os.pathsep.join(filter(None, sys.path))
        own = {"TUNEWRIGHT_HOME": str(self.home), "TMPDIR": str(self.folder)}  # with locks on devices of its own
        return {**os.environ, **own, **self.settings, "PYTHONPATH": paths}

    def start(self) -> None:
        command = [*TUNEWRIGHT, "up", "--port", str(self.ports[0]), "--mlflow-port", str(self.ports[1])]
        with (self.folder / "up.log").open("ab") as output:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment, stdout=output, stderr=output, start_new_session=True
            )
        file = self.home / "services.json"
        until(lambda: process.poll() is not None or (file.exists() and self.pid == process.pid))
        assert process.poll() is None, (self.folder / "up.log").read_text()

    @property
    def addresses(self) -> Addresses:
        return Addresses.model_validate_json((self.home / "services.json").read_bytes())

    @property
    def password(self) -> str:
        return (self.home / "password").read_text()

    @property
    def login(self) -> str:
        """The link that `up` prints, which logs a browser in."""
        return f"{self.addresses.prefect}/tunewright#{quote(self.password)}"

    @property
    def authorized(self) -> dict[str, str]:
        """The headers of whoever has the password."""
        return {"Authorization": f"Basic {base64.b64encode(self.password.encode()).decode()}"}

    @property
    def pid(self) -> int:
        return self.addresses.pid

    def living(self) -> dict[str, psutil.Process]:
        """Return the live processes that it started, by their part."""
        found: dict[str, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                is_ours = process.environ().get("TUNEWRIGHT_HOME") == str(self.home)
                command = " ".join(process.cmdline())
                if is_ours and process.status() != psutil.STATUS_ZOMBIE and processes.MARK in process.environ():
                    found |= {part: process for part, words in PARTS.items() if words in command}
            except (psutil.Error, OSError):
                continue
        return found

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """Send a request to Prefect's server until it answers, and return the JSON."""

        def answer() -> Any:
            with suppress(httpx.TransportError):
                address = f"http://127.0.0.1:{self.ports[0]}/api"
                with PrefectHttpxSyncClient(
                    base_url=address, headers=self.authorized, enable_csrf_support=True
                ) as client:
                    return client.request(method, path, **body)
            return None

        return until(answer).json()

    def opens_prefect(self) -> bool:
        """Whether Prefect's server answers."""
        return _answers(f"http://127.0.0.1:{self.ports[0]}/api/health", self.authorized)

    def opens_mlflow(self) -> bool:
        """Whether MLflow's pages are there."""
        return _answers(f"http://127.0.0.1:{self.ports[1]}/health")

    def deploy(self, name: str, parameters: dict[str, Any]) -> None:
        """Writes a deployment file with one deployment and deploys it."""
        deployment = {"name": name, "entrypoint": "tunewright.flows.finetune.finetune", "work_pool": {"name": "local"}}
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump({"deployments": [deployment | {"parameters": parameters}]}))
        subprocess.run([*TUNEWRIGHT, "deploy", file.name], cwd=self.folder, env=self.environment, check=True)

    def run(self, operation: Mapping[str, Any] = {}, **training: Any) -> str:
        """Starts a run of the deployment with other settings of operation and training, and returns its id."""
        deployed = self.ask("GET", "/deployments/name/finetune/tiny")
        parameters = deployed["parameters"] | {"training": deployed["parameters"]["training"] | training}
        parameters |= {"operation": operation}
        made = self.ask("POST", f"/deployments/{deployed['id']}/create_flow_run", json={"parameters": parameters})
        return made["id"]

    def state(self, run: str) -> dict[str, Any]:
        return self.ask("GET", f"/flow_runs/{run}")["state"]

    def said(self, runs: Sequence[str], words: str) -> bool:
        """Whether the log of one of the runs has these words."""
        newest = {"sort": "TIMESTAMP_DESC", "limit": 200}
        found = self.ask("POST", "/logs/filter", json={"logs": {"flow_run_id": {"any_": list(runs)}}} | newest)
        return any(words in line["message"] for line in found)

    def stages(self, run: str) -> dict[str, str]:
        """Stage -> the name of its state."""
        tasks = self.ask("POST", "/task_runs/filter", json={"flow_runs": {"id": {"any_": [run]}}, "limit": 200})
        return {each["name"].split()[0]: each["state"]["name"] for each in tasks}

    def ended(self, run: str) -> dict[str, Any]:
        return until(lambda: state if (state := self.state(run))["type"] in ENDED else None)

    def progress(self) -> list[int]:
        """The steps that the newest training has written, in the order in which they were made."""
        files = self.home.glob("work/train/*/metrics.jsonl")
        lines = [line for file in files for line in file.read_text().splitlines()]
        return [json.loads(line).get("step", 0) for line in lines if line.endswith("}")]

    def versions(self) -> int:
        """How many models are registered."""
        database = f"sqlite:///{self.home / 'mlflow.db'}"
        return len(MlflowClient(database, database).search_model_versions("name='tiny'"))

    def experiments(self) -> set[str]:
        """The names of MLflow's experiments."""
        database = f"sqlite:///{self.home / 'mlflow.db'}"
        return {each.name for each in MlflowClient(database, database).search_experiments()}

    def further(self) -> psutil.Process:
        """The trainer, once it has come some steps further."""
        before = len(self.progress())
        return until(lambda: len(self.progress()) > before + 5 and self.living().get("trainer"))


def _answers(url: str, headers: Mapping[str, str] | None = None) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, headers=headers).is_success
    return False


def free_port() -> int:
    """A port that no other call and no other worker of these tests takes, and that the kernel gives nobody."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 11_000 + 16 * random.randrange(1_300) + worker % 16  # none that browsers refuse
        if port in _GIVEN:
            continue
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            _GIVEN.add(port)
            return port


def make_team_packages(folder: Path) -> None:
    """Packages of a team's with the names of folders of ours; whoever imports one fails."""
    for name in ("cli", "flows", "tasks", "data_checks"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise ImportError('a package of the team')\n")


def make_home(home: Path, made: Iterable[Path]) -> None:
    """A home with copies of these databases and folders, which no process there makes then."""
    home.mkdir(mode=0o700)
    for each in made:
        if each.is_dir():
            shutil.copytree(each, home / each.name)
        else:
            shutil.copy(each, home)


@contextmanager
def started(folder: Path, tiny_base: Base, settings: Mapping[str, str] = {}, made: Iterable[Path] = ()) -> Iterator[Up]:
    """One at work in this folder, with the deployment finetune/tiny; nothing of it is left afterwards.

    Its home has copies of these databases and folders, where it is not to make its own.
    """
    up = Up(folder, (free_port(), free_port()), settings)
    make_home(up.home, made)
    (folder / DATA).write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    make_team_packages(folder)  # in which a worker runs
    parameters = {
        "data": {"sources": [{"path": DATA}]},
        "model": {"base": tiny_base.reference, "max_length": 128},
        "method": {"rank": 2, "alpha": 4},
        "training": {"learning_rate": 0.001, "max_steps": 20, "batch": 4, "evaluate_every": 20, "patience": None},
        "compute": {"threads": 1},
        "evaluation": {"max_new_tokens": 4, "contenders": [], "forgetting": False},
        "gate": {"metric": "perplexity", "confidence": 0.8},
    }
    up.start()
    try:
        up.deploy("tiny", parameters)
        yield up
    finally:
        os.kill(up.pid, signal.SIGTERM)
        until(lambda: not (up.home / "services.json").exists())
        assert up.living() == {}
