"""Prefect's server: the one that PREFECT_API_URL names, or a temporary one that lives as long as a run."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED

from tunewright import compat
from tunewright.cli import interrupts, temporary_server
from tunewright.errors import ConfigError, TunewrightError
from tunewright.flows import finished
from tunewright.machine import addresses
from tunewright.store.shared import shared_store

log = logging.getLogger("tunewright")

LOOPBACK = (*addresses.HOSTS, "::1")
PATIENCE_SECONDS = 25.0  # for a server on this machine that refuses connections
RESTART_SECONDS = 60.0  # the same, where somebody starts it again


def call(flow: Callable[..., Any], *args: Any, **parameters: Any) -> Any:
    """Runs a flow on a server and returns its result. Raises what the flow raises, and as `ensure` and `needed` do.

    Before a server starts, raises StoreError or ConfigError where the store that machines share cannot be used.
    Where the flow has kept its result (flows/finished.py), a server that is gone afterwards is only a warning.
    """
    interrupts.raise_if_came()
    if store := shared_store():
        store.check_once()  # else a run that cannot keep its first artifact would wait for a server
    ensure()
    with finished.kept() as made:
        try:
            with needed():
                state = flow(*args, **parameters, return_state=True)
                result = state.result(raise_on_failure=False)
                if isinstance(result, httpx.TransportError):
                    raise result
        except TunewrightError as error:
            if not made or not isinstance(error.__cause__, httpx.TransportError):
                raise
            log.warning("%s no longer answers, so Prefect's pages lack the end of this run", _who())
            return made[-1]
    if isinstance(result, BaseException):
        raise result
    return result


def ensure() -> None:
    """Makes sure of a server for a run: the one that is named answers, or a temporary one starts and ends with the run.

    Raises ConfigError where the named one cannot be used, TunewrightError where it does not answer, or the temporary
    one has no room on the disk or is not there in time.
    """
    # One line of ours in place of what Prefect prints for each event and log that it cannot send; logs it writes to
    # stderr by itself, unless logging raises no exceptions.
    logging.raiseExceptions = False
    compat.filter_log_of_sending(_unsent)
    _give_up_in_time()
    if PREFECT_API_URL.value():
        with connected():
            return
    if PREFECT_SERVER_EPHEMERAL_ENABLED.value():
        temporary_server.start()


@contextmanager
def connected() -> Iterator[SyncPrefectClient]:
    """The server of PREFECT_API_URL. Raises TunewrightError where none answers, ConfigError for a wrong address."""
    api = PREFECT_API_URL.value()
    try:
        with get_client(sync_client=True) as client:
            try:
                client.raise_for_api_version_mismatch_once()  # as each run does, and Prefect then remembers
            except RuntimeError as error:
                raise _unusable(error.__cause__ or error) from error
            yield client
    except httpx.HTTPStatusError as error:
        if addresses.advice_on_api(api):
            raise _unusable(error) from error
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise ConfigError(f"{api} refuses the password; {addresses.how_to_log_in()}") from error
        raise TunewrightError(f"{api}: {error.response.status_code} {error.response.text[:300]}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unusable(error) from error


@contextmanager
def needed() -> Iterator[None]:
    """For a block that a server has to outlive. Raises TunewrightError where it does not answer any more."""
    try:
        yield
    except httpx.TransportError as error:
        _send_no_more()
        raise TunewrightError(
            f"{_who()} no longer answers: {error or type(error).__name__}; finished stages are kept, "
            "and the next run resumes from there"
        ) from error


def _who() -> str:
    return f"Prefect's server ({addresses.lasting(PREFECT_API_URL.value()) or 'the temporary one of this run'})"


class ServerGone(httpx.TransportError):
    """A server on this machine that refuses connections for so long that no client of Prefect's tries again."""


class _Refusals:
    """Return the seconds since when a server on this machine has refused the connections of all clients.

    By itself each request of Prefect's tries for a minute, and a run that ends sends three.
    """

    def __init__(self) -> None:
        self.since = self.last = -math.inf  # the first and the last refusal

    @contextmanager
    def noted(self, host: str) -> Iterator[None]:
        """Notes whether the block, which sends a request, is answered.

        Raises ServerGone where a host on this machine has refused connections for too long.
        """
        try:
            yield
        except httpx.ConnectError as error:
            if host not in LOOPBACK:
                raise
            now = time.monotonic()
            if now - self.last > RESTART_SECONDS:  # another time
                self.since = now
            self.last = now
            if now - self.since < (RESTART_SECONDS if _is_started_again() else PATIENCE_SECONDS):
                raise
            raise ServerGone(str(error)) from error
        self.last = -math.inf


def _is_started_again() -> bool:
    """Whether somebody looks after the server: this process after its temporary one, `up` after its own."""
    return not addresses.lasting(PREFECT_API_URL.value()) or addresses.is_up()


@cache
def _give_up_in_time() -> None:
    """Has all of Prefect's clients, from now on, try no longer than _Refusals allows."""
    compat.send_within(_Refusals().noted)


def _send_no_more() -> None:
    """Drops the events and logs that wait to be sent: at its end, a process tries for seconds to send each of them."""

    async def drop(*_: Any) -> None:
        """Sends nothing."""

    compat.replace_sending(drop)


def _unsent(record: logging.LogRecord) -> bool:
    """Replaces the errors of Prefect's EventsWorker by one warning."""
    is_of_events = "EventsWorker" in record.getMessage() and record.levelno >= logging.ERROR
    if is_of_events:
        _warn_once(_who())
    return not is_of_events


@cache
def _warn_once(server: str) -> None:
    log.warning(
        "  %s no longer takes what the run reports; the run goes on, and Prefect's pages lack the rest of it",
        server,
    )


def _unusable(error: BaseException) -> TunewrightError:
    """Return the error of a server that cannot be used: ConfigError unless the address may be right."""
    api = PREFECT_API_URL.value()
    if (advice := addresses.advice_on_api(api)) and isinstance(error, httpx.HTTPStatusError | ValueError):  # or a page
        return ConfigError(f"PREFECT_API_URL={api}: {advice}")
    is_away = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
    return (TunewrightError if is_away and not advice else ConfigError)(
        f"PREFECT_API_URL={api}: no usable server answers there ({error or type(error).__name__}); "
        f"{advice or 'set it to a server that answers'}, or unset it and start one with tunewright up"
    )
