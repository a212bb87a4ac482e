"""The way to MLflow: which server or database, what happens when it does not answer, and the experiment."""

import contextlib
import functools
import itertools
import json
import logging
import os
import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from tunewright import config
from tunewright.config import Registry
from tunewright.errors import NO_SPACE, ConfigError, TrackingError, TunewrightError
from tunewright.machine import addresses
from tunewright.registry import database
from tunewright.registry.address import LOG_IN, SQLITE, VARIABLE, as_set, is_given_login, require_allowed, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("tunewright")

PATIENCE_SECONDS = 60.0  # for MLflow's answer to a read outside of a stage; `up` starts a dead server again in less
FIRST_SECONDS = 12.0  # the same before the first stage, where an address that nothing answers at is probably wrong
WAITS = (2, 4, 8, 16)  # seconds between the attempts
DEFAULTS = {  # a dead server otherwise blocks for four minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
_ENVIRONMENT = threading.Lock()
_inside: list[str] = []  # addresses, of each thread that needs the password now
_before: dict[str, str | None] = {}  # the credentials in the environment outside of all that
VIEW = "tunewright"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
AS_TRAINING = "workflowType=machine_learning"  # and not as traces of an agent
IN_VIEW = f"{AS_TRAINING}&viewStateShareKey={VIEW}"  # opens it in a page of runs


def ui(uri: str, experiment_id: str) -> str:
    """Return an experiment's page in MLflow: of its server, of `tunewright up`, or of `mlflow ui` here."""
    up = addresses.running()
    address = uri.rstrip("/") if uri.startswith("http") else up.mlflow if up else "http://127.0.0.1:5000"
    return f"{address}/#/experiments/{experiment_id}"


def starts_with(uri: str) -> str:
    """The command that starts the pages of a database; empty where a server has them already."""
    return "" if uri.startswith("http") or addresses.running() else f"mlflow ui --backend-store-uri {shlex.quote(uri)}"


@contextlib.contextmanager
def connected(registry: Registry) -> Iterator["MlflowClient"]:
    """MLflow's client, quiet and impatient. What MLflow raises inside becomes an error of one line.

    TrackingError where it did not answer, so that trying again can help, ConfigError where it lets nobody in or is not
    MLflow's, TunewrightError for the rest.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    database.quiet()
    uri = tracking_uri(registry)
    require_allowed(uri)
    if uri.startswith(SQLITE):
        database.ensure(Path(uri.removeprefix(SQLITE)))
    if not registry.tracking_uri:
        database.relocate(VIEW_TAG)
    try:
        with _ENVIRONMENT:
            given = os.environ.get(VARIABLE)
            mlflow.set_tracking_uri(uri)  # loading models:/name/version goes by it
            _restore(VARIABLE, given)  # which MLflow sets, for processes that are none of ours
        mlflow.set_registry_uri(uri)
        with _password_for(uri):
            yield _client(uri)
    except (MlflowException, SQLAlchemyError) as error:
        line = str(error).splitlines()[0]
        if database.FULL in line:
            raise TunewrightError(NO_SPACE.format(uri.removeprefix(SQLITE))) from error
        if config.READ_ONLY_DATABASE in line and uri.startswith(SQLITE) and not registry.tracking_uri:
            raise config.refused_database() from error
        if uri.startswith("http") and (said := _said_of_server(error)):
            raise type(said)(f"{as_set(uri)}: {said}") from error
        if "database is locked" in line:
            raise TrackingError(f"{as_set(uri)}: MLflow does not answer: {line[:200]}") from error
        raise TunewrightError(f"{as_set(uri)}: MLflow refused: {line[:500]}") from error


def _client(uri: str) -> "MlflowClient":
    """MLflow's client. Raises ConfigError where the driver of a database is not installed."""
    import mlflow

    try:
        return mlflow.MlflowClient(uri, uri)
    except ImportError as error:
        raise ConfigError(
            f"{as_set(uri)}: its driver {error.name} is not installed; install it, or set the address "
            "of a server, such as http://localhost:5000, or of a database such as sqlite:////srv/mlflow.db"
        ) from error


def _said_of_server(error: Exception) -> TunewrightError | None:
    """Return the error of an MLflow server that is not reached or refuses access, or None if the error is another.

    TrackingError if a retry can help. MLflow's own sentence is longer than a line, most of it an address.
    """
    from mlflow.exceptions import RestException

    text = str(error)
    is_of_mlflow, code = isinstance(error, RestException), re.search(r"error code (\d{3}) != 200", text)
    status = int(code[1]) if code else getattr(error, "get_http_status_code", int)()
    if (code or is_of_mlflow) and status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return ConfigError(
            f"MLflow refuses the credentials ({status}); {LOG_IN}, to those of a user with access to the experiment "
            "and the model"
        )
    if is_of_mlflow or "API request" not in text:  # or what its client checks before it sends anything
        return None
    if (code and status < HTTPStatus.INTERNAL_SERVER_ERROR) or "not in a valid JSON format" in text:
        how = f"with {status}" if code else "without JSON"
        return ConfigError(f"what answers there, {how}, is not MLflow's API; set the address that its pages have")
    refused = re.search(r"\[Errno -?\d+\] ([\w ]+)|(too many \d+ error responses)|(timed out)|(error code \d+)", text)
    why = next(filter(None, refused.groups())) if refused else type(error.__cause__ or error).__name__
    return TrackingError(
        f"MLflow does not answer ({why}); start its server or correct the address; without registry.tracking_uri and "
        f"{VARIABLE}, runs go to the database in the home"
    )


@contextlib.contextmanager
def _password_for(uri: str) -> Iterator[None]:
    """Lets MLflow's client know the password of `tunewright up` for the block, if that is its server, and no other.

    Credentials that the environment has for it are used instead. Threads may be in such a block at the same time: the
    environment is all theirs.
    """
    up = addresses.running()
    if up is None or not up.is_mlflow(uri):
        yield
        return
    with _ENVIRONMENT:
        if not _inside:
            _before.update({name: os.environ.get(name) for name in CREDENTIALS})
            if not is_given_login(up):
                os.environ.update(zip(CREDENTIALS, ("tunewright", addresses.password()), strict=True))
        _inside.append(uri)
    try:
        yield
    finally:
        with _ENVIRONMENT:
            _inside.pop()
            for name, value in _before.items() if not _inside else ():
                _restore(name, value)


def _restore(name: str, value: str | None) -> None:
    os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value


def patient(read: Callable[P, T]) -> Callable[P, T]:
    """Lets a function that reads MLflow try again while MLflow does not answer, as a stage is tried again.

    For reads outside of stages. After PATIENCE_SECONDS without an answer it raises the last TrackingError.
    """

    @functools.wraps(read)
    def until_answered(*args: P.args, **kwargs: P.kwargs) -> T:
        return _until_answered(functools.partial(read, *args, **kwargs), PATIENCE_SECONDS)

    return until_answered


def patient_at_first(registry: Registry, read: Callable[[], T]) -> T:
    """Reads an MLflow that was not asked before, for FIRST_SECONDS at most, and says nothing of single attempts.

    The server of `tunewright up`, which starts it again if it died, is waited for as `patient` does.
    """
    up = addresses.running()
    if up is not None and up.is_mlflow(tracking_uri(registry)):
        return _until_answered(read, PATIENCE_SECONDS)
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    before = os.environ.get(name)
    os.environ[name] = before or "0"  # its own retries would take half a minute where packets are dropped
    try:
        return _until_answered(read, FIRST_SECONDS, level=logging.DEBUG)
    finally:
        _restore(name, before)


def _until_answered(read: Callable[[], T], patience: float, *, level: int = logging.WARNING) -> T:
    began = time.monotonic()
    for seconds in itertools.chain(WAITS, itertools.repeat(WAITS[-1])):
        try:
            return read()
        except TrackingError as error:
            if time.monotonic() - began > patience:
                raise
            log.log(level, "  %s; retrying in %d s", error, seconds)
            time.sleep(seconds)
    raise AssertionError


def experiment(
    client: "MlflowClient", registry: Registry, name: str, columns: Sequence[str], *, is_guess: bool = False
) -> str:
    """The id of the experiment of this name; its view of runs gets these columns, by a guess only where it is new."""
    found = client.get_experiment_by_name(name)
    # The state of MLflow's runs table: undocumented, read by its UI from an experiment tag.
    order = {"orderByKey": "attributes.start_time", "orderByAsc": False}
    view = json.dumps({"selectedColumns": [*columns], "columnOrder": [*columns], **order})
    if found is None:
        location = None if registry.tracking_uri else str(config.mlflow_artifacts())
        return client.create_experiment(name, location, {VIEW_TAG: view})
    if found.lifecycle_stage != "active":
        raise TunewrightError(
            f"registry.name={registry.name}: the experiment {name} was deleted in MLflow; restore it with "
            f"mlflow experiments restore --experiment-id {found.experiment_id}, or take another name"
        )
    if not is_guess and found.tags.get(VIEW_TAG) != view:
        client.set_experiment_tag(found.experiment_id, VIEW_TAG, view)
    return found.experiment_id
