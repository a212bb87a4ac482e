"""Whether a run is on in this home: it holds a lock as long as it lives, which the kernel frees however it dies.

A run uses artifacts that it found or made hours ago, so that nothing in the home is removed while one is on.
"""

import contextlib
from collections.abc import Iterator

from tunewright import config
from tunewright.store import locks

LOCK = "runs.lock"


@contextlib.contextmanager
def by_a_run() -> Iterator[None]:
    """Holds the home for a run, beside others; waits while something is being removed. Raises ConfigError."""
    config.make_home()
    with locks.shared(config.home() / LOCK):
        yield


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
