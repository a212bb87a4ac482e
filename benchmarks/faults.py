"""A small pipeline, run again and again, each time in a fresh home and with one fault at a random moment.

Then it is run again until it ends well, and compared with the undisturbed run: the same bytes of the adapter, the same
rows on the same splits, one version, no process left. Exit code 1 if any of these does not hold, or a run always ended
before its fault. The base is a tiny llama with random weights; MLflow and Prefect are the real servers, and a proxy
makes MLflow fail. Interrupted or killed, the benchmark ends all that it started.

    .venv/bin/python benchmarks/faults.py --runs 50 --seed 1               # an hour and a half on two quiet cores
    .venv/bin/python benchmarks/faults.py --runs 50 --part 1/2             # half of these; another command does 2/2
    .venv/bin/python benchmarks/faults.py --runs 5 --only "file of"        # kinds whose name has these words

A full disk is a tmpfs, which takes the right to mount one; without it that kind is left out, and reported.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from fault_bench import (
    PARAMETERS,
    RUN_SECONDS,
    Bench,
    Proxy,
    Result,
    end_all,
    free_port,
    result,
    wait,
)
from fault_kinds import FAULTS, Fault, Scene, mount_small, own_mounts

RESTARTS = 3
TRIES = 3  # where a run ended before its fault
SERVICE_SECONDS = 600.0  # for what takes one on a quiet machine
COLUMNS = ("fault", "moment", "ended by itself", "restarts", "resumed", "bytes", "lost", "doubled", "left", "seconds")
RUN_DEPLOYMENT = (
    "from tunewright.cli.command_line import console_of, prepare; prepare(console_of(False)); "
    "from prefect.deployments import run_deployment; "
    f"state = run_deployment('finetune/tiny', timeout={RUN_SECONDS:.0f}, as_subflow=False).state; "
    "raise SystemExit(0 if state and state.is_completed() else 1)"
)


@dataclass(frozen=True)
class Undisturbed:
    """The run that all others are compared with."""

    result: Result
    seconds: float
    training: float
    size: int  # bytes of its home


@dataclass(frozen=True)
class Row:
    """Result of one injected fault."""

    fault: str
    moment: str  # when it struck; "" where the run had ended before
    code: int | None  # the exit code of the disturbed run; None where it never ended
    restarts: int
    resumed_from: int
    same_bytes: bool
    rows_lost: int
    versions_doubled: int
    processes_left: int
    seconds: float
    finished: bool

    @property
    def is_right(self) -> bool:
        """Whether all is as after an undisturbed run."""
        lost = self.rows_lost or self.versions_doubled or self.processes_left
        return bool(self.moment) and self.finished and self.code is not None and self.same_bytes and not lost

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        ended = "never" if self.code is None else "yes" if self.code == 0 else f"exit code {self.code}"
        restarts = str(self.restarts) if self.finished else f"{self.restarts}, in vain"
        return (
            *(self.fault, self.moment or "never", ended, restarts, str(self.resumed_from)),
            "equal" if self.same_bytes else "OTHER",
            *map(str, (self.rows_lost, self.versions_doubled, self.processes_left)),
            f"{self.seconds:.0f}",
        )


class Terminal:
    """Runs of `tunewright run`, on a server that they share, or on their own where that is to be hit."""

    def __init__(self, bench: Bench, home: Path, fault: Fault, proxy: Proxy | None) -> None:
        self.bench, self.home = bench, home
        self.environment = {"PREFECT_API_URL": ""} if fault.needs == "prefect" else {}
        self.arguments = ["run", "tiny.yaml"]
        self.database, self.name = home / "mlflow.db", "tiny"
        if proxy:
            self.database, self.name = bench.folder / "mlflow.db", f"tiny-{home.name}"
            settings = (f"registry.tracking_uri={proxy.address}", f"registry.name={self.name}")
            self.arguments += [word for setting in settings for word in ("--set", setting)]

    def start(self) -> subprocess.Popen[bytes]:
        """A run."""
        return self.bench.start(self.home, *self.arguments, **self.environment)

    def end(self) -> None:
        """Nothing goes on."""


class Service:
    """Runs of a deployment, in the worker of a `tunewright up`."""

    def __init__(self, bench: Bench, home: Path, fault: Fault) -> None:
        self.bench, self.home = bench, home
        self.database, self.name = home / "mlflow.db", "tiny"
        ports = free_port(), free_port()
        self.environment = {"PREFECT_API_URL": ""}
        options = ("--port", str(ports[0]), "--mlflow-port", str(ports[1]))
        self.up = bench.start(home, "up", *options, **self.environment)
        wait(lambda: (home / "services.json").exists() or self.up.poll() is not None, SERVICE_SECONDS)
        deployment = {
            "name": "tiny",
            "entrypoint": "tunewright.flows.finetune.finetune",
            "work_pool": {"name": "local"},
        }
        parameters = PARAMETERS
        if "MLflow" in fault.name:
            served = {"name": "tiny", "tracking_uri": f"http://127.0.0.1:{ports[1]}"}
            parameters = PARAMETERS | {"registry": served}
        file = home.with_suffix(".yaml")
        file.write_text(yaml.safe_dump({"deployments": [deployment | {"parameters": parameters}]}))
        deployed = bench.start(home, "deploy", file.name, **self.environment)
        if deployed.wait(SERVICE_SECONDS):
            raise RuntimeError(f"deploy ended with {deployed.returncode}; see {home.with_suffix('.log')}")

    def start(self) -> subprocess.Popen[bytes]:
        """A run, and its wait for the end."""
        wait(lambda: (self.home / "services.json").exists(), SERVICE_SECONDS)
        return self.bench.start(self.home, script=RUN_DEPLOYMENT, **self.environment)

    def end(self) -> None:
        """Ends `up`."""
        self.up.send_signal(signal.SIGTERM)
        self.up.wait(SERVICE_SECONDS)


def undisturbed(bench: Bench) -> Undisturbed:
    """The run that all others are compared with."""
    home = bench.folder / "undisturbed"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    began = time.monotonic()
    if code := bench.start(home, "run", "tiny.yaml").wait(RUN_SECONDS):
        raise RuntimeError(f"the undisturbed run ended with {code}; see {home.with_suffix('.log')}")
    seconds = time.monotonic() - began
    found = result(home, home / "mlflow.db", "tiny")
    assert found and found.versions == 1
    (manifest,) = home.glob("artifacts/train/*/manifest.json")
    training = json.loads(manifest.read_text(encoding="utf-8"))["record"]["train_seconds"]
    size = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
    return Undisturbed(found, seconds, training, size)


def disturbed(bench: Bench, fault: Fault, chance: random.Random, before: Undisturbed, proxy: Proxy | None) -> Row:
    """One fault, what it did, and what came of the run in the end."""
    home = bench.home()
    disk = mount_small(home, int(before.size * chance.uniform(0.05, 0.9))) if fault.needs == "disk" else None
    runs = Service(bench, home, fault) if fault.needs == "up" else Terminal(bench, home, fault, proxy)
    began = time.monotonic()
    scene = Scene(bench, home, chance, before.seconds, before.training, runs.start(), began, proxy)
    striking = threading.Thread(target=fault.strike, args=(scene,), daemon=True)
    striking.start()
    code = ended(scene.process)
    if scene.second:
        code = ended(scene.second) or code
    if disk:
        disk(False)
    restarts, last = 0, code
    while last != 0 and restarts < RESTARTS:
        restarts += 1
        last = ended(runs.start())
    seconds = time.monotonic() - began
    runs.end()
    striking.join()
    left = end_all(home)
    found = result(home, runs.database, runs.name) if last == 0 else None
    status = next(iter(home.glob("artifacts/train/*/status.json")), None)
    row = Row(
        fault=fault.name,
        moment=scene.moment,
        code=code,
        restarts=restarts,
        resumed_from=json.loads(status.read_text(encoding="utf-8"))["resumed_from"] if status else 0,
        same_bytes=bool(found) and found.adapter == before.result.adapter,
        rows_lost=len(before.result.rows - found.rows) if found else len(before.result.rows),
        versions_doubled=abs(found.versions - 1) + found.unfinished if found else 0,
        processes_left=left,
        seconds=seconds,
        finished=last == 0,
    )
    if disk:
        disk(True)
    if row.is_right or not row.moment:
        for leftover in (home, home.with_suffix(".prefect")):
            shutil.rmtree(leftover, ignore_errors=True)
    return row


def struck(bench: Bench, fault: Fault, chance: random.Random, before: Undisturbed, proxy: Proxy | None) -> Row:
    """One fault; again, and earlier, where the run ended before it struck."""
    row = disturbed(bench, fault, chance, before, proxy)
    for _ in range(TRIES - 1):
        if not row.moment:
            before = replace(before, seconds=min(before.seconds, row.seconds))
            row = disturbed(bench, fault, chance, before, proxy)
    return row


def ended(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code; None where it did not end in time, and was killed."""
    try:
        return process.wait(RUN_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def chosen(kinds: Sequence[Fault], runs: int, chance: random.Random) -> Iterator[Fault]:
    """So many faults: each kind as often as the others, in a random order."""
    while runs > 0:
        turn = chance.sample(kinds, len(kinds))[:runs]
        yield from turn
        runs -= len(turn)


def shown(rows: Sequence[Row]) -> str:
    """The table, as Markdown."""
    lines = [COLUMNS, tuple("---" for _ in COLUMNS), *(row.cells() for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> int:
    """Prints a line for each run as it ends, and then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="kinds whose name has these words")
    parser.add_argument("--part", default="1/1", help="2/3 is the second of three commands that share the runs")
    parser.add_argument("--folder", type=Path, help="where to work; homes of runs that are not right stay there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    bench = Bench((options.folder or Path(tempfile.mkdtemp(prefix="faults-"))).absolute())
    bench.make()
    kinds = [fault for fault in FAULTS if options.only in fault.name]
    if any(fault.needs == "disk" for fault in kinds) and not own_mounts():
        kinds = [fault for fault in kinds if fault.needs != "disk"]
        print("full disk: left out, since this user may not mount a tmpfs")
    chance = random.Random(options.seed)
    part, parts = map(int, options.part.split("/"))
    faults = list(enumerate(chosen(kinds, options.runs, chance), start=1))[part - 1 :: parts]
    rows: list[Row] = []
    try:
        proxy = serve(bench, with_mlflow=any(fault.needs == "proxy" for _, fault in faults))
        before = undisturbed(bench)
        took = f"{before.seconds:.0f} s, {before.training:.0f} s of them training"
        print(f"undisturbed: {took}, in {bench.folder}", flush=True)
        for number, fault in faults:
            own = random.Random(f"{options.seed} {number}")
            rows.append(struck(bench, fault, own, before, proxy if fault.needs == "proxy" else None))
            print(f"{number}/{options.runs} {' | '.join(rows[-1].cells())}", flush=True)
    except KeyboardInterrupt:
        print("interrupted")
    finally:
        bench.end()
    right = sum(row.is_right for row in rows)
    print(f"\n{shown(rows)}\n\n{right} of {len(rows)} right, of {len(faults)} to do")
    if right == len(rows) and not options.folder:
        shutil.rmtree(bench.folder)
    return 0 if right == len(faults) else 1


def serve(bench: Bench, *, with_mlflow: bool) -> Proxy | None:
    """Prefect's server that the runs share, and MLflow's with its proxy."""
    prefect = free_port()
    address = f"http://127.0.0.1:{prefect}/api"
    database = f"sqlite+aiosqlite:///{bench.folder / 'prefect.db'}"
    command = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(prefect))
    bench.serve("prefect", command, f"{address}/health", database=database)
    bench.environment["PREFECT_API_URL"] = address
    if not with_mlflow:
        return None
    mlflow = free_port()
    store = ("--backend-store-uri", f"sqlite:///{bench.folder / 'mlflow.db'}")
    files = ("--artifacts-destination", str(bench.folder / "mlartifacts"))
    command = ("mlflow", "server", "--host", "127.0.0.1", "--port", str(mlflow), "--workers", "1", *store, *files)
    bench.serve("mlflow", command, f"http://127.0.0.1:{mlflow}/health")
    return Proxy(f"http://127.0.0.1:{mlflow}")


if __name__ == "__main__":
    sys.exit(main())
