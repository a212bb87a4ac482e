"""The result of a run, kept before it reports its end to Prefect, whose server may be gone by then."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_KEPT: ContextVar[list[Any] | None] = ContextVar("kept", default=None)


def keep(made: Any) -> None:
    """Keeps the result of a flow whose work is done, for the `kept` block that it runs in, if any."""
    if (kept := _KEPT.get()) is not None:
        kept.append(made)


@contextmanager
def kept() -> Iterator[list[Any]]:
    """The results that flows keep in the block."""
    token = _KEPT.set(found := [])
    try:
        yield found
    finally:
        _KEPT.reset(token)
