"""Take a tiny model of each architecture from `plan` to answers over HTTP, and print a table in Markdown.

For each: `tunewright plan`, `tunewright run` up to a registered version, and its answers to the test rows compared with
those of the evaluation. MLflow's scoring server answers, in a process that cannot import the project. The commands run
in this process, and the first of them reads and checks the data for all.

    .venv/bin/python benchmarks/architectures.py [name ...] [--method qlora ...] [--ports 43700]
"""

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
models, without_project = import_module("make_models"), import_module("without_project")

SUBJECTS = ("my parcel", "the red shoes", "a broken lamp", "one late letter", "your green chair", "an old phone")
PLACES = ("in Berlin", "at the harbour", "from Lisbon", "near our school", "on the train", "by the lake")
ANSWERS = ("refund", "delivery", "repair")
METHODS = ("lora", "qlora", "full", "spectrum", "osf")
STARTING_SECONDS, SERVING_SECONDS = 240.0, 240.0
# Each version by MLflow's own app, under /NAME/, loaded with the first request.
SERVE = """
import sys, mlflow, uvicorn
from mlflow.pyfunc.scoring_server import init
apps = {}
async def versions(scope, receive, send):
    name, _, path = scope["path"][1:].partition("/")
    if path and name not in apps:
        apps[name] = init(mlflow.pyfunc.load_model(f"models:/{name}/1"))
    scope["path"] = f"/{path}"
    await apps.get(name, init_nothing)(scope, receive, send)
async def init_nothing(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body"})
uvicorn.run(versions, port=int(sys.argv[1]), lifespan="off", log_level="warning")
"""


class Bench(NamedTuple):
    """A folder with rows and a home, and the address of MLflow's scoring server."""

    folder: Path
    served_at: str


def main() -> None:
    """Prints the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*models.ARCHITECTURES, *models.REFUSED])
    parser.add_argument("--method", nargs="+", default=["lora"], choices=METHODS, help="method.kind")
    parser.add_argument("--ports", type=int, default=43_700, help="the first of two: Prefect's and MLflow's")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, servers(Path(folder), asked.ports) as bench:
        print("| architecture | method | plan | rows, attention | served as measured, of test rows | seconds |")
        print("|---|---|---|---|---|---|", flush=True)
        for name in asked.names:
            for method in asked.method:
                began = time.monotonic()
                cells = [name, method, *line(bench, name, method), f"{time.monotonic() - began:.0f}"]
                print(f"| {' | '.join(cells)} |", flush=True)


@contextmanager
def servers(folder: Path, port: int) -> Iterator[Bench]:
    """Prefect's server at `port`, and at the next one MLflow's scoring server, elsewhere."""
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in _rows()), encoding="utf-8")
    own = {"TUNEWRIGHT_HOME": str(folder / "home"), "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}
    own |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
    own |= {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(folder / "prefect")}
    password = secrets.token_urlsafe(32)
    own |= {"PREFECT_API_AUTH_STRING": password, "PREFECT_SERVER_API_AUTH_STRING": password}
    theirs = without_project.environment(folder / "elsewhere")
    theirs |= {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/home/mlflow.db", "MLFLOW_DISABLE_TELEMETRY": "true"}
    prefect = ["-P", "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    os.environ |= own
    served_at = f"http://127.0.0.1:{port + 1}"
    with (
        _running(prefect, folder, {**os.environ}, f"{own['PREFECT_API_URL']}/health"),
        _running(["-P", "-c", SERVE, str(port + 1)], folder / "elsewhere", theirs, served_at),
    ):
        yield Bench(folder, served_at)


@contextmanager
def _running(arguments: Sequence[str], folder: Path, environment: dict[str, str], address: str) -> Iterator[None]:
    with (folder / "server.log").open("ab") as output:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        _wait(lambda: httpx.get(address).is_success, process)
        yield
    finally:
        process.terminate()
        process.wait()


def _wait(answers: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    until = time.monotonic() + STARTING_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            if answers():
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise TimeoutError(f"{process.args} does not answer")


def line(bench: Bench, name: str, method: str) -> list[str]:
    """Plan, train and serve one architecture with one method, and return its cells of the table."""
    registered = f"{name}-{method}"
    folder = bench.folder / registered
    folder.mkdir()
    models.make_model(name, folder / "base")
    file = _deployment(bench.folder / "rows.jsonl", folder, registered, method)
    planned = _tunewright("plan", file)
    if "error" in planned:
        return [f"refused: {planned['error']}", "", ""]
    ran = _tunewright("run", file)
    if "error" in ran:
        return [planned.get("unknown", "ok"), ran["error"][:300], ""]
    artifacts = _artifacts(ran)
    asked, expected = _measured(artifacts)
    answers = _invocations(f"{bench.served_at}/{registered}/invocations", asked)
    equal = sum(one == other for one, other in zip(answers, expected, strict=True))
    return [planned.get("unknown", "ok"), _computed(artifacts), f"{equal} of {len(answers)}"]


def _rows() -> list[dict[str, str]]:
    return [
        {"instruction": f"{subject} {place} {what}", "output": ANSWERS[i % 3]}
        for i, subject in enumerate(SUBJECTS)
        for place in PLACES
        for what in ("is missing", "came late")
    ]


def _deployment(rows: Path, folder: Path, registered: str, method: str) -> Path:
    parameters = {
        "data": {"sources": [{"path": str(rows)}]},
        "model": {"base": str(folder / "base"), "max_length": 256},
        "method": {"kind": method},
        "training": {"learning_rate": 0.005, "max_steps": 6, "batch": 8, "evaluate_every": 3},
        "compute": {"threads": 1},
        "evaluation": {"max_new_tokens": 8, "forgetting": False, "contenders": []},
        "gate": {"metric": "perplexity", "confidence": 0.8},
        "registry": {"name": registered},
    }
    deployment = {"name": registered, "entrypoint": "tunewright.flows.finetune.finetune", "parameters": parameters}
    file = folder / "deployment.yaml"
    file.write_text(yaml.safe_dump({"deployments": [deployment]}), encoding="utf-8")
    return file


def _tunewright(command: str, file: Path) -> dict[str, Any]:
    """Run a command and return its JSON output; the error of a failed one is under "error"."""
    from typer.testing import CliRunner

    from tunewright.cli.main import app  # whose libraries read the environment when they are imported

    done = CliRunner().invoke(app, [command, str(file), "--json"])
    lines = done.stdout.splitlines() or ["{}"]
    said = json.loads(lines[-1])
    return {"error": f"exit code {done.exit_code}: {done.exception!r}"} | said if done.exit_code else said


def _artifacts(ran: dict[str, Any]) -> dict[str, Path]:
    """The folders that a run made or found, by stage, that of evaluate as "candidate"."""
    return {step.get("of") or step["stage"]: Path(step["artifact"]) for step in ran["stages"] if step.get("artifact")}


def _computed(artifacts: dict[str, Path]) -> str:
    """How the trainer computed."""
    chosen = json.loads((artifacts["train"] / "summary.json").read_text(encoding="utf-8"))["chosen"]
    layout = "shared" if chosen["shared_prefix"] else "packed" if chosen["packing"] else "padded"
    return f"{layout}, {chosen['attention']}, {chosen['precision']}"


def _measured(artifacts: dict[str, Path]) -> tuple[list[list[dict[str, str]]], list[str]]:
    """The test rows' questions, and the candidate's answers to them."""
    rows = {
        row["row_id"]: row["messages"][:-1] for row in pq.read_table(artifacts["split"] / "test.parquet").to_pylist()
    }
    answers = pq.read_table(artifacts["candidate"] / "answers.parquet").to_pylist()
    return [rows[row["row_id"]] for row in answers], [row["answer"] for row in answers]


def _invocations(address: str, conversations: list[list[dict[str, str]]]) -> list[str]:
    body = {"inputs": [{"messages": messages} for messages in conversations]}
    answered = httpx.post(address, json=body, timeout=SERVING_SECONDS)
    return answered.raise_for_status().json()["predictions"]


if __name__ == "__main__":
    main()
