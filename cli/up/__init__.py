"""`tunewright up`: Prefect's server, MLflow's server and a process worker, as one command on loopback.

service.py says how each is started and fixes the states of runs that nobody could end, supervisor.py keeps them alive,
processes.py finds and ends all that comes from them, and sentinel.py does so where `up` itself is killed.
prefect_app.py and tunewright/registry/mlflow_server.py close the servers to web pages and host names of others.
"""

import logging
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from urllib.parse import quote

import httpx
from rich.console import Console

from tunewright import config
from tunewright.accepted import shown
from tunewright.cli import interrupts
from tunewright.cli.command_line import print_log
from tunewright.cli.up import database
from tunewright.cli.up.processes import orphaned, wait_for_orphans
from tunewright.cli.up.service import Service, client, end_leftover_runs, logs, services
from tunewright.cli.up.supervisor import Supervisor
from tunewright.errors import ConfigError
from tunewright.machine import addresses
from tunewright.machine.addresses import LOGIN, LOOPBACK, Addresses
from tunewright.machine.ports import require_free
from tunewright.registry import live_run
from tunewright.registry.database import relocate
from tunewright.registry.tracking import VIEW_TAG

log = logging.getLogger("tunewright")

NOT_IN_POOLS = {*"/%&<>"}  # as Prefect has it
DEMO = Path("deployments/demo.yaml")


def up(console: Console, port: int, mlflow_port: int, pool: str) -> int:
    """Starts the services; returns the exit code when Ctrl-C or SIGTERM has ended them.

    Raises ConfigError where a port is taken, TunewrightError where it is up already or a service does not start.
    """
    with interrupts.raised(by=interrupts.SIGNALS), ExitStack() as until_end:  # also where a shell has them ignored
        with interrupts.at_once():
            found, file = _prepared(until_end, console, port, mlflow_port, pool)
            mark = f"{os.getpid()}-{time.time_ns()}"
            supervisor = Supervisor(
                services(found),
                mark,
                lambda since: cut_short(found, since),
                lambda: _unless_refused(lambda: end_leftover_runs(found, is_stop=True)),
            )
        try:
            console.print(f"tunewright up, in {config.home()}: Ctrl-C stops it", markup=False)
            _serve(console, found, file, supervisor)
        except KeyboardInterrupt as error:
            resumed = "; a new run resumes from the last checkpoint of an interrupted one"
            console.print(f"all stopped{resumed if supervisor.has_cut_runs else ''}")
            return 0 if (number := interrupts.number_of(error)) == signal.SIGINT else 128 + number
    return 0


def _prepared(until_end: ExitStack, console: Console, port: int, mlflow_port: int, pool: str) -> tuple[Addresses, Path]:
    """Do all that comes before a process is started; the addresses, and the locked file that they are to be in."""
    if port == mlflow_port:
        raise ConfigError(f"--port {port} and --mlflow-port {mlflow_port} are the same; accepted: two ports")
    if not pool.strip("' \"") or {*pool} & NOT_IN_POOLS or pool.lower().startswith("prefect"):
        raise ConfigError(
            f"--pool {shown(pool)}: accepted: a name without {' '.join(sorted(NOT_IN_POOLS))}, which does not begin "
            "with prefect, such as local"
        )
    found = Addresses(
        pid=os.getpid(),
        prefect=f"http://{LOOPBACK}:{port}",
        mlflow=f"http://{LOOPBACK}:{mlflow_port}",
        pool=pool,
    )
    named = os.environ.get("PREFECT_API_URL")
    if named and not found.is_prefect(named):  # other commands would use that one
        if found.is_prefect(f"{named.rstrip('/')}/api"):
            raise ConfigError(f"PREFECT_API_URL={shown(named)}: {addresses.advice_on_api(named)}, or unset it")
        home = " ".join(f"{name}={shlex.quote(at)}" for name, at in config.of_home().items())
        raise ConfigError(
            f"PREFECT_API_URL={shown(named)} names another Prefect server than {found.api}, which this command starts; "
            f"unset it, or start only a worker for the named server: {home} DO_NOT_TRACK=1 prefect worker start "
            f"--pool {found.pool}"
        )
    config.quiet_libraries()
    print_log(console, logging.INFO)
    log.propagate = False  # else Prefect's handler of the root prints each line again
    if not config.home().exists() and not orphaned():  # so that a command that is refused makes none
        _require_ports(port, mlflow_port)
    file = until_end.enter_context(addresses.held())
    config.require_room()
    if orphaned():  # what an `up` left that was killed; its sentinel is ending it
        console.print("waiting for processes of an earlier tunewright up to end", markup=False)
        wait_for_orphans()
    _require_ports(port, mlflow_port)
    import prefect.client.orchestration  # noqa: F401 what asks the servers imports it, when they have been started
    from prefect.settings import get_current_settings

    given = get_current_settings().server.api.auth_string  # of the environment or of Prefect's profile
    addresses.keep_password(given.get_secret_value() if given else "")
    return found, file


def _require_ports(port: int, mlflow_port: int) -> None:
    require_free(port, "--port", other=mlflow_port)
    require_free(mlflow_port, "--mlflow-port", other=port)


def _serve(console: Console, found: Addresses, file: Path, supervisor: Supervisor) -> None:
    """Starts the services and looks after them for ever; whatever ends that ends them."""
    relocate(VIEW_TAG)
    database.make()

    def ready(service: Service, seconds: float) -> None:
        console.print(f"  {service.name:<10}{service.shows:<32}ready after {seconds:.0f} s", markup=False)
        if service.name == "prefect" and (cut := cut_short(found)):
            console.print(f"    marked as crashed, since they were killed: {'; '.join(cut)}", markup=False)

    interrupts.raise_if_came()
    with supervisor:
        supervisor.begin(ready)
        file.write_text(found.model_dump_json(), encoding="utf-8")
        console.print(f"Their logs are in {logs()}.\n")
        show_next(console, found)
        supervisor.watch()


def cut_short(up: Addresses, since: datetime | None = None) -> list[str]:
    """Marks the runs that an earlier `up` left, and those of terminals that were killed, and returns their names.

    Their runs in MLflow are ended meanwhile. A server that cannot is no end of this one.
    """
    threading.Thread(target=live_run.finish_left, daemon=True).start()
    from tunewright.flows.run_name import end_killed  # which imports Prefect, that the servers need not wait for

    return _unless_refused(lambda: end_leftover_runs(up, since) + end_killed(partial(client, up)))


def _unless_refused(ended: Callable[[], list[str]]) -> list[str]:
    try:
        return ended()
    except httpx.HTTPError as error:
        log.warning("runs that were left were not marked as crashed: %s", error)
    return []


def show_next(console: Console, up: Addresses) -> None:
    """Print the next steps: the link that logs in a browser, a deployment, and Prefect's own commands.

    A terminal shows the password, as it is the user's; a log does not.
    """
    if console.is_terminal:
        password = quote(addresses.password(), safe="")
        console.print("Open these links to log in (Prefect: once; MLflow: until the browser is closed):\n")
        console.print(f"    {up.prefect}{LOGIN}#{password}", markup=False, soft_wrap=True)
        console.print(f"    {up.mlflow.replace('://', f'://tunewright:{password}@')}\n", markup=False, soft_wrap=True)
    else:
        console.print("Both web pages ask for the password in this file:\n")
        console.print(f"    {addresses.password_file()}\n", markup=False, soft_wrap=True)
        console.print(
            "Prefect's login field takes the file's content and nothing else; MLflow's takes any user name.\n"
        )
    console.print("What to do next, in another terminal:\n")
    console.print(f"    tunewright deploy {DEMO if DEMO.exists() else 'FILE.yaml'}", markup=False)
    console.print("\nTo use Prefect's own commands:\n")
    console.print(f"    export {addresses.for_prefect(up.api)}", markup=False, soft_wrap=True)
