"""Prefect's temporary server, which a run without `tunewright up` starts for itself, kept alive as long as the run.

Prefect starts it in the run's own process group. There Ctrl-C and a closed terminal end it first, and the run waits
minutes for it before it can say how it ended; and where the run is killed, the server stays.
"""

import ctypes
import signal
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

from prefect.settings import PREFECT_API_URL

PR_SET_PDEATHSIG = 1


def outlive_signals() -> None:
    """Has it started in a session of its own, to end with the process that started it; if it will be started at all."""
    if PREFECT_API_URL.value():
        return
    from prefect.server.api import server

    start = partial(subprocess.Popen, start_new_session=True, preexec_fn=_end_with_parent)
    module: Any = server
    module.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": start})


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
