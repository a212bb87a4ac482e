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
from pathlib import Path

import pytest
from waiting import until

from tunewright import config
from tunewright.cost_model import devices, identities_here, one_at_a_time
from tunewright.cost_model.one_at_a_time import held
from tunewright.errors import ConfigError

HOLDER = """
import sys, time
from pathlib import Path
from tunewright import config
from tunewright.cost_model import one_at_a_time
config.device_locks = lambda: Path(sys.argv[1])
with one_at_a_time.held("cpu", 'run "brave-otter"'):
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
    with held("cpu", "run quiet-owl"):
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
        with held("cpu", "run quiet-owl"):
            served.append(place)

    threads = [threading.Thread(target=wait, args=(place,)) for place in range(4)]
    with held("cpu", "run early-bird"):
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(tickets()) < number:
                time.sleep(0.01)
        for said in ("early-bird", "; 1 other waits before this one", "; 2 others wait before this one"):
            until(lambda said=said: said in caplog.text, every=0.01)
    with held("cpu", "run early-bird"):  # again, as the next stage of a run does
        served.append(9)
    for thread in threads:
        thread.join(10)
    assert served == [0, 1, 2, 3, 9]
    assert not tickets()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_one_who_waits_and_died_or_stands_still_keeps_nobody_waiting(
    how: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_at_a_time, "PAUSED_SECONDS", 1.0)
    waiting = [sys.executable, "-c", HOLDER, str(config.device_locks()), "0"]
    with held("cpu", "run early-bird"):
        process = subprocess.Popen(waiting, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])})
        while not tickets():
            time.sleep(0.01)
        process.send_signal(how)
    with held("cpu", "run quiet-owl"):
        process.kill()
    process.wait(10)


def tickets() -> list[Path]:
    return [*config.device_locks().glob("cpu.*.ticket")]  # one without its name yet, .cpu.*, keeps nobody waiting


def test_a_killed_holder_blocks_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    process = holder(600)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    with held("cpu", "run quiet-owl"):
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
    with pytest.raises(ConfigError, match=rf"{folder}: .*set TMPDIR to a folder of your own"), held("cpu", "run a"):
        pass


def test_the_folder_is_closed_to_others() -> None:
    config.device_locks().mkdir(mode=0o777)
    with held("cpu", "run a"):
        assert stat.S_IMODE(config.device_locks().stat().st_mode) == 0o700


def test_what_a_holder_wrote_reaches_no_terminal_as_a_command(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    process = holder(1.0)
    (config.device_locks() / "cpu.lock").write_text("\x1b]52;c;aGk=\x07run x" + "y" * 1000)
    with held("cpu", "run quiet-owl"):
        process.wait(10)
    assert caplog.messages[0].isprintable() and "run x" in caplog.messages[0] and len(caplog.messages[0]) < 300


def test_threads_of_one_process_wait_for_each_other_and_devices_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_at_a_time, "LOOK_SECONDS", 0.01)
    entered = threading.Event()

    def enter() -> None:
        with held("cpu", "run second"):
            entered.set()

    with held("cpu", "run first"):
        thread = threading.Thread(target=enter)
        thread.start()
        with held("GPU-1", "run third"):
            time.sleep(0.1)
        assert not entered.is_set()
    thread.join(10)
    assert entered.is_set()


@pytest.mark.parametrize(
    ("visible", "identity"),
    [(None, "GPU-aa"), ("1", "GPU-bb"), ("GPU-b", "GPU-bb"), ("MIG-c", "MIG-c"), ("", "cpu"), ("-1", "cpu")],
)
def test_a_device_is_known_by_its_uuid_however_it_is_named(
    visible: str | None, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_told_by_driver", lambda: [["0", "GPU-aa", *"abcd"], ["1", "GPU-bb", *"abcd"]])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert identities_here() == [identity]


def test_without_a_driver_the_processors_are_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_told_by_driver", list)
    assert identities_here() == ["cpu"]


def test_several_devices_are_held_at_once_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = [["0", "GPU-bb", *"abcd"], ["1", "GPU-aa", *"abcd"], ["2", "GPU-cc", *"abcd"]]
    monkeypatch.setattr(devices, "_told_by_driver", lambda: shown)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with one_at_a_time.on_devices(2):
        held_now = {file.stem for file in config.device_locks().glob("*.lock") if file.read_text()}
        assert held_now == {"GPU-aa", "GPU-bb"}
        with held("GPU-cc", "another run"):
            pass
    assert not any(file.read_text() for file in config.device_locks().glob("*.lock"))
