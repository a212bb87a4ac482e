"""A run has the server that is named, or one of its own, which ends with it and not with a signal of the terminal."""

import base64
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
import psutil
import pytest
import waiting
from conftest import NO_BLOCKS
from prefect.client.orchestration import get_client
from prefect.context import refresh_global_settings_context
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_HOME,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from tunewright.artifacts import Base
from tunewright.cli import prefect_server, temporary_server
from tunewright.cli.temporary_server import TemporaryServer
from tunewright.config import quietly
from tunewright.errors import ConfigError, StoreRefused, TunewrightError
from tunewright.machine import addresses, start_limit
from tunewright.reports import progress


@pytest.fixture(autouse=True)
def settings_as_before() -> Iterator[None]:
    """The password of a temporary server, and what is no longer sent, stay so for as long as the process lives."""
    with (
        patch.dict(os.environ),
        patch.object(EventsWorker, "_handle", EventsWorker._handle),  # pyright: ignore[reportPrivateUsage]
        patch.object(APILogWorker, "_handle_batch", APILogWorker._handle_batch),  # pyright: ignore[reportPrivateUsage]
        patch.object(logging, "raiseExceptions", logging.raiseExceptions),
    ):
        yield
    refresh_global_settings_context()


@pytest.fixture
def prefect_home(tmp_path: Path, prefect_database: Path) -> Path:
    """A folder for a server of a test's own, with a database that it finds made."""
    shutil.copy(prefect_database, tmp_path)
    return tmp_path


RUN = """
import os, sys, time
import psutil
from prefect import flow
from tunewright.cli import prefect_server

prefect_server.ensure()

@flow
def run() -> None:
    (server,) = psutil.Process().children()
    api, password = os.environ["PREFECT_API_URL"], os.environ["PREFECT_API_AUTH_STRING"]
    print(server.pid, api, "prefect.server.api" in sys.modules, password, flush=True)
    time.sleep(60)

run()
"""


def test_the_server_of_a_run_is_closed_to_others_out_of_the_terminals_reach_and_ends_with_the_run(
    prefect_home: Path,
) -> None:
    with closing(sqlite3.connect(prefect_home / "prefect.db")) as database, database:
        database.executescript("DELETE FROM block_schema_reference; DELETE FROM block_schema; DELETE FROM block_type")
    environment = {name: value for name, value in os.environ.items() if name not in {"PREFECT_API_URL", *NO_BLOCKS}} | {
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    with subprocess.Popen(
        [sys.executable, "-c", RUN], env=environment, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        pid, api, has_imported_the_server, password = run.stdout.readline().split()
        assert has_imported_the_server == "False"  # which takes longer than a run of cached stages
        server = psutil.Process(int(pid))
        page = {"Origin": "http://evil.test"}
        for wrong in ("", "guessed"):
            answer = httpx.post(f"{api}/flows/", json={"name": "stranger"}, auth=("", wrong), headers=page)
            assert answer.status_code == 401
            assert "access-control-allow-origin" not in answer.headers
        own = {"Authorization": f"Basic {base64.b64encode(password.encode()).decode()}"}
        types = httpx.post(f"{api}/block_types/filter", json={}, headers=own, timeout=120)
        assert (types.status_code, types.json()) == (200, []), "it begins without what no run needs"
        assert os.getsid(server.pid) == server.pid != os.getsid(run.pid)
        os.kill(run.pid, signal.SIGKILL)
    gone, _ = psutil.wait_procs([server], timeout=20)
    assert gone


DIES = """
import os, threading, time
import psutil
from prefect import flow
from tunewright.cli import prefect_server

def kill() -> None:
    while not (servers := psutil.Process().children()):
        time.sleep(0.01)
    servers[0].kill()
    while servers == psutil.Process().children():
        time.sleep(0.1)

threading.Thread(target=kill, daemon=True).start()
prefect_server.ensure()

@flow
def run() -> str:
    kill()
    return "ended well"

print(run())
"""


def test_the_server_of_a_run_is_started_again_where_it_dies_as_it_starts_or_later_and_the_run_goes_on(
    prefect_home: Path,
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | {
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    ended = subprocess.run(
        [sys.executable, "-c", DIES], env=environment, cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "ended well\n"), ended.stderr


DEAD = "http://127.0.0.1:9/api"  # no server listens there


def test_a_named_server_that_does_not_answer_is_one_line_and_no_other_starts() -> None:
    with (
        temporary_settings({PREFECT_API_URL: DEAD}),
        patch.object(temporary_server, "start") as start,
        pytest.raises(
            TunewrightError,
            match=f"PREFECT_API_URL={DEAD}: no usable server .*refused.* unset it and start one with",
        ) as raised,
    ):
        prefect_server.ensure()
    start.assert_not_called()
    assert raised.value.exit_code == 1  # a server that does not answer, as of MLflow's


@pytest.mark.parametrize("api", [DEAD.removesuffix("/api"), "127.0.0.1:9/api"])
def test_a_wrong_address_is_wrong_configuration(api: str) -> None:
    with temporary_settings({PREFECT_API_URL: api}), pytest.raises(ConfigError, match=r"^PREFECT_API_URL="):
        prefect_server.ensure()


def test_one_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    updates: dict[Any, Any] = {
        PREFECT_HOME: tmp_path,
        PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{tmp_path}/none/prefect.db",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 1,
    }
    with (
        temporary_settings(updates, restore_defaults=(PREFECT_API_URL,)),
        pytest.raises(
            TunewrightError, match=r"did not answer within \d+ s: check what .*DATABASE_CONNECTION_URL can be"
        ),
    ):
        prefect_server.ensure()


def test_one_that_computes_for_longer_than_the_limit_is_waited_for(
    prefect_home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(start_limit, "MOST_WAITS", 100)
    monkeypatch.setattr(progress, "FIRST_SECONDS", 1.0)
    caplog.set_level(logging.INFO, logger="tunewright")
    with temporary_settings({PREFECT_HOME: prefect_home}, restore_defaults=(PREFECT_API_URL,)):
        server, started = TemporaryServer(), time.monotonic()
        try:
            assert server.answers_within(2.0)
            assert time.monotonic() - started > 2.0  # it imports for longer
            assert caplog.messages[0].startswith("  starting a temporary Prefect server: 1 s so far")
        finally:
            server.end()


def test_a_full_disk_is_one_line_before_the_server_starts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.config.environment.shutil.disk_usage", lambda path: SimpleNamespace(free=12_288))
    said = rf"^TUNEWRIGHT_HOME={home}: 12,288 bytes are free on its disk; needed: 20,000,000 for Prefect's server"
    with (
        temporary_settings(restore_defaults=(PREFECT_API_URL,)),
        patch.object(subprocess, "Popen") as started,
        pytest.raises(TunewrightError, match=said),
    ):
        prefect_server.ensure()
    started.assert_not_called()


def test_a_store_that_is_not_there_is_one_line_before_the_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path / "team"))
    with (
        temporary_settings(restore_defaults=(PREFECT_API_URL,)),
        patch.object(subprocess, "Popen") as started,
        pytest.raises(
            StoreRefused, match=r"team: this machine \(.*\) has no such folder; accepted: a folder that exists$"
        ),
    ):
        prefect_server.call(lambda **_: None)
    started.assert_not_called()


def test_one_that_dies_while_a_run_goes_on_is_one_line() -> None:
    said = rf"^Prefect's server \({DEAD}\) no longer answers: .*refused; finished stages are kept"
    settings: dict[Any, Any] = {PREFECT_API_URL: DEAD, PREFECT_CLIENT_MAX_RETRIES: 0}
    with (
        temporary_settings(settings),
        pytest.raises(TunewrightError, match=said),
        prefect_server.needed(),
        get_client(sync_client=True) as client,
    ):
        client.hello()


def test_a_server_here_that_refuses_connections_is_given_up_sooner_where_nobody_starts_it_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(prefect_server.time, "monotonic", lambda: now)
    refusals = prefect_server._Refusals()

    def tries_again(at: float, host: str = "127.0.0.1") -> bool:
        nonlocal now
        now = at
        with pytest.raises(httpx.TransportError) as raised, refusals.noted(host):
            raise httpx.ConnectError("refused")
        return not isinstance(raised.value, prefect_server.ServerGone)

    with temporary_settings({PREFECT_API_URL: DEAD}):
        assert [tries_again(at) for at in (1000, 1014, 1026, 1026.1)] == [True, True, False, False]
        assert tries_again(1027, "prefect.example"), "another machine's server comes back in its own time"
        with addresses.held():
            assert [tries_again(at) for at in (1030, 1059, 1061)] == [True, True, False]
        with refusals.noted("127.0.0.1"):
            """It answers."""
        assert [tries_again(at) for at in (1062, 1070)] == [True, True]
        assert tries_again(9000), "what was refused an hour ago was another end of the server"
    with temporary_settings(restore_defaults=(PREFECT_API_URL,)):
        assert [tries_again(at) for at in (9030, 9059, 9061)] == [True, True, False]


ENDS = """
import os, signal, time
from prefect import flow
from tunewright.cli.command_line import console_of, prepare

prepare(console_of(False))
from tunewright.cli import prefect_server
from tunewright.errors import TunewrightError

prefect_server.PATIENCE_SECONDS = 4.0
prefect_server.ensure()

@flow
def run() -> str:
    os.kill(int(os.environ["SERVER"]), signal.SIGKILL)
    time.sleep(1)
    return "to nobody"

started = time.monotonic()
try:
    with prefect_server.needed():
        run(return_state=True)
except TunewrightError as error:
    print(f"error: {error}", flush=True)
print(f"ended after {time.monotonic() - started:.0f} s", flush=True)
os._exit(0)
"""


def test_a_run_whose_server_is_gone_waits_for_it_once_and_not_for_each_of_its_last_requests(
    prefect_home: Path,
) -> None:
    said = _with_a_server_that_it_ends(ENDS, prefect_home)
    assert "no longer answers: " in said and "refused; finished stages are kept" in said
    ended = re.search(r"ended after (\d+) s", said)
    assert ended and int(ended[1]) < 25, "Prefect's own clients try for a minute, three times"


DONE = """
import os, signal, sys, time
import tunewright.flows.finetune as flow
from tunewright.cli import main, prefect_server

prefect_server.PATIENCE_SECONDS = 4.0
work = flow.run

def run(*given):
    steps = work(*given)
    os.kill(int(os.environ["SERVER"]), signal.SIGKILL)
    time.sleep(1)
    return steps

flow.run = run
sys.argv = ["tunewright", "run", os.environ["FILE"], "--until", "ingest"]
try:
    main.main()
except SystemExit as end:
    print(f"exit code {end.code}", flush=True)
os._exit(0)
"""


def test_a_run_whose_work_is_done_when_its_server_goes_ends_with_its_summary(tmp_path: Path, tiny_base: Base) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    file = tmp_path / "a.yaml"
    file.write_text(
        "deployments:\n  - name: a\n    entrypoint: tunewright.flows.finetune.finetune\n    parameters:\n"
        f"      data: {{sources: [{{path: a.jsonl}}]}}\n      model: {{base: {tiny_base.reference}}}\n"
    )
    said = _with_a_server_that_it_ends(DONE, tmp_path, FILE=str(file))
    assert re.search(r"Prefect's server \(http://[^)]*\) no longer answers, so Prefect's pages lack the end of", said)
    assert "3 rows read = 3 kept + 0 quarantined" in said
    assert "error: " not in said and "exit code 0" in said


GONE = """
import logging, os, signal, threading, time
import httpx
from prefect import flow, task
from prefect.events import emit_event
from prefect.events.worker import EventsWorker
from prefect.logging import get_run_logger
from prefect.logging.handlers import APILogWorker
from tunewright.cli.command_line import console_of, prepare

prepare(console_of(False))
from tunewright.cli import prefect_server
from tunewright.errors import TunewrightError

heard = threading.Event()

class Hearing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if "no longer takes what the run reports" in record.getMessage():
            heard.set()

logging.getLogger("tunewright").addHandler(Hearing())
prefect_server.ensure()

@flow
def run() -> None:
    emit_event(event="a", resource={"prefect.resource.id": "sent"})
    EventsWorker.instance().wait_until_empty()  # it is connected, and tries to be so again
    os.kill(int(os.environ["SERVER"]), signal.SIGKILL)
    time.sleep(2)  # until the connection is closed at this end, too
    for number in range(30):
        emit_event(event="a", resource={"prefect.resource.id": str(number)})
    get_run_logger().warning("to nobody")
    heard.wait(120)  # until the first event could not be sent
    print("the run went on", flush=True)
    started = time.monotonic()
    try:
        with prefect_server.needed():
            raise httpx.ConnectError("refused")
    except TunewrightError as error:
        print(f"error: {error}", flush=True)
    APILogWorker.instance().drain()
    EventsWorker.instance().drain()
    print(f"ended after {time.monotonic() - started:.0f} s", flush=True)
    os._exit(0)

run()
"""


def test_a_server_that_ends_during_a_run_is_one_line_in_place_of_an_error_for_each_event(prefect_home: Path) -> None:
    said = _with_a_server_that_it_ends(GONE, prefect_home, PREFECT_CLIENT_MAX_RETRIES="0")
    assert "the run went on" in said
    assert "no longer answers: refused; finished stages are kept" in said
    ended = re.search(r"ended after (\d+) s", said)
    assert ended and int(ended[1]) < 40, "what waits to be sent is dropped: 30 events would take minutes"
    assert said.count("no longer takes what the run reports; the run goes on") == 1
    assert "Error logging to API" not in said and "failed to process item" not in said


def _answers(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health").status_code == 200
    except httpx.TransportError:
        return False


def _with_a_server_that_it_ends(program: str, prefect_home: Path, **more: str) -> str:
    """Run a program that kills its Prefect server, whose process id is in SERVER, and return its output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(prefect_home),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{prefect_home}/prefect.db",
        "TUNEWRIGHT_HOME": str(prefect_home / "home"),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        **more,
    }
    application = ("--factory", "prefect.server.api.server:create_app")
    serve = [sys.executable, "-m", quietly.__name__, "uvicorn", *application, "--port", str(port)]
    with subprocess.Popen(serve, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            waiting.until(lambda: _answers(api), seconds=600)
            listening = {
                each.pid
                for each in psutil.net_connections()
                if each.status == "LISTEN" and getattr(each.laddr, "port", 0) == port
            }
            done = subprocess.run(
                [sys.executable, "-c", program],
                env=environment | {"SERVER": str(listening.pop())},
                capture_output=True,
                text=True,
                timeout=600,
            )
        finally:
            server.terminate()
    return " ".join((done.stdout + done.stderr).split())


def test_no_script_of_the_current_folder_is_run_by_the_temporary_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path, prefect_database: Path
) -> None:
    """Prefect's packages import redis where there is one, and pathspec re2."""
    home.mkdir()
    shutil.copy(prefect_database, home)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{home}/prefect.db")
    for name in ("redis", "re2"):
        (tmp_path / f"{name}.py").write_text(f"open('{name} was run', 'w').close()\nraise SystemExit\n")
    server = TemporaryServer()
    try:
        assert server.answers_within(300)
    finally:
        server.end()
    assert {each.name for each in tmp_path.glob("*")} == {"home", "redis.py", "re2.py"}
