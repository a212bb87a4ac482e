"""Prefect's temporary server, which a run without `tunewright up` starts for itself, kept alive as long as the run.

Prefect starts it in the run's own process group. There Ctrl-C and a closed terminal end it first, and the run waits
minutes for it before it can say how it ended; and where the run is killed, the server stays.
"""

import signal
import subprocess
from functools import partial
from types import SimpleNamespace
from typing import Any

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
)

from tasks.errors import TunewrightError
from tasks.parent import end_with_parent


def start() -> None:
    """Starts it in a session of its own, to end with this process; not where another is to be used, or none.

    Raises TunewrightError where it does not answer in time.
    """
    if PREFECT_API_URL.value() or not PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        return
    from prefect.server.api import server

    end_with_run = partial(end_with_parent, signal.SIGTERM)
    popen = partial(subprocess.Popen, start_new_session=True, preexec_fn=end_with_run)
    module: Any = server
    module.subprocess = SimpleNamespace(**vars(subprocess) | {"Popen": popen})
    try:
        server.SubprocessASGIServer().start()  # the one that Prefect takes for all that follows
    except RuntimeError as error:
        limit = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
        raise TunewrightError(
            f"Prefect's temporary server did not answer within {limit.value()} s: see what keeps the machine busy, and "
            f"that PREFECT_SERVER_DATABASE_CONNECTION_URL can be opened; {limit.name} says how long to wait, and "
            "tunewright up starts a server that stays"
        ) from error
