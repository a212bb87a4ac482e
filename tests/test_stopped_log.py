"""The log of a cancelled run says that it was stopped, and no crash."""

import asyncio
import logging
import signal

import pytest
from prefect.exceptions import TerminationSignal
from prefect.logging import get_logger
from prefect.states import exception_to_crashed_state

from flows.stopped_log import LOGGERS, STOPPED, say_stopped


class Kept(logging.Handler):
    """What was logged."""

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
