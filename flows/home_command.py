"""The commands that keep a home: what takes room and is needless, and a copy of what cannot be made again."""

from pathlib import Path
from typing import Annotated

import typer

from flows.command_line import Json, console_of, one_line_errors, prepare
from flows.visible import as_line
from tasks import config

app = typer.Typer(
    name="home",
    help="Back up the home folder, models and histories, and restore it on any path.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Tar = Annotated[Path, typer.Argument(metavar="FILE", help="A tar file, such as backup.tar")]


def clean(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; otherwise it is only shown")] = False,
    keep_runs: Annotated[
        int, typer.Option(metavar="N", min=1, help="Artifacts of so many of the newest runs of each pipeline stay")
    ] = 3,
    keep_rejected: Annotated[
        int, typer.Option(metavar="N", min=1, help="So many of the newest rejected versions of each model stay")
    ] = 10,
    as_json: Json = False,
) -> None:
    """Show what in the home folder nothing needs any more, with sizes, and remove it with --yes.

    Old artifacts, work untouched for a week, rejected versions with their weights, and runs deleted in MLflow. Never
    what a run is at, nor a version that has or had an alias, waits, or was approved.
    """
    console = console_of(as_json)
    with one_line_errors(as_json):
        prepare(console)
        from flows import clean_command

        cleaned = clean_command.clean(keep_runs, keep_rejected, remove=yes)
        clean_command.show(console, cleaned)
    if as_json:
        print(as_line(clean_command.as_json(cleaned)))


@app.command()
def backup(file: Tar, as_json: Json = False) -> None:
    """Copy models, runs, the history of the data and the uses of test sets to a file; runs may go on meanwhile."""
    with one_line_errors(as_json):
        from tasks import backup as copies

        size = copies.backup(file)
        console_of(as_json).print(f"{config.home()} is backed up to {file}, {size / 1e6:,.1f} MB", markup=False)
    if as_json:
        print(as_line({"home": str(config.home()), "file": str(file.absolute()), "size": size}))


@app.command()
def restore(file: Tar, as_json: Json = False) -> None:
    """Put a backup into the home folder that TUNEWRIGHT_HOME names, which has no models yet; any path will do."""
    with one_line_errors(as_json):
        from tasks import backup as copies

        found = copies.restore(file)
        console_of(as_json).print(f"{config.home()} has {', '.join(found)} of {file}", markup=False)
    if as_json:
        print(as_line({"home": str(config.home()), "restored": found}))
