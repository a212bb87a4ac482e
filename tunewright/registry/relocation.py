"""A home that was moved, copied or restored to another path: MLflow's database says where files lie by absolute paths.

They are rewritten before MLflow is asked anything, so that a run reads and writes the files of this home, neither those
of the home that it was copied from, nor a folder that would be made again where the home was.
"""

import contextlib
import logging
import sqlite3
from functools import partial
from pathlib import Path

from tunewright import config

log = logging.getLogger("tunewright")

UPDATES = (  # of all places of files in MLflow's database
    "UPDATE experiments SET artifact_location = moved(artifact_location)",
    "UPDATE runs SET artifact_uri = moved(artifact_uri)",
    "UPDATE logged_models SET artifact_location = moved(artifact_location)",
    "UPDATE model_versions SET storage_location = moved(storage_location), source = moved(source)",
)
WAIT_SECONDS = 30  # for another process that writes to the database


def relocate(view: str) -> None:
    """Makes the database of this home say that its files lie in this home, wherever they lay before.

    The experiments with the tag `view` are the pipeline's own: their location is where the home was. Those of a server
    (mlflow-artifacts:/) depend on no path and stay, as does a location that leads to this home by another name.
    """
    if not config.mlflow_database().is_file():
        return
    with contextlib.closing(sqlite3.connect(config.mlflow_database(), timeout=WAIT_SECONDS)) as database:
        for before in _elsewhere(database, view):
            with database:
                database.execute("BEGIN IMMEDIATE")  # of two processes the second finds nothing left to do
                database.create_function("moved", 1, partial(_moved, before, str(config.mlflow_artifacts())))
                for update in UPDATES:
                    database.execute(update)
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
