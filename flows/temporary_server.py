"""Prefect's temporary server, which a run without `tunewright up` starts for itself, kept alive as long as the run.

Prefect starts it in the run's own process group. There Ctrl-C and a closed terminal end it first, and the run waits
minutes for it before it can say how it ended; and where the run is killed, the server stays.
"""

import signal
import subprocess
from functools import partial
from types import SimpleNamespace
from typing import Any

from prefect.settings import PREFECT_API_URL

from tasks.parent import end_with_parent


def outlive_signals() -> None:
    """Has it started in a session of its own, to end with the process that started it; if it will be started at all."""
    if PREFECT_API_URL.value():
        return
    from prefect.server.api import server

    end_with_run = partial(end_with_parent, signal.SIGTERM)
    start = partial(subprocess.Popen, start_new_session=True, preexec_fn=end_with_run)
    module: Any = server
    module.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": start})
