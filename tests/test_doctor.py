"""Doctor's findings on a healthy machine, and on one with each fault."""

import errno
import json
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from tunewright import config, machine
from tunewright.cli import doctor
from tunewright.cli.doctor import environment
from tunewright.cli.doctor.environment import Finding
from tunewright.cli.doctor.home import of_home, of_servers
from tunewright.cli.main import app
from tunewright.cli.prefect_server import connected
from tunewright.config.environment import SERVER_NEEDS
from tunewright.errors import ConfigError
from tunewright.machine import addresses, ports
from tunewright.machine.addresses import Addresses
from tunewright.store import histories


def of(what: str, found: list[Finding]) -> Finding:
    (each,) = [each for each in found if each.what == what]
    return each


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_here_nothing_stops_a_run_and_no_trace_is_left(home: Path) -> None:
    found = list(doctor.findings())
    assert [each for each in found if each.state == "failure"] == []
    assert of("python", found).found.endswith(sys.executable)
    assert "prefect " in of("packages", found).found
    assert {"memory", "device", "threads", "disk", "home", "Prefect", "telemetry"} <= {each.what for each in found}
    assert not home.exists()


def test_the_command_prints_what_mends(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    home.parent.mkdir(exist_ok=True)
    home.write_text("in the way")
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 1
    shown = json.loads(result.stdout.strip().splitlines()[-1])["findings"]
    (failure,) = [each for each in shown if each["state"] == "failure"]
    assert failure["what"] == "home" and str(home) in failure["found"]
    assert failure["fix"] == "set TUNEWRIGHT_HOME to a folder that can be written"
    assert "1 failure," in result.stderr and "fix: set TUNEWRIGHT_HOME" in result.stderr


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        (["absent-package>=1"], "absent-package is missing"),
        (["pytest>=9999"], r"is not >=9999"),
        (['absent-package>=1; extra == "more"'], None),
    ],
)
def test_a_package_that_is_missing_or_old_stops(
    declared: list[str], said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.cli.doctor.environment.metadata.requires", lambda name: declared)
    packages = of("packages", list(environment.of_software()))
    assert packages.state == ("failure" if said else "ok")
    assert (said or "torch ") in packages.found


def test_an_extra_that_is_not_there_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tunewright.cli.doctor.environment.metadata.requires", lambda name: ['absent>=1; extra == "s3"']
    )
    extra = of("extra s3", list(environment.of_software()))
    assert extra == Finding("ok", "extra s3", "optional: absent is missing")


@pytest.mark.parametrize(
    ("total", "free", "state"), [(4e9, 3e9, "warning"), (32e9, 1e9, "warning"), (32e9, 20e9, "ok")]
)
def test_little_memory_is_said(total: float, free: float, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_bytes", lambda: total)
    monkeypatch.setattr(machine, "available_bytes", lambda: free)
    assert of("memory", list(environment.of_hardware())).state == state


def test_more_threads_than_cores_and_hidden_gpus_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "512")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = list(environment.of_hardware())
    assert "OMP_NUM_THREADS=512" in of("threads", found).found
    assert of("device", found).fix == "unset CUDA_VISIBLE_DEVICES"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert of("threads", list(environment.of_hardware())).fix.startswith("unset OMP_WAIT_POLICY")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"OMP_NUM_THREADS": "1"}, "training uses 2 threads, evaluation in 1: OMP_NUM_THREADS=1 on 2 cores"),
        (
            {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "1"},
            "training uses 2 threads, evaluation in 1: MKL_NUM_THREADS=1 on 2 cores",
        ),
        (
            {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2"},
            "training uses 2 threads, one per core; compute.threads changes this",
        ),
        ({}, "training uses 2 threads, one per core; compute.threads changes this"),
    ],
)
def test_threads_are_those_that_training_and_evaluation_compute_in(
    given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in environment.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "num_cores", lambda: 2)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert of("threads", list(environment.of_hardware())).found == said


def test_torch_takes_its_threads_from_the_environment_until_the_trainer_sets_them() -> None:
    code = (
        "import torch; first = torch.get_num_threads(); torch.set_num_threads(2); print(first, torch.get_num_threads())"
    )
    for given in ({"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "1"}):
        env = os.environ | given
        ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
        assert ran.stdout.split() == ["1", "2"], ran.stderr


def test_a_broken_database_a_full_disk_and_a_networked_home(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    home.mkdir()
    (home / "mlflow.db").write_bytes(b"no database at all" * 100)
    sqlite3.connect(home / "prefect.db").execute("CREATE TABLE runs (id)").connection.close()
    mount = SimpleNamespace(mountpoint=str(home.parent), fstype="nfs4")
    monkeypatch.setattr("tunewright.cli.doctor.home.psutil.disk_partitions", lambda **_: [mount])
    monkeypatch.setattr(
        "tunewright.cli.doctor.home.shutil.disk_usage", lambda path: SimpleNamespace(free=1e9, total=50e9)
    )
    found = list(of_home())
    assert (
        of("MLflow's database", found).state == "failure" and "not a database" in of("MLflow's database", found).found
    )
    assert of("Prefect's database", found).state == "ok"
    assert of("disk", found) == Finding(
        "warning", "disk", "1.0 GB free of 50.0 GB", f"free some of {home}, or set TUNEWRIGHT_HOME to another disk"
    )
    little = SimpleNamespace(free=SERVER_NEEDS - 1, total=50e9)
    monkeypatch.setattr("tunewright.cli.doctor.home.shutil.disk_usage", lambda path: little)
    assert of("disk", list(of_home())).state == "failure", "as a run and up are refused"
    assert "nfs4" in of("home", found).found


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOLCK, None])
def test_a_home_that_cannot_be_written_or_locked_stops_doctor_and_run_alike(
    number: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number or 0))

    if number == errno.EROFS:
        monkeypatch.setattr("tunewright.config.environment.tempfile.TemporaryFile", refuse)
    elif number == errno.ENOLCK:
        monkeypatch.setattr("tunewright.store.locks.fcntl.flock", refuse)
    else:
        monkeypatch.setenv("TUNEWRIGHT_HOME", "/sys/kernel")  # where not even root makes files
    assert of("home", list(of_home())).state == "failure"
    with pytest.raises(ConfigError, match=r"^TUNEWRIGHT_HOME=.*; accepted: a folder (to write to|on a local disk)$"):
        config.make_home()


def test_a_folder_of_locks_on_devices_of_another_user_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = config.device_locks()
    assert of("device locks", list(environment.of_hardware())) == Finding("ok", "device locks", str(folder))
    assert not folder.exists()
    folder.mkdir()
    with monkeypatch.context() as other:
        other.setattr("tunewright.cost_model.one_at_a_time.os.getuid", lambda: folder.stat().st_uid + 1)
        said = of("device locks", list(environment.of_hardware()))
    assert (said.state, said.fix) == ("failure", "remove it, or set TUNEWRIGHT_LOCKS to a folder of your own")
    assert said.found.startswith(f"{folder}: belongs to user ")


@pytest.mark.parametrize("refuses", ["mkdir", "chmod", "TemporaryFile"])
def test_a_folder_of_locks_on_devices_that_cannot_be_written_is_said(
    refuses: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    of_module = "tunewright.cost_model.one_at_a_time.tempfile" if refuses == "TemporaryFile" else "pathlib.Path"
    monkeypatch.setattr(f"{of_module}.{refuses}", refuse)
    said = of("device locks", list(environment.of_hardware()))
    assert (said.state, said.fix) == ("failure", "set TUNEWRIGHT_LOCKS to a folder of your own")
    assert said.found.endswith("cannot be created or written for the locks on devices: Read-only file system")


def test_servers_that_do_not_answer_and_ports_that_are_taken(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port}/api")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr("tunewright.cli.doctor.home.PORTS", {"Prefect": port})
        found = list(of_servers())
    assert of("Prefect", found).state == "failure" and "does not answer" in of("Prefect", found).found
    assert "MLFLOW_TRACKING_URI" in of("MLflow", found).fix
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", "gone.crt")
    said = (
        "MLFLOW_TRACKING_SERVER_CERT_PATH=gone.crt: No such file or directory; accepted: a file of certificates, as PEM"
    )
    assert of("MLflow", list(doctor.findings())).found == said
    assert f"(process {os.getpid()})" in of(f"port {port}", found).found


class AsksForPassword(BaseHTTPRequestHandler):
    """A Prefect server with another password than anybody here has."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 the base class's name
        """Says nothing."""


def test_a_server_that_asks_for_another_password_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with HTTPServer(("127.0.0.1", 0), AsksForPassword) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
        found = of("Prefect", list(of_servers()))
        with (
            temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}),
            pytest.raises(ConfigError, match=r"/api refuses the password; set PREFECT_API_AUTH_STRING to .*_STRING$"),
            connected(),
        ):
            pass  # no `up` ever ran in this home
        config.make_home()
        addresses.keep_password("secret")
        with (
            temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"]}),
            pytest.raises(ConfigError, match=r"; for tunewright up, unset it$"),
            connected(),
        ):
            pass
        server.shutdown()
    assert found.state == "failure" and "refuses the password" in found.found
    assert found.fix.startswith("set PREFECT_API_AUTH_STRING")


class LetsAnaIn(AsksForPassword):
    """An MLflow server with passwords, which says to everybody that it is well."""

    def do_GET(self) -> None:
        given = b64decode((self.headers.get("Authorization") or "").removeprefix("Basic "))
        is_in = self.path == "/health" or given == b"ana:right"
        self.send_response(200 if is_in else 401)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


def test_an_mlflow_with_passwords_is_asked_with_the_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    with HTTPServer(("127.0.0.1", 0), LetsAnaIn) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
        for password in ("wrong", "right"):
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
            found[password] = of("MLflow", list(of_servers()))
        server.shutdown()
    assert found["right"].state == "ok"
    assert found["wrong"].state == "failure"
    assert found["wrong"].found.endswith("refuses the credentials (401)")
    assert found["wrong"].fix.startswith("set MLFLOW_TRACKING_USERNAME and ")


class HasNoApi(AsksForPassword):
    """A Prefect server, asked where its pages are: it has nothing there, or a page for each address."""

    def do_GET(self) -> None:
        body = b"<html></html>" if self.server.has_pages else b'{"detail": "Not Found"}'  # pyright: ignore[reportAttributeAccessIssue]
        self.send_response(200 if body.startswith(b"<") else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.mark.parametrize("has_pages", [False, True])
@pytest.mark.parametrize("end", ["", "/"])
def test_an_address_of_prefect_without_api_is_one_line_that_says_so(
    monkeypatch: pytest.MonkeyPatch, has_pages: bool, end: str
) -> None:
    with HTTPServer(("127.0.0.1", 0), HasNoApi) as server:
        server.has_pages = has_pages  # pyright: ignore[reportAttributeAccessIssue]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        advice = f"its /api is missing: set PREFECT_API_URL={address}/api"
        monkeypatch.setenv("PREFECT_API_URL", f"{address}{end}")
        found = of("Prefect", list(of_servers()))
        with (
            temporary_settings({PREFECT_API_URL: f"{address}{end}"}),
            pytest.raises(ConfigError) as refused,
            connected(),
        ):
            pass
        server.shutdown()
    assert str(refused.value) == f"PREFECT_API_URL={address}{end}: {advice}"
    assert (found.state, found.fix) == ("failure", advice)


@pytest.mark.parametrize("end", ["", "/api", "/api/"])
def test_the_address_of_ups_mlflow_is_told_from_prefects(monkeypatch: pytest.MonkeyPatch, home: Path, end: str) -> None:
    class AsksForPassword(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), AsksForPassword) as server, addresses.held() as file:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        mlflow = f"http://127.0.0.1:{server.server_port}"
        up = addresses.Addresses(pid=1, prefect="http://127.0.0.1:9", mlflow=mlflow, pool="local")
        file.write_text(up.model_dump_json())
        address = f"http://localhost:{server.server_port}{end}"
        monkeypatch.setenv("PREFECT_API_URL", address)
        found = of("Prefect", list(of_servers()))
        with temporary_settings({PREFECT_API_URL: address}), pytest.raises(ConfigError) as refused, connected():
            pass
        server.shutdown()
    advice = "this is the port of MLflow of tunewright up: unset it, or set PREFECT_API_URL=http://127.0.0.1:9/api"
    assert str(refused.value) == f"PREFECT_API_URL={address}: {advice}"
    assert (found.state, found.fix) == ("failure", advice)


@pytest.mark.parametrize("end", ["", "/ap", "/api/v2"])
def test_a_wrong_path_of_ups_server_is_told_with_its_address(
    monkeypatch: pytest.MonkeyPatch, home: Path, end: str
) -> None:
    class KnowsNoSuchPath(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), KnowsNoSuchPath) as server, addresses.held() as file:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        prefect = f"http://127.0.0.1:{server.server_port}"
        up = addresses.Addresses(pid=1, prefect=prefect, mlflow="http://127.0.0.1:9", pool="local")
        file.write_text(up.model_dump_json())
        address = f"http://localhost:{server.server_port}{end}"
        monkeypatch.setenv("PREFECT_API_URL", address)
        found = of("Prefect", list(of_servers()))
        with temporary_settings({PREFECT_API_URL: address}), pytest.raises(ConfigError) as refused, connected():
            pass
        server.shutdown()
    advice = f"this is tunewright up with a wrong path: unset it, or set PREFECT_API_URL={prefect}/api"
    assert str(refused.value) == f"PREFECT_API_URL={address}: {advice}"
    assert (found.state, found.fix) == ("failure", advice)


def test_where_nothing_answers_at_an_address_without_api_the_advice_is_both(
    monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    address = f"http://127.0.0.1:{free_port}"
    monkeypatch.setenv("PREFECT_API_URL", address)
    advice = f"its /api is missing: set PREFECT_API_URL={address}/api, or "
    assert of("Prefect", list(of_servers())).fix.startswith(f"{advice}start it")
    with (
        temporary_settings({PREFECT_API_URL: address}),
        pytest.raises(ConfigError, match=f"{advice}unset it"),
        connected(),
    ):
        pass


def test_the_store_that_machines_share_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def said() -> tuple[str, str]:
        return next((each.state, each.found) for each in of_servers() if each.what == "store")

    team = tmp_path / "team"
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(team))
    state, found = said()
    assert state == "failure" and f"TUNEWRIGHT_STORE={team}: " in found and "has no such folder" in found
    assert not team.exists()
    team.mkdir()
    state, found = said()
    assert state == "warning" and found.startswith(f"{team}: this store is empty")
    assert of("store", list(of_servers())).fix.endswith(f"correct TUNEWRIGHT_STORE={team} or mount the folder")
    (team / "histories" / "uses").mkdir(parents=True)
    assert said() == ("ok", f"{team} is shared")
    uses = config.home() / "test_uses" / "tiny.jsonl"
    uses.parent.mkdir(parents=True)
    with histories.held(uses):
        uses.write_text("{}\n")
    assert said() == ("ok", f"{team} is shared")
    with monkeypatch.context() as read_only:
        read_only.setattr("os.link", Mock(side_effect=OSError(errno.EROFS, os.strerror(errno.EROFS))))
        state, found = said()
        assert state == "warning" and "this store cannot be written ([Errno 30] Read-only file system)" in found
        assert found.endswith(": runs and moves of an alias are refused; the other commands only read it")
    other = tmp_path / "other"
    (other / "histories" / "uses").mkdir(parents=True)
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(other))
    state, found = said()
    assert state == "failure" and f"{uses} is state 1 of a history of which this store has none" in found
    monkeypatch.setenv("TUNEWRIGHT_STORE", "team")
    state, found = said()
    assert state == "failure" and found.startswith("TUNEWRIGHT_STORE=team: accepted: the absolute path of a folder")
    monkeypatch.setenv("TUNEWRIGHT_STORE", "gs://bucket/x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    of_library = of("store", list(of_servers()))
    assert of_library.found == "TUNEWRIGHT_STORE=gs://bucket/x: gcsfs is not installed"
    assert of_library.fix == "pip install 'tunewright[gcs]'"


def test_a_store_without_an_mlflow_for_all_machines_is_said(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert not [each for each in of_servers() if each.what == "MLflow"]
    monkeypatch.setenv("TUNEWRIGHT_STORE", str(tmp_path))
    found = of("MLflow", list(of_servers()))
    assert found.state == "warning"
    assert found.found.startswith("TUNEWRIGHT_STORE names a store that machines share, but MLflow is the database of ")
    assert found.fix == (
        "set MLFLOW_TRACKING_URI to one server for all machines (docs/team-servers.md), "
        "unless registry.tracking_uri names it"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{config.mlflow_database()}")
    assert of("MLflow", list(of_servers())) == found
    with addresses.held():  # whose MLflow others may reach
        assert not [each for each in of_servers() if each.what == "MLflow"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/team.db")
    assert of("MLflow", list(of_servers())).state == "ok"
    monkeypatch.setenv("TUNEWRIGHT_HOME", "s3://bucket/other")
    assert of("store", list(of_servers())).state == "failure"


def test_schedules_that_nothing_serves_any_more_are_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.make_home()
    with sqlite3.connect(config.prefect_database()) as database:
        database.executescript("""
            CREATE TABLE deployment (id, name, paused);
            CREATE TABLE deployment_schedule (deployment_id, active);
            INSERT INTO deployment VALUES (1, 'bot', 0), (2, 'paused', 1), (3, 'unscheduled', 0), (4, 'off', 0);
            INSERT INTO deployment_schedule VALUES (1, 1), (1, 1), (2, 1), (4, 0);
        """)
    database.close()
    found = of("Prefect", list(of_servers()))
    assert (found.state, found.found) == ("warning", "no server, so the schedules of bot start no run")
    assert found.fix == "tunewright up, which serves them again"
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        assert "schedules" not in of("Prefect", list(of_servers())).found
    monkeypatch.setattr(addresses, "is_up", lambda: True)
    assert of("Prefect", list(of_servers())).state == "ok"


def test_an_empty_bucket_is_no_folder_to_mount(s3: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_STORE", "s3://bucket/x")
    store = of("store", list(of_servers()))
    assert store.state == "warning"
    assert store.found == "s3://bucket/x: this store is empty; if other machines have used it, the address is wrong"
    assert store.fix == "nothing to do if no machine has used it; otherwise correct TUNEWRIGHT_STORE=s3://bucket/x"


def test_the_home_is_its_owners_alone_and_one_that_others_can_open_is_said(home: Path) -> None:
    before = os.umask(0o022)
    config.make_home()
    os.umask(before)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert of("home", list(of_home())).state == "ok"
    home.chmod(0o755)
    found = of("home", list(of_home()))
    assert found.state == "warning" and found.fix == f"chmod 700 {home}"


def test_the_servers_of_up_are_asked_with_the_credentials_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "wrong")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "wrong")
    prefect, mlflow = (HTTPServer(("127.0.0.1", 0), LetsAnaIn) for _ in range(2))
    with prefect, mlflow, addresses.held() as file:
        for server in (prefect, mlflow):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://localhost:{mlflow.server_port}/")
        urls = [f"http://127.0.0.1:{server.server_port}" for server in (prefect, mlflow)]
        addresses.keep_password("ana:right")
        file.write_text(Addresses(pid=1, prefect=urls[0], mlflow=urls[1], pool="local").model_dump_json())
        refused = list(of_servers())
        monkeypatch.delenv("PREFECT_API_AUTH_STRING")
        monkeypatch.delenv("MLFLOW_TRACKING_URI")  # so that the credentials are for no server
        let_in = list(of_servers())
        for server in (prefect, mlflow):
            server.shutdown()
    assert [(each.what, each.state) for each in refused] == [("Prefect", "failure"), ("MLflow", "failure")]
    assert [each.found.partition(" refuses the ")[2] for each in refused] == ["password", "credentials (401)"]
    assert refused[0].fix.endswith("; for tunewright up, unset it")
    assert refused[1].fix.endswith("MLFLOW_TRACKING_TOKEN; for tunewright up, unset them all")
    assert [each.state for each in let_in] == ["ok", "ok"]


def test_the_servers_of_up_are_asked(free_port: int) -> None:
    address = f"http://127.0.0.1:{free_port}"
    with addresses.held() as file:
        file.write_text(Addresses(pid=1, prefect=address, mlflow="http://127.0.0.1:9", pool="local").model_dump_json())
        found = list(of_servers())
    assert [each.state for each in found] == ["failure", "failure"]
    said = f"wait: tunewright up (process 1) starts it again by itself; its output is in {config.home() / 'logs'}"
    assert [each.fix for each in found] == [said, said]


def test_while_up_starts_doctor_says_to_wait(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{free_port}/api")
    with addresses.held():
        assert of("Prefect", list(of_servers())).fix == addresses.still_starting() != ""
    assert of("Prefect", list(of_servers())).fix.startswith("start it, or unset the variable and run tunewright up")


@pytest.fixture
def free_port() -> int:
    return ports.free_port()


UNSAFE: list[tuple[dict[str, str], str]] = [
    ({"PREFECT_SERVER_ANALYTICS_ENABLED": "true"}, "PREFECT_SERVER_ANALYTICS_ENABLED=true"),
    ({"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "true"}, "run their authors' code"),
    ({"PREFECT_SERVER_API_HOST": "0.0.0.0"}, "without a password"),
]


@pytest.mark.parametrize(("variables", "said"), UNSAFE)
def test_what_is_unsafe_is_said(variables: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    doctor.config.quiet_libraries()
    (warning,) = [each for each in environment.of_safety() if each.state == "warning"]
    assert said in warning.found and "unset" in warning.fix


def test_the_package_that_fetches_code_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.cli.doctor.environment.find_spec", lambda name: name == "kernels")
    doctor.config.quiet_libraries()
    assert [each.fix for each in environment.of_safety() if each.state == "warning"] == ["pip uninstall kernels"]


def test_the_server_that_the_variable_names_is_asked_where_up_runs_beside_it(
    monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    up, dead = "http://127.0.0.1:9", f"http://127.0.0.1:{free_port}/api"
    with addresses.held() as file:
        file.write_text(Addresses(pid=1, prefect=up, mlflow=up, pool="local").model_dump_json())
        monkeypatch.setenv("PREFECT_API_URL", dead)
        named = of("Prefect", list(of_servers()))
        monkeypatch.setenv("PREFECT_API_URL", "http://localhost:9/api")
        own = of("Prefect", list(of_servers()))
    assert named.state == "failure" and named.found.startswith(f"{dead} does not answer")
    assert own.found.startswith(f"{up} does not answer")
