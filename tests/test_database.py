"""MLflow's database in the home is made whole or not at all, whatever ends or meets its making."""

import logging
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from tunewright.cli.doctor.environment import Finding
from tunewright.cli.doctor.home import of_home
from tunewright.config import Registry
from tunewright.errors import TrackingError, TunewrightError
from tunewright.registry import database
from tunewright.registry.tracking import connected
from tunewright.store import databases


@pytest.fixture
def file(home: Path) -> Path:
    home.mkdir()
    return home / "mlflow.db"


@pytest.fixture
def quick(mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """MLflow's making of a database takes a moment rather than six seconds; the files that it made."""
    made: list[Path] = []

    def store(uri: str, _: str) -> Any:
        time.sleep(0.2)
        made.append(Path(uri.removeprefix("sqlite:///")))
        shutil.copy(mlflow_database, made[-1])
        return NoStore()

    class NoStore:
        def __init__(self) -> None:
            self.engine = self

        def dispose(self) -> None:
            """Holds nothing."""

    store._engine_map = {}  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr("mlflow.store.tracking.sqlalchemy_store.SqlAlchemyStore", store)
    return made


def half_made(file: Path) -> None:
    """As a kill in the middle leaves it: some tables of MLflow's first version, and nothing in them."""
    from mlflow.store.db.base_sql_model import Base

    with closing(sqlite3.connect(file)) as connection:
        for table in sorted(Base.metadata.tables)[:20]:
            connection.execute(f"CREATE TABLE {table} (id INTEGER)")
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.commit()


def of_mlflow() -> Finding:
    (found,) = [each for each in of_home() if each.what == "MLflow's database"]
    return found


@pytest.fixture
def small_disk() -> Iterator[Callable[[], None]]:
    """Databases hold 40 pages until the disk is given room."""

    def limit(connection: sqlite3.Connection, _: Any) -> None:
        connection.execute("PRAGMA max_page_count = 40")

    event.listen(Engine, "connect", limit)
    room = iter([lambda: event.remove(Engine, "connect", limit)])
    yield lambda: next(room)()
    for remove in room:
        remove()


def test_on_a_full_disk_it_is_one_line_and_with_room_the_next_one_makes_it(
    file: Path, small_disk: Callable[[], None]
) -> None:
    with (
        pytest.raises(TunewrightError, match=r"^no space left on the disk of .*home: free some, or set"),
        connected(Registry()),
    ):
        pass
    assert not file.exists()
    small_disk()
    with connected(Registry()) as client:
        assert client.get_experiment_by_name("Default")
    assert databases.is_finished(file)
    assert [path.name for path in file.parent.iterdir() if "unfinished" in path.name] == []


def test_a_kill_while_it_is_made_leaves_none_and_the_next_one_makes_it(
    file: Path, quick: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(database.disk, "sync", killed)
        database.ensure(file)
    assert quick[0].exists()
    assert not file.exists()
    quick[0].with_name(f"{quick[0].name}-journal").write_bytes(b"of the one that was killed")
    database.ensure(file)
    assert sorted(path.name for path in file.parent.iterdir()) == [".mlflow.db.lock", "mlflow.db"]


def test_of_two_that_begin_at_once_one_makes_it_and_the_other_waits(file: Path, quick: list[Path]) -> None:
    threads = [threading.Thread(target=database.ensure, args=(file,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(quick) == 1
    assert databases.is_finished(file)


def test_one_that_was_half_made_is_moved_away_and_made_anew_and_doctor_says_so(
    file: Path, quick: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "tunewright")
    half_made(file)
    before = file.read_bytes()
    found = of_mlflow()
    assert found.state == "warning"
    assert "is incomplete" in found.found
    assert found.fix == "nothing to do: the next run creates a new one and keeps this file beside it"
    database.ensure(file)
    assert "it has no experiments and no models. A new one is created" in caplog.text
    assert (file.parent / "mlflow.unfinished").read_bytes() == before
    assert of_mlflow().state == "ok"


@pytest.mark.parametrize("table", ["experiments", "runs", "registered_models"])
def test_one_that_holds_anything_is_never_moved_away(file: Path, quick: list[Path], table: str) -> None:
    half_made(file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER)")
        connection.execute(f"INSERT INTO {table} (id) VALUES (1)")
        connection.commit()
    before = file.read_bytes()
    database.ensure(file)
    assert (quick, file.read_bytes()) == ([], before)


def test_one_of_another_version_of_mlflow_is_one_line_that_says_how_to_bring_it_up_to_date(
    file: Path, mlflow_database: Path
) -> None:
    shutil.copy(mlflow_database, file)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        connection.commit()
    with (
        pytest.raises(TunewrightError, match=r"out-of-date database schema .*mlflow db upgrade"),
        connected(Registry()) as client,
    ):
        client.get_experiment_by_name("Default")


def test_zeros_in_its_place_are_one_line(file: Path) -> None:
    file.write_bytes(bytes(100_000))
    said = r"mlflow\.db: file is not a database; restore it from a backup, or move it away"
    with pytest.raises(TunewrightError, match=said) as failed, connected(Registry()):
        pass
    assert not isinstance(failed.value, TrackingError)
    assert file.read_bytes() == bytes(100_000)
    assert of_mlflow().state == "failure"


def test_what_a_killed_writer_left_is_undone_and_no_fault(file: Path, mlflow_database: Path) -> None:
    shutil.copy(mlflow_database, file)
    copy = file.with_name("copy.db")
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA cache_size = 1")  # so that pages are written before the end
        connection.execute("CREATE TABLE more (text)")
        connection.executemany("INSERT INTO more VALUES (?)", [("x" * 2000,) for _ in range(100)])
        for suffix in ("", "-journal"):  # as they are in the middle of the transaction
            shutil.copy(f"{file}{suffix}", f"{copy}{suffix}")
    for suffix in ("", "-journal"):
        Path(f"{copy}{suffix}").replace(f"{file}{suffix}")
    assert of_mlflow().state == "ok"
    assert databases.is_finished(file)
