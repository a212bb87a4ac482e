"""What the kernels are compiled with: numba, which keeps what it compiled for the next process."""

from collections.abc import Callable
from typing import Any

from numba import njit
from numba.core import config as numba_settings

from tunewright import config


def compiled(function: Callable[..., Any]) -> Any:
    """The function compiled, without Python's lock while it runs.

    It is kept beside its module or in the user's cache folder; in the home folder where neither can be written.
    """
    compile_it = njit(cache=True, nogil=True)
    try:
        return compile_it(function)
    except RuntimeError:  # numba has no folder to write to
        numba_settings.CACHE_DIR = str(config.home() / "numba")  # pyright: ignore[reportAttributeAccessIssue]
        return compile_it(function)
