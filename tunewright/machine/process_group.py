"""A process that does not outlive the one that started it."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(by: signal.Signals) -> None:
    """Asks the kernel for this signal when the parent dies, however it dies; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
