"""Work in progress is never taken from a run, and does not stay for ever."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tunewright.store import needless
from tunewright.store.caching import lock, work_folder


def work_on(artifact: Path, days: float) -> Path:
    """The work on an artifact, untouched for so many days."""
    work = work_folder(artifact)
    (work / "checkpoints").mkdir(parents=True)
    (work / "metrics.jsonl").write_text("")
    then = time.time() - days * 86_400
    for path in (*work.iterdir(), work):
        os.utime(path, (then, then))
    return work


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`clock(days)` sets the clock so many days ahead; files get their times from the true one, or by hand."""
    true = time.time

    def ahead(days: float) -> None:
        monkeypatch.setattr(time, "time", lambda: true() + days * 86_400)

    return ahead


def test_only_work_that_nobody_touched_for_a_week_and_no_run_holds_is_removed(
    home: Path, clock: Callable[[float], None]
) -> None:
    stage = home / "artifacts" / "train"
    old, young, held = (work_on(stage / name, days) for name, days in (("old", 7.1), ("young", 5.8), ("held", 30)))
    needless.remove_stale(stage)
    assert all(work.exists() for work in (old, young, held)), "until a day later it is found so again"
    clock(1.1)
    with lock(stage / "held"):
        needless.remove_stale(stage)
        assert [work.exists() for work in (old, young, held)] == [False, True, True]
    needless.remove_stale(stage)
    assert [work.exists() for work in (young, held)] == [True, False]


def test_a_clock_that_is_wrong_for_a_while_removes_nothing(home: Path, clock: Callable[[float], None]) -> None:
    stage = home / "artifacts" / "train"
    work = work_on(stage / "young", 1)
    clock(400)
    needless.remove_stale(stage)
    then = time.time()
    os.utime(work / needless.MARK, (then, then))  # as the kernel would set it by that clock
    clock(0)
    for _ in range(2):
        needless.remove_stale(stage)
    assert work.exists()
    assert not (work / needless.MARK).exists()


def test_a_stage_without_work_has_nothing_to_remove(home: Path) -> None:
    needless.remove_stale(home / "artifacts" / "train")
