"""Names of flow runs: the pipeline, what this run changes, and when it started; and fewer words in Prefect's log of it.

A run that a signal stopped is a crash to Prefect, also where a person cancelled it; one of a terminal ends as
cancelled. A run of a terminal that was killed is marked as crashed by the next run, or by `tunewright up`. An error of
ours says all that a user can act on in its line, so that its traceback is left out. A run of a worker outlives it, does
not begin where its home would be lost.
"""

import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from prefect import State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import DeploymentResponse
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled, Crashed
from pydantic import TypeAdapter
from rich.console import Console

from tunewright.compat import STOPPED as BY_A_SIGNAL
from tunewright.errors import ConfigError, TunewrightError
from tunewright.flows.parameters import DEPLOYMENT_NAME, field, flat, shown, written
from tunewright.store import in_use
from tunewright.store.shared import shared_store

ORIGINS: ContextVar[dict[str, str]] = ContextVar("origins")  # set by the command line, which read the file
THIS_RUN = "this run"
IN_PREFECTS_WORDS = "Crash detected! Execution was aborted by a termination signal."
KILLED = "Its process was killed. The same command resumes from the last checkpoint."
STOPPED_IN_TERMINAL = "Stopped in its terminal. The same command resumes from the last checkpoint."
STOPPED = "Stopped by a signal: the run was cancelled, or its worker ended. What it has made is kept."
CACHED = "Finished in state Cached("
LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


def origins_of(settings: dict[str, Any]) -> dict[str, str]:
    """Return the origin of each effective setting of the run that is going on; both are flat."""
    return ORIGINS.get({}) or _of_worker(settings)


def _of_worker(settings: dict[str, Any]) -> dict[str, str]:
    """Tell what the deployment says from what the form, a trigger or a call changed, in a run of a worker."""
    context = FlowRunContext.get()
    run = context.flow_run if context else None
    if run is None:
        return {}
    if run.deployment_id is None:
        return dict.fromkeys(flat(run.parameters), "call")
    with get_client(sync_client=True) as client:
        deployed = flat(client.read_deployment(run.deployment_id).parameters)
    origins = {key: origin(key, value, deployed) for key, value in settings.items()}
    return origins if flat(run.parameters).get("registry.name") else origins | {"registry.name": DEPLOYMENT_NAME}


def origin(key: str, value: Any, deployed: dict[str, Any]) -> str:
    """Return the origin of an effective setting of a deployed run; `deployed` are the deployment's, flat."""
    if key in deployed and deployed[key] == value:
        return "deployment"
    found = field(re.sub(r"\[\d+\]", "", key))
    default = found.default if found else None
    plain = flat({key: list(default) if isinstance(default, tuple) else default})[key]
    place = "default" if found and not found.is_required() and value == plain else THIS_RUN
    return f"{place}; the deployment has {shown(deployed[key])}" if key in deployed else place


CHANGES, LONGEST = 3, 30  # changed settings in a name, and characters of a value
FILLED_IN = re.compile(  # what Prefect's form fills in, with an animal or a dish: "Refined-Saola"
    "(?:Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical"
    "|Ergonomic|Handcrafted|Tasty|Handmade|Incredible)-(.+)"
)
OF_THIS_RUN = ("command line", THIS_RUN)


def run_name() -> str:
    """Return a name such as "demo learning_rate=0.0001 2026-11-27 14:05"; a name that a person typed is kept."""
    parameters = _context().parameters or {}
    return _typed() or _dated(deployment.name or parameters["registry"].name or "finetune", *_changes(parameters))


def comparison_name() -> str:
    """Return a name such as "compare demo 4 variants 2026-11-27 14:05"; a name that a person typed is kept."""
    parameters = _context().parameters or {}
    return _typed() or _dated(
        "compare", parameters["settings"].registry.name, f"{len(parameters['variants'])} variants"
    )


def variant_name() -> str:
    """Return a name such as "demo rank=8 seed 0 2026-11-27 14:05"."""
    parameters = _context().parameters or {}
    settings = parameters["settings"]
    return _dated(settings.registry.name, parameters["name"], f"seed {settings.training.seed}")


def _context() -> FlowRunContext:
    context = FlowRunContext.get()
    assert context
    return context


def _typed() -> str:
    """Return the run's name if a person chose it, else ""."""
    run = _context().flow_run
    return run.name if run and not is_random(run.name) else ""


def _dated(*words: str) -> str:
    return " ".join([*words, f"{datetime.now():%Y-%m-%d %H:%M}"])


def _changes(parameters: Mapping[str, Any]) -> list[str]:
    settings = flat(TypeAdapter(dict[str, Any]).dump_python(dict(parameters), mode="json"))
    origins = origins_of(settings)
    changed = [key for key in settings if origins.get(key, "").startswith(OF_THIS_RUN)]
    shown = [f"{key.rpartition('.')[2]}={written(settings[key])[:LONGEST]}" for key in changed[:CHANGES]]
    return [*shown, *([f"and {len(changed) - CHANGES} more"] if len(changed) > CHANGES else [])]


def is_random(name: str) -> bool:
    """Whether Prefect made the name up: its server "lurking-puffin", or its form "Refined-Saola"."""
    if found := FILLED_IN.fullmatch(name):
        return found[1][0].isupper()
    first, dash, second = name.partition("-")
    return bool(dash) and {first, second} <= _words()


@cache
def _words() -> frozenset[str]:
    from coolname.data import config  # the lists that prefect.utilities.names.generate_slug draws from

    return frozenset(word for part in config.values() for word in part.get("words", ()))


def say_stopped() -> None:
    """Have Prefect's log of this process say that a run was stopped, where a signal did so, and errors in one line."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_in_other_words)


def is_folder_made_for_run(deployed: DeploymentResponse) -> bool:
    """Whether pull steps get what is in the folder of a run from elsewhere, so that what it leaves there is lost."""
    steps = [name for each in deployed.pull_steps or () for name in each]
    return any(not name.endswith("set_working_directory") for name in steps)


def require_kept_home() -> None:
    """Raises ConfigError where a worker's run would lose its home: the cache, the splits and the uses of test rows."""
    if os.environ.get("TUNEWRIGHT_HOME") or shared_store():
        return
    with get_client(sync_client=True) as client:
        deployed = client.read_deployment(UUID(str(deployment.id)))
    if is_folder_made_for_run(deployed):
        raise ConfigError(
            f"TUNEWRIGHT_HOME: not set on this worker, and the pull steps of {deployed.name} make a folder for each "
            "run, in which the home would be lost; accepted: a folder that is kept, in the worker's environment or in "
            "work_pool.job_variables.env, or a store for all machines in TUNEWRIGHT_STORE"
        )


def outlive_worker() -> None:
    """Have what this process prints go nowhere once its worker is killed, which reads it.

    By itself rich then ends the process at its next line, and the run crashes by "Python system exit call".
    """
    Console.on_broken_pipe = _print_nowhere


def terminal_run() -> str:
    """The id of the flow run, if a terminal runs it: a worker's is looked after by its worker."""
    return str(flow_run.id) if flow_run.id and not deployment.id else ""


def end_killed(connect: Callable[[], AbstractContextManager[SyncPrefectClient]]) -> list[str]:
    """Marks runs of terminals whose processes were killed as crashed in Prefect, and returns their names."""
    names: list[str] = []
    for run_id in in_use.killed():
        with connect() as server, suppress(ObjectNotFound):  # it is another server's
            run = server.read_flow_run(UUID(run_id))
            if run.state is None or not run.state.is_final():
                server.set_flow_run_state(run.id, Crashed(message=KILLED), force=True)
                names.append(run.name)
    return names


def cancel_stopped(flow: Any, flow_run: FlowRun, state: State) -> None:
    """Ends a run of a terminal that Ctrl-C or SIGTERM stopped as cancelled in Prefect: a hook of a flow's crash."""
    if flow_run.deployment_id is None and (state.message or "").startswith(BY_A_SIGNAL):
        with get_client(sync_client=True) as server:
            server.set_flow_run_state(flow_run.id, Cancelled(message=STOPPED_IN_TERMINAL), force=True)


def _print_nowhere(self: Console) -> None:  # a method of Console
    self.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # its output and its errors
        os.dup2(nowhere, stream)
    os.close(nowhere)


def _in_other_words(record: logging.LogRecord) -> bool:
    if record.getMessage() == IN_PREFECTS_WORDS:
        record.msg, record.args = STOPPED, None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    if record.exc_info and isinstance(record.exc_info[1], TunewrightError):
        record.exc_info, record.exc_text = None, None
    return not record.getMessage().startswith(CACHED)
