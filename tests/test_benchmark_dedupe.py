"""benchmarks/dedupe.py says that something does not hold where it does not, by the clock or by CPU time."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def benchmark() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
        yield importlib.import_module("dedupe")


def results(benchmark: ModuleType, seconds: float, cpu: float, **ours: Any) -> dict[str, dict[str, Any]]:
    """datasketch's bulk interface takes so much; what else ours did is given."""
    shares = dict.fromkeys(benchmark.DUPLICATES, 1.0) | dict.fromkeys(benchmark.LOOKALIKES, 0.0)
    one = {"seconds": 1.0, "cpu": 2.0, "mb": 100.0, "removed": [1, 2], "unverified": 0, "shares": shares}
    return {
        "ours": one | ours,
        "datasketch": one | {"seconds": 90.0, "cpu": 90.0},
        "datasketch_bulk": one | {"seconds": seconds, "cpu": cpu},
    }


@pytest.mark.parametrize(
    ("seconds", "cpu", "said"), [(8.0, 16.0, []), (20.0, 15.0, ["7.50 times"]), (7.0, 30.0, ["7.00 times"])]
)
def test_the_smaller_of_both_ratios_counts(benchmark: ModuleType, seconds: float, cpu: float, said: list[str]) -> None:
    found = benchmark.failures(results(benchmark, seconds, cpu))
    assert found == [f"{ratio} datasketch's speed, under 8" for ratio in said]


def test_less_recall_a_wrong_removal_and_an_unverified_one_do_not_hold(benchmark: ModuleType) -> None:
    shares = results(benchmark, 9.0, 18.0)["ours"]["shares"] | {"edit_5": 0.9, "other_slot": 0.1}
    found = benchmark.failures(results(benchmark, 9.0, 18.0, shares=shares, unverified=3))
    assert found == ["recall under datasketch's: edit_5", "wrongly removed: other_slot", "3 unverified removals"]


def test_each_side_has_a_line_with_both_ratios(benchmark: ModuleType) -> None:
    lines = benchmark.table(results(benchmark, 9.0, 17.0), dict.fromkeys(benchmark.DUPLICATES, 1.0)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[3].split()[:5] == ["datasketch_bulk", "9.0", "9.0", "17.0", "8.5"]
