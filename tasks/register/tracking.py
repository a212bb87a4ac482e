"""The way to MLflow: which server or database, what happens when it does not answer, and the experiment."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tasks import addresses, config
from tasks.config import Registry
from tasks.errors import TrackingError, TunewrightError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULTS = {  # a dead server otherwise blocks for four minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}
VIEW = "tunewright"
AS_TRAINING = "workflowType=machine_learning"  # and not as traces of an agent
IN_VIEW = f"{AS_TRAINING}&viewStateShareKey={VIEW}"  # opens it in a page of runs


def tracking_uri(registry: Registry) -> str:
    """The server's address, or the database in the home folder."""
    return registry.tracking_uri or f"sqlite:///{config.mlflow_database()}"


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

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    uri = tracking_uri(registry)
    try:
        mlflow.set_tracking_uri(uri)  # loading models:/name/version goes by it
        mlflow.set_registry_uri(uri)
        yield mlflow.MlflowClient(uri, uri)
    except MlflowException as error:
        line = str(error).splitlines()[0]
        unanswered = uri.startswith("http") and not isinstance(error, RestException)
        if unanswered or "database is locked" in line:
            raise TrackingError(f"registry.tracking_uri={uri}: MLflow does not answer: {line[:200]}") from error
        raise TunewrightError(f"registry.tracking_uri={uri}: MLflow refused: {line[:500]}") from error


def experiment(client: "MlflowClient", registry: Registry, name: str, columns: Sequence[str]) -> str:
    """The id of the experiment of this name, made with a view of its runs that has these columns."""
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if registry.tracking_uri else str(config.mlflow_artifacts())
        return client.create_experiment(name, location, {f"mlflow.sharedViewState.{VIEW}": _view(columns)})
    if found.lifecycle_stage != "active":
        raise TunewrightError(
            f"registry.name={registry.name}: the experiment {name} was deleted in MLflow; restore it with "
            f"mlflow experiments restore --experiment-id {found.experiment_id}, or take another name"
        )
    return found.experiment_id


def _view(columns: Sequence[str]) -> str:
    """The state of MLflow's runs table: undocumented, read by its UI from an experiment tag."""
    order = {"orderByKey": "attributes.start_time", "orderByAsc": False}
    return json.dumps({"selectedColumns": [*columns], "columnOrder": [*columns], **order})
