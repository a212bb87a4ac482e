"""Whether a run is on in this home: it holds a lock as long as it lives, which the kernel frees however it dies.

A run uses artifacts that it found or made hours ago, so that nothing in the home is removed while one is on. A run of a
terminal holds a lock of its own besides, named after its flow run: one that is free was left by a killed process.
"""

import contextlib
from collections.abc import Iterator

from tunewright import config
from tunewright.store import locks

LOCK = "runs.lock"
OF_TERMINALS = "terminal_runs"  # folder


@contextlib.contextmanager
def by_a_run() -> Iterator[None]:
    """Holds the home for a run, beside others; waits while something is being removed. Raises ConfigError."""
    config.make_home()
    with locks.shared(config.home() / LOCK):
        yield


@contextlib.contextmanager
def of_terminal(flow_run: str) -> Iterator[None]:
    """Notes a flow run of a terminal while it goes on; none where the id is empty."""
    if not flow_run:
        yield
        return
    config.make_home()
    file = config.home() / OF_TERMINALS / flow_run
    file.parent.mkdir(exist_ok=True)
    with locks.presence(file):
        yield


def killed() -> Iterator[str]:
    """The flow runs of terminals whose processes were killed, each until it was used."""
    for file in sorted((config.home() / OF_TERMINALS).glob("[!.]*")):
        if locks.is_left(file):
            yield file.name
            file.unlink(missing_ok=True)


def is_by_a_run() -> bool:
    """Whether a run is on now."""
    config.make_home()
    with by_none() as is_none:
        return not is_none


@contextlib.contextmanager
def by_none() -> Iterator[bool]:
    """Whether no run is on, and none begins within the block."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive(config.home() / LOCK, wait=0))
        except BlockingIOError:
            yield False
        else:
            yield True
