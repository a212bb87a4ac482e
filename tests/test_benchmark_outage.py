"""benchmarks/outage.py names what does not hold: a point, a byte, or waiting other than undisturbed."""

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from tunewright.registry.candidate import Point


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
        yield importlib.import_module("outage")


def trained(benchmark: ModuleType, **changes: Any) -> Any:
    """A run with these differences from one that is right."""
    usual: dict[str, Any] = {
        "outage_seconds": 0.0,
        "steps_meanwhile": 0,
        "points": 10,
        "missing": 0,
        "doubled": 0,
        "adapter": "a",
        "loop_seconds": 60.0,
        "stage_seconds": 70.0,
        "core_seconds": 55.0,
        "waiting_seconds": 2.0,
    }
    return benchmark.Trained(**usual | changes)


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({}, []),
        ({"points": 11, "loop_seconds": 90.0, "core_seconds": 59.0, "waiting_seconds": 2.9}, []),
        ({"missing": 1}, ["points are missing in MLflow"]),
        ({"doubled": 1}, ["points are in MLflow twice, or with another value"]),
        ({"adapter": "b"}, ["the adapters have different bytes"]),
        ({"waiting_seconds": 3.5}, ["the trainer waited for 1.5 s longer"]),
    ],
)
def test_what_does_not_hold_is_named(benchmark: ModuleType, changes: dict[str, Any], wrong: list[str]) -> None:
    quiet = [trained(benchmark)] * 3
    found = benchmark.compared(quiet, [trained(benchmark, outage_seconds=60.0, **changes)] * 3)
    assert found[1] == wrong


def test_points_that_are_missing_doubled_or_changed_are_counted(benchmark: ModuleType) -> None:
    expected = [Point("train/loss", 1.0, 1), Point("train/loss", 0.5, 2)]
    assert benchmark.differences(expected, expected) == (0, 0)
    assert benchmark.differences(expected[:1], expected) == (1, 0)
    assert benchmark.differences([*expected, expected[0]], expected) == (0, 1)
    assert benchmark.differences([expected[0], Point("train/loss", 0.7, 2)], expected) == (1, 1)


def test_waiting_is_counted_and_work_is_not(benchmark: ModuleType, tmp_path: Path) -> None:
    script = "import sys, time; sys.stdin.readline(); time.sleep(1)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True) as process:
        clock = benchmark.TrainerClock(tmp_path)
        clock.process = psutil.Process(process.pid)
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
        clock.begin()
        until = time.monotonic() + 60
        while clock.core_seconds < 1 and time.monotonic() < until:
            assert clock.look()
            time.sleep(0.05)
        waited = clock.last - clock.first
        process.kill()
    assert 0.5 < waited < 2, json.dumps({"waited": waited, "cores": clock.core_seconds})
