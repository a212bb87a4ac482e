"""Nothing is done twice, nothing stale is reused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Harness
from prefect import flow, task
from waiting import until

from tunewright.artifacts import UniqueRows
from tunewright.config import Dedupe
from tunewright.errors import DataError, TunewrightError
from tunewright.store.cache_key import differing
from tunewright.store.caching import MANIFEST, cached, kept, lock, seconds_of


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


def test_a_changed_setting_is_a_miss_and_the_nearest_of_the_given_keys_is_found() -> None:
    first, other = made("a", Dedupe()), made("b", Dedupe(semantic=0.9))
    found = made.look_up("a", Dedupe(threshold=0.8))
    assert (found.record, found.fault) == (None, "")
    nearest = made.nearest(found.ingredients, [other.key, "gone", first.key])
    assert nearest
    assert nearest.record == first
    assert differing(nearest.manifest.ingredients, found.ingredients) == ["settings.threshold"]
    assert made.nearest(found.ingredients, []) is None


def test_an_altered_or_deleted_file_is_a_miss_and_is_made_again(tmp_path: Path) -> None:
    first = made("a", Dedupe())
    first.path("rows.txt").write_text("b")
    assert made.look_up("a", Dedupe()).fault == f"artifact {first.key}: rows.txt was altered"
    again = made("a", Dedupe())
    assert again.path("rows.txt").read_text() == "a"
    again.path("rows.txt").unlink()
    assert made.look_up("a", Dedupe()).fault == f"artifact {first.key}: rows.txt is missing"
    assert made("a", Dedupe()).path("rows.txt").read_text() == "a"
    assert calls(tmp_path) == 3


def test_a_file_or_a_link_that_was_added_is_a_miss(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model/config.json", "model/link"):
        added = made("a", Dedupe()).path(name)
        added.parent.mkdir(exist_ok=True)
        added.symlink_to(tmp_path) if name.endswith("link") else added.write_text("{}")
        assert made.look_up("a", Dedupe()).fault.endswith(f": {name} was added")
        assert not made("a", Dedupe()).path(name).is_symlink()
        assert not made("a", Dedupe()).path(name).exists()
    assert calls(tmp_path) == 4


def test_one_byte_changed_in_any_file_of_an_artifact_is_a_miss(home: Path) -> None:
    first = made("a", Dedupe())
    files = [*first.folder.iterdir(), home / "made" / "made" / first.key]
    assert {file.name for file in files} == {"rows.txt", "report.txt", MANIFEST, first.key}
    for file in files:
        whole = file.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            assert made.look_up("a", Dedupe()).record is None, f"{file.name} byte {at}"
            assert kept(UniqueRows, "made", first.key) is None
        file.write_bytes(whole)
        assert made.look_up("a", Dedupe()).record == first


def edited(manifest: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A manifest without one of its fields, with a wrong type in one, and the same of its record and its files."""
    for field in manifest:
        yield {name: value for name, value in manifest.items() if name != field}
        yield manifest | {field: 7}
    for field in manifest["record"]:
        yield manifest | {"record": {name: value for name, value in manifest["record"].items() if name != field}}
    yield manifest | {"record": manifest["record"] | {"num_rows": "many"}}
    yield manifest | {"record": manifest["record"] | {"num_rows": 2}}
    yield manifest | {"files": {"rows.txt": {"size": 1}}}
    yield manifest | {"files": {}}


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "\x00" * 40, '{"record": {}}', "[" * 100_000])
def test_a_manifest_that_is_none_is_a_miss(text: str) -> None:
    first = made("a", Dedupe())
    first.path(MANIFEST).write_text(text)
    assert made.look_up("a", Dedupe()).fault == f"artifact {first.key}: {MANIFEST} was altered"
    assert made.nearest(made.ingredients("a", Dedupe()), [first.key]) is None
    assert made("a", Dedupe()) == first


@pytest.mark.parametrize("name", ["a" * 300, "a\0b", "../../elsewhere", "/etc/passwd", "a\nb"])
def test_a_manifest_that_names_what_cannot_be_there_is_a_miss(name: str, home: Path) -> None:
    first = made("a", Dedupe())
    manifest = json.loads(first.path(MANIFEST).read_text())
    first.path(MANIFEST).write_text(json.dumps(manifest | {"files": {name: {"sha256": "", "size": 1}}}))
    (home / "made" / first.stage / first.key).unlink()  # or the manifest is refused as a whole
    fault = made.look_up("a", Dedupe()).fault
    assert fault.isprintable()
    assert fault.endswith(" is missing")


def test_a_folder_in_the_place_of_a_manifest_is_a_miss() -> None:
    first = made("a", Dedupe())
    first.path(MANIFEST).unlink()
    first.path(MANIFEST).mkdir()
    assert made.look_up("a", Dedupe()).fault == f"artifact {first.key}: {MANIFEST} was altered"


def test_an_edited_manifest_is_a_miss() -> None:
    first = made("a", Dedupe())
    file = first.path(MANIFEST)
    whole = file.read_text()
    cases = list(edited(json.loads(whole)))
    assert len(cases) > 30
    for case in cases:
        file.write_text(json.dumps(case))
        assert made.look_up("a", Dedupe()).record is None, case
        assert made.nearest(made.ingredients("a", Dedupe()), [first.key]) is None, case
    file.write_text(whole)
    assert made.look_up("a", Dedupe()).record == first


def test_another_artifact_in_the_place_of_the_one_that_was_made_is_a_miss(home: Path) -> None:
    first, other = made("a", Dedupe()), made("b", Dedupe())
    shutil.rmtree(first.folder)
    shutil.copytree(other.folder, first.folder)
    assert made.look_up("a", Dedupe()).fault == f"artifact {first.key}: {MANIFEST} was altered"
    text = first.path(MANIFEST).read_text().replace(other.key, first.key)
    forged = json.loads(text) | {"ingredients": made.ingredients("a", Dedupe())}
    first.path(MANIFEST).write_text(json.dumps(forged))
    assert made.look_up("a", Dedupe()).fault == f"artifact {first.key}: {MANIFEST} was altered"
    (home / "made" / "made" / first.key).unlink()
    assert made.look_up("a", Dedupe()).record, "whoever can write all of the home is the user"


def test_an_artifact_of_an_earlier_version_or_another_home_is_a_hit_if_it_is_consistent(home: Path) -> None:
    first = made("a", Dedupe())
    shutil.rmtree(home / "made")
    assert made("a", Dedupe()) == first
    forged = json.loads(first.path(MANIFEST).read_text())
    first.path(MANIFEST).write_text(json.dumps(forged | {"ingredients": forged["ingredients"] | {"text": "b"}}))
    assert made.look_up("a", Dedupe()).record is None


def test_what_was_made_elsewhere_and_is_lost_there_is_made_again(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"

    def lost(record: UniqueRows) -> str:
        return "" if elsewhere.exists() else f"{record.num_rows} is gone"

    @cached(lost=lost)
    def registering(folder: Path, text: str) -> UniqueRows:
        elsewhere.write_text(text)
        return UniqueRows(num_rows=7, num_removed=0, reasons={}, boilerplate=())

    registering("a")
    assert registering.look_up("a").record
    elsewhere.unlink()
    found = registering.look_up("a")
    assert (found.record, found.fault) == (None, "7 is gone")
    registering("a")
    assert elsewhere.read_text() == "a"


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
from tunewright.artifacts import UniqueRows
from tunewright.store.caching import cached

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


@pytest.fixture
def server(prefect_harness: Harness) -> Iterator[None]:
    """One of Prefect's for flows, which ends with the test."""
    with prefect_harness():
        yield


@pytest.mark.usefixtures("server")
def test_waiting_for_another_process_is_logged_and_not_saved(caplog: pytest.LogCaptureFixture) -> None:
    @cached()
    def slow(folder: Path, text: str) -> UniqueRows:
        time.sleep(0.3)
        (folder / "rows.txt").write_text(text)
        return UniqueRows(num_rows=1, num_removed=0, reasons={}, boilerplate=())

    @flow
    def saved() -> str:
        state: Any = task(slow)("a", return_state=True)
        return state.message.partition(", ")[2]

    def hold() -> None:
        with lock(record.folder):
            held.set()
            until(lambda: "waiting for another run" in caplog.text)
            time.sleep(seconds_of(record))

    caplog.set_level("INFO", "tunewright")
    record, held = slow("a"), threading.Event()
    assert saved() == f"{seconds_of(record):.1f} s saved" != "0.0 s saved"
    assert slow.waited == {}
    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(30)
    assert saved() == f"0.0 s saved (it took {seconds_of(record):.1f} s, for which this run waited)"
    holder.join()
    assert slow.waited[record.key] > 0.3
    assert f"waiting for another run that is making this artifact: slow {record.key}" in caplog.text
    assert saved() != "0.0 s saved", "this one did not wait"


def test_a_killed_holder_blocks_nobody(tmp_path: Path) -> None:
    holder = start(tmp_path, 600)
    assert holder.stdout and holder.stdout.readline() == "started\n"
    waiting = start(tmp_path, 0)
    time.sleep(0.5)
    holder.send_signal(signal.SIGKILL)
    assert "started" in waiting.communicate(timeout=60)[0]


@cached()
def refusing(folder: Path, text: str, settings: Dedupe) -> UniqueRows:
    (folder / "rows.txt").write_text(text)
    (folder / "removed.txt").write_text(text)
    if (folder.parents[3] / "refuse").exists():
        raise DataError(f"{text} is refused", see=("removed.txt", "never_written.txt"))
    return UniqueRows(num_rows=1, num_removed=0, reasons={}, boilerplate=())


def test_a_stage_that_refuses_its_data_leaves_what_it_names_and_no_artifact(tmp_path: Path, home: Path) -> None:
    (tmp_path / "refuse").touch()
    with pytest.raises(DataError) as caught:
        refusing("a", Dedupe())
    left = refusing.look_up("a", Dedupe()).stopped
    assert left
    assert (left.message, left.files, left.run) == ("a is refused", ("removed.txt",), "a call outside a flow")
    assert str(caught.value) == f"a is refused; see {left.folder / 'removed.txt'}"
    assert left.folder == home / "stopped" / "refusing" / refusing.key("a", Dedupe())
    assert sorted(path.name for path in left.folder.iterdir()) == ["removed.txt", "stopped.json"]
    assert refusing.look_up("a", Dedupe()).record is None
    assert not [path for path in (home / "artifacts").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert refusing.look_up("a", Dedupe(threshold=0.8)).stopped is None


def test_what_a_stage_left_is_replaced_when_it_stops_again_and_goes_when_it_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refuse").touch()
    with pytest.raises(DataError):
        refusing("a", Dedupe())
    left = refusing.look_up("a", Dedupe()).stopped
    assert left
    left.path("removed.txt").write_text("of the first time")
    with pytest.raises(DataError, match=r"; see home/stopped/refusing/\w+/removed.txt$"):
        refusing("a", Dedupe())
    assert left.path("removed.txt").read_text() == "a"
    (tmp_path / "refuse").unlink()
    refusing("a", Dedupe())
    assert not left.folder.exists()
    assert refusing.look_up("a", Dedupe()).stopped is None


def test_a_disk_that_is_full_does_not_hide_why_a_stage_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "refuse").touch()
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(DataError, match=r"^a is refused$"):
        refusing("a", Dedupe())
    assert refusing.look_up("a", Dedupe()).stopped is None


def test_a_note_that_was_half_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    with pytest.raises(DataError):
        refusing("a", Dedupe())
    left = refusing.look_up("a", Dedupe()).stopped
    assert left
    for half in ('{"mess', "[]", "{}"):
        left.path("stopped.json").write_text(half)
        assert refusing.look_up("a", Dedupe()).stopped is None
