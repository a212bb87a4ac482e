"""The way to MLflow: which server or database, what happens when it does not answer, and the experiment."""

import contextlib
import functools
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from tunewright import config
from tunewright.artifacts import Registered
from tunewright.config import Registry, outside
from tunewright.errors import NO_SPACE, TrackingError, TunewrightError
from tunewright.machine import addresses
from tunewright.registry import database, relocation

if TYPE_CHECKING:
    from mlflow import MlflowClient

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger("tunewright")

PATIENCE_SECONDS = 60.0  # for MLflow's answer to a read outside of a stage; `up` starts a dead server again in less
WAITS = (2, 4, 8, 16)  # seconds between the attempts
DEFAULTS = {  # a dead server otherwise blocks for four minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
SQLITE = "sqlite:///"
VIEW = "tunewright"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
AS_TRAINING = "workflowType=machine_learning"  # and not as traces of an agent
IN_VIEW = f"{AS_TRAINING}&viewStateShareKey={VIEW}"  # opens it in a page of runs


def tracking_uri(registry: Registry | Registered) -> str:
    """The server's address, or the database in the home folder, wherever that lies now."""
    return registry.tracking_uri or f"{SQLITE}{config.mlflow_database()}"


def ui(uri: str, experiment_id: str) -> str:
    """Where an experiment stands in MLflow's pages: its server's, those of `tunewright up`, or of `mlflow ui` here."""
    up = addresses.running()
    address = uri.rstrip("/") if uri.startswith("http") else up.mlflow if up else "http://127.0.0.1:5000"
    return f"{address}/#/experiments/{experiment_id}"


def starts_with(uri: str) -> str:
    """The command that starts the pages of a database; empty where a server has them already."""
    return "" if uri.startswith("http") or addresses.running() else f"mlflow ui --backend-store-uri {uri}"


@contextlib.contextmanager
def connected(registry: Registry) -> Iterator["MlflowClient"]:
    """MLflow's client, quiet and impatient. What MLflow raises inside becomes an error of one line.

    TrackingError where it did not answer, so that trying again can help, TunewrightError for the rest.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow.exceptions import MlflowException, RestException
    from sqlalchemy.exc import SQLAlchemyError

    database.quiet()
    uri = tracking_uri(registry)
    if uri.startswith("http"):
        outside.check_host("registry.tracking_uri", uri, "TUNEWRIGHT_TRACKING_HOSTS")
    if uri.startswith(SQLITE):
        database.ensure(Path(uri.removeprefix(SQLITE)))
    if not registry.tracking_uri:
        relocation.relocate(VIEW_TAG)
    try:
        mlflow.set_tracking_uri(uri)  # loading models:/name/version goes by it
        mlflow.set_registry_uri(uri)
        with _password_for(uri):
            yield mlflow.MlflowClient(uri, uri)
    except (MlflowException, SQLAlchemyError) as error:
        line = str(error).splitlines()[0]
        if database.FULL in line:
            raise TunewrightError(NO_SPACE.format(uri.removeprefix(SQLITE))) from error
        if config.READ_ONLY_DATABASE in line and uri.startswith(SQLITE) and not registry.tracking_uri:
            raise config.refused_database() from error
        unanswered = uri.startswith("http") and not isinstance(error, RestException)
        if unanswered or "database is locked" in line:
            raise TrackingError(f"registry.tracking_uri={uri}: MLflow does not answer: {line[:200]}") from error
        raise TunewrightError(f"registry.tracking_uri={uri}: MLflow refused: {line[:500]}") from error


@contextlib.contextmanager
def _password_for(uri: str) -> Iterator[None]:
    """Lets MLflow's client know the password of `tunewright up` for the block, if that is its server, and no other."""
    up = addresses.running()
    if up is None or not up.is_mlflow(uri):
        yield
        return
    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")}
    os.environ.update(zip(before, ("tunewright", addresses.password()), strict=True))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def patient(read: Callable[P, T]) -> Callable[P, T]:
    """Lets a function that reads MLflow try again while MLflow does not answer, as a stage is tried again.

    For reads outside of stages. After PATIENCE_SECONDS without an answer it raises the last TrackingError.
    """

    @functools.wraps(read)
    def until_answered(*args: P.args, **kwargs: P.kwargs) -> T:
        began = time.monotonic()
        for seconds in itertools.chain(WAITS, itertools.repeat(WAITS[-1])):
            try:
                return read(*args, **kwargs)
            except TrackingError as error:
                if time.monotonic() - began > PATIENCE_SECONDS:
                    raise
                log.warning("  %s; retrying in %d s", error, seconds)
                time.sleep(seconds)
        raise AssertionError

    return until_answered


def experiment(client: "MlflowClient", registry: Registry, name: str, columns: Sequence[str]) -> str:
    """The id of the experiment of this name, made with a view of its runs that has these columns."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if registry.tracking_uri else str(config.mlflow_artifacts())
        # The state of MLflow's runs table: undocumented, read by its UI from an experiment tag.
        order = {"orderByKey": "attributes.start_time", "orderByAsc": False}
        view = {"selectedColumns": [*columns], "columnOrder": [*columns], **order}
        return client.create_experiment(name, location, {VIEW_TAG: json.dumps(view)})
    if found.lifecycle_stage != "active":
        raise TunewrightError(
            f"registry.name={registry.name}: the experiment {name} was deleted in MLflow; restore it with "
            f"mlflow experiments restore --experiment-id {found.experiment_id}, or take another name"
        )
    return found.experiment_id
