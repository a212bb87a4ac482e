"""Which MLflow is meant: by the settings, by the environment, or that of the home.

Commands import it before their environment is prepared, so it imports neither Prefect nor MLflow.
"""

import os
from typing import TYPE_CHECKING

from pydantic import ValidationError

from tunewright import config
from tunewright.config import Registry
from tunewright.errors import ConfigError
from tunewright.machine import addresses

if TYPE_CHECKING:  # what it imports takes seconds
    from tunewright.artifacts import Registered

SQLITE = "sqlite:///"
VARIABLE = "MLFLOW_TRACKING_URI"


def tracking_uri(registry: "Registry | Registered") -> str:
    """The server's address, or the database in the home folder, wherever that lies now."""
    return registry.tracking_uri or f"{SQLITE}{config.mlflow_database()}"


def by_environment(registry: Registry) -> Registry:
    """The registry at MLFLOW_TRACKING_URI, where `registry` names no address and the variable another MLflow.

    The home's own database is none, by its path or by the address of `tunewright up`.
    Raises ConfigError where the variable is no address that is read here.
    """
    uri, up = os.environ.get(VARIABLE), addresses.running()
    if registry.tracking_uri is not None or not uri or uri == tracking_uri(registry) or (up and up.is_mlflow(uri)):
        return registry
    try:
        Registry(tracking_uri=uri)
    except ValidationError as error:
        said = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{VARIABLE}: {said}; registry.tracking_uri in the deployment file overrides it") from None
    return registry.model_copy(update={"tracking_uri": uri})
