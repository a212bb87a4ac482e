"""The home folder, whether it can be written, has room and whole databases; and the servers that runs would use."""

import contextlib
import os
import shlex
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
from prefect.client.orchestration import SyncPrefectClient
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY
from rich.filesize import decimal

from tunewright import config
from tunewright.cli.doctor.environment import Finding
from tunewright.cli.up.service import logs
from tunewright.config import Registry, outside
from tunewright.config.environment import SERVER_NEEDS
from tunewright.errors import ConfigError, StoreError, StoreRefused
from tunewright.machine import addresses
from tunewright.machine.ports import holder
from tunewright.registry.address import LOG_IN, ONE_SERVER, VARIABLE, asked, by_environment, is_given_login, only_here
from tunewright.store import databases, histories, shared

GB = 1_000_000_000
LITTLE_GB = 5  # a few candidates of a small model, with their checkpoints
NETWORKED = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "ceph", "lustre")
SECONDS = 5.0
START = "start it, or unset the variable and run tunewright up, which starts both servers"
NEEDS_LOGIN = "/api/2.0/mlflow/experiments/search?max_results=1"  # where the server has passwords, unlike /health
PORTS = {"Prefect": 4200, "MLflow": 5000}


def of_home() -> Iterator[Finding]:
    """Looks at the home; one that is not there yet is made and taken away again."""
    home = config.home()
    existed = home.exists()
    try:
        config.make_home()
    except ConfigError as error:
        yield Finding("failure", "home", str(error), "set TUNEWRIGHT_HOME to a folder that can be written")
        return
    room = shutil.disk_usage(home)
    yield from _place(home)
    disk = f"{decimal(room.free)} free of {decimal(room.total)}"
    if room.free < LITTLE_GB * GB:
        state = "failure" if room.free < SERVER_NEEDS else "warning"
        yield Finding(state, "disk", disk, f"free some of {home}, or set TUNEWRIGHT_HOME to another disk")
    else:
        yield Finding("ok", "disk", disk)
    for name, file in (
        ("MLflow's database", config.mlflow_database()),
        ("Prefect's database", config.prefect_database()),
    ):
        if file.exists():
            yield _database(name, file)
    if not existed:
        home.rmdir()


def _place(home: Path) -> Iterator[Finding]:
    """A networked folder has no locks that hold, and databases in it break."""
    mounts = [part for part in psutil.disk_partitions(all=True) if home.is_relative_to(part.mountpoint)]
    kind = max(mounts, key=lambda part: len(part.mountpoint)).fstype if mounts else ""
    if kind.startswith(NETWORKED):
        yield Finding(
            "warning",
            "home",
            f"{home} is on {kind}, where file locks may not hold and sqlite can break",
            "set TUNEWRIGHT_HOME to a local disk, and registry.tracking_uri to an MLflow server",
        )
    elif others := stat.S_IMODE(home.stat().st_mode) & 0o077:
        yield Finding(
            "warning",
            "home",
            f"other users of this machine can open {home} (its mode ends with {others:02o}), which holds rows, "
            "answers, models and the password of tunewright up",
            f"chmod 700 {shlex.quote(str(home))}",
        )
    else:
        yield Finding("ok", "home", str(home))


def _database(name: str, file: Path) -> Finding:
    """Whether sqlite finds it whole, and MLflow made its own to the end."""
    if said := databases.fault(file):
        return Finding(
            "failure",
            name,
            f"{file}: {said}",
            f"restore {file} from a backup, or move it away: the next run creates a new one",
        )
    if file == config.mlflow_database() and not databases.is_finished(file):
        return Finding(
            "warning",
            name,
            f"{file} is incomplete, since MLflow was interrupted while creating it; it has no experiments "
            "and no models",
            "nothing to do: the next run creates a new one and keeps this file beside it",
        )
    return Finding("ok", name, f"{file}, {decimal(file.stat().st_size)}")


def of_servers() -> Iterator[Finding]:
    """Prefect's and MLflow's, of `tunewright up`, of the environment, or none: then a run starts one for itself."""
    up, api = addresses.running(), os.environ.get("PREFECT_API_URL")
    if up and (not api or up.is_prefect(api)):
        yield _prefect(up.api, up.prefect, addresses.auth_string())
    elif api:
        yield _prefect(api, outside.without_credentials(api), PREFECT_API_AUTH_STRING.value())
    elif scheduled := _unserved():
        said = f"no server, so the schedules of {', '.join(scheduled)} start no run"
        yield Finding("warning", "Prefect", said, "tunewright up, which serves them again")
    else:
        yield Finding(
            "ok",
            "Prefect",
            "no server: each run starts a temporary one, which takes 10 s; tunewright up starts one that stays",
        )
    if up:
        named, path = (os.environ[VARIABLE], NEEDS_LOGIN) if is_given_login(up) else (up.mlflow, "/health")
        yield _mlflow(named, path, _start(named))
    if os.environ.get(VARIABLE):
        yield from _mlflow_of_environment()
    yield from _store()
    for name, port in PORTS.items():
        if not up and (who := holder(port)):
            yield Finding(
                "warning",
                f"port {port}",
                f"in use by {who}",
                f"choose another port for {name} with the options of tunewright up",
            )


def _unserved() -> list[str]:
    """The deployments with a schedule in this home's Prefect database, where `tunewright up` serves none of them."""
    file = config.prefect_database()
    if not file.exists() or addresses.is_up():
        return []
    active = (
        "SELECT DISTINCT name FROM deployment JOIN deployment_schedule ON deployment_id = deployment.id "
        "WHERE active AND NOT paused ORDER BY name"
    )
    with contextlib.suppress(sqlite3.Error), databases.opened(file) as connection:  # of_home finds its fault
        return [name for (name,) in connection.execute(active)]
    return []


def _prefect(api: str, shown: str, password: str | None) -> Finding:
    """Whether Prefect's API answers, to whoever has this password."""
    advice = addresses.advice_on_api(api)
    try:
        with SyncPrefectClient(api, auth_string=password, api_key=PREFECT_API_KEY.value()) as server:
            server.api_version()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        code = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
        if advice and (code or isinstance(error, ValueError)):  # or a page
            return Finding("failure", "Prefect", f"{shown} answers, but not as Prefect's API", advice)
        if code == httpx.codes.UNAUTHORIZED:
            return Finding("failure", "Prefect", f"{shown} refuses the password", addresses.how_to_log_in())
        said = f"{shown} answers with {code}" if code else f"{shown} does not answer: {error}"
        return Finding("failure", "Prefect", said, f"{advice}, or {START}" if advice else _start(api))
    return Finding("ok", "Prefect", f"{shown} answers")


def _start(address: str) -> str:
    """Return what to do about a server that does not answer: `tunewright up` starts its own again by itself."""
    if (up := addresses.running()) and (up.is_prefect(address) or up.is_mlflow(address)):
        return f"wait: tunewright up (process {up.pid}) starts it again by itself; its output is in {logs()}"
    return addresses.still_starting() or START


def _store() -> Iterator[Finding]:
    with contextlib.suppress(ConfigError):  # which is a finding itself
        if said := only_here(by_environment(Registry())):
            yield Finding("warning", "MLflow", said, f"{ONE_SERVER}, unless registry.tracking_uri names it")
    try:
        if store := shared.shared_store():
            histories.require_states(store)
            is_empty = store.is_empty()
            try:
                store.check()
            except StoreRefused as error:
                if is_empty:  # it has nothing to read either
                    raise
                yield _read_only(str(error))
                return
            if is_empty:
                fix = f"nothing to do if no machine has used it; otherwise correct {store.named}"
                fix += " or mount the folder" if store.is_folder else ""
                yield Finding("warning", "store", store.said_empty, fix)
            else:
                yield Finding("ok", "store", f"{store.url} is shared")
    except (ConfigError, StoreError) as error:
        found, is_missing, packages = str(error).partition("; pip install ")
        fix = (
            f"pip install {packages}"
            if is_missing
            else "correct TUNEWRIGHT_STORE, the store's own variables or its rights"
        )
        yield Finding("failure", "store", found, fix)


def _read_only(error: str) -> Finding:
    """The finding of a store that can be read and not written, by the error of a write."""
    found = (
        f"{error.partition('; accepted: ')[0]}: runs and moves of an alias are refused; the other commands only read it"
    )
    return Finding(
        "warning", "store", found, "nothing to do if no run is to start here; otherwise allow this user to write"
    )


def _mlflow_of_environment() -> Iterator[Finding]:
    """That of MLFLOW_TRACKING_URI, unless it is the home's own."""
    try:
        uri = by_environment(Registry()).tracking_uri or ""
    except ConfigError as error:
        yield Finding("failure", "MLflow", str(error))
        return
    if uri.startswith("http"):
        yield _mlflow(uri, NEEDS_LOGIN, f"start its server, or correct {VARIABLE}")
    elif uri:
        yield Finding("ok", "MLflow", f"{VARIABLE} names {uri}")


def _mlflow(address: str, path: str, fix: str) -> Finding:
    try:
        answer = asked(f"{address.rstrip('/')}{path}", SECONDS)
    except httpx.HTTPError as error:
        return Finding("failure", "MLflow", f"{address} does not answer: {error}", fix)
    except ConfigError as error:
        return Finding("failure", "MLflow", str(error))
    if answer.is_success:
        return Finding("ok", "MLflow", f"{address} answers")
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        up = addresses.running()
        fix = f"{LOG_IN}; for tunewright up, unset them all" if up and up.is_mlflow(address) else LOG_IN
        return Finding("failure", "MLflow", f"{address} refuses the credentials ({answer.status_code})", fix)
    return Finding("failure", "MLflow", f"{address} answers with {answer.status_code}", fix)
