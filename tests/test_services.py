"""Services that stand in for the servers: started, kept alive and ended without a rest, however `up` ends."""

import io
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import prefect.main  # noqa: F401 whose first import takes the handlers of the root logger, also those of a test
import psutil
import pytest
import waiting
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import PREFECT_CLIENT_RETRY_JITTER_FACTOR, Settings, temporary_settings
from rich.console import Console
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from typer.testing import CliRunner

from tunewright import config
from tunewright.cli.command_line import prepare
from tunewright.cli.main import app
from tunewright.cli.up import cut_short, processes, show_next, up
from tunewright.cli.up.service import PASSING, Service, end_leftover_runs, log_file, logs, services
from tunewright.cli.up.supervisor import RESTARTS, Supervisor
from tunewright.config import Registry
from tunewright.errors import ConfigError, TunewrightError
from tunewright.machine import addresses
from tunewright.machine.addresses import Addresses
from tunewright.machine.ports import require_free
from tunewright.registry.mlflow_server import Guard
from tunewright.registry.tracking import connected, starts_with, ui

SECONDS = 20.0
until = partial(waiting.until, seconds=SECONDS)
# A service that writes a file when it works, and starts a process in a session of its own, as a worker starts a run.
PROGRAM = """
import os, pathlib, subprocess, sys, time
environment = os.environ | {"PREFECT__FLOW_RUN_ID": "1"}
program = [sys.executable, "-c", "import time; time.sleep(600)"]
child = subprocess.Popen(program, start_new_session=True, env=environment)
pathlib.Path(sys.argv[1]).write_text(str(child.pid))
time.sleep(600)
"""


def lives(pid: int) -> bool:
    """Also where nobody has waited for it yet, it has ended."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def stand_in(folder: Path, name: str, program: str = PROGRAM) -> Service:
    file = folder / name
    command = (sys.executable, "-c", textwrap.dedent(program), str(file))
    return Service(name=name, command=command, shows=name, is_ready=lambda: file.exists() and file.read_text() != "")


@pytest.fixture
def mark() -> Iterator[str]:
    mark = f"test-{os.getpid()}-{time.time_ns()}"
    yield mark
    assert processes.alive(mark, ["prefect", "mlflow", "worker", "sentinel"]) == []


def all_of(folder: Path) -> tuple[Service, ...]:
    return tuple(stand_in(folder, name) for name in ("prefect", "mlflow", "worker"))


def test_all_that_a_service_started_ends_with_it(tmp_path: Path, mark: str) -> None:
    ready: list[str] = []
    with Supervisor(all_of(tmp_path), mark) as supervisor:
        supervisor.begin(lambda service, seconds: ready.append(service.name))
        assert ready == ["prefect", "mlflow", "worker"]
        assert len(processes.alive(mark, ["worker"])) == 2
        child = int((tmp_path / "worker").read_text())
        assert child in {process.pid for process in processes.alive(mark, ["worker"])}
    assert not lives(child)
    assert supervisor.has_cut_runs  # its stand-in starts a run


def test_the_worker_ends_before_the_servers(tmp_path: Path, mark: str) -> None:
    notes = """
        import pathlib, signal, sys, time
        def ended(*_):
            with pathlib.Path(sys.argv[1]).with_name("ended").open("a") as file:
                file.write(pathlib.Path(sys.argv[1]).name + " ")
            sys.exit()
        signal.signal(signal.SIGTERM, ended)
        pathlib.Path(sys.argv[1]).write_text("ready")
        time.sleep(600)
    """
    order = [stand_in(tmp_path, name, notes) for name in ("prefect", "mlflow", "worker")]
    with Supervisor(order, mark) as supervisor:
        supervisor.begin(lambda service, seconds: None)
    assert (tmp_path / "ended").read_text().split()[0] == "worker"
    assert not supervisor.has_cut_runs
    assert set((tmp_path / "ended").read_text().split()) == {"prefect", "mlflow", "worker"}


def test_the_worker_begins_nothing_while_its_runs_end(tmp_path: Path, mark: str) -> None:
    ends_slowly = """
        import pathlib, signal, sys, time
        folder = pathlib.Path(sys.argv[1])
        def ended(*_):
            (folder / "began").write_text((folder / "ticks").read_text())
            time.sleep(1.5)
            (folder / "ended").write_text((folder / "ticks").read_text())
            sys.exit()
        signal.signal(signal.SIGTERM, ended)
        (folder / "worker").write_text("ready")
        time.sleep(600)
    """
    ticks = """
        import os, pathlib, subprocess, sys, time
        folder = pathlib.Path(sys.argv[1]).parent
        run = [sys.executable, folder / "run.py", folder]
        subprocess.Popen(run, env=os.environ | {"PREFECT__FLOW_RUN_ID": "1"})
        while True:
            (folder / "ticks.new").write_text(str(time.monotonic()))
            (folder / "ticks.new").rename(folder / "ticks")
            time.sleep(0.02)
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(ends_slowly))
    with Supervisor([*all_of(tmp_path)[:2], stand_in(tmp_path, "worker", ticks)], mark) as supervisor:
        supervisor.begin(lambda service, seconds: None)
        until((tmp_path / "ticks").exists)
    began, ended = (float((tmp_path / name).read_text()) for name in ("began", "ended"))
    assert ended - began < 0.5, "the worker went on"


def test_who_does_not_end_when_asked_is_killed(tmp_path: Path, mark: str) -> None:
    deaf = """
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path(sys.argv[1]).write_text("ready")
        time.sleep(600)
    """
    service = stand_in(tmp_path, "worker", deaf)
    logs().mkdir(parents=True)
    process = processes.start(service, mark)
    until(service.is_ready)
    assert processes.end(mark, ["worker"], grace=0.2) == 1
    assert process.wait(SECONDS) == -signal.SIGKILL


@pytest.mark.parametrize("name", ["prefect", "worker"])
def test_a_service_that_is_killed_is_started_again_without_its_orphans(
    name: str, tmp_path: Path, mark: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tunewright")
    marked: list[bool] = []  # whether a process of the service was alive when its runs were marked as cut short
    with Supervisor(all_of(tmp_path), mark, lambda _: marked.append(bool(processes.alive(mark, [name])))) as supervisor:
        supervisor.begin(lambda service, seconds: None)
        orphan = int((tmp_path / name).read_text())
        before = supervisor.processes[name].pid
        (tmp_path / name).unlink()
        os.kill(before, signal.SIGKILL)
        supervisor.processes[name].wait(SECONDS)
        supervisor.look()
        assert supervisor.processes[name].pid != before
        assert not lives(orphan)
        assert f"{name} exited with code -9 and is restarted; its runs were interrupted: a new run" in caplog.text
        assert "answers again" in caplog.text
        assert marked == ([False] if name == "worker" else [])


def test_a_service_that_dies_again_and_again_ends_all_and_says_why(tmp_path: Path, mark: str) -> None:
    short = """
        import pathlib, sys
        pathlib.Path(sys.argv[1]).write_text("ready")
        print("no more room")
    """
    order = [stand_in(tmp_path, "prefect"), stand_in(tmp_path, "mlflow", short), stand_in(tmp_path, "worker")]
    with Supervisor(order, mark) as supervisor:
        supervisor.begin(lambda service, seconds: None)
        with pytest.raises(TunewrightError, match=f"mlflow exited {RESTARTS + 1} times.*no more room"):
            supervisor.watch()


def test_a_service_that_does_not_start_says_what_it_printed(tmp_path: Path, mark: str) -> None:
    broken = "import sys; print('address in use'); sys.exit(3)"
    with (
        Supervisor([stand_in(tmp_path, "prefect", broken), stand_in(tmp_path, "worker")], mark) as supervisor,
        pytest.raises(TunewrightError, match=r"exited with code 3 before it was ready; last lines of .*address in use"),
    ):
        supervisor.begin(lambda service, seconds: None)


def test_a_service_that_computes_is_waited_for_and_one_that_does_nothing_is_not(
    tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.cli.up.supervisor.READY_SECONDS", 1.0)
    slow = """
        import pathlib, sys, time
        until = time.monotonic() + 3
        while time.monotonic() < until:
            pass
        pathlib.Path(sys.argv[1]).write_text("ready")
        time.sleep(600)
    """
    still = "import time; time.sleep(600)"
    ready: list[str] = []
    with (
        Supervisor([stand_in(tmp_path, "prefect", slow), stand_in(tmp_path, "worker", still)], mark) as supervisor,
        pytest.raises(
            TunewrightError,
            match=r"^worker did not answer within \d s: check what keeps the machine busy, then run tunewright up "
            r"again; .*worker\.log is empty$",
        ),
    ):
        supervisor.begin(lambda service, seconds: ready.append(service.name))
    assert ready == ["prefect"]


def test_nothing_is_left_where_up_itself_is_killed(tmp_path: Path, mark: str) -> None:
    up = f"""
        import sys, pathlib
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_services import all_of
        from tunewright.cli.up.supervisor import Supervisor
        with Supervisor(all_of(pathlib.Path({str(tmp_path)!r})), {mark!r}) as supervisor:
            supervisor.begin(lambda service, seconds: None)
            pathlib.Path({str(tmp_path)!r}, "up").write_text("ready")
            supervisor.watch()
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(up)])
    until((tmp_path / "up").exists)
    assert len(processes.alive(mark, ["prefect", "mlflow", "worker"])) == 6
    process.kill()
    process.wait()
    until(lambda: processes.alive(mark, ["prefect", "mlflow", "worker", "sentinel"]) == [])


def test_a_sentinel_that_is_killed_is_replaced(tmp_path: Path, mark: str) -> None:
    with Supervisor(all_of(tmp_path), mark) as supervisor:
        supervisor.begin(lambda service, seconds: None)
        first = supervisor.sentinel
        first.kill()
        first.wait(SECONDS)
        supervisor.look()
        assert supervisor.sentinel is not first
        assert len(processes.alive(mark, ["prefect", "mlflow", "worker"])) == 6


def test_a_taken_port_names_what_holds_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ConfigError, match=rf"--port {port}: in use by .*\(process {os.getpid()}\); .*such as --port \d+$"
        ):
            require_free(port, "--port")
    require_free(port, "--port")


def test_a_port_that_browsers_refuse_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--port 10080: browsers refuse this port; .* such as --port 100\d\d$"):
        require_free(10_080, "--port")


@pytest.mark.parametrize(
    ("port", "other", "taken", "free"),
    [
        (23_917, 23_918, {23_917}, 23_919),
        (23_917, 23_918, {23_917, 23_919}, 23_920),
        (23_918, 23_917, {23_918}, 23_919),
        (65_535, 65_534, {65_535}, 65_533),
    ],
)
def test_the_port_to_take_instead_is_free_and_not_the_other_one(
    port: int, other: int, taken: set[int], free: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.machine.ports.holder", lambda each: "x" if each in taken else "")
    monkeypatch.setattr("tunewright.cli.up.orphaned", lambda: False)  # of other homes there may be
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    logger = logging.getLogger("tunewright")  # which `up` changes
    monkeypatch.setattr(logger, "propagate", logger.propagate)
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    for options in (("--port", "--mlflow-port"), ("--mlflow-port", "--port")):
        done = CliRunner().invoke(app, ["up", options[0], str(port), options[1], str(other)])
        assert done.exit_code == 2
        assert done.stderr.endswith(f"choose another port, such as {options[0]} {free}\n")
    assert not home.exists()


@pytest.mark.parametrize("pool", ["", " ", "''", "a/b", "a%", "Prefect-own"])
def test_a_pool_that_prefect_refuses_is_refused_before_anything_starts(pool: str, home: Path) -> None:
    with pytest.raises(ValueError, match=r"name|pattern") if not pool.startswith("Pre") else nullcontext():
        WorkPoolCreate(name=pool)
    done = CliRunner().invoke(app, ["up", "--pool", pool])
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: --pool {json.dumps(pool)}: accepted: a name without % & / < >")
    assert not home.exists()


def test_a_process_that_cannot_be_read_hinders_nothing(
    tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of the same user that forbids it (prctl PR_SET_DUMPABLE), or all of others in a closed /proc."""
    read = psutil.Process.environ

    def environ(process: psutil.Process) -> dict[str, str]:
        if process.pid == os.getpid():
            raise psutil.AccessDenied(process.pid)
        return read(process)

    monkeypatch.setattr(psutil.Process, "environ", environ)
    logs().mkdir(parents=True)
    service = stand_in(tmp_path, "worker")
    processes.start(service, mark)
    until(service.is_ready)
    assert len(processes.alive(mark, ["worker"])) == 2
    assert not processes.orphaned()
    assert processes.end(mark, ["worker"], grace=5) == 0


def test_the_password_is_its_owners_alone_and_stays(home: Path) -> None:
    assert addresses.password() == ""
    config.make_home()
    before = os.umask(0)
    first = addresses.keep_password()
    os.umask(before)
    assert stat.S_IMODE(addresses.password_file().stat().st_mode) == 0o600
    assert len(first) > 30 and addresses.keep_password() == addresses.password() == first
    addresses.password_file().chmod(0o644)
    assert addresses.keep_password("user:own") == addresses.password() == "user:own"
    assert stat.S_IMODE(addresses.password_file().stat().st_mode) == 0o600


def test_commands_have_the_password_of_up_and_tell_it_to_no_other_server(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Addresses(pid=1, prefect="http://127.0.0.1:4300", mlflow="http://127.0.0.1:5300", pool="local")
    with addresses.held() as file:
        addresses.keep_password("secret")
        file.write_text(found.model_dump_json())
        for url, told in ((None, "secret"), ("http://localhost:4300/api/", "secret"), ("http://team.example/api", "")):
            for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
                monkeypatch.delenv(name, raising=False)
            if url:
                monkeypatch.setenv("PREFECT_API_URL", url)
            prepare(Console(quiet=True))
            assert os.environ["PREFECT_API_URL"] == (url or found.api)
            assert os.environ.get("PREFECT_API_AUTH_STRING", "") == told
        monkeypatch.setenv("PREFECT_API_URL", found.api)
        monkeypatch.setenv("PREFECT_API_AUTH_STRING", "given")
        prepare(Console(quiet=True))
        assert os.environ["PREFECT_API_AUTH_STRING"] == "given"


def test_up_does_not_serve_beside_another_server_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://team.example/api")
    with pytest.raises(
        ConfigError, match=r"PREFECT_API_URL=\"http://team.example/api\" names another .*:4300/api.*: TUNEWRIGHT_HOME=/"
    ):
        up(Console(quiet=True), 4300, 5300, "local")


def test_the_own_address_without_its_api_is_said_to_lack_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://localhost:4300")
    said = (
        r'^PREFECT_API_URL="http://localhost:4300": its /api is missing: set PREFECT_API_URL=http://localhost:4300/api'
    )
    with pytest.raises(ConfigError, match=said):
        up(Console(), 4300, 5300, "local")


def test_a_log_does_not_have_the_password_that_a_terminal_shows(home: Path) -> None:
    config.make_home()
    password = addresses.keep_password()
    found = Addresses(pid=1, prefect="http://127.0.0.1:4300", mlflow="http://127.0.0.1:5300", pool="local")
    with addresses.held() as file:
        file.write_text(found.model_dump_json())
        for is_terminal in (True, False):
            said = io.StringIO()
            show_next(Console(file=said, force_terminal=is_terminal, highlight=False), found)
            assert (f"http://127.0.0.1:4300/tunewright#{password}" in said.getvalue()) == is_terminal
            assert (password in said.getvalue()) == is_terminal
            field = "Prefect's login field takes the file's content and nothing else"
            assert (field in said.getvalue()) != is_terminal
            assert f'PREFECT_API_AUTH_STRING="$(cat {addresses.password_file()})"' in said.getvalue()


class Asked(BaseHTTPRequestHandler):
    """An MLflow server that notes who asks."""

    credentials: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.credentials.append(self.headers["Authorization"])
        content = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}'
        self.send_response(404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's name
        """Says nothing."""


def test_mlflow_of_up_is_told_its_password_and_no_other_server(home: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Asked) as server, addresses.held() as file:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        addresses.keep_password("secret")
        for port in (server.server_port, 5300):
            found = Addresses(pid=1, prefect="http://127.0.0.1:4300", mlflow=f"http://127.0.0.1:{port}", pool="local")
            file.write_text(found.model_dump_json())
            registry = Registry(name="x", tracking_uri=f"http://127.0.0.1:{server.server_port}")
            with pytest.raises(TunewrightError, match="refused"), connected(registry) as client:
                client.get_experiment("7")
        server.shutdown()
    assert Asked.credentials == ["Basic dHVuZXdyaWdodDpzZWNyZXQ=", None]
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


class Busy(BaseHTTPRequestHandler):
    """A Prefect server whose database is locked at each first request, and whose API asks for the password."""

    seen: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_first, is_known = self.path not in self.seen, self.headers["Authorization"] == "Basic c2VjcmV0"
        self.seen.append(self.path)
        state = {"type": "RUNNING", "name": "Running", "id": RUN, "timestamp": "2026-01-01T00:00:00Z"}
        run = {"id": RUN, "flow_id": RUN, "name": "brave-otter", "state": state}
        run |= {"parameters": {"deployment": "finetune/demo"}}
        answer = [run] if self.path.endswith("filter") else {"status": "ACCEPT", "details": {}, "state": state}
        assert "CRASHED" in body.decode() or self.path.endswith("filter")
        content = json.dumps(answer).encode()
        self.send_response(503 if is_first else 200 if is_known else 401)
        self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        """The token against CSRF, which it does not ask for."""
        content = b'{"detail": "CSRF protection is disabled."}'
        self.send_response(422)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's name
        """Says nothing."""


RUN = "7ba2ff6f-1a0b-4f6a-9d4f-3a4bbdbd3f3a"


def test_what_was_cut_short_is_marked_though_the_database_is_busy(home: Path) -> None:
    config.make_home()
    addresses.keep_password("secret")
    with HTTPServer(("127.0.0.1", 0), Busy) as server, temporary_settings({PREFECT_CLIENT_RETRY_JITTER_FACTOR: 0}):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        ended = end_leftover_runs(Addresses(pid=1, prefect=address, mlflow=address, pool="local"))
        assert ended == ["brave-otter, a poll of finetune/demo"]
        server.shutdown()
    asked = ["/api/flow_runs/filter"] * 3 + ["/api/flows/filter"] * 2
    assert Busy.seen == asked + [f"/api/flow_runs/{RUN}/set_state"] * 2


def test_a_database_that_stays_busy_does_not_end_up(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    config.make_home()
    dead = "http://127.0.0.1:9"
    assert cut_short(Addresses(pid=1, prefect=dead, mlflow=dead, pool="local")) == []
    assert "were not marked as crashed" in caplog.text


def test_mlflow_is_for_whoever_has_the_password_and_for_no_page_of_another_origin(home: Path) -> None:
    async def mlflow(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("artifact")(scope, receive, send)

    own = {"Origin": "http://127.0.0.1:5000"}
    client = TestClient(Guard(mlflow, "secret", "<head></head>"), base_url="http://127.0.0.1:5000")

    def answer(path: str = "/api/2.0/mlflow-artifacts/artifacts/x", password: str = "secret", **headers: str) -> int:
        return client.put(path, auth=("anyone", password), headers=headers).status_code

    assert answer() == answer(**own) == 200
    assert answer(password="") == answer(password="guessed") == client.put("/x").status_code == 401
    assert client.get("/health").status_code == 200
    for page in ("http://127.0.0.1:5001", "http://localhost:5000", "http://evil.test", "null"):
        assert answer(Origin=page) == 403
    first = client.get("/", auth=("anyone", "secret"))
    assert "[data-assistant-ui] { display: none" in first.text and first.headers["x-frame-options"] == "SAMEORIGIN"
    assert client.get("/").status_code == 401
    assert answer("/ajax-api/3.0/mlflow/assistant/config") == answer("/x/mlflow/assistant/message") == 404


def test_addresses_are_believed_only_while_up_lives(home: Path) -> None:
    assert addresses.running() is None
    found = Addresses(pid=os.getpid(), prefect="http://127.0.0.1:4200", mlflow="http://127.0.0.1:5000", pool="local")
    with addresses.held() as file:
        assert addresses.running() is None  # not ready
        file.write_text(found.model_dump_json())
        assert addresses.running() == found
        assert found.api == "http://127.0.0.1:4200/api"
        with (
            pytest.raises(TunewrightError, match=f"up in {home} already: Prefect http://127.0.0.1:4200, MLflow"),
            addresses.held(),
        ):
            pass
    assert addresses.running() is None
    file.write_text(found.model_dump_json())  # as a process that was killed leaves it
    assert addresses.running() is None


def test_pages_are_where_up_has_them_and_else_where_they_can_be_started(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    database, server = f"sqlite:///{home / 'mlflow.db'}", "http://mlflow.example:80"
    assert ui(database, "7") == "http://127.0.0.1:5000/#/experiments/7"
    assert starts_with(database) == f"mlflow ui --backend-store-uri {database}"
    assert addresses.prefect_run("run") == ""  # of a server that ends with it
    found = Addresses(pid=1, prefect="http://127.0.0.1:4300", mlflow="http://127.0.0.1:5300", pool="local")
    with addresses.held() as file:
        file.write_text(found.model_dump_json())
        assert ui(database, "7") == "http://127.0.0.1:5300/#/experiments/7"
        assert addresses.prefect_run("run") == "http://127.0.0.1:4300/v2/runs/flow-run/run"
        assert starts_with(database) == ""
    assert starts_with("sqlite:////my runs/mlflow.db") == "mlflow ui --backend-store-uri 'sqlite:////my runs/mlflow.db'"
    assert ui(server, "7") == f"{server}/#/experiments/7"
    assert starts_with(server) == ""
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    assert addresses.prefect_run("run") == "http://prefect.example/v2/runs/flow-run/run"
    monkeypatch.setenv("PREFECT_API_URL", "https://me:secret@prefect.example/api")
    assert addresses.prefect_run("run") == "https://prefect.example/v2/runs/flow-run/run"


def test_what_the_server_is_told_is_what_prefect_reads_and_a_users_own_stays(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Addresses(pid=1, prefect="http://127.0.0.1:4300", mlflow="http://127.0.0.1:5300", pool="gpu")
    own = {"PREFECT_SERVER_CORS_ALLOWED_ORIGINS": "http://board.example"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    config.make_home()
    password = addresses.keep_password()
    prefect, mlflow, worker = services(found)
    assert own.keys().isdisjoint(prefect.environment)
    with patch.dict(os.environ, prefect.environment):
        server = Settings().server
    assert server.api.auth_string and server.api.auth_string.get_secret_value() == password
    assert server.api.cors_allowed_origins == "http://board.example"
    assert set(server.services.db_vacuum.event_retention_overrides) == set(PASSING)
    assert server.services.db_vacuum.loop_seconds == 600
    assert worker.environment["PREFECT_API_AUTH_STRING"] == password
    assert mlflow.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_the_services_are_told_where_all_lies(home: Path) -> None:
    found = Addresses(pid=1, prefect="http://127.0.0.1:4300", mlflow="http://127.0.0.1:5300", pool="gpu")
    prefect, mlflow, worker = services(found)
    assert "4300" in prefect.command and str(home) in str(prefect.environment)
    assert "5300" in mlflow.command and str(home) in str(mlflow.command)
    assert "gpu" in worker.command
    assert worker.environment["PREFECT_API_URL"] == found.api
    assert worker.environment["TUNEWRIGHT_HOME"] == str(config.home())
    assert log_file("worker") == home / "logs" / "worker.log"
    assert not any(service.is_ready() for service in (prefect, mlflow, worker))  # nothing is there
