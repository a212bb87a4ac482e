"""The MLflow run of a pipeline run: opened or found again, given what it lacks, and ended.

Each request can be repeated. MLflow says which points the run has, and every point carries the time at which it was
measured, so that MLflow itself drops one that arrives twice.
"""

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from tunewright.artifacts.training_log import GrowingLog
from tunewright.compat import reopen_run
from tunewright.config import Registry
from tunewright.registry.alias_state import NOTE
from tunewright.registry.candidate import CURVE_NAMES, PROGRESS, CurveThinning, Point, curves, points_of
from tunewright.registry.tracking import experiment
from tunewright.store.cache_key import hash_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

BATCH = 1000  # metrics in a request, as MLflow takes them
LONGEST_SOURCE = 60_000  # of 65,535 characters that MLflow stores
KEY = "tunewright.run"  # tag: equal for runs of the same settings, data and code
HOME = "tunewright.home"  # tag: the machine and the home
FLOW_RUN = "prefect.flow_run_id"  # tag
FINGERPRINT = "fingerprint"  # tag: the decision that stands in a run
CACHED = "cached_stages"  # tag
NOTHING_NEW = "tunewright.nothing_new"  # tag of a run that was deleted because it found nothing of its own
FAILED_STAGE, ERROR = "failed_stage", "error"  # tags
CONTEXT = "mlflow.data.context"  # tag of a data set in a run: what it was there for

Status = Literal["FINISHED", "FAILED", "KILLED"]


class RunFacts(BaseModel, frozen=True):
    """Facts of a run that are known before its first stage."""

    key: str
    name: str | None
    registry: Registry
    params: dict[str, str]
    tags: dict[str, str]
    files: dict[str, str]  # name of a source file -> its sha256
    columns: tuple[str, ...]  # of MLflow's table of runs


class RunEnding(BaseModel, frozen=True):
    """The end of a run."""

    status: Status
    when: float
    stage: str = ""  # that failed or was interrupted
    error: str = ""
    is_needless: bool = False  # nothing new came of it
    cached: tuple[str, ...] = ()  # stages


class GrowingCurves:
    """The points of a metrics.jsonl that grows."""

    def __init__(self, metrics: Path, most: int) -> None:
        self.most = most
        self.log, self.thinning = GrowingLog(metrics), CurveThinning(most)

    def new(self) -> list[Point]:
        """The points of the lines that became whole since the last call, or of all where the file was replaced."""
        lines, is_anew = self.log.new()
        if is_anew:
            self.thinning = CurveThinning(self.most)
        return [point for line in lines if self.thinning.keeps(line) for point in points_of(line)]


class RunWriter:
    """A run in MLflow, for one thread at a time to write to."""

    def __init__(self, facts: RunFacts, began: float, run_id: str | None = None) -> None:
        self.facts = facts
        self.began = began
        self.run_id = run_id
        self.tags: dict[str, str] = {}
        self.pending: list[Point] = []
        self._sent: dict[str, str] = {}
        self._known: set[tuple[str, int]] | None = None  # points of the curves; None: MLflow is to be asked
        self._curves: GrowingCurves | None = None

    def doubt(self) -> None:
        """A request failed, and what came of it is not known."""
        self._known = None

    def follow(self, metrics: Path | None, *, to_its_end: bool = False) -> None:
        """Takes the new points of a metrics.jsonl; at its end also the last, lowest and highest ones."""
        if metrics is None:
            return
        most = self.facts.registry.curve_points
        if self._curves is None or self._curves.log.file != metrics:
            self._curves = GrowingCurves(metrics, most)
        self.pending += self._curves.new()
        if to_its_end:
            self.pending += curves(metrics, most)

    def send(self, client: "MlflowClient") -> None:
        """Sends what is pending, each point of a curve once; opens the run before the first."""
        from mlflow.entities import Metric, RunTag

        if self.run_id is None:
            self.run_id = self._opened(client)
        if self._known is None:
            self._known = points_in(client, client.get_run(self.run_id), CURVE_NAMES)
        wanted = {(point.key, point.step): point for point in reversed(self.pending)}
        self.pending = [point for at, point in reversed(wanted.items()) if at not in self._known]
        tags = {key: value for key, value in self.tags.items() if self._sent.get(key) != value}
        while self.pending or tags:
            batch = self.pending[:BATCH]
            client.log_batch(
                self.run_id,
                [Metric(point.key, point.value, int(1000 * point.time), point.step) for point in batch],
                tags=[RunTag(key, value[:500]) for key, value in tags.items()],
            )
            self._known.update((point.key, point.step) for point in batch)
            self._sent |= tags
            self.pending, tags = self.pending[len(batch) :], {}

    def _opened(self, client: "MlflowClient") -> str:
        facts = self.facts
        experiment_id = experiment(client, facts.registry, facts.registry.name, facts.columns, is_guess=True)
        run = _unfinished(client, experiment_id, facts)
        if run:
            for tag in {FAILED_STAGE, ERROR, NOTE, CACHED} & run.data.tags.keys():
                client.delete_tag(run.info.run_id, tag)
            reopen_run(client, run.info.run_id, facts.name)  # last: a run that goes on names no error
            self.began = run.info.start_time / 1000
        else:
            run = client.create_run(experiment_id, int(1000 * self.began), {KEY: facts.key, **facts.tags}, facts.name)
            self._known = set()
        _describe(client, run, facts)
        return run.info.run_id

    def go_on_as(self, client: "MlflowClient", run: "Run") -> None:
        """Writes to another run from now on. The one so far is removed, unless a decision stands in it."""
        if self.run_id and self.run_id != run.info.run_id:
            before = client.get_run(self.run_id)
            if FINGERPRINT not in before.data.tags:
                _remove(client, self.run_id)
            elif before.info.status == "RUNNING":
                client.set_terminated(self.run_id, "KILLED")
        self.run_id = run.info.run_id

    def finish(self, client: "MlflowClient", ending: RunEnding) -> None:
        """Ends the run; a decision that stands in it is not altered, and a needless run is removed."""
        from mlflow.entities import RunTag

        if self.run_id is None:
            return
        run = client.get_run(self.run_id)
        if run.info.lifecycle_stage != "active":  # somebody deleted it
            return
        is_decided = run.info.status == "FINISHED"
        if ending.is_needless and not is_decided and FINGERPRINT not in run.data.tags:
            _remove(client, self.run_id)
            return
        tags = {CACHED: ", ".join(ending.cached)} if ending.cached else {}
        if ending.status != "FINISHED" and not is_decided:
            how = "Failed" if ending.status == "FAILED" else "Ended"
            tags |= {FAILED_STAGE: ending.stage, ERROR: ending.error}
            tags[NOTE] = f"{how} in {ending.stage}: {ending.error}"
        if tags:
            client.log_batch(self.run_id, tags=[RunTag(key, value[:4_000]) for key, value in tags.items()])
        if PROGRESS in run.data.tags and (is_decided or ending.status == "FINISHED"):
            client.delete_tag(self.run_id, PROGRESS)
        if not is_decided:
            client.set_terminated(self.run_id, ending.status, int(1000 * ending.when))


def points_in(client: "MlflowClient", run: "Run", keys: Set[str]) -> set[tuple[str, int]]:
    """The key and step of each point of these metrics that a run has."""
    begun = run.data.metrics.keys() & keys
    return {(key, past.step) for key in begun for past in client.get_metric_history(run.info.run_id, key)}


def log_params(client: "MlflowClient", run: "Run", values: Mapping[str, str]) -> None:
    """Logs those parameters that a run does not have yet, as many at once as MLflow takes."""
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in values.items() if key not in run.data.params]
    for start in range(0, len(params), 100):
        client.log_batch(run.info.run_id, params=params[start : start + 100])


def source_of(files: Mapping[str, str], **digests: str) -> str:
    """The source of a data set as MLflow stores it: the files with their sha256, or their number where it has no room.

    `digests` stand beside them.
    """
    source = json.dumps({"files": files, **digests})
    return source if len(source) <= LONGEST_SOURCE else json.dumps({"files": len(files), **digests})


def _remove(client: "MlflowClient", run_id: str) -> None:
    """Puts a run that found nothing of its own among the deleted ones, of which none goes on."""
    client.set_terminated(run_id, "FINISHED")
    client.set_tag(run_id, NOTHING_NEW, "true")
    client.delete_run(run_id)


def _unfinished(client: "MlflowClient", experiment_id: str, facts: RunFacts) -> "Run | None":
    """The newest run of this key, if it did not finish and is of this home, or of this very flow run."""
    for run in client.search_runs([experiment_id], f"tags.`{KEY}` = '{facts.key}'"):
        is_ours = any(run.data.tags.get(tag) == facts.tags[tag] for tag in (HOME, FLOW_RUN) if tag in facts.tags)
        if is_ours and run.info.status != "FINISHED":
            return run
    return None


def _describe(client: "MlflowClient", run: "Run", facts: RunFacts) -> None:
    """Logs the parameters, tags and files."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, RunTag

    log_params(client, run, facts.params)
    client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in facts.tags.items()])
    data = Dataset(f"{facts.registry.name} files", hash_of(facts.files)[:36], "files", source_of(facts.files))
    client.log_inputs(run.info.run_id, [DatasetInput(data, [InputTag(CONTEXT, "files")])])
