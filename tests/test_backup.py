"""A backup is of one moment although runs go on, and is put into any empty home."""

import errno
import gzip
import json
import os
import shutil
import sqlite3
import tarfile
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from registered import aliases, versions
from typer.testing import CliRunner

from tunewright import config
from tunewright.artifacts import Registered
from tunewright.cli.main import app
from tunewright.config import Registry
from tunewright.errors import ConfigError
from tunewright.registry import release
from tunewright.registry.versions import lost
from tunewright.store import test_set_uses
from tunewright.store.backup import backup, restore
from tunewright.store.caching import lock

Make = Callable[..., Registered]


def test_a_backup_gives_the_models_and_histories_on_another_path(
    register_candidate: Make, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = register_candidate(digest="a"), register_candidate(digest="b", challenged="1")
    for name in ("versions/splits/tiny/x/sides.parquet", "versions/tiny.jsonl", "test_set_uses/tiny.jsonl"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    (home / "versions" / "splits" / "tiny" / ".unfinished").mkdir()
    (home / "versions" / "splits" / "tiny" / ".unfinished" / "sides.parquet").touch()
    file, there = tmp_path / "home.tar", tmp_path / "elsewhere" / "home"
    done = CliRunner().invoke(app, ["home", "backup", str(file), "--json"])
    assert json.loads(done.stdout) == {"home": str(home), "file": str(file), "size": file.stat().st_size}
    assert file.stat().st_mode & 0o777 == 0o600
    shutil.rmtree(home)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(there))
    done = CliRunner().invoke(app, ["home", "restore", str(file), "--json"])
    assert json.loads(done.stdout)["restored"] == [
        "alias_history",
        "mlartifacts",
        "mlflow.db",
        "registered",
        "test_set_uses",
        "versions",
    ]
    assert (there / "versions" / "splits" / "tiny" / "x" / "sides.parquet").read_text().endswith("sides.parquet")
    assert not list(there.rglob(".unfinished"))
    assert (there / "test_set_uses" / "tiny.jsonl").read_text() == "test_set_uses/tiny.jsonl"
    assert (lost(first), lost(second), aliases(), len(versions())) == ("", "", {"champion": "2"}, 2)
    assert release.rollback(Registry(name="triage"), by="me", why="to see").rehearsed == 3
    assert not home.exists()


def test_a_backup_is_of_one_moment_although_the_database_is_written_to(home: Path, tmp_path: Path) -> None:
    home.mkdir()
    with sqlite3.connect(config.mlflow_database()) as database:
        database.execute("CREATE TABLE pairs (one INTEGER, other INTEGER)")
        database.executemany("INSERT INTO pairs VALUES (?, ?)", [(n, n) for n in range(20_000)])
    ended = threading.Event()

    def write() -> None:
        connection = sqlite3.connect(config.mlflow_database(), timeout=30)
        while not ended.is_set():
            with connection:
                connection.execute("UPDATE pairs SET one = one + 1")
                connection.execute("UPDATE pairs SET other = other + 1")
        connection.close()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        backup(tmp_path / "home.tar")
    finally:
        ended.set()
        writer.join()
    with tarfile.open(tmp_path / "home.tar") as archive:
        archive.extract("mlflow.db", tmp_path / "out", filter="data")
    with sqlite3.connect(tmp_path / "out" / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM pairs WHERE one != other").fetchone() == (0,)
        assert database.execute("PRAGMA quick_check").fetchone() == ("ok",)


def test_a_history_that_a_run_writes_is_waited_for(home: Path, tmp_path: Path) -> None:
    file = home / "versions" / "tiny.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text("before")
    waits = threading.Thread(target=backup, args=(tmp_path / "home.tar",))
    with lock(file):
        waits.start()
        waits.join(0.3)
        assert waits.is_alive()
        file.write_text("after")
    waits.join()
    with tarfile.open(tmp_path / "home.tar") as archive:
        found = archive.extractfile("versions/tiny.jsonl")
        assert found
        assert found.read() == b"after"


def test_a_nightly_backup_replaces_the_one_of_the_night_before_once_it_is_whole(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, file = home / "test_set_uses" / "tiny.jsonl", tmp_path / "home.tar"
    looks.parent.mkdir(parents=True)

    def night(content: str, *options: str) -> int:
        looks.write_text(content)
        return CliRunner().invoke(app, ["home", "backup", str(file), *options]).exit_code

    def kept() -> bytes:
        with tarfile.open(file) as archive:
            found = archive.extractfile("test_set_uses/tiny.jsonl")
            assert found
            return found.read()

    assert night("first", "--overwrite") == 0
    assert night("second") == 2
    assert kept() == b"first"
    assert night("third", "--overwrite") == 0
    assert kept() == b"third"
    monkeypatch.setattr("tunewright.store.disk.sync", Mock(side_effect=OSError(errno.ENOSPC, "full", str(file))))
    assert night("fourth", "--overwrite") == 1
    monkeypatch.setattr(tarfile, "copyfileobj", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    full = CliRunner().invoke(app, ["home", "backup", str(file), "--overwrite"])
    assert (full.exit_code, full.stderr) == (
        1,
        f"error: {file}: no space left on the disk of {tmp_path}: free some, or give a file in another folder\n",
    )
    assert kept() == b"third"
    assert [path.name for path in tmp_path.iterdir() if path != home] == ["home.tar"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_home_that_is_only_read_is_backed_up_without_locks(
    number: int, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("versions/.tickets.jsonl.lock", "versions/tickets.jsonl", "test_set_uses/tickets.jsonl"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(name)
    opened = Path.open

    def open_to_read(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        if path.is_relative_to(home) and {*mode} & {*"wax+"}:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, mode, *args, **options)

    monkeypatch.setattr(Path, "open", open_to_read)
    done = CliRunner().invoke(app, ["home", "backup", str(tmp_path / "home.tar")])
    assert (done.exit_code, done.stderr) == (0, "")
    with tarfile.open(tmp_path / "home.tar") as archive:
        assert sorted(archive.getnames()) == ["test_set_uses/tickets.jsonl", "versions/tickets.jsonl"]


def test_a_folder_that_may_not_be_written_is_said_in_one_line(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "test_set_uses").mkdir(parents=True)
    (home / "test_set_uses" / "tiny.jsonl").write_text("a")

    def refused(file: str) -> str:
        done = CliRunner().invoke(app, ["home", "backup", file, "--json"])
        said = json.loads(done.stdout)
        assert (done.exit_code, said["exit_code"]) == (2, 2)
        assert done.stderr == f"error: {said['error']}\n"
        return said["error"]

    assert refused("/proc/x.tar").startswith("/proc/x.tar: the folder /proc cannot be written to: ")
    file = tmp_path / "x.tar"
    said = f"{file}: the folder {tmp_path} cannot be written to: Permission denied; give a file in another folder"
    denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path))
    with monkeypatch.context() as patched:  # root may write to any folder
        patched.setattr("tempfile.mkdtemp", Mock(side_effect=denied))
        assert refused(str(file)) == said
    with monkeypatch.context() as patched:  # as in a folder with the sticky bit
        patched.setattr(Path, "rename", Mock(side_effect=denied))
        assert refused(str(file)) == said
    assert not file.exists()


def test_a_full_disk_does_not_make_a_backup_none(
    home: Path, archive: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarfile.TarFile, "extractall", Mock(side_effect=OSError(errno.ENOSPC, "full", str(home))))
    with pytest.raises(OSError, match="full"):
        restore(archive("test_set_uses/a"))


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`archive(name)` is a tar file with one file of that name."""

    def made(name: str) -> Path:
        with tarfile.open(tmp_path / "made.tar", "w") as file:
            file.addfile(tarfile.TarInfo(name), BytesIO())
        return tmp_path / "made.tar"

    yield made


def _of_a_link() -> bytes:
    """A tar file with a link to a file that is not in it."""
    content = BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        link = tarfile.TarInfo("versions/a")
        link.type, link.linkname = tarfile.LNKTYPE, "versions/b"
        file.addfile(link)
    return content.getvalue()


def test_the_test_set_uses_of_an_earlier_release_are_copied_and_found(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "looks").mkdir(parents=True)
    (home / "looks" / "tiny.jsonl").write_text("a")
    backup(file := tmp_path / "home.tar")
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "there"))
    restore(file)
    assert test_set_uses.file_of("tiny").read_text() == "a"


def test_what_cannot_be_backed_up_or_restored_is_said_in_a_line(
    home: Path, tmp_path: Path, archive: Callable[[str], Path]
) -> None:
    named = "mlflow.db, mlartifacts, versions, test_set_uses, registered, alias_history"
    with pytest.raises(ConfigError, match=rf"it has none of {named}, so there is"):
        backup(tmp_path / "home.tar")
    (home / "test_set_uses").mkdir(parents=True)
    with pytest.raises(ConfigError, match="there is no folder"):
        backup(tmp_path / "no" / "home.tar")
    (tmp_path / "there").touch()
    with pytest.raises(ConfigError, match=r"there exists; give another name or --overwrite$"):
        backup(tmp_path / "there")
    with pytest.raises(ConfigError, match="is a folder; give the name of a file"):
        backup(home, overwrite=True)
    archive("test_set_uses/a").rename(whole := tmp_path / "whole.tar")
    for damaged in (b"", b"\x1f\x8bno gzip", gzip.compress(whole.read_bytes())[:-20], _of_a_link(), b"\0" * 100):
        (tmp_path / "damaged").write_bytes(damaged)
        with pytest.raises(
            ConfigError, match=r"^[^\n]*damaged: not a backup of tunewright home backup, or a damaged one$"
        ):
            restore(tmp_path / "damaged")
    not_empty = r"^this home is not empty \([^\n]*/test_set_uses exists\); restore into a new folder$"
    for name, said in (("test_set_uses/a", not_empty), ("bin/sh", "not a backup"), ("../out", "not a backup")):
        with pytest.raises(ConfigError, match=said):
            restore(archive(name))
    with pytest.raises(ConfigError, match=r"none\.tar: No such file or directory$"):
        restore(tmp_path / "none.tar")
    assert not (tmp_path / "out").exists()
    assert sorted(path.name for path in home.iterdir()) == ["test_set_uses"]
