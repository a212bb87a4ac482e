"""Waiting for what another process does."""

import time
from collections.abc import Callable
from typing import Any


def until(found: Callable[[], Any], seconds: float = 300.0, every: float = 0.1) -> Any:
    """The first value that is true, asked for `every` so many seconds; fails when there is none in time."""
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end
        time.sleep(every)
    return value
