"""The commands that keep a home: what takes room and is needless, and a copy of what cannot be made again."""

from pathlib import Path
from typing import Annotated

import typer

from tunewright import config
from tunewright.cli.command_line import Json, console_of, one_line_errors, prepare
from tunewright.cli.visible import as_line

app = typer.Typer(
    name="home",
    help="Back up the home folder, models and histories, and restore it on any path.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Tar = Annotated[Path, typer.Argument(metavar="FILE", help="A tar file, such as backup.tar")]


def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without --yes it is only listed")] = False,
    keep_runs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Keep the artifacts of the newest N runs of each pipeline")
    ] = 3,
    keep_rejected: Annotated[
        int, typer.Option(metavar="N", min=1, help="Keep the newest N rejected versions of each model")
    ] = 10,
    as_json: Json = False,
) -> None:
    """List what is no longer needed in the home folder, with sizes, and remove it with --yes.

    These are old artifacts, unfinished work untouched for a week, rejected versions with their weights, and runs
    deleted in MLflow. Never files in use by a run, nor a version that has or had an alias, waits, or was approved.
    """
    console = console_of(as_json)
    with one_line_errors(as_json):
        prepare(console)
        from tunewright.cli import clean as clean_command

        cleaned = clean_command.clean(keep_runs, keep_rejected, remove=yes)
        clean_command.show(console, cleaned)
    if as_json:
        print(as_line(clean_command.as_json(cleaned)))


@app.command()
def backup(
    file: Tar,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it exists, once the new backup is complete")
    ] = False,
    as_json: Json = False,
) -> None:
    """Back up models, runs, the history of the data and the test-set uses to a file, also while runs go on."""
    with one_line_errors(as_json):
        from tunewright.store import backup as copies

        size = copies.backup(file, overwrite=overwrite)
        console_of(as_json).print(f"{config.home()} was backed up to {file}, {size / 1e6:,.1f} MB", markup=False)
    if as_json:
        print(as_line({"home": str(config.home()), "file": str(file.absolute()), "size": size}))


@app.command()
def restore(file: Tar, as_json: Json = False) -> None:
    """Restore a backup into the home folder (TUNEWRIGHT_HOME), on any path.

    The home must have no MLflow database and no histories yet: restore into a new folder.
    """
    with one_line_errors(as_json):
        from tunewright.store import backup as copies

        found = copies.restore(file)
        console_of(as_json).print(f"restored {', '.join(found)} from {file} to {config.home()}", markup=False)
    if as_json:
        print(as_line({"home": str(config.home()), "restored": found}))
