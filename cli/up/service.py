"""The three services that `tunewright up` starts: how each is started, and how it shows that it is ready.

Prefect's API starts runs, and with them any command: it asks all who call it for the password of this home, and the
worker and its runs have it in their environment (docs/security.md).

When the machine went down, or all was killed at once, Prefect's database has runs of an earlier `up` as running. The
worker of this pool on this machine is about to start, so none of them lives, and they are marked as crashed.
"""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from tunewright import config
from tunewright.compat import STOPPED
from tunewright.config import quietly
from tunewright.machine import addresses
from tunewright.machine.addresses import HOSTS, Addresses

if TYPE_CHECKING:  # a second of imports, which the sentinel has no use for
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

ANSWER_SECONDS = 5.0
POLL_SECONDS = 2  # of the worker for runs that are due; Prefect's default is 10
SCHEDULED_AHEAD = "PT5M"  # runs of short intervals; an hour of looks at the data, as Prefect has it, hides all others
PASSING_SECONDS = 3_600  # that events are kept of which each look at the data makes eight, with 51 rows beside them
PASSING = (  # the other events stay for a week, Prefect's default; states stay with their runs
    *(f"prefect.flow-run.{state}" for state in ("Scheduled", "Late", "Pending", "Submitting", "Running", "heartbeat")),
    *(f"prefect.flow-run.{state}" for state in ("Unchanged", "Unsettled", "Unreadable", "Cancelled")),
    "prefect.flow-run.Deployment paused",
    "prefect.flow-run.pull-step.executed",
    "prefect.worker.submitted-flow-run",
    "prefect.worker.executed-flow-run",
)
REMOVED_EVERY_SECONDS = 600
HEARTBEAT_SECONDS = 30  # of a flow run, the least that Prefect takes
CRASHED = "{} was killed during this run; started again, it resumes from the last checkpoint"
CRASHED_POLL = "{} was killed during this poll; the next one looks at the files again"
STOPPED_RUN = f"{STOPPED} stop of tunewright up; started again, it resumes from the last checkpoint"
STOPPED_POLL = f"{STOPPED} stop of tunewright up; the next one looks at the files again"
CANCELLED = "tunewright was killed before it could cancel it"


@dataclass(frozen=True, kw_only=True)
class Service:
    """A process to keep alive."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    shows: str  # where a person finds it
    is_ready: Callable[[], bool]


def services(up: Addresses) -> tuple[Service, Service, Service]:
    """Prefect's server, MLflow's server and the worker, in the order in which they start; the last one ends first."""
    prefect, mlflow = (int(address.rpartition(":")[2]) for address in (up.prefect, up.mlflow))
    python = quietly.COMMAND
    loopback = ("--host", "127.0.0.1", "--port")
    name = f"tunewright-{os.getpid()}"
    return (
        Service(
            name="prefect",
            command=(*python, "tunewright.cli.up.prefect_app", str(prefect)),
            environment={
                "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{config.prefect_database()}",
                "PREFECT_API_URL": up.api,  # its pages call it there
                "PREFECT_SERVER_API_AUTH_STRING": addresses.password(),
                **_unless_set(
                    PREFECT_SERVER_CORS_ALLOWED_ORIGINS=",".join(f"http://{host}:{prefect}" for host in HOSTS),
                    PREFECT_SERVER_SERVICES_SCHEDULER_MIN_SCHEDULED_TIME=SCHEDULED_AHEAD,
                    PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS=str(REMOVED_EVERY_SECONDS),
                    PREFECT_SERVER_SERVICES_DB_VACUUM_EVENT_RETENTION_OVERRIDES=json.dumps(
                        dict.fromkeys(PASSING, PASSING_SECONDS)
                    ),
                ),
            },
            shows=f"{up.prefect}/v2",
            is_ready=partial(_answers, f"{up.api}/health"),
        ),
        Service(
            name="mlflow",
            command=(
                *(*python, "mlflow", "server", *loopback, str(mlflow), "--workers", "1"),
                *("--backend-store-uri", f"sqlite:///{config.mlflow_database()}"),
                *("--artifacts-destination", str(config.mlflow_artifacts())),
                *("--default-artifact-root", str(config.mlflow_artifacts())),  # which a run without it can open too
                *("--app-name", "tunewright"),  # tunewright/registry/mlflow_server.py
            ),
            environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **config.of_home()},
            shows=up.mlflow,
            is_ready=partial(_answers, f"{up.mlflow}/health"),
        ),
        Service(
            name="worker",
            command=(
                *(*python, "prefect", "worker", "start", "--type", "process"),
                *("--pool", up.pool, "--name", name),
            ),
            environment={
                "PREFECT_API_URL": up.api,
                "PREFECT_API_AUTH_STRING": addresses.password(),
                **config.of_home(),  # runs start in the folder that they were deployed from
                "PREFECT_LOGGING_EXTRA_LOGGERS": "tunewright",  # what the pipeline says is in the run's log
                "PREFECT_WORKER_QUERY_SECONDS": str(POLL_SECONDS),
                "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
            },
            shows=f"work pool {up.pool}",
            is_ready=partial(_is_online, up, name),
        ),
    )


def _unless_set(**defaults: str) -> dict[str, str]:
    """Settings of Prefect, without those that the environment has already."""
    return {name: value for name, value in defaults.items() if name not in os.environ}


def _answers(address: str) -> bool:
    try:
        return httpx.get(address, timeout=ANSWER_SECONDS).is_success
    except httpx.HTTPError:
        return False


def client(up: Addresses) -> "SyncPrefectClient":
    """A client of the Prefect server, which has its password and repeats what a busy database answers with 503."""
    from prefect.client.orchestration import SyncPrefectClient

    return SyncPrefectClient(up.api, auth_string=addresses.password())


def _is_online(up: Addresses, worker: str) -> bool:
    """Whether the worker has told the server that it waits for runs."""
    from prefect.client.schemas.objects import WorkerStatus
    from prefect.exceptions import ObjectNotFound

    try:
        with client(up) as server:
            found = server.read_workers_for_work_pool(up.pool)
    except (httpx.HTTPError, ObjectNotFound):
        return False
    return worker in {each.name for each in found if each.status == WorkerStatus.ONLINE}


def logs() -> Path:
    """The folder of what the services print."""
    return config.home() / "logs"


def log_file(name: str) -> Path:
    """Return the file with a service's output."""
    return logs() / f"{name}.log"


def end_leftover_runs(up: Addresses, since: datetime | None = None, *, is_stop: bool = False) -> list[str]:
    """Marks the unfinished runs of the pool as crashed, or cancelled if that was asked, and returns their names.

    With `is_stop` they are those that the worker had taken up and not begun when `up` was stopped, and are marked so.

    Also those of watched deployments that a signal ended `since`: they got SIGTERM when their worker died, and would
    count as stopped by a person (flows/watch.py). Any other crash was notified of already.

    Raises httpx.HTTPError where the server refuses, or stays busy for longer than Prefect's client repeats a request.
    """
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled, Crashed

    which: list[dict[str, Any]] = [
        {"state": {"type": {"any_": [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]}}}
    ]
    if since is not None:
        which.append({"state": {"type": {"any_": [StateType.CRASHED]}}, "end_time": {"after_": since}})
    with client(up) as server:
        read = {
            run.id
            for each in which
            for run in server.read_flow_runs(
                flow_run_filter=filters.FlowRunFilter.model_validate(each),
                work_pool_filter=filters.WorkPoolFilter.model_validate({"name": {"any_": [up.pool]}}),
            )
        }
        if not read:
            return []
        watched = _watched(server) if since is not None else set()
        # Once more: one may have reported its end meanwhile, and each crash is notified of.
        again = filters.FlowRunFilter.model_validate({"id": {"any_": [*read]}})
        found = [run for run in server.read_flow_runs(flow_run_filter=again) if _is_cut_short(run, watched)]
        polling = filters.FlowFilter.model_validate({"name": {"any_": ["watch"]}})
        polls = {flow.id for flow in server.read_flows(flow_filter=polling)}
        for run in found:
            is_cancelled = run.state is not None and run.state.is_cancelling()
            words = (STOPPED_RUN, STOPPED_POLL) if is_stop else (CRASHED, CRASHED_POLL)
            said = words[run.flow_id in polls].format("tunewright up" if since is None else "its worker")
            crashed = Crashed(message=said)
            state = Cancelled(message=CANCELLED) if is_cancelled else crashed
            server.set_flow_run_state(run.id, state, force=True)
    polled = {run.id: f", a poll of {run.parameters.get('deployment')}" for run in found if run.flow_id in polls}
    return [f"{run.name}{polled.get(run.id, '')}" for run in found]


def _is_cut_short(run: "FlowRun", watched: "set[UUID | None]") -> bool:
    """Whether a run has not ended, or its crash counts as a stop, which a watch does not notify of."""
    if run.state is None or not run.state.is_final():
        return True
    is_stop = run.state.is_crashed() and (run.state.message or "").startswith(STOPPED)
    return is_stop and run.deployment_id in watched


def _watched(server: "SyncPrefectClient") -> "set[UUID | None]":
    """The deployments whose data a watch polls, which restarts their crashed runs."""
    from prefect.client.schemas import filters

    there = server.read_deployments(flow_filter=filters.FlowFilter.model_validate({"name": {"any_": ["watch"]}}))
    names = {str(each.parameters.get("deployment")).partition("/")[2] for each in there}
    found = server.read_deployments(
        deployment_filter=filters.DeploymentFilter.model_validate({"name": {"any_": sorted(names)}})
    )
    return {each.id for each in found}
