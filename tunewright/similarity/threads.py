"""Work on all cores of this machine: the kernels run without Python's lock, and so does most of Arrow."""

import ctypes
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa

from tunewright.machine import num_cores

T = TypeVar("T")


def on_all_cores(function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """As list(map(function, *arguments)), as many at once as there are cores: each has memory to itself."""
    with ThreadPoolExecutor(num_cores()) as pool:
        found = list(pool.map(function, *arguments))
    # The system gets the memory that was freed; else Arrow keeps it for threads, and glibc's heap in holes.
    pa.default_memory_pool().release_unused()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # other C libraries have none
        libc.malloc_trim(0)
    return found
