"""Whether a port is free, and what holds it where it is not."""

import socket

import psutil

from tunewright.errors import ConfigError
from tunewright.machine.addresses import LOOPBACK

# https://fetch.spec.whatwg.org/#port-blocking, from 1024
REFUSED_BY_BROWSERS = frozenset(
    (1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080)
)


def require_free(port: int, option: str, *, other: int = 0) -> None:
    """Raises ConfigError that names what listens on the port, where it can be told, and a port to take instead.

    That one is free, not the `other` port that the command asks for, and one that browsers open.
    """
    if port in REFUSED_BY_BROWSERS:
        free = _near(port, other)
        raise ConfigError(f"{option} {port}: browsers refuse this port; choose another, such as {option} {free}")
    try:
        who = holder(port)
    except PermissionError:
        raise ConfigError(f"{option} {port}: needs a user with more rights; accepted: a free port from 1024") from None
    if who:
        free = _near(port, other)
        raise ConfigError(
            f"{option} {port}: in use by {who}; stop that process, or choose another port, such as {option} {free}"
        )


def _near(port: int, other: int) -> int:
    ports = (*range(port + 1, 65_536), *range(port - 1, 1_023, -1))
    return next(each for each in ports if each not in (other, *REFUSED_BY_BROWSERS) and not holder(each))


def free_port() -> int:
    """A local port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def holder(port: int) -> str:
    """Return the process on a local port, as "python -m http.server (process 4711)", or "" if the port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a closed one's rest is free
        try:
            probe.bind((LOOPBACK, port))
        except PermissionError:
            raise
        except OSError:
            return _listener(port)
    return ""


def _listener(port: int) -> str:
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):  # macOS shows them to root alone, a closed /proc to nobody
        return "another process"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
            try:
                return f"{' '.join(psutil.Process(connection.pid).cmdline())[:120]} (process {connection.pid})"
            except (psutil.Error, OSError, TypeError):  # another user's
                break
    return "a process of another user"
