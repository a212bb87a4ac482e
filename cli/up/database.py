"""MLflow's database, made before its server starts, as a run makes it: whole or not at all."""

import signal
import sqlite3
import subprocess
import sys
from contextlib import suppress
from functools import partial

from tunewright import config
from tunewright.errors import TunewrightError
from tunewright.machine import end_with_parent
from tunewright.store import databases


def make() -> None:
    """Makes it unless it is there. Raises TunewrightError where it cannot be.

    In a process of its own, since MLflow takes 200 MB of memory, and `up` lives for long; and in a session of its own,
    since Ctrl-C is for `up`, which ends it.
    """
    with suppress(sqlite3.Error):  # of which the process says what to do
        if databases.is_finished(config.mlflow_database()):
            return
    made = subprocess.run(
        [sys.executable, "-P", "-c", "from tunewright.cli.up import database; database.ensure()"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        start_new_session=True,
        preexec_fn=partial(end_with_parent, signal.SIGTERM),
    )
    if made.returncode:
        said = made.stdout.strip().splitlines()[-1:]
        raise TunewrightError(
            *said or [f"{config.mlflow_database()}: creating it failed with exit code {made.returncode}"]
        )


def ensure() -> None:
    """Create MLflow's database; if that fails, the last line printed is an error that the user can act on."""
    from tunewright.registry import database

    config.quiet_libraries()
    try:
        database.ensure(config.mlflow_database())
    except TunewrightError as error:
        print(" ".join(str(error).split()))
        sys.exit(error.exit_code)
