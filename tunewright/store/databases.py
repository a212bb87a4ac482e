"""Whether a sqlite database of the home is whole, read without the library that made it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

BUSY_SECONDS = 5.0  # to wait for another process that writes
KEPT = ("experiments", "runs", "registered_models")  # tables with what users made; a whole database has an experiment


def fault(file: Path) -> str:
    """Return the fault that sqlite finds in a database, or ""."""
    try:
        with opened(file) as connection:
            (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        found = str(error)
    return "" if found == "ok" else found


def is_finished(file: Path) -> bool:
    """Whether MLflow made this database to its end, which is the default experiment, or it holds what users made.

    Where not, nothing is lost with it. Raises sqlite3.DatabaseError where the file is no database.
    """
    if not file.exists():
        return False
    with opened(file) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return any(
            connection.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone()[0]  # noqa: S608 a name from above
            for table in tables.intersection(KEPT)
        )


@contextmanager
def opened(file: Path) -> Iterator[sqlite3.Connection]:
    """A database that is there. A transaction that a killed process left behind is undone, as by any reader."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS)) as connection:
        yield connection
