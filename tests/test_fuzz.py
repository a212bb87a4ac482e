"""Readers of untrusted input refuse it in one line: some inputs of each target of benchmarks/fuzz.py."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("fuzz")


@pytest.fixture(scope="module")
def targets(benchmark: ModuleType) -> dict[str, Any]:
    found = importlib.import_module("fuzz_targets").TARGETS
    assert tuple(found) == benchmark.NAMES
    return found


def test_no_input_gives_a_traceback(benchmark: ModuleType, targets: dict[str, Any], tmp_path: Path) -> None:
    for name, target in targets.items():
        trial = benchmark.Trial(name, target, tmp_path / "finds")
        benchmark.rounds(trial, seconds=0, seed=1, inputs=20)
        assert trial.account.finds == {}
        assert trial.account.inputs == trial.account.accepted + trial.account.refused
        assert trial.account.refused, name


def test_a_find_is_kept_as_short_as_it_gets_with_its_traceback(
    benchmark: ModuleType, targets: dict[str, Any], tmp_path: Path
) -> None:
    def broken(content: bytes) -> str:
        if len(content) > 3:
            raise KeyError("a bug")
        return "too short"

    trial = benchmark.Trial("yaml", targets["yaml"]._replace(run=broken), tmp_path)
    benchmark.rounds(trial, seconds=0, seed=1, inputs=60)
    (find,) = trial.account.finds
    assert find.startswith("yaml-KeyError-test_fuzz-")
    assert len((tmp_path / find).read_bytes()) == 4
    assert "KeyError: 'a bug'" in (tmp_path / f"{find}.txt").read_text()


@pytest.mark.parametrize(
    ("finds", "megabytes", "code"), [({}, 300, 0), ({"csv-x": "KeyError"}, 300, 1), ({}, 1_001, 1)]
)
def test_a_find_and_too_much_memory_are_the_exit_code(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, finds: dict[str, str], megabytes: float, code: int
) -> None:
    monkeypatch.setattr("sys.argv", ["fuzz.py", "--target", "csv"])
    monkeypatch.setattr(benchmark, "fuzz", lambda *_: (benchmark.Account(inputs=5, finds=finds), megabytes))
    assert benchmark.main() == code
