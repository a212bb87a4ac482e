"""The pipeline's run in MLflow while it goes on: what it is opened with, and how it ends."""

import importlib.metadata
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from prefect.exceptions import Pause
from prefect.runtime import deployment, flow_run

from tunewright.config import Settings
from tunewright.registry import live_run
from tunewright.registry.candidate import columns, parameters
from tunewright.registry.live_run import LiveRun
from tunewright.registry.run_writer import FLOW_RUN, HOME, RunEnding, RunFacts, Status
from tunewright.reports.progress import followed
from tunewright.store.cache_key import PIPELINE, hash_of, pipeline_hash
from tunewright.store.caching import making
from tunewright.store.code_hashes import commit
from tunewright.store.stage import cached_part
from tunewright.tasks.train.stage import train

if TYPE_CHECKING:
    from tunewright.flows.calls import Run

PATIENCE: dict[Status, float] = {"FINISHED": 10.0, "FAILED": 5.0, "KILLED": 3.0}  # seconds for MLflow to take an end
OF_WORKER = 30.0  # the same of a failed run that nobody waits for


@contextmanager
def seen_in_mlflow(calls: "Run") -> Iterator[None]:
    """Shows the run in MLflow from the first stage that makes something to its end.

    A run that ends before register is there once it trains.
    """
    is_deployed = bool(deployment.id)
    live = calls.live = LiveRun(opened_by="" if calls.until == "register" else next(iter(calls.trainings), "train"))
    with live_run.used(live), making(live.begins), followed(live):
        try:
            yield
        except BaseException as error:
            status: Status = "FAILED" if isinstance(error, Exception) else "KILLED"
            patience = OF_WORKER if status == "FAILED" and is_deployed else PATIENCE[status]
            line = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, Pause):
                line = "suspended until somebody approves its cost in Prefect"
            elif status == "KILLED":
                line = "stopped by a signal: cancelled, or its worker ended; the next run resumes"
            live.end(
                RunEnding(status=status, when=time.time(), stage=live.stage, error=line[:500], cached=_cached(calls)),
                patience,
            )
            raise
    is_needless = calls.until == "register" and not live.is_registered  # all that decides was there
    live.end(
        RunEnding(status="FINISHED", when=time.time(), is_needless=is_needless, cached=_cached(calls)),
        PATIENCE["FINISHED"],
    )


def _cached(calls: "Run") -> tuple[str, ...]:
    return tuple(step.name for step in calls.steps if step.state == "cached")


def describe(live: LiveRun, settings: Settings, lineage: dict[str, str], base: str) -> None:
    """Tells the live run what it is of, when it asks; the settings are those with which the test rows are drawn."""
    tags = {HOME: live_run.place(), "mlflow.source.name": f"{PIPELINE}.finetune", "mlflow.source.type": "LOCAL"}
    if flow_run.id:
        tags |= {FLOW_RUN: str(flow_run.id), "prefect.flow_run": str(flow_run.name)}
    if deployment.name:
        tags["prefect.deployment"] = str(deployment.name)
    live.describe = partial(_facts, settings, lineage, base, tags, flow_run.name or None)


def _facts(settings: Settings, lineage: dict[str, str], base: str, tags: dict[str, str], name: str | None) -> RunFacts:
    code = pipeline_hash()
    libraries = {library: importlib.metadata.version(library) for library in cached_part(train).libraries}
    shaping = settings.model_copy(update={"operation": type(settings.operation)()})
    return RunFacts(
        key=hash_of([shaping.model_dump(mode="json"), lineage, base, code, libraries]),
        name=name,
        registry=settings.registry,
        params=parameters(settings),
        tags=tags
        | {"tunewright.code": code[:12], "tunewright.version": importlib.metadata.version("tunewright")}
        | ({"mlflow.source.git.commit": commit()} if commit() else {}),
        files=lineage,
        columns=columns(settings.gate.decides_by("exact_match")),
    )
