"""Work on all cores of this machine: the kernels run without Python's lock, and so does most of Arrow."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tasks.machine import num_cores

T = TypeVar("T")


def on_all_cores(function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """As list(map(function, *arguments)), as many at once as there are cores: each has memory to itself."""
    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(function, *arguments))
