"""`tunewright up`: Prefect's server, MLflow's server and a process worker, as one command on loopback.

service.py says how each is started, supervisor.py keeps them alive, processes.py finds and ends all that comes from
them, sentinel.py does so where `up` itself is killed, and leftover.py mends the states of runs that nobody could end.
"""

import logging
import os
import signal
import time
from pathlib import Path

from rich.console import Console

from flows.command_line import print_log
from flows.services import database, leftover
from flows.services.ports import LOOPBACK, require_free
from flows.services.processes import orphaned, wait_for_orphans
from flows.services.service import Service, logs, services
from flows.services.supervisor import Supervisor
from tasks import addresses, config
from tasks.addresses import Addresses
from tasks.errors import ConfigError

DEMO = Path("deployments/demo.yaml")


def up(console: Console, port: int, mlflow_port: int, pool: str) -> None:
    """Starts the services, and comes back when Ctrl-C or SIGTERM has ended them.

    Raises ConfigError where a port is taken, TunewrightError where it is up already or a service does not start.
    """
    if port == mlflow_port:
        raise ConfigError(f"--port {port} and --mlflow-port {mlflow_port} are the same; accepted are two ports")
    config.quiet_libraries()
    print_log(console, logging.INFO)
    for asked in (signal.SIGINT, signal.SIGTERM):  # also where a shell or a service manager has it ignored
        signal.signal(asked, signal.default_int_handler)
    with addresses.held() as file:
        if orphaned():  # what an `up` left that was killed; its sentinel is ending it
            console.print("waiting for what an earlier one left to end", markup=False)
            wait_for_orphans()
        require_free(port, "--port")
        require_free(mlflow_port, "--mlflow-port")
        found = Addresses(
            pid=os.getpid(),
            prefect=f"http://{LOOPBACK}:{port}",
            mlflow=f"http://{LOOPBACK}:{mlflow_port}",
            pool=pool,
        )
        console.print(f"tunewright up, in {config.home()}: Ctrl-C ends it", markup=False)

        database.make()

        def ready(service: Service, seconds: float) -> None:
            console.print(f"  {service.name:<10}{service.shows:<32}ready after {seconds:.0f} s", markup=False)
            if service.name == "prefect" and (cut := leftover.end(found)):
                console.print(f"    cut short, since they were killed while they ran: {', '.join(cut)}", markup=False)

        try:
            with Supervisor(services(found), mark=f"{os.getpid()}-{time.time_ns()}") as supervisor:
                supervisor.begin(ready)
                file.write_text(found.model_dump_json(), encoding="utf-8")
                console.print(f"Their logs are in {logs()}. What to do next, in another terminal:\n")
                file_here = DEMO if DEMO.exists() else "FILE.yaml"
                console.print(f"    tunewright deploy {file_here}", markup=False)
                console.print(
                    f"    export PREFECT_API_URL={found.api}    # for commands of Prefect's own", markup=False
                )
                supervisor.watch()
        except KeyboardInterrupt:
            console.print("all ended; runs that were cut short go on from their last checkpoint when they run again")
