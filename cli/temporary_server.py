"""The temporary Prefect server of a run: a process beside it, out of the terminal's reach, which ends with the run.

Prefect's own, SubprocessASGIServer, ends at Ctrl-C before the run can say how it ended, stays where the run is killed
and lets in whoever reaches its port. And to start it, a run imports all of Prefect's server.
"""

import atexit
import contextlib
import logging
import os
import secrets
import signal
import subprocess
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import prefect
from prefect.context import refresh_global_settings_context
from prefect.settings import (
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
)

from tunewright import config
from tunewright.config import quietly
from tunewright.errors import TunewrightError
from tunewright.machine import addresses, end_with_parent
from tunewright.machine.ports import free_port
from tunewright.machine.start_limit import StartLimit
from tunewright.reports.progress import told_while_slow

log = logging.getLogger("tunewright")

APP_DIR = Path(prefect.__file__).parents[1]
RESTARTS = 5  # after that it is no accident
LOOK_SECONDS = 1.0
ASK_SECONDS = 0.1
END_SECONDS = 5.0  # for it to end by itself
EPHEMERAL = {
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",  # up to here as Prefect's own
    # A run needs no types of blocks, which take a sixth to two fifths of the server's start.
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    "PREFECT_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",
}


def start() -> None:
    """Starts the server, to end with this process, and sets PREFECT_API_URL to it.

    It asks for a password, one that is set or a random one, which this process and its children know.
    Raises TunewrightError where the disk has no room for it, or it does not answer in time.
    """
    config.require_room()
    password = PREFECT_SERVER_API_AUTH_STRING.value() or secrets.token_urlsafe(32)
    os.environ["PREFECT_SERVER_API_AUTH_STRING"] = os.environ["PREFECT_API_AUTH_STRING"] = password
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = "http://127.0.0.1"  # no page is served there
    refresh_global_settings_context()
    server, started = TemporaryServer(), time.monotonic()
    threading.Thread(target=server.keep_alive, daemon=True).start()
    limit = PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS
    if not server.answers_within(limit.value()):
        server.end()
        waited = time.monotonic() - started
        raise TunewrightError(
            f"Prefect's temporary server did not answer within {waited:.0f} s: check what keeps the machine busy, "
            f"and that PREFECT_SERVER_DATABASE_CONNECTION_URL can be opened; {limit.name} says how long to wait, and "
            "tunewright up starts a server that stays"
        )
    atexit.register(server.end)
    os.environ["PREFECT_API_URL"] = addresses.temporary = server.api
    os.environ["PREFECT_UI_URL"] = ""  # so that no run names a page of it
    refresh_global_settings_context()


class TemporaryServer:
    """The process, and the one that takes its place where it dies."""

    def __init__(self) -> None:
        self.environment = os.environ | EPHEMERAL | get_current_settings().to_environment_variables(exclude_unset=True)
        self.has_answered, self.is_ended = threading.Event(), threading.Event()
        self.process = self._process_at(free_port())

    @property
    def api(self) -> str:
        """Its PREFECT_API_URL."""
        return f"http://127.0.0.1:{self.port}/api"

    def _process_at(self, port: int) -> subprocess.Popen[bytes]:
        self.port = port
        # Without --app-dir uvicorn looks for modules in the current folder, as -m does.
        program = ("uvicorn", "--app-dir", str(APP_DIR), "--factory", "prefect.server.api.server:create_app")
        return subprocess.Popen(
            [
                *(*quietly.COMMAND, *program, "--lifespan", "on"),
                *("--host", "127.0.0.1", "--port", str(port), "--log-level", "error"),
            ],
            env=self.environment,
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )

    def answers_within(self, seconds: float) -> bool:
        """Return whether it answers in time; where it ends by itself, as when its port was taken, it gets another.

        The time begins anew whenever it has computed, until it has ended once: a busy machine is no fault of its own.
        """
        limit, has_ended = StartLimit(seconds), False
        with (
            told_while_slow("starting a temporary Prefect server"),
            httpx.Client() as asking,  # one: each reads all certificates of authorities
        ):
            while not limit.is_over:
                code = self.process.poll()
                if code is not None and code >= 0:
                    self.process, has_ended = self._process_at(free_port()), True
                elif not has_ended:
                    limit.renew(self.process.pid)
                with contextlib.suppress(httpx.TransportError):
                    if asking.get(f"{self.api}/health").is_success:
                        self.has_answered.set()
                        return True
                time.sleep(ASK_SECONDS)
        return False

    def keep_alive(self) -> None:
        """Starts it again where it dies, at the same address, until the run ends.

        The thread of this lives until the end, as the kernel ends the server with the thread that started it.
        """
        restarts = 0
        while not self.is_ended.wait(LOOK_SECONDS):
            code = self.process.poll()
            if code is not None and (code < 0 or self.has_answered.is_set()) and restarts < RESTARTS:
                restarts += 1
                log.warning("Prefect's temporary server exited with code %d and was restarted", code)
                self.process = self._process_at(self.port)

    def end(self) -> None:
        """Ends the process and waits for it."""
        self.is_ended.set()
        self.process.terminate()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
