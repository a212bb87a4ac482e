"""A Ray cluster: the connection to it, and work that its workers do in the order in which it was given.

The cluster is the one that RAY_ADDRESS names, or one of this machine's cores, which ends with the stage. All its nodes
need this version of tunewright, and see the home folder at the same path.
"""

import importlib.metadata
import logging
import os
import platform
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, Literal, Protocol, TypeVar

from tunewright import config
from tunewright.errors import ConfigError
from tunewright.store.code_hashes import fingerprints

log = logging.getLogger("tunewright")

T = TypeVar("T")
EngineName = Literal["local", "ray"]

AHEAD = 2  # items for each core that wait for a worker, or for what comes before them
SECONDS_TO_ANSWER = 10
ATTEMPTS = "RAY_gcs_server_port_wait_time_s"  # to connect, whatever its name says


class WorkerMap(Protocol):
    """Applies a function to items, one after the other or at once, and yields what it returns in their order."""

    def __call__(self, function: Callable[..., T], items: Iterable[Any], **arguments: Any) -> Iterator[T]:
        """Yield function(item, **arguments) for each item; `function` belongs to a module."""
        ...


@dataclass(frozen=True)
class BatchWork(Generic[T]):
    """The function to run on every batch, its arguments, and the versions of its code on the driver."""

    function: Callable[..., T]
    arguments: dict[str, Any]
    code: dict[str, str]


def worker_map(name: EngineName) -> AbstractContextManager[WorkerMap]:
    """How the engine that data.engine names works through items, for as long as it is needed."""
    return nullcontext(_here) if name == "local" else _there()


def _here(function: Callable[..., T], items: Iterable[Any], **arguments: Any) -> Iterator[T]:
    return (function(item, **arguments) for item in items)


@contextmanager
def _there() -> Iterator[WorkerMap]:
    with connected() as cores:

        def each(function: Callable[..., T], items: Iterable[Any], **arguments: Any) -> Iterator[T]:
            work, waiting = work_of(function, arguments), deque[Any]()
            for item in items:
                waiting.append(run(on_made, work, item))
                if len(waiting) > AHEAD * cores:
                    yield get([waiting.popleft()])[0]
            while waiting:
                yield get([waiting.popleft()])[0]

        yield each


def on_made(work: BatchWork[T], made: Any) -> T:
    """Apply the function to an item or another one's result; ConfigError where this node has other code."""
    if versions(work.function.__module__) != work.code:
        raise ConfigError(
            f"the Ray node {platform.node()} has another version of tunewright, pyarrow or Python than the run: "
            "install the same version"
        )
    return work.function(made, **work.arguments)


def versions(module: str) -> dict[str, str]:
    """The code that a module reaches, and the versions of what shapes the bytes that it writes."""
    pyarrow, python = importlib.metadata.version("pyarrow"), ".".join(map(str, sys.version_info[:2]))
    return fingerprints(module) | {"library pyarrow": pyarrow, "python": python}


def work_of(function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """A reference to what a worker needs to do it."""
    return put(BatchWork(function, arguments, versions(function.__module__)))


def run(function: Callable[..., Any], *arguments: Any, returns: int = 1) -> Any:
    """A reference to function(*arguments) on the cluster, or so many to what it returns."""
    return _remote(function).options(num_returns=returns).remote(*arguments)


def put(value: Any) -> Any:
    """A reference to a value, which is sent once to each node that needs it."""
    import ray

    return ray.put(value)


def get(references: list[Any]) -> list[Any]:
    """Fetch the results of the references to this machine. Raises what a worker raised."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(references)
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from None
        raise


@contextmanager
def connected() -> Iterator[int]:
    """A connection to the cluster, and its number of cores. Raises ConfigError where there is none to be had."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(
            "data.engine=ray: ray is not installed; pip install 'tunewright[ray]', or use data.engine=local"
        ) from error
    if ray.is_initialized():  # by whoever runs this; it is theirs to end
        yield _cores()
        return
    try:
        _connect()
        yield _cores()
    finally:
        ray.shutdown()


def _cores() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def _connect() -> None:
    import ray
    from ray.exceptions import RayError

    config.quiet_libraries()
    address = config.ray_address()
    of_this_machine = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    try:
        with _own_signals(), nullcontext() if of_this_machine else _once(address):
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **of_this_machine)
    except (OSError, RuntimeError, ValueError, ImportError, RayError) as error:
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(
            f"RAY_ADDRESS={address}: {said}; accepted: host:port of a Ray cluster, or unset to start a local cluster"
        ) from error
    log.info("  on Ray (%s) with %d cores", address, _cores())


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray takes over SIGTERM, by which Prefect ends a run."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():  # which alone can set handlers, Ray's as well
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def _once(address: str) -> Iterator[None]:
    """Ray tries to connect once, which takes 40 s where something else answers, and not for a quarter of an hour."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), SECONDS_TO_ANSWER).close()
    theirs = ATTEMPTS in os.environ
    os.environ.setdefault(ATTEMPTS, "1")
    try:
        yield
    finally:
        if not theirs:
            del os.environ[ATTEMPTS]


@cache
def _remote(function: Callable[..., Any]) -> Any:
    import ray

    return ray.remote(function)
