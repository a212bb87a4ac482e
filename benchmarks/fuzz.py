"""Fuzzing of whatever reads what is not trusted: data files, deployment files, manifests, histories; and the decision.

    .venv/bin/python benchmarks/fuzz.py --minutes 60

Each target (fuzz_targets.py) gets an equal share of the time, in a process that may take 1 GB of memory on top of what
it has after its imports. Hypothesis draws valid files with faults; where atheris is installed, half of the time its
coverage of this project's code guides which. An input is accepted, or refused with an error of ours in one line. All
else is a find, as is a process that goes on computing long after its time: the shortest input of each, and its
traceback, are kept in a folder. The exit code is 1 where there are any, or where a process, readers' children included,
took over 1 GB. To try one again:

    .venv/bin/python benchmarks/fuzz.py --target csv --replay fuzz-finds/csv-...
"""

import argparse
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from tunewright.machine.bounded import NOT_A_CLOCK

if TYPE_CHECKING:
    from fuzz_targets import Target

ROOT = Path(__file__).parents[1]
NAMES = (
    *("jsonl", "json", "csv", "parquet", "arrow", "archives", "saved", "yaml", "deployment", "manifest", "histories"),
    *("checkpoint", "decision", "held-out", "template", "safetensors", "gguf", "base", "schema", "judge", "digests"),
    *("served", "backup", "assignments", "notify", "answers", "contract"),
)
MEGABYTES = 1_000  # that a process may take
PATIENCE = 120.0  # seconds of processor time over its share, after which a child hangs
WAITING = 10  # times as long may it wait for something, or for a busy machine
LOOK = 0.2  # seconds between two looks at a child
ROUND = 200  # inputs between two looks at the clock


@dataclass
class Account:
    """Counts of the inputs of one target, accepted and refused, and its finds."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # beginnings of refusals
    finds: dict[str, str] = field(default_factory=dict)  # name -> its last line


class Trial:
    """One target that is given inputs, with its account; finds are kept in a folder."""

    def __init__(self, name: str, target: "Target", keep: Path) -> None:
        self.name, self.target, self.keep = name, target, keep
        self.account = Account()
        self.known: set[str] = set()  # finds that were made as short as they get

    def __call__(self, content: bytes) -> None:
        """Tries an input. Raises what the target raised, unless it is known."""
        self.account.inputs += 1
        try:
            reason = self.target.run(content)
        except Exception as error:
            find = self._keep(content, error)
            if find in self.known:
                return
            raise
        self.account.accepted += not reason
        self.account.refused += bool(reason)
        if reason and len(self.account.reasons) < 1_000:
            self.account.reasons[reason[:60]] += 1

    def _keep(self, content: bytes, error: Exception) -> str:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if each.filename.startswith(str(ROOT))]
        inner = [each for each in frames if "site-packages" not in each.filename][-1]
        find = f"{self.name}-{type(error).__name__}-{Path(inner.filename).stem}-{inner.lineno}"
        self.keep.mkdir(parents=True, exist_ok=True)
        file = self.keep / find
        if not file.exists() or len(content) < file.stat().st_size:
            file.write_bytes(content)
            file.with_name(f"{find}.txt").write_text("".join(traceback.format_exception(error)), "utf-8", "replace")
        self.account.finds[find] = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
        return find


def rounds(trial: Trial, seconds: float, seed: int, inputs: int = ROUND) -> None:
    """Inputs that hypothesis draws, until the time is up: each round another seed."""
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    end = time.monotonic() + seconds
    quiet = settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        suppress_health_check=HealthCheck.__members__.values(),
        phases=[Phase.generate, Phase.shrink],
    )
    while True:
        with suppress(Exception, BaseExceptionGroup):  # it is kept
            seeded(seed)(quiet(given(content=trial.target.inputs)(lambda content: trial(content))))()
        trial.known.update(trial.account.finds)
        seed += 1
        if time.monotonic() >= end:
            return


def guided(trial: Trial, seconds: float, seed: int, into: Path, each: Callable[[], None]) -> None:
    """Inputs that atheris chooses by the code that they reach; `each` comes after every one. Ends the process.

    What it writes itself, such as inputs that took long, lies in `into`.
    """
    from hypothesis import given, settings

    atheris: Any = importlib.import_module("atheris")
    one = settings(deadline=None, database=None)(given(content=trial.target.inputs)(lambda content: trial(content)))

    def try_one(drawn: bytes) -> None:
        with suppress(Exception, BaseExceptionGroup):
            one.hypothesis.fuzz_one_input(drawn)  # pyright: ignore[reportFunctionMemberAccess]
        each()

    options = [f"-max_total_time={max(1, round(seconds))}", f"-seed={seed}", "-max_len=2000", "-rss_limit_mb=0"]
    options.append(f"-artifact_prefix={into}/")
    atheris.Setup([sys.argv[0], *options], try_one)
    atheris.Fuzz()


def child(name: str, engine: str, seconds: float, seed: int, keep: Path, into: Path) -> None:
    """Tries one target, and writes its account where the parent looks for it, also of a process that dies."""
    if engine == "atheris":
        atheris: Any = importlib.import_module("atheris")
        with atheris.instrument_imports(include=["tunewright"], enable_loader_override=False):
            from fuzz_targets import TARGETS
    else:
        from fuzz_targets import TARGETS
    last = into / "last"

    def noted(content: bytes) -> str:
        last.write_bytes(content)
        return TARGETS[name].run(content)

    trial = Trial(name, TARGETS[name]._replace(run=noted), keep)
    written = 0.0

    def write(every: float = 1.0) -> None:
        nonlocal written
        if time.monotonic() - written >= every:
            written = time.monotonic()
            (into / "account.json").write_text(json.dumps(vars(trial.account)), encoding="utf-8")

    for library in trial.target.libraries:
        importlib.import_module(library)
    has = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize() if _is_linux() else 0
    if has:
        resource.setrlimit(resource.RLIMIT_AS, (has + MEGABYTES * 1_000_000, resource.RLIM_INFINITY))
    if engine == "atheris":
        guided(trial, seconds, seed, into, write)
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        rounds(trial, min(left, 5), seed)
        seed += 1_000_000
        write(0)


def fuzz(name: str, engine: str, seconds: float, seed: int, keep: Path) -> tuple[Account, float]:
    """The account of a target that was tried in a child, and the most memory of a process of it, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        into, log = Path(folder), Path(folder) / "log"
        command = [sys.executable, __file__, "--child", engine, "--target", name, "--seconds", str(seconds)]
        command += ["--seed", str(seed), "--keep", str(keep), "--into", folder]
        environment = os.environ | NOT_A_CLOCK | {"TMPDIR": folder, "HF_HUB_OFFLINE": "1"}
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
            peak = _watch(process, seconds)
        account = into / "account.json"
        found = Account(**json.loads(account.read_text(encoding="utf-8"))) if account.exists() else Account()
        if process.returncode:
            keep.mkdir(parents=True, exist_ok=True)
            find = f"{name}-exit-{process.returncode}"
            with suppress(FileNotFoundError):
                (into / "last").replace(keep / find)
            (keep / f"{find}.txt").write_bytes(log.read_bytes()[-10_000:])
            found.finds[find] = f"the process ended with {process.returncode}; its output is in {find}.txt"
    return found, peak / 1_000_000


def _watch(process: "subprocess.Popen[bytes]", seconds: float) -> float:
    """Waits for a child, ends it where it hangs, and returns the bytes that the largest process of its tree took."""
    end, largest, until = time.monotonic() + seconds, 0, None
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return max(largest, used.ru_maxrss * (1024 if _is_linux() else 1))
        computed, held = _used(process.pid)
        largest = max(largest, held)
        late = time.monotonic() - end
        if late > 0:
            until = until or computed + PATIENCE
            if computed > until or late > WAITING * PATIENCE:
                process.kill()
        time.sleep(LOOK)


def _used(pid: int) -> tuple[float, int]:
    """The seconds that a process and those that it started have computed, and the bytes that the largest holds now."""
    computed, held = 0.0, 0
    with suppress(psutil.Error):
        for each in (process := psutil.Process(pid), *process.children(recursive=True)):
            with suppress(psutil.Error):
                times = each.cpu_times()
                computed += sum(times[:4])  # of its own and of those that have ended, each in user and system mode
                held = max(held, each.memory_info().rss)
    return computed, held


def _is_linux() -> bool:
    return sys.platform == "linux"


def plan(names: Sequence[str], seconds: float) -> Iterator[tuple[str, str, float]]:
    """Target, engine and seconds of each child."""
    engines = ["hypothesis", "atheris"] if importlib.util.find_spec("atheris") else ["hypothesis"]
    for name in names:
        for engine in engines:
            yield name, engine, seconds / len(names) / len(engines)


def main() -> int:
    """Returns the exit code."""
    options = _options()
    if options.child:
        child(options.target, options.child, options.seconds, options.seed, options.keep, options.into)
        return 0
    if options.replay:
        from fuzz_targets import TARGETS

        print(TARGETS[options.target].run(options.replay.read_bytes()) or "accepted")
        return 0
    print(f"seed {options.seed}", flush=True)
    print(f"{'target':11} {'engine':10} {'inputs':>9} {'/s':>6} {'accepted':>9} {'refused':>9} {'finds':>5} {'MB':>5}")
    finds: dict[str, str] = {}
    is_over = False
    for name, engine, seconds in plan([options.target] if options.target else NAMES, options.minutes * 60):
        found, peak = fuzz(name, engine, seconds, options.seed, options.keep.absolute())
        counts = f"{found.inputs:9,} {found.inputs / seconds:6,.0f} {found.accepted:9,} {found.refused:9,}"
        print(f"{name:11} {engine:10} {counts} {len(found.finds):5} {peak:5,.0f}", flush=True)
        is_over = is_over or peak > MEGABYTES
        finds |= found.finds
    for find, said in finds.items():
        print(f"{options.keep / find}: {said}")
    return 1 if finds or is_over else 0


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all targets together")
    parser.add_argument("--target", choices=NAMES, help="one of them, instead of all")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the inputs; drawn by default")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-finds"), help="the folder of the finds")
    parser.add_argument("--replay", type=Path, help="an input that was kept, to be tried again with --target")
    for name, kind in (("child", str), ("seconds", float), ("into", Path)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
