"""Exceptions, by the caller's response to them.

TunewrightError
├── AnotherChampion    the alias moved while a candidate was evaluated: it is compared with the new one, once
├── ConfigError        the settings are wrong: exit code 2, never retried
├── ApiError           a model behind an API does not answer: retried after a while
├── ApiRefused         it refuses what it is asked, and nothing depends on it: never retried
├── DataError          the data were refused: exit code 3, never retried
├── Pruned             a comparison ended the training of a worse variant: an outcome, never retried
├── StageFailed        a stage raised an unknown error, also when it was retried
├── StoreError         the store that machines share does not answer: retried after a while
│   └── StoreRefused   it has no such bucket, or gives this user no rights: exit code 2, never retried
├── TrackingError      MLflow does not answer: retried after a while
└── TrainingError      training did not reach its planned end: exit code 4
    ├── TrainerDied    the trainer process was killed, crashed or hung: retried, and the retry resumes
    └── TrainerFailed  the trainer raised an unknown error: retried once, and the retry resumes

Any other error is retried once, unless it reports a lack of disk space, permissions or memory.
"""

import errno
import importlib
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

log = logging.getLogger("tunewright")

RETRIES = 3  # of a stage
RETRY_SECONDS: list[float] = [2, 8, 30]  # before each
LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOMEM, errno.ENOLCK}
ONLY_READ = {errno.EROFS, errno.EACCES}  # of a home that this user cannot write to

KEPT = "\t\n"
STEERING = {  # what would steer a terminal or turn the writing; of C0 the pictures that Unicode has for them
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in KEPT},
    0x7F: "\N{SYMBOL FOR DELETE}",
    **dict.fromkeys(range(0x80, 0xA0), "\ufffd"),
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),  # halves of surrogate pairs, which no encoding has
    **dict.fromkeys((0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)), "\ufffd"),
}


def visible(text: str) -> str:
    """The text with a visible character for each control character and each mark of writing direction."""
    return text.translate(STEERING)


class TunewrightError(Exception):
    """An error that a user can act on; its message is one line with the value, where it stands and what is accepted."""

    exit_code = 1

    def __str__(self) -> str:
        """The message, in which what came from files and names makes no second line, steers no terminal and is text."""
        return visible(" ".join(super().__str__().splitlines()).encode("utf-8", "backslashreplace").decode())


NO_SPACE = "no space left on the disk of {}: free some, or set TUNEWRIGHT_HOME to another disk"
READ_ONLY = "{} cannot be written, its disk is read-only: set TUNEWRIGHT_HOME to another disk"
NO_LOCKS = "{} is on a disk without file locks, which keep two runs apart: set TUNEWRIGHT_HOME to a local disk"


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


class StageFailed(TunewrightError):
    """A stage raised an error of a library, or of the team's code; its traceback is in the log of the stage's task."""


class StoreError(TunewrightError):
    """The store that machines share cannot be reached, or refuses."""


class StoreRefused(StoreError):
    """The store has no such bucket, or does not let this user read or write."""

    exit_code = 2


class TrackingError(TunewrightError):
    """MLflow does not answer, or its database is locked."""


class ApiError(TunewrightError):
    """A model behind an API cannot be reached, or is too busy."""


class ApiRefused(TunewrightError):
    """A model behind an API, whose answers decide nothing, refuses what it is asked."""


class Pruned(TunewrightError):
    """A comparison has seen enough of a variant (tunewright/comparison): other ones were better at the same point."""


class TrainingError(TunewrightError):
    """Training ended before its planned end."""

    exit_code = 4


class TrainerDied(TrainingError):
    """The trainer process was killed, crashed or hung; the next attempt goes on from its last valid checkpoint."""


class TrainerFailed(TrainingError):
    """The trainer raised an error that is neither the settings' nor the data's, such as one of a device."""


def is_transient(error: BaseException | None) -> bool:
    """Whether trying again can help: lost connections, timeouts, locked databases and a trainer that was killed.

    Bad data, bad settings, a full disk and programming errors are the same the second time.
    """
    if isinstance(error, TunewrightError):
        faults = TrainerDied | TrackingError | StoreError | ApiError
        return isinstance(error, faults) and not isinstance(error, StoreRefused)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, sqlite3.OperationalError):
        return "locked" in str(error)
    if isinstance(error, OSError):
        return error.errno in {errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT}
    status = getattr(error, "get_http_status_code", None)  # mlflow.exceptions.MlflowException
    return callable(status) and status() in {408, 429, 502, 503, 504}


def is_unknown(error: BaseException | None) -> bool:
    """Whether nobody knows if the error comes again: no error of ours, and no want of room, rights or memory."""
    if isinstance(error, TrainerFailed):
        return True
    if isinstance(error, OSError) and error.errno in LASTING:
        return False
    return isinstance(error, Exception) and not isinstance(error, TunewrightError | MemoryError)


def is_retried(task: Any, task_run: Any, state: Any) -> bool:
    """The retry rule of every stage, as Prefect's retry_condition_fn; it logs what failed.

    A transient error is tried again RETRIES times, one that nobody knows once.
    """
    try:
        state.result()
    except BaseException as error:  # the verdict on any failure, whatever its type
        is_first = task_run.run_count <= 1
        if not (is_transient(error) or (is_first and is_unknown(error))):
            return False
        said = " ".join(str(error).split())[:500] if isinstance(error, TunewrightError) else one_line(error)
        log.warning("  %s failed: %s; retrying%s", task.name, said, "" if is_transient(error) else " once")
        return True
    return False


def imported(module: str, accepted: str) -> ModuleType:
    """The module. Raises ValueError with what to say after the setting; `accepted` is how it names something."""
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # what a module of the team's does when it is imported is its own
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if not missing or not f"{module}.".startswith(f"{missing}."):
            raise ValueError(f" cannot be imported: {one_line(error)}") from error
        place = "beside the deployment file or in a folder on PYTHONPATH"
        raise ValueError(f": there is no module {missing}; accepted: {accepted} {place}") from error


@contextmanager
def extra(name: str, option: str) -> Iterator[None]:
    """Raises ConfigError where what is imported in the block needs an extra of the project that is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(f"{option}: {error.name} is not installed; pip install 'tunewright[{name}]'") from error


def one_line(error: BaseException) -> str:
    """An error's type and message on one line of at most 200 characters."""
    return shortened(f"{type(error).__name__}: {str(error) or 'no message'}")


def shortened(text: str) -> str:
    """The text on one line of at most 200 characters, with other control characters as \\x1b."""
    said = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(text.split()))
    return said if len(said) <= 200 else f"{said[:199]}…"
