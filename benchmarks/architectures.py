"""What becomes of a tiny model of each architecture, from `plan` to answers over HTTP: a table, in Markdown.

For each: `tunewright plan`, `tunewright run` up to a registered version, `mlflow models serve` of that version, and its
answers to the test rows beside those that were measured. About a minute each.

    .venv/bin/python benchmarks/architectures.py [name ...] [--method qlora] [--port 43700]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
models = import_module("make_models")

SUBJECTS = ("my parcel", "the red shoes", "a broken lamp", "one late letter", "your green chair", "an old phone")
PLACES = ("in Berlin", "at the harbour", "from Lisbon", "near our school", "on the train", "by the lake")
ANSWERS = ("refund", "delivery", "repair")
SERVING_SECONDS = 180.0


def main() -> None:
    """Prints the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[*models.ARCHITECTURES, *models.REFUSED])
    parser.add_argument("--method", default="lora", help="method.kind")
    parser.add_argument("--port", type=int, default=43_700, help="of mlflow models serve")
    asked = parser.parse_args()
    print("| architecture | plan | rows, attention | version | test answers served as measured | seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.names:
            print(f"| {' | '.join(line(name, Path(folder, name), asked.method, asked.port))} |", flush=True)


def line(name: str, folder: Path, method: str, port: int) -> list[str]:
    """The cells of one architecture."""
    began = time.monotonic()
    folder.mkdir()
    models.make_model(name, folder / "base")
    file = _deployment(name, folder, method)
    environment = os.environ | {"TUNEWRIGHT_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    planned = _tunewright(["plan", str(file)], environment)
    if planned.returncode:
        return [name, f"refused: {planned.stderr.strip()}", "", "", "", f"{time.monotonic() - began:.0f}"]
    ran = _tunewright(["run", str(file), "--json"], environment)
    cells = [name, "ok", _computed(folder / "home")]
    if ran.returncode:
        return [
            *cells,
            f"exit code {ran.returncode}: {ran.stderr.strip()[-300:]}",
            "",
            f"{time.monotonic() - began:.0f}",
        ]
    with served(name, environment, port):
        asked, expected = _measured(folder / "home")
        said = _invocations(port, asked)
    equal = sum(one == other for one, other in zip(said, expected, strict=True))
    return [*cells, "1", f"{equal} of {len(said)}", f"{time.monotonic() - began:.0f}"]


def _deployment(name: str, folder: Path, method: str) -> Path:
    rows = [
        {"instruction": f"{subject} {place} {what}", "output": ANSWERS[i % 3]}
        for i, subject in enumerate(SUBJECTS)
        for place in PLACES
        for what in ("is missing", "came late")
    ]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    parameters = {
        "data": {"sources": [{"path": str(folder / "rows.jsonl")}]},
        "model": {"base": str(folder / "base"), "max_length": 256},
        "method": {"kind": method},
        "training": {"learning_rate": 0.005, "max_steps": 6, "batch": 8, "evaluate_every": 3},
        "compute": {"threads": 1},
        "evaluation": {"max_new_tokens": 8, "forgetting": False, "contenders": []},
        "gate": {"metric": "perplexity", "confidence": 0.8},
        "registry": {"name": name},
    }
    deployment = {"name": name, "entrypoint": "flows.finetune.finetune", "parameters": parameters}
    file = folder / "deployment.yaml"
    file.write_text(yaml.safe_dump({"deployments": [deployment]}), encoding="utf-8")
    return file


def _tunewright(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("tunewright")), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _computed(home: Path) -> str:
    """How the trainer computed."""
    for file in home.glob("artifacts/train/*/summary.json"):
        chosen = json.loads(file.read_text(encoding="utf-8"))["chosen"]
        layout = "shared" if chosen["shared_prefix"] else "packed" if chosen["packing"] else "padded"
        return f"{layout}, {chosen['attention']}"
    return ""


def _measured(home: Path) -> tuple[list[list[dict[str, str]]], list[str]]:
    """The test rows' questions, and the candidate's answers to them."""
    (split,) = home.glob("artifacts/split/*/test.parquet")
    rows = {row["row_id"]: row["messages"][:-1] for row in pq.read_table(split).to_pylist()}
    for scores in home.glob("artifacts/evaluate/*/manifest.json"):
        if json.loads(scores.read_text(encoding="utf-8"))["record"]["contender"] == "candidate":
            answers = pq.read_table(scores.parent / "answers.parquet").to_pylist()
            return [rows[row["row_id"]] for row in answers], [row["answer"] for row in answers]
    raise FileNotFoundError("no answers of the candidate")


@contextmanager
def served(name: str, environment: dict[str, str], port: int) -> Iterator[None]:
    """The version 1 of a registered model at 127.0.0.1:port, by MLflow's own server."""
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{environment['TUNEWRIGHT_HOME']}/mlflow.db"}
    store["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # of uvicorn
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", f"models:/{name}/1", "--env-manager", "local"]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [*command, "-p", str(port)], env=environment | store, stdout=output, stderr=output, start_new_session=True
        )
        try:
            _wait(process, port)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def _wait(process: subprocess.Popen[Any], port: int) -> None:
    until = time.monotonic() + SERVING_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError("the server does not answer")


def _invocations(port: int, conversations: list[list[dict[str, str]]]) -> list[str]:
    body = json.dumps({"inputs": [{"messages": messages} for messages in conversations]}).encode()
    request = Request(f"http://127.0.0.1:{port}/invocations", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=SERVING_SECONDS) as answered:
        return json.load(answered)["predictions"]


if __name__ == "__main__":
    main()
