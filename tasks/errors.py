"""What can go wrong, by what a caller does about it.

TunewrightError
├── AnotherChampion    the alias moved while a candidate was measured: it is compared with that one, once
├── ConfigError        the settings are wrong: exit code 2, never retried
├── DataError          the data were refused: exit code 3, never retried
├── JudgeError         the judge does not answer: retried after a while
├── Pruned             a comparison ended the training of a variant that is behind: an outcome, never retried
├── TrackingError      MLflow does not answer: retried after a while
└── TrainingError      training did not reach its planned end: exit code 4
    └── TrainerDied    the trainer process was killed or crashed: retried, and the retry resumes
"""

import errno
import sqlite3
from collections.abc import Sequence
from typing import Any


class TunewrightError(Exception):
    """An error that a user can act on; its message is one line with the value, where it stands and what is accepted."""

    exit_code = 1


NO_SPACE = "no space left on the disk of {}: free some, or set TUNEWRIGHT_HOME to another disk"


class ConfigError(TunewrightError):
    """The settings contradict each other or name something that is not there."""

    exit_code = 2


class AnotherChampion(TunewrightError):
    """Another version got the alias than the one that a candidate was compared with."""


class DataError(TunewrightError):
    """The data cannot be used as they are. `see` names the stage's files that show why; they are kept (stopped.py)."""

    exit_code = 3

    def __init__(self, message: str, *, see: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.see = tuple(see)


class TrackingError(TunewrightError):
    """MLflow does not answer, or its database is locked."""


class JudgeError(TunewrightError):
    """The model that judges answers cannot be reached, or is too busy."""


class Pruned(TunewrightError):
    """A comparison has seen enough of a variant (tasks/comparison): other ones were better at the same point."""


class TrainingError(TunewrightError):
    """Training ended before its planned end."""

    exit_code = 4


class TrainerDied(TrainingError):
    """The trainer process was killed or crashed; the next attempt goes on from its last valid checkpoint."""


def is_transient(error: BaseException | None) -> bool:
    """Whether trying again can help: lost connections, timeouts, locked databases and a trainer that was killed.

    Bad data, bad settings, a full disk and programming errors are the same the second time.
    """
    if isinstance(error, TunewrightError):
        return isinstance(error, TrainerDied | TrackingError | JudgeError)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, sqlite3.OperationalError):
        return "locked" in str(error)
    if isinstance(error, OSError):
        return error.errno in {errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT}
    status = getattr(error, "get_http_status_code", None)  # mlflow.exceptions.MlflowException
    return callable(status) and status() in {408, 429, 502, 503, 504}


def retry_transient(task: Any, task_run: Any, state: Any) -> bool:
    """The retry rule of every stage, as Prefect's retry_condition_fn."""
    try:
        state.result()
    except BaseException as error:  # the verdict on any failure, whatever its type, is is_transient's
        return is_transient(error)
    return False
