"""Prefect's log of a run that a signal stopped: to Prefect that is a crash, also where a person cancelled the run."""

import logging

IN_PREFECTS_WORDS = "Crash detected! Execution was aborted by a termination signal."
STOPPED = "Stopped by a signal: the run was cancelled, or its worker ended. What it has made is kept."
LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


def say_stopped() -> None:
    """Have Prefect's log of this process say that a run was stopped, where a signal did so."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_in_other_words)


def _in_other_words(record: logging.LogRecord) -> bool:
    if record.getMessage() == IN_PREFECTS_WORDS:
        record.msg, record.args = STOPPED, None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    return True
