"""benchmarks/faults.py calls a run right only if nothing of it is other than undisturbed, and tries each kind alike."""

import importlib
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from waiting import until

STARTS = """
import sys, time
from pathlib import Path
from fault_bench import Bench
folder = Path(sys.argv[1])
print(Bench(folder).start(folder / "home", script="import time; time.sleep(300)").pid, flush=True)
time.sleep(300)
"""


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
        yield importlib.import_module("faults")


@pytest.fixture
def right(benchmark: ModuleType) -> Any:
    return benchmark.Row(
        fault="kill -9 the run",
        moment="12 s, train",
        code=-9,
        restarts=1,
        resumed_from=90,
        same_bytes=True,
        rows_lost=0,
        versions_doubled=0,
        processes_left=0,
        seconds=80.0,
        finished=True,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"moment": ""},
        {"code": None},
        {"finished": False},
        {"same_bytes": False},
        {"rows_lost": 1},
        {"versions_doubled": 1},
        {"processes_left": 1},
    ],
)
def test_one_wrong_cell_makes_a_run_wrong(benchmark: ModuleType, right: Any, wrong: dict[str, Any]) -> None:
    assert right.is_right
    assert not replace(right, **wrong).is_right
    assert len(replace(right, **wrong).cells()) == len(benchmark.COLUMNS)
    assert "| 90 | equal |" in benchmark.shown([right])


def test_each_kind_of_fault_comes_as_often_as_the_others(benchmark: ModuleType) -> None:
    kinds = benchmark.FAULTS
    drawn = Counter(fault.name for fault in benchmark.chosen(kinds, 2 * len(kinds) + 3, random.Random(1)))
    assert drawn.keys() == {fault.name for fault in kinds}
    assert {*drawn.values()} == {2, 3}


def test_commands_that_share_the_runs_have_each_of_them_once(
    benchmark: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    right: Any,
) -> None:
    def struck(_: Any, fault: Any, *__: Any) -> Any:
        return replace(right, fault=fault.name)

    monkeypatch.setattr(benchmark.Bench, "make", lambda _: None)
    monkeypatch.setattr(benchmark.signal, "signal", lambda *_: None)
    monkeypatch.setattr(benchmark, "own_mounts", lambda: True)
    monkeypatch.setattr(benchmark, "serve", lambda *_, **__: None)
    monkeypatch.setattr(benchmark, "undisturbed", lambda _: benchmark.Undisturbed(None, 1.0, 1.0, 1))
    monkeypatch.setattr(benchmark, "struck", struck)

    def faults(part: str) -> list[tuple[int, str]]:
        monkeypatch.setattr("sys.argv", ["faults.py", "--runs", "30", "--part", part, "--folder", str(tmp_path)])
        assert benchmark.main() == 0
        lines = [line.partition("/30 ") for line in capsys.readouterr().out.splitlines() if "/30 " in line]
        return [(int(number), cells.split(" | ")[0]) for number, _, cells in lines]

    shared = sorted(faults("1/3") + faults("2/3") + faults("3/3"))
    assert shared == faults("1/1")
    assert [number for number, _ in shared] == [*range(1, 31)]


def test_a_run_that_ends_before_its_fault_is_tried_again_with_an_earlier_one(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, right: Any
) -> None:
    early, seconds = replace(right, moment=""), []
    tries = iter([early, early, right, early, early, early])

    def disturbed(_: Any, __: Any, ___: Any, before: Any, ____: Any) -> Any:
        seconds.append(before.seconds)
        return next(tries)

    monkeypatch.setattr(benchmark, "disturbed", disturbed)
    before = benchmark.Undisturbed(None, 200.0, 50.0, 1)
    assert benchmark.struck(None, None, None, before, None) is right
    assert benchmark.struck(None, None, None, before, None) is early
    assert seconds == [200.0, right.seconds, right.seconds] * 2


def test_what_the_benchmark_started_ends_when_it_is_killed(benchmark: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, "-c", STARTS, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout
        started = psutil.Process(int(killed.stdout.readline()))
        killed.kill()
    until(lambda: not started.is_running() or started.status() == psutil.STATUS_ZOMBIE, seconds=20.0)


def test_a_file_that_is_harmed_is_not_as_it_was(benchmark: ModuleType, tmp_path: Path) -> None:
    harm = importlib.import_module("fault_kinds").harm
    file, done = tmp_path / "file", set[str]()
    for seed in range(20):
        file.write_bytes(b"content")
        done.add(harm(file, random.Random(seed)))
        assert not file.exists() or file.read_bytes() != b"content"
    assert done == {"truncated", "flipped", "emptied", "removed"}
