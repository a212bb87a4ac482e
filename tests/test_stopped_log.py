"""The log of a cancelled run says that it was stopped, and no crash."""

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Harness
from prefect import flow, task
from prefect.exceptions import TerminationSignal
from prefect.logging import get_logger
from prefect.states import Completed, exception_to_crashed_state

from tunewright.errors import DataError
from tunewright.flows.run_name import LOGGERS, STOPPED, say_stopped


@pytest.fixture(scope="module", autouse=True)
def server(prefect_harness: Harness) -> Iterator[None]:
    with prefect_harness():
        yield


class Kept(logging.Handler):
    """Handler that keeps the logged records."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_signal_is_no_crash_in_prefects_log(name: str) -> None:
    handler, logger = Kept(), get_logger(name)
    logger.addHandler(handler)
    try:
        say_stopped()
        say_stopped()
        crashed = asyncio.run(exception_to_crashed_state(TerminationSignal(signal.SIGTERM)))
        for said in (crashed.message, "another fault"):
            logger.error("Crash detected! %s", said)
    finally:
        logger.removeHandler(handler)
    assert [record.getMessage() for record in handler.records] == [STOPPED, "Crash detected! another fault"]
    assert [record.levelname for record in handler.records] == ["WARNING", "ERROR"]


def test_an_error_of_ours_is_one_line_and_another_keeps_its_traceback() -> None:
    @task
    def refuse(error: Exception) -> None:
        raise error

    @flow
    def refusing(error: Exception) -> None:
        say_stopped()
        refuse(error)

    handler = Kept()
    for name in LOGGERS:
        get_logger(name).addHandler(handler)
    try:
        for error in (DataError("x.jsonl line 1: not JSON"), KeyError("x")):
            refusing(error, return_state=True)
    finally:
        for name in LOGGERS:
            get_logger(name).removeHandler(handler)
    ours = [record for record in handler.records if "not JSON" in record.getMessage()]
    assert len(ours) >= 2
    assert not any(record.exc_info or record.exc_text for record in ours)
    assert [record for record in handler.records if record.exc_info and isinstance(record.exc_info[1], KeyError)]


OUTLIVING = """
import sys, time
from pathlib import Path
from rich.console import Console
from tunewright.flows.run_name import outlive_worker
outlive_worker()
print("begun", flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.05)
for _ in range(3):
    Console().print("a line of the run")
    Console(stderr=True).print("a line of the run")
    print("a line of the run", flush=True)
Path(sys.argv[2]).touch()
"""


def test_a_run_goes_on_when_nobody_reads_its_output_any_more(tmp_path: Path) -> None:
    killed, ended = tmp_path / "killed", tmp_path / "ended"
    command = [sys.executable, "-c", OUTLIVING, str(killed), str(ended)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as run:
        assert run.stdout and run.stdout.readline() == b"begun\n"
        run.stdout.close()  # as the kernel closes that of a worker which is killed
        killed.touch()
        assert run.wait(timeout=30) == 0
    assert ended.exists()


def test_a_cached_stage_is_logged_once() -> None:
    @task
    def found() -> Any:
        return Completed(name="Cached", message="of another run")

    @flow
    def finding() -> None:
        say_stopped()
        found()

    handler = Kept()
    get_logger("prefect.task_runs").addHandler(handler)
    try:
        finding()
    finally:
        get_logger("prefect.task_runs").removeHandler(handler)
    assert "Cached" not in " ".join(record.getMessage() for record in handler.records)
