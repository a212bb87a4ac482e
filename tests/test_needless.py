"""Only unneeded items are removed, and only on request; a rollback and an unchanged run work afterwards."""

import contextlib
import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow.store.artifact.http_artifact_repo import HttpArtifactRepository
from registered import aliases, runs, versions
from requests import HTTPError
from servers import free_port, until
from typer.testing import CliRunner

from tunewright.artifacts import Base, Registered, Rows
from tunewright.cli.main import app
from tunewright.config import Gate, Registry
from tunewright.errors import TunewrightError
from tunewright.registry import release
from tunewright.registry.address import public_address
from tunewright.registry.needless import in_mlflow, needed_bases, on_server
from tunewright.registry.tracking import connected
from tunewright.registry.versions import champion
from tunewright.store import bases, in_use, pipelines
from tunewright.store.caching import cached, kept, lock
from tunewright.store.needless import in_home
from tunewright.store.shared import shared_store
from tunewright.tasks.base import base as load_base

Make = Callable[..., Registered]
TRIAGE = Registry(name="triage")
SECONDS = 86_400


@cached()
def ingest(folder: Path, ids: str) -> Rows:
    pq.write_table(pa.table({"row_id": list(ids)}), folder / "rows.parquet")
    return Rows(num_read=0, num_rows=0, num_quarantined=0, reasons={}, detected={})


def asked(ids: str, days: float, name: str = "tiny") -> Path:
    """An artifact that a run of a pipeline asked for so many days ago."""
    made = ingest(ids)
    pipelines.note(name, "ingest", made.key)
    then = time.time() - days * SECONDS
    for path in (made.folder, *made.folder.parents[2].glob(f"pipelines/{name}/ingest/{made.key}")):
        os.utime(path, (then, then))
    return made.folder


def test_artifacts_of_the_newest_runs_of_each_pipeline_stay_and_what_was_used_today() -> None:
    oldest, older, old = (asked(ids, days) for ids, days in (("a", 9), ("b", 8), ("c", 7)))
    today, other = asked("d", 0.5), asked("e", 20, "other")
    found = {each.name: each for each in in_home(2)}
    assert {*found} == {f"ingest/{folder.name}" for folder in (oldest, older)}
    assert all(each.size > 500 for each in found.values())
    assert found[f"ingest/{older.name}"].why == "not used by newer runs, last used 8 days ago"
    assert [each.remove() for each in found.values()] == [True, True]
    assert [folder.exists() for folder in (oldest, older, old, today, other)] == [False, False, True, True, True]
    assert not list(in_home(2))
    assert kept(Rows, "ingest", today.name)
    assert ingest("a").folder == oldest, "what is needed again is made again"


def test_an_artifact_that_is_used_again_stays_and_one_that_a_run_makes_is_not_removed() -> None:
    folders = [asked(ids, days) for ids, days in (("a", 9), ("b", 8), ("c", 7))]
    ingest("a")
    (only,) = in_home(1)
    assert only.name == f"ingest/{folders[1].name}"
    with lock(folders[1]):
        assert not only.remove()
    assert folders[1].exists()


def test_what_no_call_asks_for_by_name_stays_a_week(home: Path) -> None:
    made = ingest("a").folder
    unfinished = made.with_name(f".{made.name}.1234")
    unfinished.mkdir()
    work = home / "work" / "train" / "k"
    (work / "checkpoints").mkdir(parents=True)
    for days, expected in ((0.5, set()), (6, {unfinished.name}), (8, {unfinished.name, made.name, "k"})):
        then = time.time() - days * SECONDS
        for path in (made, unfinished, work / "checkpoints"):
            os.utime(path, (then, then))
        assert {each.name.partition("/")[2] for each in in_home(3)} == expected
    assert all(each.remove() for each in in_home(3))
    assert not any(path.exists() for path in (made, unfinished, work))


@pytest.fixture
def bases_in_store(
    tmp_path: Path, tiny_base: Base, register_candidate: Make, monkeypatch: pytest.MonkeyPatch
) -> set[str]:
    """The base of a version and that of no version; a store has both, and the address of the version's MLflow."""
    register_candidate()
    (tmp_path / "store").mkdir()
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "store"))
    bases.keep("triage", tiny_base, public_address(TRIAGE))
    return {tiny_base.weights_digest, "0" * 64}


def test_the_base_of_a_version_is_needed_and_another_is_not(
    bases_in_store: set[str], tiny_base: Base, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert needed_bases(bases_in_store) == {tiny_base.weights_digest}
    bases.keep("bot", tiny_base.model_copy(update={"weights_digest": "0" * 64}), "https://other.example")
    assert needed_bases(bases_in_store) == bases_in_store
    assert "as versions in https://other.example may need it; set MLFLOW_TRACKING_URI" in caplog.text
    (named,) = home.glob("mlartifacts/**/base.json")
    named.unlink()
    with pytest.raises(TunewrightError, match=r"models:/triage/1: base\.json, which names its base, cannot be read"):
        needed_bases(bases_in_store)


def test_clean_removes_no_base_where_mlflow_does_not_answer(
    bases_in_store: set[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("tunewright.store.needless.time", SimpleNamespace(time=lambda: time.time() + 31 * SECONDS))
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["clean", "--json"])
    assert done.exit_code == 0
    assert "MLflow does not answer" in done.stderr
    assert "no base is removed from the store, as a version may need it" in done.stderr
    found = {each["kind"] for each in json.loads(done.stdout)["found"]}
    assert "artifact in the store" not in found
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def test_clean_goes_on_where_the_shared_store_cannot_be_reached_or_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (oldest, _), store = (asked("a", 9), asked("b", 8)), tmp_path / "store"
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(store))
    clean = ["clean", "--keep-runs", "1", "--yes", "--json"]
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, clean)
    assert done.exit_code == 0 and not oldest.exists()
    assert "has no such folder; accepted: a folder that exists; nothing in the store was looked at" in done.stderr
    store.mkdir()
    shared = shared_store()
    assert shared
    shared.note_runs("bot/1.json", b"{}")
    then = time.time() - 31 * SECONDS
    os.utime(store / "recent_runs" / "bot" / "1.json", (then, then))
    monkeypatch.setattr(shared.files, "rm_file", Mock(side_effect=OSError(errno.EROFS, os.strerror(errno.EROFS))))
    done = CliRunner(env={"COLUMNS": "400"}).invoke(app, clean)
    assert done.exit_code == 0 and json.loads(done.stdout)["removed"] == []
    assert "this store cannot be written ([Errno 30] Read-only file system)" in done.stderr
    assert "bot/1 and what follows it stays in the store" in done.stderr


@pytest.fixture
def eight(register_candidate: Make) -> Make:
    """Versions 1 and 5 were promoted, 8 waits for a person, and the others were rejected."""
    for number in range(1, 9):
        challenged = "" if number == 1 else "1" if number <= 5 else "5"
        decision = "promote" if number in (1, 5, 8) else "keep"
        gate = {"gate": Gate(approval=True)} if number == 8 else {}
        made = register_candidate(digest=f"candidate {number}", decision=decision, challenged=challenged, **gate)
        assert made.version == str(number)
    return register_candidate


def test_rejected_versions_go_with_their_weights_and_all_that_can_be_needed_stays(
    eight: Make, tiny_base: Base, home: Path
) -> None:
    num_runs, weights = len(runs()), list(home.rglob("adapter_model.safetensors"))
    found = list(in_mlflow(2))
    assert [each.name for each in found] == ["triage version 4", "triage version 3", "triage version 2"]
    assert found[0].why == "not promoted (verdict: keep); 2 newer ones stay"
    assert all(each.size > 10_000 for each in found)
    assert all(each.remove() for each in found)
    assert [str(version.version) for version in versions()] == ["1", "5", "6", "7", "8"]
    assert len(list(home.rglob("adapter_model.safetensors"))) == len(weights) - 3
    assert len(runs()) == num_runs
    assert not list(in_mlflow(2))
    held = champion(TRIAGE, "another", tiny_base, load_base.fn)
    assert held
    assert held.version == "5"
    assert eight(digest="candidate 7", decision="keep", challenged="5").version == "7", "an unchanged run makes none"
    assert release.rollback(TRIAGE, by="me", why="to see").event.after == "1"
    assert aliases() == {"champion": "1"}
    assert [waiting.version for waiting in release.look_up(TRIAGE).waiting] == ["8"]


def test_a_copy_of_a_champion_goes_a_week_after_it_was_used_last(home: Path) -> None:
    for name, days in (("triage-1-abc", 8), ("triage-2-def", 1)):
        (home / "champions" / name).mkdir(parents=True)
        then = time.time() - days * SECONDS
        os.utime(home / "champions" / name, (then, then))
    (found,) = in_home(2)
    assert (found.kind, found.name) == ("copy of a champion", "triage-1-abc")
    assert found.remove()
    assert [path.name for path in (home / "champions").iterdir()] == ["triage-2-def"]


@pytest.mark.parametrize("place", ["mlflow-artifacts:/../../outside", "/etc", "{home}/mlartifacts", "{home}/versions"])
def test_a_folder_that_is_none_of_mlflow_s_files_is_not_removed(
    register_candidate: Make, home: Path, place: str
) -> None:
    register_candidate(digest="a")
    register_candidate(digest="b", decision="keep", challenged="1")
    register_candidate(digest="c", decision="keep", challenged="1")
    with sqlite3.connect(home / "mlflow.db") as database:
        database.execute("UPDATE logged_models SET artifact_location = ?", (place.format(home=home),))
    there = sorted(home.rglob("*"))
    (found,) = in_mlflow(1)
    assert (found.size, found.remove()) == (0, True)
    assert sorted(home.rglob("*")) == there


def test_a_run_that_a_person_deleted_goes_unless_a_version_stands_on_it(register_candidate: Make, home: Path) -> None:
    first = register_candidate(digest="a")
    other = register_candidate(digest="a", gate=Gate(margin=0.1))
    assert first.run_id != other.run_id
    with connected(TRIAGE) as client:
        for run_id in (first.run_id, other.run_id):
            client.delete_run(run_id)
    (found,) = in_mlflow(10)
    folder = home / "mlartifacts" / other.run_id
    assert list(folder.rglob("*.html"))
    assert found.remove()
    assert not list(folder.rglob("*.html"))
    assert not list(in_mlflow(10))
    with connected(TRIAGE) as client:
        client.restore_run(first.run_id)


SERVE = "import sys; from mlflow.server import app; app.run(port=int(sys.argv[1]), threaded=True)"


@pytest.fixture
def server(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Registry, Path]]:
    """MLflow's API as a team's server has it, and the folder with its database and its files."""
    folder, port = tmp_path / "server", free_port()
    folder.mkdir()
    shutil.copy(mlflow_database, folder / "mlflow.db")
    settings = {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "files"),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    with (folder / "log").open("w") as log:
        command = [sys.executable, "-c", SERVE, str(port)]
        process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
    found = Registry(name="triage", tracking_uri=f"http://127.0.0.1:{port}")
    try:
        until(lambda: process.poll() is not None or _answers(port))
        assert process.poll() is None, (folder / "log").read_text()
        yield found, folder
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/version").is_success
    return False


def numbers(server: Registry) -> list[str]:
    """The versions on the server."""
    with connected(server) as client:
        return sorted(str(version.version) for version in client.search_model_versions("name = 'triage'"))


def test_clean_removes_rejected_versions_of_named_models_from_an_mlflow_server(
    server: tuple[Registry, Path],
    register_candidate: Make,
    tiny_base: Base,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there, folder = server
    for number in range(1, 6):
        challenged, decision = ("", "promote") if number == 1 else ("1", "keep")
        register_candidate(digest=f"candidate {number}", decision=decision, challenged=challenged, registry=there)
    with connected(there) as client:
        client.create_registered_model("theirs")
        for _ in range(3):  # by another tool
            client.create_model_version("theirs", "s3://theirs/model")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", there.tracking_uri or "")
    assert needed_bases([tiny_base.weights_digest]) == {tiny_base.weights_digest}
    assert not list(in_mlflow(1)), "the home's own has none"
    weights = len(list(folder.rglob("adapter_model.safetensors")))

    elsewhere = "/srv/elsewhere/models/m-1/artifacts"
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("UPDATE model_versions SET storage_location = ? WHERE version = 2", (elsewhere,))
    with connected(there) as client:
        copy = client.copy_model_version("models:/triage/4", "theirs")
    found = on_server(there, ["tri*", "theirs"], 1)
    assert [each.name for each in found] == ["triage version 3", "triage version 2"], "the copy has the files of 4"
    with connected(there) as client:
        client.delete_model_version("theirs", copy.version)
    found = on_server(there, ["tri*", "theirs"], 1)
    assert [(each.kind, each.name) for each in found] == [
        ("rejected version on the server", f"triage version {number}") for number in (4, 3, 2)
    ]
    assert [each.size > 10_000 for each in found] == [True, True, False]
    assert found[0].why == "not promoted (verdict: keep); 1 newer one stays"
    assert found[2].why.endswith(f"; its files stay at {elsewhere} until the server's administrator calls mlflow gc")
    assert found[0].remove() and len(list(folder.rglob("adapter_model.safetensors"))) == weights - 1
    with connected(there) as client:
        client.set_registered_model_alias("triage", "tried", "3")
    assert not found[1].remove(), "it got an alias"
    with connected(there) as client:
        client.delete_registered_model_alias("triage", "tried")

    few = ["clean", "--keep-rejected", "1", "--json"]
    command = CliRunner(env={"COLUMNS": "400"})
    assert json.loads(command.invoke(app, few).stdout)["found"] == [], "only where the models are named"
    with monkeypatch.context() as refusing:
        refusing.setattr(HttpArtifactRepository, "delete_artifacts", Mock(side_effect=HTTPError("403 Forbidden")))
        done = command.invoke(app, [*few, "--yes", "--server-models", "triage"])
    assert [each["name"] for each in json.loads(done.stdout)["removed"]] == ["triage version 3", "triage version 2"]
    refused = (
        "triage/3 was removed, but the server does not remove its files (HTTPError: 403 Forbidden); its administrator"
    )
    assert f"{refused} does so by mlflow gc" in done.stderr
    assert numbers(there) == ["1", "5"]
    with connected(there) as client, sqlite3.connect(folder / "mlflow.db") as database:
        assert client.get_model_version_by_alias("triage", "champion").version == "1"
        deleted = database.execute("SELECT count(*) FROM logged_models WHERE lifecycle_stage = 'deleted'").fetchone()
    assert deleted == (3,), "which mlflow gc goes by"
    done = command.invoke(app, ["clean", "--json", "--server-models", "triag"])
    assert "--server-models triag: " in done.stderr and "has no such model; it has: theirs, triage" in done.stderr


def test_clean_goes_on_where_the_mlflow_server_does_not_answer(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked("a", 9)
    asked("b", 8)
    few = ["clean", "--keep-runs", "1", "--json", "--yes", "--server-models", "*"]
    command = CliRunner(env={"COLUMNS": "400"})
    done = command.invoke(app, few)
    assert (done.exit_code, json.loads(done.stdout)["exit_code"]) == (2, 2)
    assert done.stderr.startswith("error: --server-models: MLFLOW_TRACKING_URI=; accepted: the address of an MLflow")
    assert command.invoke(app, ["clean"]).exit_code == 0  # whose warnings go to stdout, unlike those of the next ones
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    done = command.invoke(app, few)
    assert [each["kind"] for each in json.loads(done.stdout)["removed"]] == ["artifact"]
    assert "MLflow does not answer" in done.stderr and "no version on the server was looked at" in done.stderr
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


def test_clean_says_that_there_is_no_home(home: Path) -> None:
    done = CliRunner().invoke(app, ["clean"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: TUNEWRIGHT_HOME={home}: this folder does not exist; accepted: a home,")
    assert not home.exists()


def test_clean_shows_and_removes_only_when_asked(eight: Make, home: Path) -> None:
    asked("a", 9)
    asked("b", 8)
    few = ["clean", "--keep-runs", "1", "--keep-rejected", "4"]
    shown = CliRunner().invoke(app, few)
    assert "artifact: 1, " in shown.stdout
    assert "rejected version: 1, " in shown.stdout
    assert "nothing was removed. To remove it: the same command with --yes" in shown.stdout
    dry = json.loads(CliRunner().invoke(app, [*few, "--json"]).stdout)
    assert [each["kind"] for each in dry["found"]] == ["artifact", "rejected version"]
    assert dry["removed"] is None
    with in_use.by_a_run(), in_use.by_a_run():
        during = json.loads(CliRunner().invoke(app, ["clean", "--keep-runs", "1", "--json", "--yes"]).stdout)
    assert (during["found"], during["removed"]) == (dry["found"][:1], []), "a run may use it"
    done = json.loads(CliRunner().invoke(app, [*few, "--json", "--yes"]).stdout)
    assert done["removed"] == done["found"] == dry["found"]
    again = CliRunner().invoke(app, few)
    assert again.stdout.strip() == f"nothing to remove in {home}"
