"""The three services that `tunewright up` starts: how each is started, and how it shows that it is ready."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx

from tasks import config
from tasks.addresses import Addresses

ANSWER_SECONDS = 5.0
POLL_SECONDS = 2  # of the worker for runs that are due; Prefect's default is 10
SCHEDULED_AHEAD = "PT5M"  # runs of short intervals; an hour of looks at the data, as Prefect has it, hides all others
HEARTBEAT_SECONDS = 30  # of a flow run, the least that Prefect takes


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process to keep alive."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    shows: str  # where a person finds it
    is_ready: Callable[[], bool]


def services(addresses: Addresses) -> tuple[Service, Service, Service]:
    """Prefect's server, MLflow's server and the worker, in the order in which they start; the last one ends first."""
    prefect, mlflow = (int(address.rpartition(":")[2]) for address in (addresses.prefect, addresses.mlflow))
    python = (sys.executable, "-m")
    loopback = ("--host", "127.0.0.1", "--port")
    name = f"tunewright-{os.getpid()}"
    return (
        Service(
            name="prefect",
            command=(*python, "prefect", "server", "start", *loopback, str(prefect)),
            environment={
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{config.prefect_database()}",
                "PREFECT_API_URL": addresses.api,  # its pages call it there
                "PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME": SCHEDULED_AHEAD,
            },
            shows=f"{addresses.prefect}/v2",
            is_ready=partial(_answers, f"{addresses.api}/health"),
        ),
        Service(
            name="mlflow",
            command=(
                *(*python, "mlflow", "server", *loopback, str(mlflow), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{config.mlflow_database()}"),
                *("--artifacts-destination", str(config.mlflow_artifacts())),
            ),
            environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            shows=addresses.mlflow,
            is_ready=partial(_answers, f"{addresses.mlflow}/health"),
        ),
        Service(
            name="worker",
            command=(
                *(*python, "prefect", "worker", "start", "--type", "process"),
                *("--pool", addresses.pool, "--name", name),
            ),
            environment={
                "PREFECT_API_URL": addresses.api,
                "TUNEWRIGHT_HOME": str(config.home()),  # runs start in the folder that they were deployed from
                "PREFECT_LOGGING_EXTRA_LOGGERS": "tunewright",  # what the pipeline says is in the run's log
                "PREFECT_WORKER_QUERY_SECONDS": str(POLL_SECONDS),
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            },
            shows=f"work pool {addresses.pool}",
            is_ready=partial(_is_online, addresses, name),
        ),
    )


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=ANSWER_SECONDS).is_success
    except httpx.HTTPError:
        return False


def _is_online(addresses: Addresses, worker: str) -> bool:
    """Whether the worker has told the server that it waits for runs."""
    body = {"workers": {"status": {"any_": ["ONLINE"]}}}
    try:
        found = httpx.post(
            f"{addresses.api}/work_pools/{addresses.pool}/workers/filter", json=body, timeout=ANSWER_SECONDS
        )
    except httpx.HTTPError:
        return False
    return found.is_success and worker in {each["name"] for each in found.json()}


def logs() -> Path:
    """The folder of what the services print."""
    return config.home() / "logs"


def log_file(name: str) -> Path:
    """What a service prints."""
    return logs() / f"{name}.log"
