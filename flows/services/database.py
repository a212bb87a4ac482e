"""MLflow's database, made before its server starts, as a run makes it: whole or not at all."""

import sqlite3
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context

from tasks import config, databases


def make() -> None:
    """Makes it unless it is there. Raises TunewrightError where it cannot be.

    In a process of its own, since MLflow takes 200 MB of memory, and `up` lives for long.
    """
    with suppress(sqlite3.Error):  # of which the process says what to do
        if databases.is_finished(config.mlflow_database()):
            return
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        process.submit(_ensure).result()


def _ensure() -> None:
    from tasks.register import database

    config.quiet_libraries()
    database.ensure(config.mlflow_database())
