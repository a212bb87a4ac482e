"""MLflow's database in the home, made whole or not at all.

MLflow makes its tables in the place where others look for them, in some fifty steps: two processes that begin at once
fail on each other's tables, and a kill or a full disk in between leaves a database that no later run can use.

It says where files lie by absolute paths. In a home that was moved, copied or restored to another path they are
rewritten before MLflow is asked anything, so that a run reads and writes the files of this home, neither those of the
home that it was copied from, nor a folder that would be made again where the home was.
"""

import contextlib
import logging
import sqlite3
from functools import partial
from pathlib import Path

from tunewright import compat, config
from tunewright.errors import NO_SPACE, TunewrightError
from tunewright.store import databases, disk
from tunewright.store.caching import lock

log = logging.getLogger("tunewright")

ITS_DATABASE = "mlflow.store.db.utils"
FULL = "disk is full"  # in sqlite's words
ADVICE = "restore it from a backup, or move it away: the next run creates a new one, without the registered models"
UPDATES = (  # of all places of files in MLflow's database
    "UPDATE experiments SET artifact_location = moved(artifact_location)",
    "UPDATE runs SET artifact_uri = moved(artifact_uri)",
    "UPDATE logged_models SET artifact_location = moved(artifact_location)",
    "UPDATE model_versions SET storage_location = moved(storage_location), source = moved(source)",
)
WAIT_SECONDS = 30  # for another process that writes to the database


def ensure(file: Path) -> None:
    """Makes the database unless it is there, under a lock, beside its place, and renamed when it is whole.

    One that was never finished is moved away: it holds nothing. Raises TunewrightError where the file cannot be read as
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


def relocate(view: str) -> None:
    """Makes the database of this home say that its files lie in this home, wherever they lay before.

    The experiments with the tag `view` are the pipeline's own: their location is where the home was. Those of a server
    (mlflow-artifacts:/) depend on no path and stay, as does a location that leads to this home by another name, and as
    all do where the database can only be read.
    """
    if not config.mlflow_database().is_file():
        return
    with contextlib.closing(sqlite3.connect(config.mlflow_database(), timeout=WAIT_SECONDS)) as database:
        for before in _elsewhere(database, view):
            try:
                with database:
                    database.execute("BEGIN IMMEDIATE")  # of two processes the second finds nothing left to do
                    database.create_function("moved", 1, partial(_moved, before, str(config.mlflow_artifacts())))
                    for update in UPDATES:
                        database.execute(update)
            except sqlite3.OperationalError as error:
                if config.READ_ONLY_DATABASE not in str(error):
                    raise
                return  # whoever may write to the home rewrites them; what only reads needs few of the files
            log.info("the home was moved or copied: MLflow's paths now point to %s", config.mlflow_artifacts())


def _elsewhere(database: sqlite3.Connection, view: str) -> list[str]:
    """The locations of the pipeline's experiments that are folders of another home."""
    here = config.mlflow_artifacts()
    try:
        found = database.execute(
            "SELECT DISTINCT artifact_location FROM experiments JOIN experiment_tags USING (experiment_id) "
            "WHERE key = ?",
            (view,),
        ).fetchall()
    except sqlite3.DatabaseError:  # one that MLflow has yet to make, or that is none, which is found by who opens it
        return []
    places = [Path(place) for (place,) in found if Path(place).is_absolute()]
    # The folder can be a home's mlartifacts itself; a server adds the experiment's id to it.
    roots = {root for place in places for root in (place, place.parent) if root.name == here.name}
    return [str(root) for root in sorted(roots) if root != here and not _is_same(root, here)]


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there
        return False


def _moved(before: str, after: str, place: str | None) -> str | None:
    if place is None or not f"{place}/".startswith(f"{before}/"):
        return place
    return f"{after}{place.removeprefix(before)}"
