"""Prefect's log of a run in fewer words.

A run that a signal stopped is a crash to Prefect, also where a person cancelled it. An error of ours says all that a
user can act on in its line, so that its traceback is left out. That a stage was cached is logged by flows/calls/run.py.
"""

import logging

from tunewright.errors import TunewrightError

IN_PREFECTS_WORDS = "Crash detected! Execution was aborted by a termination signal."
STOPPED = "Stopped by a signal: the run was cancelled, or its worker ended. What it has made is kept."
CACHED = "Finished in state Cached("
LOGGERS = ("prefect.flow_runs", "prefect.task_runs")


def say_stopped() -> None:
    """Have Prefect's log of this process say that a run was stopped, where a signal did so, and errors in one line."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_in_other_words)


def _in_other_words(record: logging.LogRecord) -> bool:
    if record.getMessage() == IN_PREFECTS_WORDS:
        record.msg, record.args = STOPPED, None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
    if record.exc_info and isinstance(record.exc_info[1], TunewrightError):
        record.exc_info, record.exc_text = None, None
    return not record.getMessage().startswith(CACHED)
