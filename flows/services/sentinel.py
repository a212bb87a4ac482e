"""A process that ends the services where `tunewright up` cannot, since it was killed.

It reads from a pipe whose other end `up` alone holds, and which the kernel closes however `up` dies.
"""

import subprocess
import sys
from contextlib import suppress

from flows.services.processes import end, marked

GRACE_SECONDS = 10.0


def start(mark: str) -> subprocess.Popen[bytes]:
    """Starts it, at the end of a pipe; closing its stdin ends it and all that it looks after."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, mark],
        stdin=subprocess.PIPE,
        env=marked({}, mark, "sentinel"),
        start_new_session=True,
    )


def main(mark: str) -> None:
    """Waits for the end of the pipe, then ends the worker with its runs, and after it the servers."""
    with suppress(KeyboardInterrupt):
        sys.stdin.read()
    end(mark, ["worker"], GRACE_SECONDS)
    end(mark, ["mlflow", "prefect"], GRACE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1])
