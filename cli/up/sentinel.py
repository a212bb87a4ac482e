"""A process that ends the services where `tunewright up` cannot, since it was killed.

It reads from a pipe whose other end `up` alone holds, and which the kernel closes however `up` dies.
"""

import sys
from contextlib import suppress

from tunewright.cli.up.processes import end

GRACE_SECONDS = 10.0


def main(mark: str) -> None:
    """Waits for the end of the pipe, then ends the worker with its runs, and after it the servers."""
    with suppress(KeyboardInterrupt):
        sys.stdin.read()
    end(mark, ["worker"], GRACE_SECONDS)
    end(mark, ["mlflow", "prefect"], GRACE_SECONDS)


if __name__ == "__main__":
    main(sys.argv[1])
