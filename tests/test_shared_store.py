"""Two homes and one store: nothing is made twice, no line of a history is lost, what arrives is whole or not there."""

import errno
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import atomic_moto
import pytest
import waiting
from moto.s3.models import S3Backend
from moto.s3.responses import S3Response
from pydantic import BaseModel

from tunewright import config
from tunewright.artifacts import Artifact, Base, UniqueRows
from tunewright.errors import ConfigError, StoreError, StoreRefused, TunewrightError, is_transient
from tunewright.modeling.models import identity
from tunewright.registry.alias_history import moving
from tunewright.serving import find_base, weights_digest
from tunewright.store import bases, disk, histories, pipelines, shared
from tunewright.store.caching import cached
from tunewright.store.histories import held, up_to_date
from tunewright.store.manifest import files_in, folder_of
from tunewright.store.needless import Needless, in_store
from tunewright.store.shared import File, SharedStore, Stored, shared_store
from tunewright.tasks.train import shared_checkpoints
from tunewright.tasks.train.trainer import checkpoints


class Line(BaseModel):
    """A line of a history."""

    said: str


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SharedStore:
    """An empty store, as a folder and as an S3 bucket."""
    url = str(tmp_path / "store")
    if request.param == "s3":
        url = f"s3://bucket/{tmp_path.name.replace('_', '-')}"
        request.getfixturevalue("s3")
    else:
        Path(url).mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", url)
    shared._opened.cache_clear()
    found = shared_store()
    assert found
    return found


@pytest.fixture
def move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Goes to the home of another machine."""

    def move(name: str) -> None:
        monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / name))
        config.make_home()

    return move


def make_stage(calls: list[str]) -> Any:
    """A stage that says when it runs."""

    @cached()
    def draw(folder: Path, *, word: str) -> Artifact:
        calls.append(word)
        (folder / "deep").mkdir()
        (folder / "deep" / "word.txt").write_text(word)
        return Artifact()

    return draw


def test_what_one_machine_made_another_does_not_make_again(store: SharedStore, move: Callable[[str], None]) -> None:
    calls: list[str] = []
    draw = make_stage(calls)
    move("a")
    first = draw(word="tea")
    move("b")
    assert draw.look_up(word="tea").record
    second = draw(word="tea")
    assert calls == ["tea"] and second.digest == first.digest
    assert second.folder != first.folder and second.path("deep/word.txt").read_text() == "tea"
    assert store.trees("artifacts/draw") == [first.key]
    shutil.rmtree(second.folder)
    assert draw(word="tea").key == first.key and calls == ["tea"]


def test_a_home_that_begins_with_what_the_store_has_is_its_owners_alone(
    store: SharedStore, move: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = make_stage([])
    move("a")
    draw(word="tea")
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "b"))
    assert draw.look_up(word="tea").record
    assert config.home().stat().st_mode & 0o777 == 0o700


def test_content_that_was_altered_in_the_store_is_made_anew_and_put_there_again(
    store: SharedStore, move: Callable[[str], None]
) -> None:
    calls: list[str] = []
    draw = make_stage(calls)
    move("a")
    (file,) = [file for name, file in files_in(draw(word="tea").folder).items() if name == "deep/word.txt"]
    store._write(f"content/{file.sha256}", b"tee")
    move("b")
    assert draw(word="tea").path("deep/word.txt").read_text() == "tea" and calls == ["tea", "tea"]
    move("c")
    assert draw(word="tea") and calls == ["tea", "tea"], "it is whole again"
    key = draw(word="tea").key
    for wrong in (b"{", b'{"../x": {"sha256": "0", "size": 1}}', b'{"/x": {"sha256": "0", "size": 1}}'):
        store._write(f"trees/artifacts/draw/{key}.json", wrong)
        shutil.rmtree(folder_of("draw", key))
        assert draw(word="tea").path("deep/word.txt").read_text() == "tea"
    assert not (config.home() / "artifacts" / "x").exists()


def add(home: str, said: str) -> None:
    """Add a line to a history from a home of its own."""
    os.environ["TUNEWRIGHT_HOME"] = home
    config.make_home()
    file = config.home() / "uses" / "bot.jsonl"
    with held(file):
        number = len(disk.read(file, Line, "is wrong"))
        disk.append(file, Line(said=f"{number} {said}"))


def test_lines_of_machines_that_write_at_once_are_all_there_and_numbered_once(
    store: SharedStore, move: Callable[[str], None], tmp_path: Path
) -> None:
    context = multiprocessing.get_context("spawn")
    names = [f"{tmp_path}/{machine}" for machine in "abcd" for _ in range(3)]
    with context.Pool(4) as pool:
        pool.starmap(add, [(name, name) for name in names])
    move("e")
    lines = disk.read(up_to_date(config.home() / "uses" / "bot.jsonl"), Line, "is wrong")
    assert [line.said.split()[0] for line in lines] == [str(number) for number in range(12)]
    assert sorted(line.said.split()[1] for line in lines) == names


def move_on(home: str, alias: str) -> None:
    """Look at an alias and move it, from a home of its own."""
    os.environ["TUNEWRIGHT_HOME"] = home
    with moving("bot"):
        before = Path(alias).read_text()
        time.sleep(0.2)
        Path(alias).write_text(f"{before} {home}")


def test_machines_that_move_an_alias_at_once_each_see_the_move_before(store: SharedStore, tmp_path: Path) -> None:
    alias, homes = tmp_path / "alias", [f"{tmp_path}/{machine}" for machine in "abcd"]
    alias.touch()
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        pool.starmap(move_on, [(home, str(alias)) for home in homes])
    assert sorted(alias.read_text().split()) == homes


def test_a_change_that_fails_is_nowhere_and_one_that_a_kill_kept_from_the_store_is_dropped(
    store: SharedStore, move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    move("a")
    file = config.home() / "uses" / "bot.jsonl"
    with pytest.raises(ZeroDivisionError), held(file):
        disk.append(file, Line(said="never"))
        raise ZeroDivisionError
    assert not file.exists() and store.newest("uses/bot.jsonl") == (0, b"")
    with held(file):
        disk.append(file, Line(said="first"))
    disk.append(file, Line(said="killed before it was put there"))
    assert [line.said for line in disk.read(up_to_date(file), Line, "")] == ["first"]
    monkeypatch.setattr(SharedStore, "add", lambda *_: False)
    with pytest.raises(StoreError, match=r"another machine changed uses/bot.jsonl at the same time"), held(file):
        disk.append(file, Line(said="too late"))
    assert [line.said for line in disk.read(file, Line, "")] == ["first"]


def write_before_sharing(move: Callable[[str], None], name: str) -> None:
    """Write a line of its own to a history in two homes, "a" and "b", that the store does not have."""
    for home in "ab":
        move(home)
        file = config.home() / name
        file.parent.mkdir()
        disk.append(file, Line(said=home))


def test_a_home_with_a_history_of_its_own_is_refused_where_the_store_has_another(
    store: SharedStore, move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_before_sharing(move, "uses/bot.jsonl")
    move("a")
    with held(config.home() / "uses" / "bot.jsonl"):
        pass
    assert store.newest("uses/bot.jsonl")[1] == b'{"said":"a"}\n', "a store takes the history of the first home"
    move("b")
    with pytest.raises(ConfigError, match="has lines that the history of the same name in the store has not"):
        up_to_date(config.home() / "uses" / "bot.jsonl")


def test_no_alias_moves_where_the_store_refuses_its_history_or_keeps_no_machines_apart(
    store: SharedStore, move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_before_sharing(move, "alias_history/bot.jsonl")
    move("a")
    with moving("bot"), held(config.home() / "alias_history" / "bot.jsonl"):
        pass
    moved: list[str] = []
    move("b")
    with pytest.raises(ConfigError, match="has lines that the history of the same name in the store"), moving("bot"):
        moved.append("b")
    shared._opened.cache_clear()
    monkeypatch.setattr(SharedStore, "_create", lambda *_: True)
    with pytest.raises(ConfigError, match="8 of 8 writers created one object at the same time"), moving("other"):
        moved.append("other")
    assert not moved


def test_a_store_that_lost_a_history_or_is_another_one_is_refused_until_the_file_is_moved_away(
    store: SharedStore, move: Callable[[str], None], caplog: pytest.LogCaptureFixture
) -> None:
    move("a")
    file = config.home() / "uses" / "bot.jsonl"
    for said in ("first", "second"):
        with held(file):
            disk.append(file, Line(said=said))
    assert caplog.text.count("this store is empty") == 1
    assert ("the folder is not mounted" in caplog.text) == store.is_folder
    store._delete("histories/uses/bot.jsonl/0000000002")
    with pytest.raises(ConfigError, match=r"bot.jsonl is state 2 of a history of which this store has only 1: it is"):
        up_to_date(file)
    store._delete("histories/uses/bot.jsonl/0000000001")
    with pytest.raises(ConfigError, match="of which this store has none"), held(file):
        pass
    assert [line.said for line in disk.read(file, Line, "")] == ["first", "second"]
    file.unlink()
    with held(file):
        disk.append(file, Line(said="anew"))
    move("b")
    assert [line.said for line in disk.read(up_to_date(config.home() / "uses" / "bot.jsonl"), Line, "")] == ["anew"]


def test_a_folder_that_is_not_mounted_any_more_is_refused_and_not_created(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "team").mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "team"))
    store = shared_store()
    assert store and store.add("uses", 1, b"a")
    (tmp_path / "team").rename(tmp_path / "elsewhere")
    with pytest.raises(
        StoreRefused, match=r"/team: this machine \(.*\) has no such folder; accepted: a folder that exists$"
    ):
        store.add("uses", 2, b"b")
    assert not (tmp_path / "team").exists()


def test_a_store_that_can_only_be_read_is_said_to_be_so_and_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, move: Callable[[str], None]
) -> None:
    (tmp_path / "team").mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "team"))
    move("a")
    add(str(tmp_path / "a"), "first")
    move("b")
    denied = OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr("os.link", Mock(side_effect=denied))
    said = r"/team: this store cannot be written \(\[Errno 30\] Read-only file system\); accepted: a store that"
    file = config.home() / "uses" / "bot.jsonl"
    with pytest.raises(StoreRefused, match=said), held(file):
        pass
    assert [line.said for line in disk.read(up_to_date(file), Line, "")] == ["0 first"]


def test_only_the_newest_states_of_a_history_are_kept(store: SharedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "KEPT_STATES", 3)
    for number in range(1, 7):
        assert store.add("uses/bot.jsonl", number, str(number).encode())
    assert store._numbers("histories/uses/bot.jsonl") == [4, 5, 6]
    assert store.newest("uses/bot.jsonl") == (6, b"6")
    assert not store.add("uses/bot.jsonl", 6, b"again")


def test_a_lease_is_waited_for_and_ends_with_the_signs_of_life_of_its_holder(
    store: SharedStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tunewright")
    monkeypatch.setattr(shared, "POLL_SECONDS", 0.01)
    monkeypatch.setattr("platform.node", lambda: "gpu-7")
    order: list[str] = []

    def second() -> None:
        with store.lease("x"):
            order.append("second")

    other = threading.Thread(target=second)
    with store.lease("x"):
        other.start()
        other.join(0.3)
        order.append("first")
    other.join()
    assert order == ["first", "second"] and store._numbers("leases/x") == []
    lost = "it counts as lost after 60 s without a sign of life, from now on"
    assert [each for each in caplog.messages if "waiting" in each] == [
        f"  waiting for another machine (gpu-7): x; {lost}"
    ]

    monkeypatch.setattr(shared, "LEASE_SECONDS", 0.4)
    store._create("leases/x/0000000007", b"killed 3")
    with store.lease("x"):
        assert store._numbers("leases/x") == [8]
        assert caplog.messages[-1].startswith("  waiting for another machine: x; "), "its version wrote no name"
        store_is_held = threading.Thread(target=second)
        store_is_held.start()
        store_is_held.join(1.0)  # longer than a lease without signs of life
        assert order == ["first", "second"]
    store_is_held.join()
    assert order[2:] == ["second"]


def test_the_seconds_of_waiting_for_another_machine_are_not_saved(
    store: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    @cached()
    def made(folder: Path, name: str) -> UniqueRows:
        (folder / "rows.txt").write_text(name)
        return UniqueRows(num_rows=1, num_removed=0, reasons={}, boilerplate=())

    monkeypatch.setattr(shared, "POLL_SECONDS", 0.01)
    at = made("a").folder
    shutil.rmtree(at)
    has_begun = threading.Event()
    found = made._found

    def found_once_the_lease_is_held(folder: Path) -> Any:
        return found(folder) if has_begun.is_set() else has_begun.set()

    monkeypatch.setattr(made, "_found", found_once_the_lease_is_held)
    with store.lease(f"artifacts/made/{at.name}"):
        other = threading.Thread(target=made, args=("a",))
        other.start()
        assert has_begun.wait(30)
        time.sleep(0.5)
    other.join()
    assert made.saved(at.name, 10.0) < 9.6


def test_a_store_that_writes_over_what_is_there_keeps_no_machines_apart_and_is_refused(
    store: SharedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers of S3's protocol ignore the condition of a write."""
    monkeypatch.setattr(SharedStore, "_create", lambda *_: True)
    with (
        pytest.raises(ConfigError, match=r"TUNEWRIGHT_STORE=.*: 8 of 8 writers created one object at the same time"),
        store.lease("x"),
    ):
        pass


Answer = tuple[int, dict[str, str], str]


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[bool], Answer | None]) -> SharedStore:
    """A store whose S3 server answers a conditional write so, given whether the object is there; None writes it."""
    write, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_object(self: Any) -> Any:
        if not self.headers.get("If-None-Match"):
            return write(self)
        with one_at_a_time:
            is_there = self.backend.get_object(self.bucket_name, self.parse_key_name()) is not None
            return answer(is_there) or write(self)

    monkeypatch.setattr(S3Response, "put_object", put_object)
    return in_bucket(monkeypatch)


def in_bucket(monkeypatch: pytest.MonkeyPatch) -> SharedStore:
    """A store in the bucket of the S3 server of this test."""
    monkeypatch.setenv("TUNEWRIGHT_STORE", "s3://bucket/store")
    shared._opened.cache_clear()
    store = shared_store()
    assert store
    return store


def error_of(code: str) -> str:
    """An error of S3's protocol without the element that names the condition."""
    return f"<Error><Code>{code}</Code><Message>At least one of the pre-conditions did not hold</Message></Error>"


@pytest.mark.parametrize(
    "body", [error_of("PreconditionFailed"), error_of("Other"), ""], ids=["no condition", "another code", "empty"]
)
def test_a_server_says_by_status_412_alone_that_an_object_is_there(
    s3: Any, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    store = answering(monkeypatch, lambda is_there: (412, {}, body) if is_there else None)
    with store.lease("x"):
        assert store._numbers("leases/x") == [1]
    assert store.add("uses", 1, b"a") and not store.add("uses", 1, b"b")
    assert store.newest("uses") == (1, b"a")


def test_a_write_that_meets_another_one_is_sent_again_a_few_times(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    conflicts = [409, 409, 409]

    def answer(is_there: bool) -> Answer | None:
        if conflicts:
            return conflicts.pop(), {}, error_of("ConditionalRequestConflict")
        return (412, {}, error_of("PreconditionFailed")) if is_there else None

    monkeypatch.setattr(shared, "CONFLICT_SECONDS", (0.01, 0.01, 0.01))
    store = answering(monkeypatch, answer)
    assert store.add("uses", 1, b"a") and not conflicts
    conflicts += [409, 409, 409]
    assert not store.add("uses", 1, b"b"), "the other write was faster"
    conflicts += [409] * 4
    with pytest.raises(StoreError, match="does not answer as it should"):
        store.add("uses", 2, b"c")
    assert not conflicts and store.newest("uses") == (1, b"a")


def test_a_server_that_looks_first_and_writes_then_is_refused(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One writer after the other finds nothing wrong with it."""
    all_have_looked = threading.Barrier(shared.WRITERS)
    write = S3Backend.put_object

    def wait_and_write(*given: Any, **named: Any) -> Any:
        all_have_looked.wait()
        return write(*given, **named)

    monkeypatch.setattr(S3Response, "put_object", atomic_moto.look_and_write)
    store = in_bucket(monkeypatch)
    assert store.add("uses", 1, b"a") and not store.add("uses", 1, b"b")
    monkeypatch.setattr(S3Backend, "put_object", wait_and_write)
    with pytest.raises(ConfigError, match=r"s3://bucket/store: 8 of 8 writers created one object at the same time, so"):
        store.check()


def test_a_store_that_can_be_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, said in (
        (
            "relative/folder",
            "TUNEWRIGHT_STORE=relative/folder: accepted: the absolute path of a folder, or a URL s3://",
        ),
        ("https://example.org/x", "TUNEWRIGHT_STORE=https://example.org/x: accepted: the absolute path of a folder"),
        ("s3://me:secret@bucket/x", "a URL with credentials; leave them out and set the variables of"),
    ):
        monkeypatch.setenv("TUNEWRIGHT_STORE", url)
        with pytest.raises(ConfigError, match=said) as raised:
            shared_store()
        assert "secret" not in str(raised.value)
    monkeypatch.setenv("TUNEWRIGHT_STORE", "")
    monkeypatch.setenv("TUNEWRIGHT_HOME", "ftp://host/x")
    with pytest.raises(
        ConfigError, match=r"^TUNEWRIGHT_HOME=ftp://host/x: accepted: the absolute path of a folder, or a URL s3://"
    ):
        shared_store()


def test_a_store_whose_library_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    for protocol, (library, name) in shared.LIBRARIES.items():
        (needed,) = project["optional-dependencies"][name]
        assert needed.startswith(f"{library}>=")
        monkeypatch.setitem(sys.modules, library, None)
        monkeypatch.setenv("TUNEWRIGHT_STORE", f"{protocol}://bucket/x")
        with pytest.raises(ConfigError) as raised:
            shared_store()
        said = f"{library} is not installed; pip install 'tunewright[{name}]'"
        assert str(raised.value) == f"TUNEWRIGHT_STORE={protocol}://bucket/x: {said}"


def test_a_url_in_place_of_a_home_shares_what_is_made(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the name of a folder."""
    calls: list[str] = []
    draw = make_stage(calls)
    monkeypatch.setenv("TUNEWRIGHT_HOME", "s3://bucket/x")
    for machine in "ab":
        (tmp_path / machine).mkdir()
        monkeypatch.chdir(tmp_path / machine)
        assert draw(word="tea").folder.is_relative_to(tmp_path / machine / ".tunewright")
        assert [each.name for each in (tmp_path / machine).iterdir()] == [".tunewright"]
    assert calls == ["tea"] and s3.exists("bucket/x/trees/artifacts/draw")


def test_a_store_that_refuses_is_an_error_that_is_not_retried(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(url: str) -> StoreRefused:
        monkeypatch.setenv("TUNEWRIGHT_STORE", url)
        shared._opened.cache_clear()
        store = shared_store()
        assert store
        with pytest.raises(StoreRefused, match=f"^TUNEWRIGHT_STORE={url}: ") as refused, store.lease("one"):
            pass
        assert not is_transient(refused.value) and refused.value.exit_code == 2
        return refused.value

    assert "there is no such bucket; accepted: one that exists" in str(refusal("s3://none/x"))
    with monkeypatch.context() as denied:
        denied.setattr(S3Response, "put_object", Mock(return_value=(403, {}, error_of("AccessDenied"))))
        assert "; accepted: a store that this user may read and write" in str(refusal("s3://bucket/denied"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    type(s3).clear_instance_cache()
    assert "cannot be written (Unable to locate credentials); accepted: a store that" in str(refusal("s3://bucket/x"))


def test_a_store_that_does_not_answer_is_an_error_that_is_retried(
    store: SharedStore, move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    move("a")
    monkeypatch.setattr(store.files, "ls", lambda *_, **__: json.loads("{"))
    with pytest.raises(StoreError, match=r"TUNEWRIGHT_STORE=.*: the shared store does not answer as it should"):
        up_to_date(config.home() / "uses" / "bot.jsonl")
    assert histories._content(config.home() / "uses" / "bot.jsonl") is None


def make_checkpoint(work: Path, steps: int) -> None:
    """A sealed checkpoint of so many steps."""
    folder = checkpoints.at(work / "checkpoints", steps)
    folder.mkdir(parents=True)
    (folder / "weights").write_text(f"after {steps} steps")
    checkpoints.seal(folder)


def steps_at(work: Path) -> list[int]:
    """The steps of the checkpoints in a work folder that are as they were sealed."""
    return sorted(checkpoints.steps(each) for each in (work / "checkpoints").glob("*") if not checkpoints.fault(each))


def test_a_training_that_was_stopped_goes_on_at_another_machine_from_its_last_checkpoint(
    store: SharedStore, move: Callable[[str], None]
) -> None:
    def work() -> Path:
        return config.home() / "work" / "train" / "1a2b"

    move("a")
    with pytest.raises(KeyboardInterrupt), shared_checkpoints.kept(work()):
        make_checkpoint(work(), 10)
        make_checkpoint(work(), 20)
        raise KeyboardInterrupt
    move("b")
    work().mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt), shared_checkpoints.kept(work()):
        assert steps_at(work()) == [10, 20]
        shutil.rmtree(work() / "checkpoints" / "checkpoint-10")
        make_checkpoint(work(), 30)
        raise KeyboardInterrupt
    move("a")
    with shared_checkpoints.kept(work()):
        assert steps_at(work()) == [10, 20, 30]
    assert store.listed("work/train/1a2b") == {} and not store._names("apart/work/train/1a2b")


def test_each_new_checkpoint_is_copied_while_the_training_goes_on(
    store: SharedStore, move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its machine may be lost at any moment."""
    monkeypatch.setattr(shared_checkpoints, "SECONDS", 0.05)
    monkeypatch.setattr(shared_checkpoints, "POLL_SECONDS", 0.02)
    move("a")
    work = config.home() / "work" / "train" / "1a2b"
    with shared_checkpoints.kept(work):
        for steps in (10, 20):
            make_checkpoint(work, steps)
            name = f"checkpoints/checkpoint-{steps}/weights"
            waiting.until(lambda name=name: name in store.listed("work/train/1a2b"), every=0.02)
        shutil.rmtree(work / "checkpoints" / "checkpoint-10")
        make_checkpoint(work, 30)
        waiting.until(lambda: "checkpoints/checkpoint-10/weights" not in store.listed("work/train/1a2b"), every=0.02)
        held = {file.sha256 for file in store.listed("work/train/1a2b").values()}
        waiting.until(lambda: {*store._names("apart/work/train/1a2b")} == held, every=0.02)


MONTH = 31 * 86_400  # seconds


def age(monkeypatch: pytest.MonkeyPatch, *folders: str) -> None:
    """Make what these folders of the store have 31 days older."""
    listed = SharedStore.objects

    def aged(store: SharedStore, folder: str) -> dict[str, Stored]:
        found = listed(store, folder)
        by = MONTH if folder in folders else 0
        return {name: each.model_copy(update={"written": each.written - by}) for name, each in found.items()}

    monkeypatch.setattr(SharedStore, "objects", aged)


def old_in_store(
    keep_runs: int, store_days: int = 30, needed_bases: Callable[[Collection[str]], Collection[str]] = lambda _: ()
) -> list[Needless]:
    """The items that clean could remove from the store; by default no version needs a base."""
    return list(in_store(keep_runs, store_days, needed_bases))


def test_clean_keeps_in_the_store_what_recent_runs_of_any_home_asked_for(
    store: SharedStore, move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = make_stage([])
    for home, word in (("a", "tea"), ("b", "coffee"), ("b", "juice")):
        move(home)
        pipelines.note("tiny", "draw", draw(word=word).key)
        pipelines.note("other", "draw", draw(word=f"{home} other").key)
        pipelines.share("tiny")
        pipelines.share("other")
    assert len(store.objects("recent_runs")) == 4, "one of each home and pipeline"
    move("c")
    age(monkeypatch, "trees/artifacts", "content")
    coffee = draw.look_up(word="coffee").key
    assert [each.name for each in old_in_store(1)] == [f"draw/{coffee}"]
    assert not old_in_store(2)
    with monkeypatch.context() as later:
        age(later, "recent_runs")
        found = old_in_store(2)
    assert {each.kind for each in found} == {"artifact in the store", "old runs in the store"}
    assert len([each for each in found if each.kind == "artifact in the store"]) == 5, "by age alone"
    (old, *_) = [each for each in found if each.kind == "old runs in the store"]
    assert old.why == "no run of this pipeline in its home for 31 days" and old.remove()
    assert len(store.objects("recent_runs")) == 3

    path = next(iter(store.objects("recent_runs")))
    store.note_runs(path, b"altered")
    with pytest.raises(TunewrightError, match=rf"recent_runs/{path} is no JSON of keys; delete it"):
        old_in_store(2)


def test_a_store_that_does_not_keep_what_a_run_asked_for_stops_no_run(
    store: SharedStore, move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    move("a")

    def away(*_: object) -> None:
        raise StoreError("the shared store does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(SharedStore, "note_runs", away)
        pipelines.note("tiny", "draw", "1a2b")
        pipelines.share("tiny")
    assert pipelines.keys("tiny", "draw") == ["1a2b"] and not store.objects("recent_runs")
    assert "tunewright clean elsewhere does not know of this run yet" in caplog.text
    pipelines.note("tiny", "wash", "3c4d")
    pipelines.share("tiny")
    (path,) = store.objects("recent_runs")
    assert json.loads(store.noted_runs(path) or b"") == {"draw": ["1a2b"], "wash": ["3c4d"]}


def test_clean_removes_from_the_store_what_is_old_and_nobody_s_newest_runs_need(
    store: SharedStore, move: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    draw = make_stage(calls)
    move("a")
    tea, coffee, juice = (draw(word=word) for word in ("tea", "coffee", "juice"))
    pipelines.note("tiny", "draw", juice.key)
    pipelines.share("tiny")
    store._write("content/" + "0" * 64, b"of a machine that was killed")
    work = config.home() / "work" / "train" / "abc"
    make_checkpoint(work, 1)
    assert shared_checkpoints._copy(store, "work/train/abc", work)
    with held(config.home() / "uses.json"):
        (config.home() / "uses.json").write_text("1")

    assert not old_in_store(1), "all of it is young"
    with monkeypatch.context() as later:
        later.setattr("tunewright.store.needless.time", SimpleNamespace(time=lambda: time.time() + MONTH))
        found = {each.name: each for each in old_in_store(1)}
        assert found.pop(next(iter(store.objects("recent_runs"))).removesuffix(".json")).size > 0
        assert {*found} == {f"draw/{tea.key}", f"draw/{coffee.key}", "0" * 12, "train/abc"}
        assert {each.name for each in old_in_store(1, store_days=40)} == {"0" * 12, "train/abc"}
    own, shared_file = found[f"draw/{tea.key}"], found["0" * 12]
    assert own.why == "put there 31 days ago, not used by the newest runs of any machine"
    assert own.size >= 3 and shared_file.why == "a file that no artifact has" and shared_file.size == 28
    assert found["train/abc"].size > 0 and found["train/abc"].why == "untouched for 31 days"
    for each in found.values():
        assert each.remove()
    assert store.trees("artifacts/draw") == [juice.key] and not store.listed("work/train/abc")
    assert {*store.objects("content")} == {file.sha256 for file in store.listed(f"artifacts/draw/{juice.key}").values()}
    assert not store.objects("apart/work") and store.objects("histories")

    assert draw(word="tea").key == tea.key and calls == ["tea", "coffee", "juice"], "this home still has it"
    assert store.trees("artifacts/draw") == sorted([juice.key, tea.key]), "and puts it back"
    move("b")
    assert draw(word="tea").path("deep/word.txt").read_text() == "tea" and len(calls) == 3
    assert draw(word="coffee").key == coffee.key and len(calls) == 4, "what no home has is made again"


def test_clean_keeps_in_the_store_the_bases_that_versions_need(
    store: SharedStore, move: Callable[[str], None], tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move("a")
    bases.keep("bot", tiny_base, "http://mlflow:5000")
    (tmp_path / "other").write_text("weights")
    file = File(sha256=disk.digest_of(tmp_path / "other"), size=7)
    store.put(f"artifacts/bases/{'0' * 64}", tmp_path, {"other": file})
    asked: list[set[str]] = []

    def needed(digests: Collection[str]) -> Collection[str]:
        asked.append({*digests})
        return {tiny_base.weights_digest}

    assert not old_in_store(1, needed_bases=needed) and not asked, "MLflow is asked for old bases only"
    age(monkeypatch, "trees/artifacts", "content")
    assert [each.name for each in old_in_store(1, needed_bases=needed)] == [f"bases/{'0' * 64}"]
    assert asked == [{tiny_base.weights_digest, "0" * 64}]
    (other,) = old_in_store(1, needed_bases=needed)
    assert other.remove() and not store.has_tree(f"artifacts/bases/{'0' * 64}")
    move("b")
    assert bases.fetched(tiny_base.weights_digest)
    assert bases.mlflows(store) == {tiny_base.weights_digest: {"http://mlflow:5000"}}


def test_a_base_that_one_machine_has_is_fetched_by_others_and_found_by_its_digest(
    store: SharedStore, move: Callable[[str], None], tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_base.weights, "models/tiny")
    here = tiny_base.model_copy(update={"reference": "models/tiny", "folder": tmp_path / "models/tiny"})
    here = here.model_copy(update={"location": Path()})
    digest = here.weights_digest
    move("a")
    for _ in range(2):
        bases.keep("bot", here, "")
    assert len(store.newest("bases/bot.jsonl")[1].splitlines()) == 1
    assert bases.at_hand("bot", "models/tiny") == "models/tiny"
    bases.keep("bot", here.model_copy(update={"reference": "org/of-the-hub"}), "")
    assert store.trees("artifacts/bases") == [digest]

    move("b")
    shutil.rmtree("models")
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        find_base("/models/tiny", None, digest)
    for pipeline, reference in (("other", "models/tiny"), ("bot", "models/tinny"), ("bot", "org/of-the-hub")):
        assert bases.at_hand(pipeline, reference) == reference
    fetched = Path(bases.at_hand("bot", "models/tiny"))
    assert fetched.parent.parent == config.home() / "artifacts" and identity(str(fetched)) == digest
    assert find_base("/models/tiny", None, digest) == fetched, "as a version is loaded"
    store.remove(f"artifacts/bases/{digest}")
    bases.keep("bot", here.model_copy(update={"folder": fetched}), "")
    assert store.trees("artifacts/bases") == [digest], "whoever fetched it puts it back"
    assert len(store.newest("bases/bot.jsonl")[1].splitlines()) == 1

    move("c")
    assert bases.find("/models/tiny", None, digest).parent.parent == config.home() / "artifacts"
    with pytest.raises(FileNotFoundError, match="not on this machine"):
        bases.find("/models/tiny", None, "0" * 64)
    move("d")
    for stored in (name for name in store.listed(f"artifacts/bases/{digest}").values()):
        store._write(f"content/{stored.sha256}", b"altered")
    assert bases.at_hand("bot", "models/tiny") == "models/tiny"


def test_a_base_of_a_package_is_fetched_where_the_package_is_not_installed(
    store: SharedStore, move: Callable[[str], None], tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "packages" / "tiny_model").mkdir(parents=True)
    (tmp_path / "packages" / "tiny_model" / "__init__.py").touch()
    (tmp_path / "packages" / "tiny_model" / "tiny.gguf").touch()
    reference = "package:tiny_model/tiny.gguf"
    move("a")
    with monkeypatch.context() as installed:
        installed.syspath_prepend(tmp_path / "packages")
        bases.keep("bot", tiny_base.model_copy(update={"reference": reference}), "")
        assert bases.at_hand("bot", reference) == reference
    move("b")
    assert weights_digest(Path(bases.at_hand("bot", reference))) == tiny_base.weights_digest
