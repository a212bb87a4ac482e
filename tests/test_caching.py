"""Nothing is done twice, nothing stale is reused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks.artifacts import UniqueRows
from tasks.caching import MANIFEST, cached
from tasks.config import Dedupe
from tasks.errors import TunewrightError


@cached(libraries=("numpy",), volatile=("report",))
def made(folder: Path, text: str, settings: Dedupe) -> UniqueRows:
    (folder / "rows.txt").write_text(text)
    (folder / "report.txt").write_text(str(time.time()))
    with (folder.parents[3] / "calls").open("a") as calls:
        calls.write("x")
    return UniqueRows(num_rows=len(text), num_removed=0, reasons={}, boilerplate=())


def calls(tmp_path: Path) -> int:
    return len((tmp_path / "calls").read_text())


def test_a_second_call_is_a_hit(tmp_path: Path) -> None:
    first = made("a", Dedupe())
    assert made("a", Dedupe()) == first
    assert calls(tmp_path) == 1
    assert json.loads(first.path(MANIFEST).read_text())["record"]["num_rows"] == 1


def test_a_changed_setting_is_a_miss_that_is_explained(tmp_path: Path) -> None:
    made("a", Dedupe())
    assert made.find("a", Dedupe(threshold=0.8)) is None
    assert made.because("a", Dedupe(threshold=0.8)) == ["settings.threshold: 0.6 -> 0.8"]
    assert made.because("b", Dedupe()) == ['text: "a" -> "b"']


def test_an_altered_or_deleted_file_is_a_miss_and_is_made_again(tmp_path: Path) -> None:
    first = made("a", Dedupe())
    first.path("rows.txt").write_text("b")
    assert made.because("a", Dedupe()) == [f"artifact {first.key}: rows.txt was altered"]
    again = made("a", Dedupe())
    assert again.path("rows.txt").read_text() == "a"
    again.path("rows.txt").unlink()
    assert made.because("a", Dedupe()) == [f"artifact {first.key}: rows.txt is missing"]
    assert made("a", Dedupe()).path("rows.txt").read_text() == "a"
    assert calls(tmp_path) == 3


def test_equal_content_has_an_equal_digest_whatever_the_volatile_files_say(tmp_path: Path) -> None:
    assert made("a", Dedupe()).digest == made("a", Dedupe(threshold=0.8)).digest


def test_a_failed_call_leaves_nothing_behind(tmp_path: Path) -> None:
    @cached()
    def failing(folder: Path, text: str) -> UniqueRows:
        (folder / "half").write_text(text)
        raise OSError(28, "No space left on device")

    with pytest.raises(TunewrightError, match=r"no space left on the disk of .*failing: free some"):
        failing("a")
    assert [p for p in (tmp_path / "home").rglob("*") if p.is_file() and p.suffix != ".lock"] == []


SLOW = """
import sys, time
from pathlib import Path
from tasks.artifacts import UniqueRows
from tasks.caching import cached

@cached()
def slow(folder: Path, text: str) -> UniqueRows:
    print("started", flush=True)
    time.sleep(float(sys.argv[1]))
    (folder / "rows.txt").write_text(text)
    return UniqueRows(num_rows=1, num_removed=0, reasons={}, boilerplate=())

slow("a")
"""


def start(tmp_path: Path, seconds: float) -> subprocess.Popen[str]:
    script = tmp_path / "slow.py"
    script.write_text(SLOW)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])}
    command = [sys.executable, "-c", "import slow", str(seconds)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_two_identical_calls_at_once_do_the_work_once(tmp_path: Path) -> None:
    processes = [start(tmp_path, 2) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert "".join(outputs).count("started") == 1


def test_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    holder = start(tmp_path, 600)
    assert holder.stdout and holder.stdout.readline() == "started\n"
    waiting = start(tmp_path, 0)
    time.sleep(0.5)
    holder.send_signal(signal.SIGKILL)
    assert "started" in waiting.communicate(timeout=60)[0]
