"""Which MLflow is meant: by the settings, by the environment, or that of the home.

Commands import it before their environment is prepared, so it imports neither Prefect nor MLflow.
"""

import contextlib
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import ValidationError

from tunewright import config
from tunewright.config import Registry, outside
from tunewright.errors import ConfigError
from tunewright.machine import addresses

if TYPE_CHECKING:  # what they import takes time
    import httpx

    from tunewright.artifacts import Registered

SQLITE = "sqlite:///"
VARIABLE = "MLFLOW_TRACKING_URI"
ONE_SERVER = f"set {VARIABLE} to one server for all machines (docs/team-servers.md)"
LOG_IN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
CREDENTIALS_FILE = "~/.mlflow/credentials"  # which MLflow's client reads too
HOSTS = "TUNEWRIGHT_TRACKING_HOSTS"
CERTIFICATES = "MLFLOW_TRACKING_SERVER_CERT_PATH"  # of the authorities that MLflow's client trusts, in a file
NO_TLS_CHECK = "MLFLOW_TRACKING_INSECURE_TLS"
ACCOUNT_SECONDS = 10.0  # for the answer to which account it is


def tracking_uri(registry: "Registry | Registered") -> str:
    """The server's address, or the database in the home folder, wherever that lies now."""
    return registry.tracking_uri or f"{SQLITE}{config.mlflow_database()}"


def only_here(registry: "Registry | Registered") -> str:
    """A warning where machines share a store but MLflow is the home's own database; empty otherwise.

    The MLflow of `tunewright up` is none, as other machines may reach it.
    """
    variable, url = config.store()
    if not url or tracking_uri(registry) != f"{SQLITE}{config.mlflow_database()}" or addresses.is_up():
        return ""
    return (
        f"{variable} names a store that machines share, but MLflow is the database of this home alone: "
        "versions of other machines are not seen here, nor these there, so candidates are not compared with them"
    )


def public_address(registry: Registry) -> str:
    """The server's address or that of the database, without the user and the password in it."""
    return outside.without_credentials(tracking_uri(registry)).rstrip("/")


def as_set(uri: str) -> str:
    """An address with what it was set by, for errors, without the user and the password in it."""
    setting = VARIABLE if uri == os.environ.get(VARIABLE) else "registry.tracking_uri"
    return f"{setting}={outside.without_credentials(uri)}"


def require_allowed(uri: str) -> None:
    """Raises ConfigError where the environment of this worker does not allow an address that settings name.

    That is a file outside the roots, a host that is not listed, and a server that the credentials here are not for:
    settings may be those of whoever can fill in a form, who could have them sent to a server of their own.
    """
    if uri.startswith("sqlite"):
        if uri not in (os.environ.get(VARIABLE), f"{SQLITE}{config.mlflow_database()}"):
            file = uri.partition(":///")[2]
            outside.check_path("registry.tracking_uri", uri if "?" in uri else file)  # a query can name another file
    elif not uri.startswith("databricks"):  # which names no host
        outside.check_host("registry.tracking_uri", uri, HOSTS)
    if uri.startswith("http") and not _has_credentials_for(uri):
        held = [name for name in CREDENTIALS if os.environ.get(name)]
        has_any = held or Path(CREDENTIALS_FILE).expanduser().is_file()
        if has_any and not ((up := addresses.running()) and up.is_mlflow(uri)):
            raise ConfigError(
                f"registry.tracking_uri={outside.without_secrets(uri)}: {', '.join(held) or CREDENTIALS_FILE} would be "
                f"sent there; accepted: the server of {VARIABLE}, or a host that {HOSTS} names; set one of these "
                "two beside the credentials"
            )


def _has_credentials_for(url: str) -> bool:
    """Whether the credentials of the environment are for the server of a URL: it is the environment that names it."""
    return urlsplit(url)[:2] == urlsplit(os.environ.get(VARIABLE, ""))[:2] or outside.is_listed(url, HOSTS)


def is_given_login(up: addresses.Addresses) -> bool:
    """Whether the environment names the MLflow of `tunewright up` and credentials for it."""
    return up.is_mlflow(os.environ.get(VARIABLE, "")) and any(os.environ.get(name) for name in CREDENTIALS)


def asked(url: str, seconds: float) -> "httpx.Response":
    """The answer of an MLflow server, with the TLS settings and credentials that MLflow's client takes.

    Only a server that the environment names is sent them.

    Raises httpx.HTTPError, ConfigError.
    """
    import httpx

    verify: ssl.SSLContext | bool = os.environ.get(NO_TLS_CHECK, "").lower() not in ("true", "1")
    if verify and (file := os.environ.get(CERTIFICATES)):
        try:
            verify = ssl.create_default_context(cafile=file)
        except OSError as error:
            said = f"{CERTIFICATES}={file}: {error.strerror or error}"
            raise ConfigError(f"{said}; accepted: a file of certificates, as PEM") from None
    user, password, token = (os.environ.get(name) if _has_credentials_for(url) else None for name in CREDENTIALS)
    headers = {"Authorization": f"Bearer {token}"} if token and not user else {}
    return httpx.get(
        url, timeout=seconds, verify=verify, auth=(user, password or "") if user else None, headers=headers
    )


def account_at(uri: str) -> str:
    """The account by which an MLflow server with passwords lets this process in; empty where there is none."""
    import httpx

    if not uri.startswith("http"):
        return ""
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):  # no such page: it has no accounts
        return str(asked(f"{uri.rstrip('/')}/api/2.0/mlflow/users/current", ACCOUNT_SECONDS).json()["user"]["username"])
    return ""


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
