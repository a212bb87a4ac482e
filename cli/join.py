"""`tunewright join`: train along with a run on another machine."""

from typing import Annotated

import typer

from tunewright import config
from tunewright.cli import interrupts
from tunewright.cli.command_line import Quiet, Verbose, console_of, one_line_errors, prepare


def join(
    address: Annotated[
        str,
        typer.Argument(
            metavar="HOST:PORT", envvar="TUNEWRIGHT_RENDEZVOUS", help="TUNEWRIGHT_RENDEZVOUS of the run's machine"
        ),
    ],
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train along with a run on another machine that has compute.nodes: wait for it, and end with it.

    Exit codes: 0 the run finished, 1 it failed, 2 code or packages are others here, 130 interrupted by Ctrl-C, 143
    ended by SIGTERM.
    """
    with one_line_errors(as_json=False):
        prepare(console_of(as_json=False), quiet=quiet, verbose=verbose)
        config.make_home()
        with interrupts.at_once():
            from tunewright.tasks.train import joining
            from tunewright.tasks.train.trainer.attempt import Meeting
        finished = joining.join(Meeting.of(address, "HOST:PORT"))
    raise typer.Exit(not finished)
