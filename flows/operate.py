"""The commands that keep the pipeline running as a service."""

import json
from typing import Annotated

import typer

from flows.command_line import Json, console_of, one_line_errors


def up(
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65_535, help="Of Prefect's server")] = 4200,
    mlflow_port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65_535, help="Of MLflow's server")] = 5000,
    pool: Annotated[str, typer.Option(metavar="NAME", help="The work pool whose runs the worker starts")] = "local",
) -> None:
    """Start Prefect, MLflow and a worker on this machine, and keep them running; Ctrl-C ends them together.

    Their databases lie in the home folder. As long as they are up, `tunewright run` uses them.
    """
    console = console_of(as_json=False)
    with one_line_errors(as_json=False):
        from flows import services

        services.up(console, port, mlflow_port, pool)


def doctor(as_json: Json = False) -> None:
    """Say what of this machine, this environment and this home would hinder a run, and how to mend it.

    Exit codes: 0 nothing that stops a run, 1 something that does.
    """
    console = console_of(as_json)
    from flows import doctor

    found = list(doctor.findings())
    doctor.show(console, found)
    if as_json:
        print(json.dumps(doctor.as_json(found), ensure_ascii=False))
    if any(each.state == "failure" for each in found):
        raise typer.Exit(1)
