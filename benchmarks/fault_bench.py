"""The small pipeline that benchmarks/faults.py disturbs: its base, its rows, its servers, and what came of a run."""

import contextlib
import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import httpx
import psutil
import pyarrow.parquet as pq
import yaml

from tunewright.config import NO_TELEMETRY
from tunewright.machine import end_with_parent
from tunewright.machine.ports import free_port

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
models = import_module("make_models")

HANG_SECONDS = 20  # without a sign of life; five minutes are too long for fifty runs
COMMAND = (
    sys.executable,
    "-P",
    "-c",
    f"from tunewright.tasks.train import heartbeat; heartbeat.IDLE_SECONDS = {HANG_SECONDS}; "
    "from tunewright.cli.main import main; main()",
)
RUN_SECONDS = 900.0  # after which a run is taken for one that never ends, on a machine that has other work too
LEFT_SECONDS = 60.0  # for processes to end after the run has
END_WITH_BENCHMARK = partial(end_with_parent, signal.SIGTERM)  # however it ends
SUBJECTS = ("my parcel", "the red shoes", "a broken lamp", "one late letter", "your green chair", "an old phone")
PLACES = ("in Berlin", "at the harbour", "from Lisbon", "near our school", "on the train", "by the lake")
PARAMETERS: dict[str, Any] = {
    "data": {"sources": [{"path": "rows.jsonl"}]},
    "model": {"base": "base", "max_length": 128},
    "method": {"rank": 2, "alpha": 4},
    "training": {"learning_rate": 0.003, "max_steps": 60, "batch": 4, "evaluate_every": 10, "patience": None},
    "compute": {"threads": 1},
    "evaluation": {"max_new_tokens": 4, "contenders": [], "forgetting": False},
    "gate": {"metric": "perplexity", "confidence": 0.8},
    "registry": {"name": "tiny"},
}


@dataclass(frozen=True)
class Result:
    """The results of a finished run; two runs of the same settings differ only in the number of versions."""

    adapter: str  # sha256 of the weights
    rows: frozenset[tuple[str, str]]  # split and row_id
    versions: int  # registered
    unfinished: int  # MLflow runs that are in another state than FINISHED


@dataclass
class Bench:
    """A folder with all that the runs share."""

    folder: Path
    homes: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)

    def make(self) -> None:
        """Writes the base, the rows and the deployment file, unless they are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / "tiny.yaml").exists():
            models.make_model("llama", self.folder / "base")
            (self.folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows()))
            deployment = {
                "name": "tiny",
                "entrypoint": "tunewright.flows.finetune.finetune",
                "work_pool": {"name": "local"},
            }
            file = {"deployments": [deployment | {"parameters": PARAMETERS}]}
            (self.folder / "tiny.yaml").write_text(yaml.safe_dump(file))

    def home(self) -> Path:
        """A home that no run has used."""
        self.homes += 1
        home = self.folder / f"home-{os.getpid()}-{self.homes}"
        home.mkdir()
        return home

    def start(
        self, home: Path, *arguments: str, script: str | None = None, **environment: str
    ) -> subprocess.Popen[bytes]:
        """A command of the command line, or a script, with what it prints at the end of a log beside the home.

        What is empty in the environment is left out of it.
        """
        own = {"TUNEWRIGHT_HOME": str(home), "TMPDIR": str(self.folder), "PYTHONPATH": str(ROOT)}
        own |= {"PREFECT_HOME": str(home.with_suffix(".prefect")), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        merged = {**os.environ, **own, **self.environment, **environment}
        command = [*COMMAND, *arguments] if script is None else [sys.executable, "-P", "-c", script]
        with home.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env={name: value for name, value in merged.items() if value},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=END_WITH_BENCHMARK,
            )

    def serve(
        self, name: str, command: tuple[str, ...], address: str, *, in_session: bool = False, database: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a server that all runs use, in a session of its own if asked, and return it once it answers.

        `database` is the URL of the database of Prefect's server.
        """
        log = (self.folder / f"{name}.log").open("ab")
        environment = {**os.environ, **NO_TELEMETRY, "PREFECT_HOME": str(self.folder / "prefect")}
        if database:
            environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=in_session,
            preexec_fn=END_WITH_BENCHMARK,
        )
        self.processes.append(process)
        wait(lambda: answers(address), 240.0)
        return process

    def end(self) -> None:
        """Ends the servers, and runs that were interrupted."""
        for process in living(self.folder):
            with contextlib.suppress(psutil.Error):
                process.terminate()
        end_all(self.folder)
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


class Proxy:
    """An HTTP proxy in front of a server, which can answer 503, or not at all, or be gone."""

    def __init__(self, target: str) -> None:
        self.target, self.mode = target, "passes"
        self.port = free_port()
        self._listen()

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def fail(self, mode: Literal["503", "hangs", "dead"], seconds: float) -> None:
        """Fails for so long, and then passes on again."""
        self.mode = mode
        if mode == "dead":
            self._close()
        time.sleep(seconds)
        self.mode = "passes"
        if mode == "dead":
            self._listen()

    def _listen(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                while proxy.mode == "hangs":
                    time.sleep(0.2)
                if proxy.mode == "503":
                    self.send_response(503)
                    self.end_headers()
                    return
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                said = httpx.request(
                    self.command, proxy.target + self.path, headers=headers, content=body, timeout=60.0
                )
                self.send_response(said.status_code)
                self.send_header("content-type", said.headers.get("content-type", "application/json"))
                self.end_headers()
                self.wfile.write(said.content)

            def log_request(self, code: object = "-", size: object = "-") -> None:
                """Says nothing."""

        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            setattr(Handler, f"do_{method}", Handler.handle_any)
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def result(home: Path, database: Path, name: str) -> Result | None:
    """Read a run's results from a home and MLflow's database; None without a complete adapter."""
    adapters = list(home.glob("artifacts/train/*/model/adapter_model.safetensors"))
    if len(adapters) != 1 or not (adapters[0].parents[1] / "manifest.json").is_file():
        return None
    splits = {file.stem: file for file in home.glob("artifacts/split/*/*.parquet") if file.stem in SPLITS}
    ids = {(split, row) for split, file in splits.items() for row in pq.read_table(file)["row_id"].to_pylist()}
    with contextlib.closing(sqlite3.connect(database)) as connection:
        (versions,) = connection.execute("SELECT count(*) FROM model_versions WHERE name = ?", (name,)).fetchone()
        (unfinished,) = connection.execute(
            "SELECT count(*) FROM runs JOIN experiments USING (experiment_id) "
            "WHERE experiments.name = ? AND runs.status != 'FINISHED'",
            (name,),
        ).fetchone()
    digest = hashlib.sha256(adapters[0].read_bytes()).hexdigest()
    return Result(digest, frozenset(ids), versions, unfinished)


SPLITS = ("train", "validation", "test")


def living(folder: Path) -> list[psutil.Process]:
    """The processes that work for a home, or for any in a folder."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            is_of_home = Path(process.environ().get("TUNEWRIGHT_HOME", "/")).is_relative_to(folder)
            if is_of_home and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def one_of(home: Path, words: str) -> psutil.Process | None:
    """The process of a home whose command has these words."""
    for process in living(home):
        with contextlib.suppress(psutil.Error):
            if words in " ".join(process.cmdline()):
                return process
    return None


def end_all(folder: Path) -> int:
    """Waits for the processes of its homes to end, kills those that do not, and returns how many those were."""
    until = time.monotonic() + LEFT_SECONDS
    while living(folder) and time.monotonic() < until:
        time.sleep(0.2)
    left = living(folder)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    return len(left)


def wait(found: Callable[[], Any], seconds: float, step: float = 0.05) -> Any:
    """The first value that is true. Raises TimeoutError where there is none in time."""
    until = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > until:
            raise TimeoutError(f"nothing in {seconds:.0f} s")
        time.sleep(step)
    return value


def answers(address: str) -> bool:
    """Whether a server answers there."""
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(address, timeout=5.0).is_success
    return False


def rows() -> Iterator[dict[str, str]]:
    """72 rows that differ, and 4 of them twice."""
    made = [
        {"instruction": f"{subject} {place} {what}", "output": ("refund", "delivery", "repair")[i % 3]}
        for i, subject in enumerate(SUBJECTS)
        for place in PLACES
        for what in ("is missing", "came late")
    ]
    yield from made
    yield from made[:4]
