"""A look tells what differs from what the last finished run read, reads no file twice, and announces a change once."""

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from tunewright.config import Data, Source
from tunewright.errors import ConfigError, StoreError
from tunewright.store import shared
from tunewright.tasks.ingest import files, source_files, watching
from tunewright.tasks.ingest.watching import NewestRun, changes, digest, keep_read, look

LINE = '{"instruction": "a", "output": "b"}\n'
DATA = Data(sources=(Source(path="in/*.jsonl"),))
FAILED = NewestRun(files="", has_finished=False, has_failed=True)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(watching, "SETTLED_SECONDS", 0.0)
    Path("in").mkdir()
    Path("in/a.jsonl").write_text(LINE)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose content is read."""
    content: list[str] = []
    original = files._digest
    monkeypatch.setattr(files, "_digest", lambda path: content.append(path) or original(path))
    return content


@pytest.fixture
def move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Goes to the home of another machine, which shares a store with the others."""
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "store"))
    shared._opened.cache_clear()
    return lambda name: monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / name))


def finished() -> None:
    keep_read("demo", source_files(DATA))


def test_the_first_look_says_that_no_run_has_finished() -> None:
    found = look("demo", DATA)
    assert (found.is_new, found.changes, found.num_files) == (True, ("no run has finished yet",), 1)
    assert not look("demo", DATA).is_new


def test_what_a_finished_run_read_is_no_change_whatever_its_time() -> None:
    finished()
    assert look("demo", DATA).changes == ()
    os.utime("in/a.jsonl", (1, 1))
    assert look("demo", DATA).changes == ()


def test_each_change_is_named_and_announced_once() -> None:
    finished()
    Path("in/b.jsonl").write_text(LINE)
    found = look("demo", DATA)
    assert (found.is_new, found.changes) == (True, ("new: in/b.jsonl",))
    again = look("demo", DATA)
    assert (again.is_new, again.changes) == (False, ("new: in/b.jsonl",))
    Path("in/a.jsonl").write_text(LINE * 2)
    assert look("demo", DATA).changes == ("new: in/b.jsonl", "changed: in/a.jsonl")
    finished()
    assert look("demo", DATA).changes == ()
    Path("in/b.jsonl").unlink()
    found = look("demo", DATA)
    assert (found.is_new, found.changes) == (True, ("gone: in/b.jsonl",))


def test_an_empty_home_is_no_reason_to_start_a_run_on_the_same_files_again() -> None:
    """Workers elsewhere have homes of their own, or none that is kept."""
    about = digest(source_files(DATA))
    failed = look("failed", DATA, NewestRun(about, has_finished=False, has_failed=True))
    assert (failed.is_new, failed.changes) == (False, ("no run has finished yet",))
    running = look("running", DATA, NewestRun(about, has_finished=False, has_failed=False))
    assert (running.is_new, running.changes) == (False, ("no run has finished yet",))
    finished = NewestRun(about, has_finished=True, has_failed=False)
    assert look("finished", DATA, finished).changes == ()
    Path("in/a.jsonl").write_text(LINE * 2)
    for deployment in ("failed", "running", "finished", "another home"):
        assert look(deployment, DATA, finished).is_new, deployment


def test_a_home_goes_by_a_run_on_another_machine_that_read_what_is_there_now() -> None:
    finished()
    Path("in/a.jsonl").write_text(LINE * 2)
    elsewhere = NewestRun(digest(source_files(DATA)), has_finished=True, has_failed=False)
    assert look("demo", DATA, elsewhere).changes == ()
    assert look("demo", DATA).changes == ()


def test_a_poll_in_an_empty_home_knows_by_the_store_what_a_run_on_another_machine_read(
    move: Callable[[str], None],
) -> None:
    """A run that was cancelled before it began has not said which files it would have read."""
    cancelled = NewestRun(files="", has_finished=False, has_failed=False)
    move("a")
    finished()
    move("b")
    assert watching.has_finished("demo") and look("demo", DATA, cancelled).changes == ()
    Path("in/b.jsonl").write_text(LINE)
    move("c")
    found = look("demo", DATA, cancelled)
    assert (found.is_new, found.changes) == (True, ("new: in/b.jsonl",))
    move("d")
    assert not look("demo", DATA, cancelled).is_new, "it was announced on another machine"


def test_a_store_that_does_not_answer_fails_no_run_that_has_finished(
    move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("no answer")

    move("a")
    with monkeypatch.context() as patch:
        patch.setattr(shared.SharedStore, "newest", fail)
        finished()
    assert caplog.messages == ["no answer; the next poll notes what this run read"]
    newest = NewestRun(digest(source_files(DATA)), has_finished=True, has_failed=False)
    assert look("demo", DATA, newest).changes == ()
    assert look("demo", DATA).changes == ()


def test_a_home_that_gets_a_store_goes_by_what_other_machines_saw(
    move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    move("b")
    with monkeypatch.context() as alone:
        alone.delenv("TUNEWRIGHT_STORE")
        assert look("demo", DATA).is_new
    move("a")
    finished()
    move("b")
    assert look("demo", DATA).changes == ()


def test_of_polls_on_two_machines_at_once_one_announces_a_change(
    move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    move("a")
    finished()
    Path("in/b.jsonl").write_text(LINE)
    others: list[bool] = []

    def poll_elsewhere(_: float) -> None:
        if not others:
            others.append(False)
            move("b")
            others.append(look("demo", DATA).is_new)
            move("a")

    monkeypatch.setattr(watching.time, "sleep", poll_elsewhere)
    found = look("demo", DATA)
    assert (found.is_new, others[-1], found.changes) == (False, True, ("new: in/b.jsonl",))


def test_polls_on_several_machines_that_cannot_read_the_files_are_one_outage(
    move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    move("a")
    assert watching.long_unreadable("demo") is None
    began = datetime.now(UTC)
    monkeypatch.setattr(watching, "LONG_UNREADABLE", timedelta(0))
    move("b")
    since = watching.long_unreadable("demo")
    assert since is not None and since <= began
    move("c")
    assert watching.long_unreadable("demo") is None, "once"
    look("demo", DATA)
    move("a")
    since = watching.long_unreadable("demo")
    assert since is not None and since >= began, "another outage"


def test_a_change_that_comes_back_is_announced_again() -> None:
    finished()
    Path("in/b.jsonl").write_text(LINE)
    assert look("demo", DATA).is_new
    Path("in/b.jsonl").unlink()
    assert look("demo", DATA).changes == ()
    Path("in/b.jsonl").write_text(LINE)
    assert look("demo", DATA).is_new


def test_a_change_back_is_a_change_where_the_run_between_failed() -> None:
    finished()
    Path("in/a.jsonl").write_text("broken")
    assert look("demo", DATA).is_new
    assert not look("demo", DATA, FAILED).is_new
    Path("in/a.jsonl").write_text(LINE)
    found = look("demo", DATA, FAILED)
    assert (found.is_new, found.changes) == (True, (watching.REPAIRED,))
    found = look("demo", DATA, FAILED)
    assert (found.is_new, found.changes) == (False, ()), "once"


def test_files_that_stay_unreadable_are_announced_also_where_the_clock_was_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Clock(datetime):
        """A clock that was a day fast, and is corrected."""

        hours = 24.0

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=cls.hours)

    monkeypatch.setattr(watching, "datetime", Clock)
    assert watching.long_unreadable("demo") is None
    Clock.hours = 0.0
    assert watching.long_unreadable("demo") is None
    Clock.hours = 1.1
    assert watching.long_unreadable("demo") is not None


def test_files_that_stay_unreadable_are_announced_once_until_they_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watching.long_unreadable("demo") is None, "they may be on their way"
    monkeypatch.setattr(watching, "LONG_UNREADABLE", timedelta(0))
    since = watching.long_unreadable("demo")
    assert since is not None and since <= datetime.now(UTC)
    assert watching.long_unreadable("demo") is None, "once"
    look("demo", DATA)
    assert watching.long_unreadable("demo") is not None, "another outage"


def test_a_file_that_is_the_same_is_not_read_again(read: list[str]) -> None:
    look("demo", DATA)
    assert read == ["in/a.jsonl"]
    Path("in/b.jsonl").write_text(LINE)
    look("demo", DATA)
    look("demo", DATA)
    assert read == ["in/a.jsonl", "in/b.jsonl"]


def test_an_object_in_a_store_that_says_enough_is_not_read_again(read: list[str]) -> None:
    import fsspec

    with fsspec.open("memory://watched/a.jsonl", "w") as file:
        file.write(LINE)  # pyright: ignore[reportAttributeAccessIssue]
    data = Data(sources=(Source(path="memory://watched/*.jsonl"),))
    assert look("demo", data).num_files == 1
    look("demo", data)
    assert read == ["memory:///watched/a.jsonl"]
    with fsspec.open("memory://watched/a.jsonl", "w") as file:
        file.write(LINE * 2)  # pyright: ignore[reportAttributeAccessIssue]
    look("demo", data)
    assert len(read) == 2


def test_a_file_that_is_still_being_written_is_announced_when_it_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    finished()
    Path("in/b.jsonl").write_text(LINE)
    with monkeypatch.context() as patch:
        patch.setattr(watching.time, "sleep", lambda _: Path("in/b.jsonl").write_text(LINE * 3))
        found = look("demo", DATA)
    assert (found.is_new, found.is_unsettled, found.changes) == (False, True, ("new: in/b.jsonl",))
    found = look("demo", DATA)
    assert (found.is_new, found.is_unsettled) == (True, False)


def test_deployments_do_not_share_what_they_have_seen() -> None:
    finished()
    assert look("demo", DATA).changes == ()
    assert look("other", DATA).is_new


def test_files_that_are_not_there_yet_say_so_and_are_not_announced() -> None:
    with pytest.raises(ConfigError, match=r"data.sources\[0\].path=in/\*.csv: no file matches"):
        look("demo", Data(sources=(Source(path="in/*.csv"),)))


def test_a_memory_that_was_cut_off_is_none(home: Path) -> None:
    look("demo", DATA)
    for name in ("seen.json", "state.json"):
        file = home / "watch" / "demo" / name
        file.write_text(file.read_text()[:20])
    assert look("demo", DATA).num_files == 1


def test_many_changes_are_counted() -> None:
    found = changes({}, {f"{n}.jsonl": "" for n in range(5)})
    assert watching.shown(found) == "new: 0.jsonl, new: 1.jsonl, new: 2.jsonl and 2 more"
