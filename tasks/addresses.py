"""Where the servers of `tunewright up` answer, as long as it runs in this home.

It holds a lock for as long as it lives, which the kernel frees however it dies, so that a file that it left behind is
never believed.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks import config
from tasks.errors import TunewrightError

FILE = "services.json"
LOCK = "services.lock"


class Addresses(BaseModel):
    """What answers where, on loopback."""

    model_config = ConfigDict(frozen=True)

    pid: int  # of `tunewright up`
    prefect: str  # without /api
    mlflow: str
    pool: str  # the work pool whose runs the worker starts

    @property
    def api(self) -> str:
        """PREFECT_API_URL."""
        return f"{self.prefect}/api"


def running() -> Addresses | None:
    """The addresses, or None where it is not up in this home, or not ready yet."""
    try:
        with (config.home() / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(FileNotFoundError, ValidationError):
            return Addresses.model_validate_json((config.home() / FILE).read_bytes())
    except OSError:  # no home, or none that can be
        pass
    return None


def prefect_run(run_id: str) -> str:
    """Where a flow run stands in Prefect's pages; empty where its server is one that ends with it."""
    up = running()
    server = up.prefect if up else os.environ.get("PREFECT_API_URL", "").rstrip("/").removesuffix("/api")
    return f"{server}/v2/runs/flow-run/{run_id}" if server else ""


@contextlib.contextmanager
def held() -> Iterator[Path]:
    """Holds the lock of this home for the block, which writes its addresses to the file that is given.

    Raises TunewrightError where another holds it.
    """
    config.make_home()
    file = config.home() / FILE
    with (config.home() / LOCK).open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = running()
            where = f": Prefect {found.prefect}, MLflow {found.mlflow}, process {found.pid}" if found else ""
            raise TunewrightError(f"tunewright is up in {config.home()} already{where}") from None
        file.unlink(missing_ok=True)
        try:
            yield file
        finally:
            file.unlink(missing_ok=True)
