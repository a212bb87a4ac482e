"""A device trains one at a time, the second waits and says for whom, and a killed holder blocks nobody."""

import logging
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from waiting import until

from tunewright import config, machine
from tunewright.config import environment
from tunewright.cost_model import devices, of_run, on_devices, one_at_a_time
from tunewright.cost_model.devices import gpus_here
from tunewright.cost_model.one_at_a_time import held
from tunewright.errors import ConfigError
from tunewright.modeling.models import device_to_load

HOLDER = """
import sys, time
from pathlib import Path
from tunewright import config
from tunewright.cost_model import one_at_a_time
config.device_locks = lambda: Path(sys.argv[1])
with one_at_a_time.held(["cpu"], 'run "brave-otter"'):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def holder(seconds: float) -> "subprocess.Popen[str]":
    """Another process that has the device."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", HOLDER, str(config.device_locks()), str(seconds)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_the_second_waits_and_says_for_whom(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    process = holder(1.5)
    with held(["cpu"], "run quiet-owl"):
        assert process.wait(10) == 0
    first, last = caplog.messages
    of_today = r"\d\d:\d\d:\d\d \S+"
    by = rf'by run "brave-otter" \(process {process.pid}\)'
    assert re.fullmatch(f"  waiting for the CPU: in use since {of_today} {by}", first)
    assert last == "  the device is free"


def test_first_come_first_served(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    monkeypatch.setattr(one_at_a_time, "LOOK_SECONDS", 0.01)
    served: list[int] = []

    def wait(place: int) -> None:
        with held(["cpu"], "run quiet-owl"):
            served.append(place)

    threads = [threading.Thread(target=wait, args=(place,)) for place in range(4)]
    with held(["cpu"], "run early-bird"):
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(tickets()) < number:
                time.sleep(0.01)
        for said in ("early-bird", "; 1 other waits before this one", "; 2 others wait before this one"):
            until(lambda said=said: said in caplog.text, every=0.01)
    with held(["cpu"], "run early-bird"):  # again, as the next stage of a run does
        served.append(9)
    for thread in threads:
        thread.join(10)
    assert served == [0, 1, 2, 3, 9]
    assert not tickets()


@pytest.mark.parametrize(
    ("how", "set_back_seconds"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 0), (signal.SIGSTOP, 3600)]
)
def test_one_who_waits_and_died_or_stands_still_keeps_nobody_waiting(
    how: signal.Signals, set_back_seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_at_a_time, "PAUSED_SECONDS", 1.0)
    waiting = [sys.executable, "-c", HOLDER, str(config.device_locks()), "0"]
    with held(["cpu"], "run early-bird"):
        process = subprocess.Popen(waiting, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})
        while not tickets():
            time.sleep(0.01)
        process.send_signal(how)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - set_back_seconds)
    with held(["cpu"], "run quiet-owl"):
        process.kill()
    process.wait(10)


def tickets() -> list[Path]:
    return [*config.device_locks().glob("queue.*.ticket")]  # one without its name yet keeps nobody waiting


def test_a_killed_holder_blocks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    process = holder(600)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    with held(["cpu"], "run quiet-owl"):
        assert caplog.messages == []


@pytest.mark.parametrize("made", ["by another user", "as a link", "as a file"])
def test_a_folder_that_another_user_may_have_made_is_refused(
    made: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = config.device_locks()
    if made == "by another user":
        folder.mkdir()
        monkeypatch.setattr("tunewright.cost_model.one_at_a_time.os.getuid", lambda: folder.stat().st_uid + 1)
    elif made == "as a link":
        folder.symlink_to(tmp_path)
    else:
        folder.touch()
    with pytest.raises(ConfigError, match=rf"{folder}: .*set TUNEWRIGHT_LOCKS to a folder"), held(["cpu"], "run a"):
        pass


def test_containers_may_name_a_folder_of_locks_that_they_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, shared = environment.device_locks(), tmp_path / "volume" / "locks"
    monkeypatch.setenv("TUNEWRIGHT_LOCKS", str(shared))
    assert environment.device_locks() == shared != own
    monkeypatch.setattr(config, "device_locks", environment.device_locks)
    with held(["cpu"], "run a"):
        assert (shared / "cpu.lock").read_text()
    (tmp_path / "file").touch()
    monkeypatch.setenv("TUNEWRIGHT_LOCKS", str(tmp_path / "file" / "locks"))
    with pytest.raises(ConfigError, match=r"file/locks: cannot be created .*: Not a directory; set TUNEWRIGHT_LOCKS"):
        one_at_a_time.own_folder()


def test_the_folder_is_closed_to_others() -> None:
    config.device_locks().mkdir(mode=0o777)
    with held(["cpu"], "run a"):
        assert stat.S_IMODE(config.device_locks().stat().st_mode) == 0o700


def test_what_a_holder_wrote_reaches_no_terminal_as_a_command(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    process = holder(1.0)
    (config.device_locks() / "cpu.lock").write_text("\x1b]52;c;aGk=\x07run x" + "y" * 1000)
    with held(["cpu"], "run quiet-owl"):
        process.wait(10)
    assert caplog.messages[0].isprintable() and "run x" in caplog.messages[0] and len(caplog.messages[0]) < 300


def test_threads_of_one_process_wait_for_each_other_and_devices_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_at_a_time, "LOOK_SECONDS", 0.01)
    entered = threading.Event()

    def enter() -> None:
        with held(["cpu"], "run second"):
            entered.set()

    with held(["cpu"], "run first"):
        thread = threading.Thread(target=enter)
        thread.start()
        with held(["GPU-1"], "run third"):
            time.sleep(0.1)
        assert not entered.is_set()
    thread.join(10)
    assert entered.is_set()


@pytest.mark.parametrize(
    ("visible", "found"),
    [
        (None, {"GPU-aa": "0", "GPU-bb": "1"}),
        ("1", {"GPU-bb": "1"}),
        ("GPU-b", {"GPU-bb": "GPU-b"}),
        ("MIG-c,MIG-d", {"MIG-c": "MIG-c", "MIG-d": "MIG-d"}),
        ("", {}),
        ("-1", {}),
    ],
)
def test_a_device_is_known_by_its_uuid_however_it_is_named(
    visible: str | None, found: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_told_by_driver", lambda: [["0", "GPU-aa", *"abcd"], ["1", "GPU-bb", *"abcd"]])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus_here() == found


def test_without_a_driver_the_processors_are_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_told_by_driver", list)
    assert gpus_here() == {}
    with on_devices(2):
        assert [file.stem for file in config.device_locks().glob("*.lock") if file.read_text()] == ["cpu"]


THREE = ("GPU-aa", "GPU-bb", "GPU-cc")


@pytest.fixture
def three_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with three GPUs, all of them free."""
    shown = [[str(number), uuid, *"abcd"] for number, uuid in enumerate(THREE)]
    monkeypatch.setattr(devices, "_told_by_driver", lambda: shown)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(one_at_a_time, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(one_at_a_time, "_LAST", [])


def in_use() -> set[str]:
    return {file.stem for file in config.device_locks().glob("*.lock") if file.read_text()}


class Waiter(threading.Thread):
    """A run that wants some of the devices, holds them until it is told to end, and says which they are."""

    def __init__(self, wanted: Sequence[str], number: int, name: str = "waiter", priority: int = 0) -> None:
        super().__init__(daemon=True)
        self.wanted, self.number, self.name, self.priority = wanted, number, name, priority
        self.mine: tuple[str, ...] = ()
        self.holds, self.ends = threading.Event(), threading.Event()

    def run(self) -> None:
        with of_run(priority=self.priority), held(self.wanted, f"run {self.name}", self.number) as self.mine:
            self.holds.set()
            self.ends.wait(150)


def test_a_run_takes_gpus_that_are_free_and_its_training_sees_no_others(three_gpus: None) -> None:
    with held(["GPU-aa"], "another run"):
        with on_devices(2):
            assert in_use() == {*THREE}
            assert machine.first_gpus(9) == ["1", "2"] and machine.first_gpu() == "1"
        with on_devices():
            assert machine.first_gpus(9) == ["1"]
    with on_devices():
        assert machine.first_gpus(9) == ["1"], "the one that it held before"
    assert machine.first_gpus(9)[:3] == ["0", "1", "2"]
    assert in_use() == set()


def test_of_fewer_gpus_than_are_asked_for_all_are_held(three_gpus: None) -> None:
    with on_devices(8):
        assert in_use() == {*THREE}


def test_who_needs_several_gpus_is_not_overtaken_by_those_that_need_one(
    three_gpus: None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    with held(["GPU-aa"], "run early-bird"):
        large, small = Waiter(THREE, 3, "large"), Waiter(THREE, 1, "small")
        large.start()
        until(lambda: len(tickets()) == 1, every=0.01)
        small.start()
        until(lambda: "1 other waits before this one" in caplog.text, every=0.01)
        until(lambda: "waiting for 3 of 3 GPUs: GPU-aa in use since " in caplog.text, every=0.01)
        assert "early-bird" in caplog.text
        assert not large.holds.is_set() and not small.holds.is_set()
        with held(["GPU-dd"], "run elsewhere"):
            pass  # who waits for other GPUs does not keep it waiting
    assert large.holds.wait(150) and {*large.mine} == {*THREE}
    assert not small.holds.is_set()
    large.ends.set()
    assert small.holds.wait(150) and len(small.mine) == 1
    small.ends.set()
    small.join(10)


def test_a_higher_priority_is_served_first(three_gpus: None) -> None:
    served: list[str] = []
    with held(["GPU-aa"], "run early-bird"):
        waiters = [Waiter(["GPU-aa"], 1, str(priority), priority) for priority in (-5, 0, 100, 7)]
        for number, waiter in enumerate(waiters, start=1):
            waiter.start()
            until(lambda number=number: len(tickets()) == number, every=0.01)
    for _ in waiters:
        until(lambda: any(waiter.holds.is_set() for waiter in waiters if waiter.name not in served), every=0.01)
        (now,) = (waiter for waiter in waiters if waiter.holds.is_set() and waiter.name not in served)
        served.append(now.name)
        now.ends.set()
        now.join(10)
    assert served == ["100", "7", "0", "-5"]


def test_a_model_is_loaded_on_the_gpu_that_is_held(three_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert device_to_load() == "cuda" and chosen == [0], "outside of a run the first"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-aa")
    with held(["GPU-cc"], "another run"), on_devices():
        device_to_load()
    assert chosen == [0, 1], "the second of those that are shown"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_to_load() == "cpu"
