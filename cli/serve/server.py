"""The process of `tunewright serve`: a port, a loaded version, and a server until Ctrl-C."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import uvicorn
from starlette.types import ASGIApp

from tunewright.cli import interrupts
from tunewright.cli.serve import endpoint, key
from tunewright.cli.serve.app import create_app
from tunewright.cli.serve.endpoint import Endpoint
from tunewright.cli.serve.queue import Tell
from tunewright.config import Registry
from tunewright.errors import ConfigError
from tunewright.machine.addresses import LOOPBACK
from tunewright.machine.ports import require_free

GRACE_SECONDS = 3  # for responses when it stops


@dataclass(frozen=True)
class Listening:
    """Where it listens, and for whom."""

    host: str
    port: int
    api_key: str  # empty for no key
    max_waiting: int


class Stoppable(Protocol):
    """The services behind an app, which live as long as its server."""

    def start(self) -> None:
        """Begin; the server is ready."""

    def stop(self) -> None:
        """End what goes on; may be called from a signal handler."""

    def close(self) -> None:
        """Wait for the end."""


class _Server(uvicorn.Server):
    """uvicorn, which ends the answer at hand when a signal comes, and says when it is ready."""

    def __init__(self, settings: uvicorn.Config, served: Stoppable, ready: str, tell: Tell) -> None:
        super().__init__(settings)
        self.served, self.ready, self.tell = served, ready, tell

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Ends the answers, then the server."""
        self.served.stop()
        super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and says so."""
        await super().startup(sockets)
        self.tell(self.ready)
        self.served.start()


def serve(registry: Registry, number: str | None, at: Listening, tell: Tell) -> None:
    """Serves a version until Ctrl-C; SIGTERM ends it with KeyboardInterrupt.

    Raises ConfigError where the port is taken or there is no such version, TunewrightError where it cannot be loaded.
    """

    def opened() -> tuple[Endpoint, ASGIApp, str]:
        tell(f"verifying and loading {registry.name}")
        served = endpoint.opened(registry, number, at.max_waiting, tell)
        version = f"{served.model}{'' if served.is_fixed else f' (@{registry.alias})'}"
        said = f"{version} answers in {served.served.answerer.precision}"
        return served, create_app(served, at.host, at.api_key), said

    listen(at, opened, tell)


def listen(at: Listening, opened: Callable[[], tuple[Stoppable, ASGIApp, str]], tell: Tell) -> None:
    """Serves an app until Ctrl-C; SIGTERM ends it with KeyboardInterrupt.

    `opened` makes, once the port is had, what is behind the app, the app, and the sentence that says what answers.
    Raises ConfigError where the port is taken.
    """
    with interrupts.raised(by=interrupts.SIGNALS), closing(_bound(at)) as listener:
        served, app, said = opened()
        try:
            settings = uvicorn.Config(app, log_level="error", access_log=False, timeout_graceful_shutdown=GRACE_SECONDS)
            server = _Server(settings, served, _ready(said, at), tell)
            asyncio.run(server.serve([listener]))
        except KeyboardInterrupt as error:
            if interrupts.number_of(error) != signal.SIGINT:
                raise
            tell("stopped")
        finally:
            served.close()


def _bound(at: Listening) -> socket.socket:
    """A socket that has the port. Raises ConfigError where it cannot be had."""
    if at.host == LOOPBACK:
        require_free(at.port, "--port")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((at.host, at.port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {at.host} --port {at.port}: {error.strerror or error}") from error
    return listener


def _ready(said: str, at: Listening) -> str:
    """The lines for whoever started it: what answers, where, and which key to send."""
    lines = [f"{said} at http://{at.host}:{at.port}/v1; Ctrl-C stops it"]
    if not at.api_key:
        lines.append("no API key is asked for")
    elif key.is_given():
        lines.append(f"API key   that of {key.VARIABLE}")
    elif sys.stdout.isatty():
        lines.append(f"API key   {at.api_key}")
    else:  # a log may be read by others
        lines.append(f"API key   in {key.file()}")
    return "\n".join(lines)
