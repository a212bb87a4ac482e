"""Work in progress is never taken from a run, and does not stay for ever."""

import os
import time
from pathlib import Path

from tasks import abandoned
from tasks.caching import lock, work_folder


def work_on(artifact: Path, days: float) -> Path:
    """The work on an artifact, untouched for so many days."""
    work = work_folder(artifact)
    (work / "checkpoints").mkdir(parents=True)
    (work / "metrics.jsonl").write_text("")
    then = time.time() - days * 86_400
    for path in (*work.iterdir(), work):
        os.utime(path, (then, then))
    return work


def test_only_work_that_nobody_touched_for_a_week_and_no_run_holds_is_removed(home: Path) -> None:
    stage = home / "artifacts" / "train"
    old, young, held = (work_on(stage / name, days) for name, days in (("old", 7.1), ("young", 6.9), ("held", 30)))
    with lock(stage / "held"):
        abandoned.remove(stage)
        assert [work.exists() for work in (old, young, held)] == [False, True, True]
    abandoned.remove(stage)
    assert [work.exists() for work in (young, held)] == [True, False]


def test_a_stage_without_work_has_nothing_to_remove(home: Path) -> None:
    abandoned.remove(home / "artifacts" / "train")
