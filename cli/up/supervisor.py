"""Starts the services, sees that they answer, starts them again where they die, and ends them in their order."""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tunewright.cli import interrupts
from tunewright.cli.up.processes import RUN, alive, end, marked, start
from tunewright.cli.up.service import Service, log_file, logs
from tunewright.errors import TunewrightError
from tunewright.machine.start_limit import StartLimit

log = logging.getLogger("tunewright")

READY_SECONDS = 180.0  # without any processor time; on a busy machine MLflow takes a minute
GRACE_SECONDS = 15.0  # of a flow run, which gives its trainer six to save a checkpoint
LOOK_SECONDS = 0.5
RESTARTS = 5  # within the time below; after that it is no accident
RESTARTS_WITHIN = 300.0
SHOWN_LINES = 5


class Supervisor:
    """Services that live as long as this object's block."""

    def __init__(
        self,
        services: Sequence[Service],
        mark: str,
        cut_short: Callable[[datetime], object] = repr,
        stopped: Callable[[], object] = bool,
    ) -> None:
        self.services = services
        self.mark = mark
        self.cut_short = cut_short  # marks the runs of a worker that ended, given when that was seen
        self.stopped = stopped  # marks the runs that the worker had taken up and not begun when all was ended
        self.has_cut_runs = False  # whether runs were active when all was ended
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.died: dict[str, list[float]] = {service.name: [] for service in services}

    def __enter__(self) -> "Supervisor":
        logs().mkdir(parents=True, exist_ok=True)
        self.sentinel = _sentinel(self.mark)
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the worker with its runs, then the servers that these need until the end."""
        *servers, worker = self.services
        self.has_cut_runs = bool(alive(self.mark, [worker.name], has=RUN))
        end(self.mark, [worker.name], GRACE_SECONDS)
        if all(server.name in self.processes and server.is_ready() for server in servers):
            self.stopped()
        end(self.mark, [server.name for server in servers], GRACE_SECONDS)
        assert self.sentinel.stdin
        self.sentinel.stdin.close()
        self.sentinel.wait()

    def begin(self, ready: Callable[[Service, float], None]) -> None:
        """Starts the servers side by side and then the worker, and tells of each when it is ready.

        Raises TunewrightError where one ends or does not answer.
        """
        *servers, worker = self.services
        began = time.monotonic()
        for some in (servers, [worker]):
            for service in some:
                interrupts.raise_if_came()
                self.processes[service.name] = start(service, self.mark)
            for service in some:
                self._wait(service)
                ready(service, time.monotonic() - began)

    def watch(self) -> None:
        """Looks after the services for ever. Raises TunewrightError where one dies again and again."""
        while True:
            time.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Starts again what has died since the last look."""
        interrupts.raise_if_came()  # which a library may have swallowed
        if self.sentinel.poll() is not None:
            self.sentinel = _sentinel(self.mark)
        for service in self.services:
            if self.processes[service.name].poll() is not None:
                self._restart(service)

    def _restart(self, service: Service) -> None:
        code = self.processes[service.name].returncode
        now = time.monotonic()
        self.died[service.name] = [at for at in self.died[service.name] if at > now - RESTARTS_WITHIN] + [now]
        if len(self.died[service.name]) > RESTARTS:
            raise TunewrightError(f"{service.name} exited {RESTARTS + 1} times in five minutes; {_said(service.name)}")
        cut = (
            "; its runs were interrupted: a new run resumes from the last checkpoint, a new poll reads the files again"
            if alive(self.mark, [service.name], has=RUN)
            else ""
        )
        log.warning("%s exited with code %d and is restarted%s", service.name, code, cut)
        seen = datetime.now(UTC)
        end(self.mark, [service.name], GRACE_SECONDS)
        if service is self.services[-1]:
            self.cut_short(seen)
        self.processes[service.name] = start(service, self.mark)
        self._wait(service)
        log.info("%s answers again", service.name)

    def _wait(self, service: Service) -> None:
        limit = StartLimit(READY_SECONDS)
        while not service.is_ready():
            interrupts.raise_if_came()
            code = self.processes[service.name].poll()
            if code is not None:
                raise TunewrightError(
                    f"{service.name} exited with code {code} before it was ready; {_said(service.name)}"
                )
            limit.renew(self.processes[service.name].pid)
            if limit.is_over:
                raise TunewrightError(
                    f"{service.name} did not answer within {limit.waited:.0f} s: check what keeps the machine busy, "
                    f"then run tunewright up again; {_said(service.name)}"
                )
            time.sleep(LOOK_SECONDS)


def _sentinel(mark: str) -> "subprocess.Popen[bytes]":
    """The process that ends all where this one is killed: closing its stdin is what it waits for."""
    with log_file("sentinel").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "tunewright.cli.up.sentinel", mark],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=marked({}, mark, "sentinel"),
            start_new_session=True,
        )


def _said(name: str) -> str:
    """The last lines of a service's log, and where the others are."""
    file: Path = log_file(name)
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"last lines of {file}: {' | '.join(lines[-SHOWN_LINES:])}" if lines else f"{file} is empty"
