"""The services of infra/compose.yaml as processes of this machine: the same commands and environment, other addresses.

`docker-compose config` reads the file and needs no container engine. PostgreSQL is the machine's own, and moto's server
stands for the S3 store.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import waiting
from servers import free_port


def is_resolved(name: str) -> bool:
    """Whether a name leads to an address."""
    try:
        return bool(socket.gethostbyname(name))
    except OSError:
        return False


INFRA = Path(__file__).parents[1] / "infra"
HOST = next(name for name in (socket.gethostname().lower(), "127.0.0.1") if is_resolved(name))
BIN = Path(sys.executable).parent
USER = "tunewright"  # of PostgreSQL and of the S3 store


@dataclass(frozen=True)
class TeamServers:
    """The running servers, and the environments of the worker, which a person's terminal has too, and of backup.py."""

    folder: Path
    terminal: Mapping[str, str]
    tools: Mapping[str, str]
    storage: str  # URL
    works: list[str]  # the worker's command
    healthy: Mapping[str, list[str]]  # by service, the command that tells whether it is healthy

    @property
    def authority(self) -> Path:
        """The certificate that people trust."""
        return self.folder / "infra" / "certificates" / "ca.crt"

    def call(self, program: str, *arguments: str, folder: Path | None = None) -> str:
        """Call a program of a person's terminal, in a folder of theirs, and return what it prints."""
        command = [str(BIN / program), *arguments]
        done = subprocess.run(command, env=self.terminal, cwd=folder or self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tunewright(self, *arguments: str, folder: Path | None = None) -> str:
        """Call a command of tunewright, and return what it prints."""
        return self.call("tunewright", *arguments, folder=folder)

    @contextmanager
    def worker(self, name: str = "worker") -> Iterator[subprocess.Popen[bytes]]:
        """Run compose.yaml's worker with a home of its own, in an empty folder."""
        (self.folder / f"{name}-pipelines").mkdir()
        environment = {**self.terminal, "TUNEWRIGHT_HOME": str(self.home_of(name))}
        with _process(self.folder, name, _here(self.works), environment, self.folder / f"{name}-pipelines") as process:
            waiting.until(lambda: "Worker" in self.log_of(name).read_text())
            waiting.until(lambda: is_healthy(self.healthy["worker"]))
            yield process

    @contextmanager
    def serving(self, model: str, api_key: str) -> Iterator[str]:
        """Serve a model under the OpenAI API, in an empty home; its address once it answers."""
        port, log = free_port(), self.log_of("serve")
        environment = {**self.terminal, "TUNEWRIGHT_HOME": str(self.home_of("serve")), "TUNEWRIGHT_API_KEY": api_key}
        command = [str(BIN / "tunewright"), "serve", model, "--port", str(port)]
        with _process(self.folder, "serve", command, environment) as process:
            _wait_for(process, lambda: "Ctrl-C stops it" in log.read_text(), log)
            yield f"http://127.0.0.1:{port}"

    def home_of(self, name: str) -> Path:
        """The home of a worker; the first shares that of a person's terminal."""
        return self.folder / ("home" if name == "worker" else f"{name}-home")

    def log_of(self, name: str) -> Path:
        """The output of a worker and its runs."""
        return self.folder / f"{name}.log"

    def backup(self, what: str, folder: Path) -> None:
        """Save to a folder, or restore from it."""
        subprocess.run([sys.executable, INFRA / "backup.py", what, folder], check=True, env=self.tools)


def copied(folder: Path, passwords: Path | None = None) -> Path:
    """Copy infra/ into the folder, with certificates for HOST and with new passwords, or those of an .env file."""
    shutil.copytree(INFRA, folder / "infra")
    if passwords:
        shutil.copy(passwords, folder / "infra" / ".env")
    subprocess.run([folder / "infra" / "make-env", HOST], check=True, capture_output=True)
    return folder / "infra"


def services_of(infra: Path) -> dict[str, Any]:
    """The services as Docker Compose reads them."""
    need("docker-compose")
    command = ["docker-compose", "--profile", "backup", "config", "--format", "json"]
    return json.loads(subprocess.run(command, cwd=infra, check=True, capture_output=True, text=True).stdout)["services"]


def need(program: str) -> None:
    """Skip the test where a program is not installed, which is called as its package in Debian."""
    if not shutil.which(program):
        pytest.skip(f"{program} is not installed (apt-get install {program})")


def postgres_programs() -> Path:
    """The folder of PostgreSQL's programs, of which Debian puts only some on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    return found[-1].parent


@contextmanager
def team_servers(folder: Path, copy: Path | None = None, passwords: Path | None = None) -> Iterator[TeamServers]:
    """Start every service but the worker, each once those that it depends on answer; restored from a `copy`."""
    folder.mkdir()
    need("caddy")
    programs = postgres_programs()
    infra = copied(folder, passwords)
    ports = {name: free_port() for name in ("postgres", "storage", "prefect", "mlflow", "worker", "4443", "5443")}
    text = json.dumps(services_of(infra))
    for name, port in {"postgres": 5432, "storage": 9000, "prefect": 4200, "mlflow": 5000, "worker": 8080}.items():
        text = text.replace(f"{name}:{port}", f"127.0.0.1:{ports[name]}").replace(f'"{port}"', f'"{ports[name]}"')
        text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{ports[name]}")
    for port in ("4443", "5443"):
        for name in (HOST, "127.0.0.1"):
            text = text.replace(f"{name}:{port}", f"{name}:{ports[port]}")
    text = text.replace('"PGHOST": "postgres"', f'"PGHOST": "127.0.0.1", "PGPORT": "{ports["postgres"]}"')
    text = text.replace("0.0.0.0", "127.0.0.1").replace("/home/tunewright/", f"{folder}/")
    text = text.replace('"/certificates/', f'"{infra}/certificates/')
    services = json.loads(text.replace("/etc/tunewright/", f"{infra}/"))
    services["proxy"] |= {"command": ["caddy", "run", "--config", f"{infra}/Caddyfile"]}
    services["proxy"]["environment"] |= {
        "PREFECT_PORT": str(ports["4443"]),
        "MLFLOW_PORT": str(ports["5443"]),
        "CERTIFICATES": f"{infra}/certificates",
    }
    services["worker"]["environment"]["PREFECT_WORKER_WEBSERVER_PORT"] = str(ports["worker"])
    home = {"TUNEWRIGHT_HOME": str(folder / "home")}
    started = TeamServers(
        folder=folder,
        terminal=_environment(folder, services["worker"]["environment"] | home),
        tools=_environment(folder, services["backup"]["environment"] | home),
        storage=f"http://127.0.0.1:{ports['storage']}",
        works=services["worker"]["command"],
        healthy={
            name: _here(service["healthcheck"]["test"][1:])
            for name, service in services.items()
            if "healthcheck" in service
        },
    )
    with ExitStack() as stack:
        password = services["postgres"]["environment"]["POSTGRES_PASSWORD"]
        stack.enter_context(_postgres(programs, folder / "postgres.log", ports["postgres"], password))
        moto = [sys.executable, str(Path(__file__).with_name("atomic_moto.py")), "--port", str(ports["storage"])]
        storage = stack.enter_context(_process(folder, "storage", moto, {}))
        moto_answers = [str(INFRA / "is-healthy"), f"{started.storage}/moto-api/"]
        _wait_for(storage, lambda: is_healthy(moto_answers), folder / "storage.log")
        bucket = services["bucket"]
        subprocess.run(_here(bucket["command"]), check=True, env=_environment(folder, bucket["environment"]))
        if copy:
            started.backup("restore", copy)
        for name in ("prefect", "mlflow", "proxy"):
            service, log = services[name], folder / f"{name}.log"
            server = stack.enter_context(_process(folder, name, _here(service["command"]), service["environment"]))
            _wait_for(server, lambda name=name: is_healthy(started.healthy[name]), log)
        yield started


def _here(command: list[str]) -> list[str]:
    """A command of the image as one of this virtual environment, or of infra/."""
    there = (folder / command[0] for folder in (BIN, INFRA))
    return [next((str(program) for program in there if program.is_file()), command[0]), *command[1:]]


def _environment(folder: Path, given: Mapping[str, str]) -> dict[str, str]:
    """Return the given variables, and those that a container has of its own."""
    path = os.pathsep.join((str(BIN), str(postgres_programs()), os.environ["PATH"]))
    return {"PATH": path, "HOME": str(folder), "TMPDIR": os.environ.get("TMPDIR", "/tmp")} | dict(given)


@contextmanager
def _process(
    folder: Path, name: str, command: list[str], environment: Mapping[str, str], cwd: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / f"{name}.log").open("wb") as log:
        environment = _environment(folder, environment)
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=cwd or folder)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


@contextmanager
def _postgres(programs: Path, log: Path, port: int, password: str) -> Iterator[None]:
    """A cluster of its own with the databases of infra/databases.sql; PostgreSQL refuses to run as root."""
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="postgres-", dir="/tmp") as folder, log.open("wb") as output:
        secret = Path(folder, "password")
        secret.write_text(password)
        if as_user:  # who cannot enter the folders of pytest
            shutil.chown(folder, "postgres")
            shutil.chown(secret, "postgres")
        data = f"{folder}/data"
        initdb = [
            programs / "initdb",
            "-D",
            data,
            "-U",
            USER,
            "--auth=scram-sha-256",
            f"--pwfile={secret}",
            "--no-sync",
        ]
        subprocess.run([*as_user, *initdb], check=True, stdout=output, stderr=output, cwd="/")
        command = [programs / "postgres", "-D", data, "-p", str(port), "-h", "127.0.0.1", "-k", ""]
        server = subprocess.Popen([*as_user, *command], stdout=output, stderr=output, cwd="/")
        try:
            ready = [programs / "pg_isready", "--quiet", "-h", "127.0.0.1", "-p", str(port)]
            waiting.until(lambda: subprocess.run(ready).returncode == 0)
            connection = {"PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": USER, "PGPASSWORD": password}
            psql = [programs / "psql", "--quiet", "--dbname=postgres", "--file", INFRA / "databases.sql"]
            subprocess.run([*psql, "--command=create database prefect"], check=True, env=os.environ | connection)
            yield
        finally:
            server.send_signal(signal.SIGINT)  # cuts clients off
            server.wait(60)


def _wait_for(server: subprocess.Popen[bytes], is_ready: Callable[[], bool], log: Path) -> None:
    """Wait until a server answers; fails with its log when it has ended or takes minutes."""
    waiting.until(lambda: server.poll() is not None or is_ready(), every=0.5, said=log.read_text)
    assert server.poll() is None, log.read_text()


def is_healthy(command: list[str]) -> bool:
    """Whether the command of a health check of compose.yaml ends with 0."""
    return subprocess.run(command, capture_output=True).returncode == 0
