"""A training whose MLflow server is killed for a minute, beside the same training with a server that answers.

Both run the whole pipeline, in turns, each in a fresh home, with the live run at a real `mlflow server`. In every other
one the server gets kill -9 while it trains, and is started again a minute later. Compared are the points of the curves
in MLflow with those in the trainer's own file, the bytes of the adapter, and the seconds of the training. Of these,
`waiting_seconds` decide: from the twentieth step on, those in which the trainer's thread neither ran nor was ready to
run, as Linux counts them (/proc/PID/task/PID/schedstat). The seconds from the first to the last step, those of the
stage, and the core seconds also change with other jobs on the machine, such as a server that starts there. Exit code 1
if a point is missing or there twice, if bytes differ, or if the trainer waited more than a second longer, by the
medians.

    .venv/bin/python benchmarks/outage.py                           # a quarter of an hour on two quiet cores
    .venv/bin/python benchmarks/outage.py --turns 1 --outage 20     # a first look

The base is a tiny llama with random weights.
"""

import argparse
import contextlib
import json
import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from fault_bench import RUN_SECONDS, Bench, end_all, free_port, one_of, result, wait

from tunewright.config import Registry
from tunewright.registry.candidate import CURVES, Point, curves

STEPS = 3000  # a minute and a half on two quiet cores
STEPS_BEFORE = 20  # the outage
LARGEST_DIFFERENCE = 1.0  # seconds of waiting, of the medians
POINTS = "SELECT key, step, value FROM metrics JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id)"
TRAINER = "tunewright.tasks.train.trainer"


class Server:
    """MLflow's own server, as a team runs one, which can be killed and started again."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.port = bench, free_port()
        self.address, self.database = f"http://127.0.0.1:{self.port}", bench.folder / "team.db"
        self.start()

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        stored = ("--backend-store-uri", f"sqlite:///{self.database}")
        files = ("--serve-artifacts", "--artifacts-destination", str(self.bench.folder / "team"))
        command = ("mlflow", "server", "--port", str(self.port), "--workers", "1", *stored, *files)
        self.process = self.bench.serve("server", command, f"{self.address}/health", in_session=True)

    def kill(self) -> None:
        """kill -9, its workers as well."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class Trained:
    """Result of one run of the pipeline."""

    outage_seconds: float  # 0: none
    steps_meanwhile: int
    points: int  # of the curves, in MLflow; highest and lowest ones of curves of speed fall on other steps each time
    missing: int
    doubled: int
    adapter: str  # sha256 of the weights
    loop_seconds: float  # from the first step to the last
    stage_seconds: float  # of the trainer's process
    core_seconds: float  # of the trainer's process
    waiting_seconds: float  # of its thread, after the first steps


class TrainerClock:
    """The core seconds of the trainer of a home, and those that its thread waits from `begin` on, as last seen."""

    def __init__(self, home: Path) -> None:
        self.home, self.core_seconds = home, 0.0
        self.process: psutil.Process | None = None
        self.first = self.last = 0.0  # seconds of waiting

    def begin(self) -> None:
        """Counts from now on."""
        self.look()
        self.first = self.last

    @property
    def steps(self) -> int:
        """The last step that the trainer has written."""
        for file in self.home.glob("work/train/*/metrics.jsonl"):
            with contextlib.suppress(ValueError, IndexError, OSError):
                return json.loads(file.read_text(encoding="utf-8").splitlines()[-1])["step"]
        return 0

    def look(self) -> bool:
        """Whether the trainer lives."""
        with contextlib.suppress(psutil.Error, FileNotFoundError, ProcessLookupError):  # it has ended
            self.process = self.process or one_of(self.home, TRAINER)
            if self.process and self.process.status() != psutil.STATUS_ZOMBIE:
                times, pid = self.process.cpu_times(), self.process.pid
                self.core_seconds = times.user + times.system
                running, ready, _ = Path(f"/proc/{pid}/task/{pid}/schedstat").read_text(encoding="ascii").split()
                self.last = time.monotonic() - (int(running) + int(ready)) / 1e9
                return True
        return False


def in_mlflow(database: Path, name: str) -> list[Point]:
    """The points of the curves of an experiment's only run."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = connection.execute(f"{POINTS} WHERE experiments.name = ?", (name,)).fetchall()
    return [Point(key, value, step) for key, step, value in found if key in CURVES.values()]


def differences(found: Sequence[Point], expected: Sequence[Point]) -> tuple[int, int]:
    """How many points are missing, and how many are there without being expected, or once more."""
    there = Counter((point.key, point.step, point.value) for point in found)
    wanted = Counter((point.key, point.step, point.value) for point in expected)
    return (wanted - there).total(), (there - wanted).total()


def trained(bench: Bench, server: Server, steps: int, outage: float) -> Trained:
    """Runs the pipeline, with the server killed for `outage` seconds while it trains."""
    home = bench.home()
    settings = {"training.max_steps": steps, "registry.tracking_uri": server.address, "registry.name": home.name}
    given = ["run", "tiny.yaml", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]
    script = f"import sys; sys.argv[1:] = {given!r}; from tunewright.cli.main import main; main()"
    process, clock, meanwhile = bench.start(home, script=script), TrainerClock(home), 0
    wait(lambda: (clock.look() and clock.steps >= STEPS_BEFORE) or process.poll() is not None, RUN_SECONDS, 0.5)
    clock.begin()
    if outage and process.poll() is None:
        server.kill()
        before, until = clock.steps, time.monotonic() + outage
        while time.monotonic() < until and clock.look():
            time.sleep(0.1)
        if not clock.look():
            raise SystemExit(f"{steps} steps were over before the outage of {outage:g} s was: give more --steps")
        meanwhile = clock.steps - before
        server.start()
    wait(lambda: not clock.look() and process.poll() is not None, RUN_SECONDS, 0.1)
    found = result(home, server.database, home.name)
    if process.returncode or not found:
        raise SystemExit(f"the run ended with exit code {process.returncode}: {home.with_suffix('.log')}")
    (metrics,) = home.glob("artifacts/train/*/metrics.jsonl")
    times = [json.loads(line)["time"] for line in metrics.read_text(encoding="utf-8").splitlines()]
    record = json.loads((metrics.parent / "manifest.json").read_text(encoding="utf-8"))["record"]
    points = in_mlflow(server.database, home.name)
    missing, doubled = differences(points, curves(metrics, Registry().curve_points))
    return Trained(
        outage,
        meanwhile,
        len(points),
        missing,
        doubled,
        found.adapter,
        round(times[-1] - times[0], 2),
        record["train_seconds"],
        round(clock.core_seconds, 2),
        round(clock.last - clock.first, 2),
    )


def compared(quiet: Sequence[Trained], disturbed: Sequence[Trained]) -> tuple[dict[str, float], list[str]]:
    """The differences of the medians of all seconds, and what does not hold."""
    fields = ("loop_seconds", "stage_seconds", "core_seconds", "waiting_seconds")
    medians = {
        field: [statistics.median(getattr(each, field) for each in side) for side in (quiet, disturbed)]
        for field in fields
    }
    longer = {field: round(disturbed - quiet, 2) for field, (quiet, disturbed) in medians.items()}
    every = (*quiet, *disturbed)
    wrong = []
    if any(each.missing for each in every):
        wrong.append("points are missing in MLflow")
    if any(each.doubled for each in every):
        wrong.append("points are in MLflow twice, or with another value")
    if len({each.adapter for each in every}) > 1:
        wrong.append("the adapters have different bytes")
    if longer["waiting_seconds"] > LARGEST_DIFFERENCE:
        wrong.append(f"the trainer waited for {longer['waiting_seconds']:g} s longer")
    return longer, wrong


def main() -> int:
    """Prints a line of JSON for each run, and one that compares both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--outage", type=float, default=60.0, metavar="SECONDS")
    arguments = parser.parse_args()
    sides: dict[float, list[Trained]] = {0.0: [], arguments.outage: []}
    with tempfile.TemporaryDirectory(prefix="outage-") as place:
        bench = Bench(Path(place))
        bench.make()
        server = Server(bench)
        try:
            for turn in range(arguments.turns):
                for outage in (0.0, arguments.outage)[:: 1 if turn % 2 == 0 else -1]:
                    sides[outage].append(trained(bench, server, arguments.steps, outage))
                    print(json.dumps(asdict(sides[outage][-1])), flush=True)
        finally:
            end_all(bench.folder)
            server.kill()
    longer, wrong = compared(sides[0.0], sides[arguments.outage])
    print(json.dumps({"longer_with_the_outage": longer, "does_not_hold": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
