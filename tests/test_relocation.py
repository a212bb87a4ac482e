"""A home that was moved or copied works, and leaves the place where it was alone."""

import errno
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from registered import aliases, versions
from sqlalchemy.exc import SQLAlchemyError
from typer.testing import CliRunner

from tunewright import config
from tunewright.artifacts import Base, Registered
from tunewright.cli.main import app
from tunewright.config import Registry
from tunewright.registry import release
from tunewright.registry.database import relocate
from tunewright.registry.tracking import VIEW_TAG, connected
from tunewright.registry.versions import champion, lost
from tunewright.tasks.base import base as load_base

Make = Callable[..., Registered]
TRIAGE = Registry(name="triage")


PLACES = (
    "SELECT artifact_location FROM experiments WHERE experiment_id != 0",  # MLflow's own experiment is in no home
    "SELECT artifact_uri FROM runs",
    "SELECT artifact_location FROM logged_models",
    "SELECT storage_location FROM model_versions",
)


def places() -> set[str]:
    """All places of files that MLflow's database names."""
    with sqlite3.connect(config.mlflow_database()) as database:
        return {place for asked in PLACES for (place,) in database.execute(asked)}


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_home_on_another_path_has_its_models_and_leaves_the_old_path_alone(
    how: str, register_candidate: Make, tiny_base: Base, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = register_candidate(digest="a")
    second = register_candidate(digest="b", challenged="1")
    there = tmp_path / "another folder ü#" / "home"
    there.parent.mkdir()
    (shutil.move if how == "moved" else shutil.copytree)(home, there)
    old = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(there))

    assert (lost(first), lost(second)) == ("", "")
    assert all(place.startswith(f"{there}/mlartifacts") for place in places())
    held = champion(TRIAGE, "c", tiny_base, load_base.fn)
    assert held
    assert held.version == "2"
    assert held.model
    assert held.model.is_relative_to(there)
    assert register_candidate(digest="b", challenged="1").version == "2", "no version more"
    assert register_candidate(digest="c", challenged="2").version == "3"
    assert release.rollback(TRIAGE, "1", by="me", why="to see").rehearsed == 3
    assert aliases() == {"champion": "1"}
    assert len(versions()) == 3
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == old
    assert home.exists() == (how == "copied")


def test_a_home_that_cannot_be_written_is_said_in_one_line(
    register_candidate: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_candidate()
    withdraw = ("release", "withdraw", "triage", "--reason", "to see")

    def refused(*command: str) -> str:
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 2
        begins, ends = f"error: TUNEWRIGHT_HOME={config.home()}: ", "; accepted: a folder to write to\n"
        assert done.stderr.startswith(begins) and done.stderr.endswith(ends)
        return done.stderr.removeprefix(begins).removesuffix(ends)

    with monkeypatch.context() as patched:  # where it was
        failed = sqlite3.OperationalError("attempt to write a readonly database")
        patched.setattr("mlflow.MlflowClient.set_model_version_tag", Mock(side_effect=SQLAlchemyError(failed)))
        patched.setattr("mlflow.MlflowClient.delete_registered_model_alias", Mock(side_effect=SQLAlchemyError(failed)))
        assert refused(*withdraw) == "cannot be written: attempt to write a readonly database"
    home.rename(tmp_path / "there")
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "there"))
    connect = sqlite3.connect

    def read_only(file: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        if file != config.mlflow_database():
            return connect(file, *args, **options)
        return connect(f"file:{file}?mode=ro", uri=True)

    monkeypatch.setattr("sqlite3.connect", read_only)
    for command in (("clean",), ("release", "history", "triage")):  # which only read
        assert CliRunner().invoke(app, command).exit_code == 0


def test_a_champion_whose_copy_can_only_be_read_is_taken(
    register_candidate: Make, tiny_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_candidate()
    fetched = champion(TRIAGE, "c", tiny_base, load_base.fn)
    monkeypatch.setattr("os.utime", Mock(side_effect=OSError(errno.EROFS, "Read-only file system")))
    assert champion(TRIAGE, "c", tiny_base, load_base.fn) == fetched


def test_a_version_that_the_copy_does_not_have_is_lost_there(
    register_candidate: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered = register_candidate()
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "empty"))
    assert lost(registered) == f"{tmp_path / 'empty' / 'mlflow.db'} is gone"
    shutil.copytree(home, tmp_path / "empty")
    with connected(TRIAGE) as client:
        client.delete_registered_model("triage")
    assert lost(registered) == "models:/triage/1 is not in MLflow any more"
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(home))
    assert lost(registered) == ""


def test_experiments_that_a_server_made_move_with_their_home(
    register_candidate: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_candidate()
    with sqlite3.connect(config.mlflow_database()) as database:
        database.execute(f"UPDATE experiments SET artifact_location = '{home}/mlartifacts/7' WHERE experiment_id != 0")
    there = tmp_path / "there"
    home.rename(there)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(there))
    relocate(VIEW_TAG)
    assert f"{there}/mlartifacts/7" in places()
    assert all(place.startswith(f"{there}/mlartifacts") for place in places())


def test_a_home_by_another_name_for_it_is_not_moved(
    register_candidate: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_candidate()
    before = places()
    (tmp_path / "link").symlink_to(home)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "link"))
    relocate(VIEW_TAG)
    assert places() == before


@pytest.mark.parametrize("content", [b"", b"0" * 5_000])
def test_a_database_without_tables_or_that_is_none_is_left_to_who_opens_it(home: Path, content: bytes) -> None:
    home.mkdir()
    config.mlflow_database().write_bytes(content)
    relocate(VIEW_TAG)
    assert config.mlflow_database().read_bytes() == content
