"""MLflow's database in the home, made whole or not at all.

MLflow makes its tables in the place where others look for them, in some fifty steps: two processes that begin at once
fail on each other's tables, and a kill or a full disk in between leaves a database that no later run can use.
"""

import logging
import sqlite3
from pathlib import Path

from tunewright import compat, config
from tunewright.errors import NO_SPACE, TunewrightError
from tunewright.store import databases, disk
from tunewright.store.caching import lock

log = logging.getLogger("tunewright")

ITS_DATABASE = "mlflow.store.db.utils"
FULL = "disk is full"  # in sqlite's words
ADVICE = "restore it from a backup, or move it away: the next run creates a new one, without the registered models"


def ensure(file: Path) -> None:
    """Makes the database unless it is there, under a lock, beside its place, and renamed when it is whole.

    One that was never finished is set aside: it holds nothing. Raises TunewrightError where the file cannot be read as
    a database, or the disk is full.
    """
    if _is_finished(file):
        return
    with lock(file):
        if _is_finished(file):  # another process made it meanwhile
            return
        if file.exists():
            aside = file.with_suffix(".unfinished")
            file.replace(aside)
            log.warning(
                "%s is incomplete, since MLflow was interrupted while creating it; it has no experiments and no "
                "models. A new one is created, and the old file is kept as %s",
                file,
                aside,
            )
        _make(file)


def quiet() -> None:
    """Lets MLflow say what is wrong, and no more; of its database it prints tracebacks of what it raises as well."""
    for name, level in (("mlflow", logging.WARNING), ("alembic", logging.WARNING), (ITS_DATABASE, logging.CRITICAL)):
        logging.getLogger(name).setLevel(level)


def _is_finished(file: Path) -> bool:
    try:
        return databases.is_finished(file)
    except sqlite3.OperationalError as error:
        if "locked" in str(error):  # whoever writes to it found it finished
            return True
        raise TunewrightError(f"{file}: {error}; {ADVICE}") from error
    except sqlite3.DatabaseError as error:
        raise TunewrightError(f"{file}: {error}; {ADVICE}") from error


def _make(file: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.exc import SQLAlchemyError

    quiet()
    unfinished = file.with_name(f".{file.name}.unfinished")
    for leftover in file.parent.glob(f"{unfinished.name}*"):  # of a killed process, since the lock is ours
        leftover.unlink()
    try:
        SqlAlchemyStore(f"sqlite:///{unfinished}", str(config.mlflow_artifacts())).engine.dispose()
    except (SQLAlchemyError, OSError) as error:
        if FULL not in str(error) and "No space left" not in str(error):
            raise TunewrightError(f"{file}: MLflow cannot create it: {str(error).splitlines()[0]}") from error
        raise TunewrightError(NO_SPACE.format(file.parent)) from error
    finally:
        compat.forget_engine(f"sqlite:///{unfinished}")
    disk.sync(unfinished)
    unfinished.rename(file)
    disk.sync(file.parent)
