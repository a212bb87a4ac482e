"""The processes beneath `tunewright up`, known by a mark in their environment.

A process that a worker starts is in a session of its own, and no child of ours any more once the worker is killed. What
it was started with stays, so all that comes from a service is found by it, and nothing else.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

import psutil

from tunewright.cli.up.service import Service, log_file

LOOK_SECONDS = 0.1
ORPHAN_SECONDS = 60.0
RUN = "PREFECT__FLOW_RUN_ID"  # in the environment of a run that a worker started
MARK = "TUNEWRIGHT_UP"  # "<pid of up>-<when it began>:<service>"


def start(service: Service, mark: str) -> subprocess.Popen[bytes]:
    """Starts a service, with what it prints at the end of its log.

    Its output is a file, and no pipe: who reads a pipe that a grandchild holds never sees its end.
    """
    with log_file(service.name).open("ab") as output:
        return subprocess.Popen(
            service.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=marked(service.environment, mark, service.name),
            start_new_session=True,  # Ctrl-C is for `up`, which ends them in their order
        )


def marked(environment: Mapping[str, str], mark: str, service: str) -> dict[str, str]:
    """Our environment and that of a service, with the mark."""
    return {**os.environ, **environment, MARK: f"{mark}:{service}"}


def alive(mark: str, services: Iterable[str], *, has: str = MARK) -> list[psutil.Process]:
    """All processes that come from these services and live; with `has`, those with this in their environment as well.

    With RUN these are the flow runs and what they started.
    """
    wanted = {f"{mark}:{service}" for service in services}
    return [process for process, environment in _marked() if environment[MARK] in wanted and has in environment]


def orphaned() -> bool:
    """Whether a process lives that came from an `up` of ours which does not."""
    starters = (environment[MARK].partition("-")[0] for _, environment in _marked())
    return any(pid.isdecimal() and not psutil.pid_exists(int(pid)) for pid in starters)


def _marked() -> Iterator[tuple[psutil.Process, Mapping[str, str]]]:
    """All living processes with the mark, and their environments; one that cannot be read is none of ours."""
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            environment = process.environ()
            if MARK in environment and process.status() != psutil.STATUS_ZOMBIE:
                yield process, environment


def wait_for_orphans() -> None:
    """Waits for them to end, as long as a sentinel may take."""
    _wait(orphaned, ORPHAN_SECONDS)


def end(mark: str, services: Iterable[str], grace: float) -> int:
    """Ends all processes that come from these services, and returns how many had to be killed.

    Each is asked first, and has `grace` seconds. Runs are asked before the worker, which would kill them: a run ends
    its trainer, which saves a checkpoint, and tells the server what became of it. Meanwhile the worker is held, so that
    it begins no other run.
    """
    services = tuple(services)
    runs, every = partial(alive, mark, services, has=RUN), partial(alive, mark, services)
    if ending := runs():
        for process in set(every()) - set(ending):
            with contextlib.suppress(psutil.Error):
                process.suspend()
    for some in (runs, every):
        for process in some():
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGTERM)
                process.resume()  # to what has come
        _wait(some, grace)
    left = alive(mark, services)  # those as well that were started while we waited
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    _wait(partial(alive, mark, services), grace)
    return len(left)


def _wait(living: Callable[[], object], seconds: float) -> None:
    """Until none lives. One that nobody has waited for yet has ended, though its number is still taken."""
    until = time.monotonic() + seconds
    while living() and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
