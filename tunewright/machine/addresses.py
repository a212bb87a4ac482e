"""Addresses of the servers of `tunewright up` while it runs in this home, and the password that they ask for.

It holds a lock for as long as it lives, which the kernel frees however it dies, so that a file that it left behind is
never believed. The password stays from one `up` to the next, so that a browser logs in once.
"""

import contextlib
import os
import re
import secrets
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ValidationError

from tunewright import config
from tunewright.config import outside
from tunewright.errors import TunewrightError
from tunewright.store import locks

FILE = "services.json"
LOCK = "services.lock"
LOOPBACK = "127.0.0.1"
HOSTS = (LOOPBACK, "localhost")  # names under which the servers answer
LOGIN = "/tunewright"  # the page of Prefect's server that logs a browser in
PASSWORD = "password"  # noqa: S105 the name of its file
PASSWORD_BYTES = 24

temporary = ""  # PREFECT_API_URL of the server that this process started for its run alone


class Addresses(BaseModel, frozen=True):
    """Addresses of the servers on loopback."""

    pid: int  # of `tunewright up`
    prefect: str  # without /api
    mlflow: str
    pool: str  # the work pool whose runs the worker starts

    @property
    def api(self) -> str:
        """PREFECT_API_URL."""
        return f"{self.prefect}/api"

    def is_prefect(self, url: str) -> bool:
        """Whether a PREFECT_API_URL names this Prefect server, by its address or as localhost."""
        return _as_started(url) == self.api

    def is_same_server(self, url: str) -> bool:
        """Whether an address is that of this Prefect server, whatever its path."""
        parts = urlsplit(_as_started(url))
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" == self.prefect

    def is_mlflow(self, url: str) -> bool:
        """Whether an address is that of this MLflow server."""
        return _as_started(url) == self.mlflow


def _as_started(url: str) -> str:
    return url.rstrip("/").replace("//localhost:", "//127.0.0.1:")


def advice_on_api(url: str | None) -> str:
    """Return the advice for a PREFECT_API_URL without its http:// or its /api, or of up's MLflow; empty otherwise.

    Where `up` runs in this home, a wrong path of its server is among them.
    """
    if not url:
        return ""
    up = running()
    if up and up.is_mlflow(url.rstrip("/").removesuffix("/api")):
        return f"this is the port of MLflow of tunewright up: unset it, or set PREFECT_API_URL={up.api}"
    if up and up.is_same_server(url) and not up.is_prefect(url):
        return f"this is tunewright up with a wrong path: unset it, or set PREFECT_API_URL={up.api}"
    if "api" in urlsplit(url).path.split("/"):
        return ""
    if urlsplit(url).scheme not in ("http", "https"):
        return "accepted: an address such as http://127.0.0.1:4200/api"
    return f"its /api is missing: set PREFECT_API_URL={outside.without_credentials(url).rstrip('/')}/api"


def running() -> Addresses | None:
    """The addresses, or None where it is not up in this home, or not ready yet."""
    with contextlib.suppress(OSError, ValidationError):  # no home, or none that can be read
        if locks.is_held(config.home() / LOCK):
            return Addresses.model_validate_json((config.home() / FILE).read_bytes())
    return None


def is_up() -> bool:
    """Whether `up` runs in this home, ready or not."""
    with contextlib.suppress(OSError):
        return locks.is_held(config.home() / LOCK)
    return False


def still_starting() -> str:
    """Return what to do where `up` runs in this home and its servers do not answer yet; empty otherwise."""
    if running() or not is_up():
        return ""
    return f"tunewright up is still starting in {config.home()}: wait until it has printed its addresses"


def password_file() -> Path:
    """The file of the password, which its owner alone can read."""
    return config.home() / PASSWORD


def password() -> str:
    """The password of the servers, or "" where no `up` has run in this home."""
    with contextlib.suppress(OSError):
        return password_file().read_text(encoding="utf-8")
    return ""


def auth_string() -> str:
    """PREFECT_API_AUTH_STRING for the Prefect server of `up`: that of the environment, else the password."""
    return os.environ.get("PREFECT_API_AUTH_STRING") or password()


def how_to_log_in() -> str:
    """Advice for a PREFECT_API_AUTH_STRING that a Prefect server refuses."""
    advice = "set PREFECT_API_AUTH_STRING to what the server has as PREFECT_SERVER_API_AUTH_STRING"
    return f"{advice}; for tunewright up, unset it" if password() else advice


def keep_password(given: str = "") -> str:
    """Keeps the password that is given, or the one that is there, or a new random one, and returns it."""
    kept = given or password() or secrets.token_urlsafe(PASSWORD_BYTES)
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with os.fdopen(os.open(password_file(), flags, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(kept)
    return kept


def for_prefect(url: str | None) -> str:
    """The variables with which a command of Prefect's own reaches a server and counts no use, as a shell takes them."""
    up, named = running(), f"PREFECT_API_URL={shlex.quote(url or '')} DO_NOT_TRACK=1"
    if up is None or not up.is_prefect(url or ""):
        return named
    return f'{named} PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(password_file()))})"'


def lasting(url: str | None) -> str:
    """This PREFECT_API_URL; empty where none is set, and of a temporary server, which ends with the run."""
    return "" if url in (None, temporary) else url


def prefect_run(run_id: str) -> str:
    """Return the page of a flow run in Prefect; empty where its server ends with the run."""
    up = running()
    server = up.prefect if up else lasting(os.environ.get("PREFECT_API_URL")).rstrip("/").removesuffix("/api")
    server = re.sub(r"(?<=://)[^/]*@", "", server)  # the link is kept, and what is before @ may be a password
    return f"{server}/v2/runs/flow-run/{run_id}" if server else ""


@contextlib.contextmanager
def held() -> Iterator[Path]:
    """Holds the lock of this home for the block, which writes its addresses to the file that is given.

    Raises TunewrightError where another holds it.
    """
    config.make_home()
    file = config.home() / FILE
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive(config.home() / LOCK, wait=0))
        except BlockingIOError:
            found = running()
            where = f": Prefect {found.prefect}, MLflow {found.mlflow}, process {found.pid}" if found else ""
            raise TunewrightError(f"tunewright is up in {config.home()} already{where}") from None
        file.unlink(missing_ok=True)
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)
