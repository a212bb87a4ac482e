"""The commands that keep the pipeline running as a service, and its home: what is needless there, and a backup."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from tunewright import config
from tunewright.cli import interrupts
from tunewright.cli.command_line import Deployment, Json, console_of, note_home_beside, one_line_errors, prepare
from tunewright.cli.visible import as_line
from tunewright.errors import ConfigError
from tunewright.machine import addresses

home_app = typer.Typer(
    name="home",
    help="Back up the home folder (models, histories) and restore it anywhere.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Tar = Annotated[Path, typer.Argument(metavar="FILE", help="A tar file, such as backup.tar")]


def up(
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65_535, help="Port of Prefect's server")] = 4200,
    mlflow_port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65_535, help="Port of MLflow's server")] = 5000,
    pool: Annotated[str, typer.Option(metavar="NAME", help="Work pool of the worker")] = "local",
) -> None:
    """Start Prefect, MLflow and a worker on this machine, and keep them running; Ctrl-C stops them all.

    Their databases are in the home folder. While they are up, `tunewright run` uses them.

    Exit codes: 0 stopped by Ctrl-C, 143 by SIGTERM, 2 wrong options or a port that is taken, 1 anything else.
    """
    console = console_of(as_json=False)
    with one_line_errors(as_json=False):
        with interrupts.at_once():
            from tunewright.cli import up as services

        code = services.up(console, port, mlflow_port, pool)
    raise typer.Exit(code)


def doctor(as_json: Json = False) -> None:
    """Check this machine, environment and home folder for problems, and say how to fix them.

    Exit codes: 0 nothing stops a run, 1 something does.
    """
    console = console_of(as_json)
    with one_line_errors(as_json, uses_home=False):  # what is wrong with the home is one of its findings
        with interrupts.at_once():
            from tunewright.cli import doctor

        found = list(doctor.findings())
        doctor.show(console, found)
    if as_json:
        print(as_line(doctor.as_json(found)))
    if any(each.state == "failure" for each in found):
        raise typer.Exit(1)


def deploy(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="A deployment file", show_default=False)] = None,
    deployment: Deployment = None,
    remove: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Remove a deployment, its watcher, its approval and its automations, and cancel its suspended runs",
        ),
    ] = None,
    test_message: Annotated[
        bool, typer.Option("--test-message", help="Also send a test message by each block of operation.notify")
    ] = False,
    as_json: Json = False,
) -> None:
    """Put a file's deployments on Prefect's server, with schedules, triggers and notifications.

    A second call updates what changed in the file; --remove takes a deployment off the server. It needs a server:
    tunewright up.

    Exit codes: 0 deployed or removed, 1 also where a block did not send its test message, 2 wrong configuration.
    """
    console = console_of(as_json)
    with one_line_errors(as_json):
        if (file is None) == (remove is None) or (remove is not None and (deployment or test_message)):
            raise ConfigError("tunewright deploy: accepted: a FILE to deploy, or --remove NAME without other options")
        prepare(console)
        if file:
            note_home_beside(file)
        if starting := addresses.still_starting():
            raise ConfigError(starting)
        up, api = addresses.running(), os.environ.get("PREFECT_API_URL")
        if not api:
            raise ConfigError(
                "no Prefect server: start one with tunewright up, or set PREFECT_API_URL to its address, or set "
                "TUNEWRIGHT_HOME if one is up in another home"
            )
        with interrupts.at_once():
            from tunewright.cli import deploy as deploying
            from tunewright.cli.deploy import removal, view

        if file:
            pool = up.pool if up and up.is_prefect(api) else "local"
            result = deploying.deploy(file, deployment, pool, tests=test_message)
            view.show(console, result)
            shown, has_failed = view.as_json(result), any(result.tested.values())
        else:
            removed = removal.remove(remove or "")
            view.show_removed(console, removed)
            shown, has_failed = removal.as_json(removed), False
    if as_json:
        print(as_line(shown))
    if has_failed:
        raise typer.Exit(1)


def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without --yes it is only listed")] = False,
    keep_runs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Keep the artifacts of the newest N runs of each pipeline")
    ] = 3,
    keep_rejected: Annotated[
        int, typer.Option(metavar="N", min=1, help="Keep the newest N rejected versions of each model")
    ] = 10,
    store_days: Annotated[
        int, typer.Option(metavar="N", min=7, help="Keep what was put into the shared store in the last N days")
    ] = 30,
    server_models: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also look at the versions of this model on the MLflow server that MLFLOW_TRACKING_URI names; a "
            "pattern such as 'bot-*' or '*' stands for several models",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List what is no longer needed in the home folder and the shared store, with sizes, and remove it with --yes.

    These are old artifacts, unfinished work untouched for a week, rejected versions with their weights, runs deleted in
    MLflow, and runs that found nothing new and were hidden there. Never files in use by a run, nor a version that has
    or had an alias, is waiting for approval, or was approved. On an MLflow server only versions of the models that
    --server-models names.
    """
    console = console_of(as_json)
    with one_line_errors(as_json):
        prepare(console)
        with interrupts.at_once():
            from tunewright.cli import clean as clean_command

        cleaned = clean_command.clean(keep_runs, keep_rejected, store_days, server_models or (), remove=yes)
        clean_command.show(console, cleaned)
    if as_json:
        print(as_line(clean_command.as_json(cleaned)))


@home_app.command()
def backup(
    file: Tar,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists, once the new backup is complete")
    ] = False,
    as_json: Json = False,
) -> None:
    """Back up models, runs, the history of the data and the test-set uses to a file, also while runs go on."""
    with one_line_errors(as_json):
        with interrupts.at_once():
            from tunewright.store import backup as copies

        size = copies.backup(file, overwrite=overwrite)
        console_of(as_json).print(f"{config.home()} was backed up to {file}, {decimal(size)}", markup=False)
    if as_json:
        print(as_line({"home": str(config.home()), "file": str(file.absolute()), "size": size}))


@home_app.command()
def restore(file: Tar, as_json: Json = False) -> None:
    """Restore a backup into the home folder (TUNEWRIGHT_HOME), on any path.

    The home must have no MLflow database and no histories yet: restore into a new folder.
    """
    with one_line_errors(as_json):
        with interrupts.at_once():
            from tunewright.store import backup as copies

        found = copies.restore(file)
        console_of(as_json).print(f"restored {', '.join(found)} from {file} to {config.home()}", markup=False)
    if as_json:
        print(as_line({"home": str(config.home()), "restored": found}))
