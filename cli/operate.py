"""The commands that keep the pipeline running as a service."""

import os
from typing import Annotated

import typer

from tunewright.cli.command_line import Deployment, File, Json, console_of, note_home_beside, one_line_errors, prepare
from tunewright.cli.visible import as_line
from tunewright.errors import ConfigError
from tunewright.machine import addresses


def up(
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65_535, help="Port of Prefect's server")] = 4200,
    mlflow_port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65_535, help="Port of MLflow's server")] = 5000,
    pool: Annotated[str, typer.Option(metavar="NAME", help="Work pool of the worker")] = "local",
) -> None:
    """Start Prefect, MLflow and a worker on this machine, and keep them running; Ctrl-C stops them all.

    Their databases are in the home folder. While they are up, `tunewright run` uses them.

    Exit codes: 0 stopped by Ctrl-C, 143 by SIGTERM, 2 a port is taken, 1 anything else.
    """
    console = console_of(as_json=False)
    with one_line_errors(as_json=False):
        from tunewright.cli import up as services

        services.up(console, port, mlflow_port, pool)


def doctor(as_json: Json = False) -> None:
    """Check this machine, environment and home folder for problems, and say how to fix them.

    Exit codes: 0 nothing stops a run, 1 something does.
    """
    console = console_of(as_json)
    with one_line_errors(as_json, uses_home=False):  # what is wrong with the home is one of its findings
        from tunewright.cli import doctor

        found = list(doctor.findings())
        doctor.show(console, found)
    if as_json:
        print(as_line(doctor.as_json(found)))
    if any(each.state == "failure" for each in found):
        raise typer.Exit(1)


def deploy(file: File, deployment: Deployment = None, as_json: Json = False) -> None:
    """Put a file's deployments on Prefect's server, with schedules, triggers and notifications.

    A second call updates what changed in the file. It needs a server: tunewright up.
    """
    console = console_of(as_json)
    with one_line_errors(as_json):
        prepare(console)
        note_home_beside(file)
        up, api = addresses.running(), os.environ.get("PREFECT_API_URL")
        if not api:
            raise ConfigError(
                "no Prefect server: start one with tunewright up, or set PREFECT_API_URL to its address, or set "
                "TUNEWRIGHT_HOME if one is up in another home"
            )
        from tunewright.cli import deploy as deploying
        from tunewright.cli.deploy import view

        result = deploying.deploy(file, deployment, up.pool if up and up.is_prefect(api) else "local")
        view.show(console, result)
    if as_json:
        print(as_line(view.as_json(result)))
