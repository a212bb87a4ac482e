"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import Any


def until(
    found: Callable[[], Any], seconds: float = 300.0, every: float = 0.1, said: Callable[[], str] = lambda: ""
) -> Any:
    """The first value that is true, asked for `every` so many seconds; fails with `said` when there is none in time."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, said()
        time.sleep(every)
    return value
