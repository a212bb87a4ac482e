"""The machine that an error of a worker's run names, as its paths are of that machine alone."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.runtime import deployment

from tunewright.errors import TunewrightError


@contextmanager
def naming_machine() -> Iterator[None]:
    """Add to an error in a run of a worker which machine its paths are of."""
    try:
        yield
    except TunewrightError as error:
        error.args = (on_machine(str(error)), *error.args[1:])
        raise


def on_machine(said: str) -> str:
    """Add the machine, once, to what is said in a run of a worker: who reads it may be at another one."""
    machine = f" (on {platform.node()})"
    return f"{said.removesuffix(machine)}{machine}" if deployment.id else said
