"""Fine-tuning jobs as records that survive the server: a JSON file and a file of events in a folder each."""

import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from tunewright.accepted import shown
from tunewright.cli.api.identifiers import new_id
from tunewright.cli.serve.asking import RequestError
from tunewright.flows.parameters import slug
from tunewright.store import disk

Status = Literal["validating_files", "queued", "running", "paused", "succeeded", "failed", "cancelled"]
ENDED = ("succeeded", "failed", "cancelled")
ORGANIZATION = "tunewright"
RECORD, EVENTS, DEPLOYMENT = "job.json", "events.jsonl", "job.yaml"


class JobError(BaseModel, frozen=True):
    """The reason why a job failed, as the API has it."""

    code: str
    message: str
    param: str | None = None


class KeptCheckpoint(BaseModel, frozen=True):
    """The step whose weights the registered version has."""

    step: int
    created_at: int
    train_loss: float | None
    valid_loss: float | None


class RegisteredResult(BaseModel, frozen=True):
    """The registered version of a job, and the verdict on it."""

    model: str
    version: str
    alias: str | None  # where this version has it
    decision: str
    sentence: str
    rows: dict[str, int] | None
    run_id: str | None


class FineTuningJob(BaseModel, frozen=True):
    """The record of a job."""

    id: str
    created: float
    model: str  # as the request named it
    base: str
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, int | float | str]
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None
    name: str  # registry.name of its versions
    status: Status = "validating_files"
    is_validated: bool = False
    began: float | None = None
    finished_at: int | None = None
    trained_tokens: int | None = None
    result_files: tuple[str, ...] = ()
    error: JobError | None = None
    checkpoint: KeptCheckpoint | None = None
    result: RegisteredResult | None = None

    @property
    def model_name(self) -> str:
        """The name of the model that it makes."""
        return f"ft:{self.model}:{ORGANIZATION}:{slug(self.suffix or '')}:{self.id.partition('-')[2][:8]}"

    def as_object(self, estimated_finish: int | None = None) -> dict[str, Any]:
        """The job object of the API; `tunewright` is a field of ours."""
        return {
            "object": "fine_tuning.job",
            "id": self.id,
            "created_at": int(self.created),
            "error": self.error.model_dump() if self.error else None,
            "estimated_finish": estimated_finish,
            "fine_tuned_model": self.model_name if self.status == "succeeded" else None,
            "finished_at": self.finished_at,
            "hyperparameters": self.hyperparameters,
            "integrations": [],
            "metadata": self.metadata,
            "method": {"type": "supervised", "supervised": {"hyperparameters": self.hyperparameters}},
            "model": self.model,
            "organization_id": ORGANIZATION,
            "result_files": list(self.result_files),
            "seed": self.seed,
            "status": self.status,
            "trained_tokens": self.trained_tokens,
            "training_file": self.training_file,
            "validation_file": self.validation_file,
            "user_provided_suffix": self.suffix,
            "tunewright": self.result.model_dump() if self.result else None,
        }

    def checkpoints(self) -> list[dict[str, Any]]:
        """The checkpoint objects of the API: the one step that is kept once the job has succeeded."""
        if not (kept := self.checkpoint) or self.status != "succeeded":
            return []
        return [
            {
                "object": "fine_tuning.job.checkpoint",
                "id": f"ftckpt-{self.id.partition('-')[2]}",
                "created_at": kept.created_at,
                "fine_tuned_model_checkpoint": self.checkpoint_name,
                "fine_tuning_job_id": self.id,
                "metrics": {
                    "step": kept.step,
                    "train_loss": kept.train_loss,
                    "valid_loss": kept.valid_loss,
                    "full_valid_loss": kept.valid_loss,
                },
                "step_number": kept.step,
            }
        ]

    @property
    def checkpoint_name(self) -> str:
        """The model name of its checkpoint."""
        return f"{self.model_name}:ckpt-step-{self.checkpoint.step if self.checkpoint else 0}"


class JobEvent(BaseModel, frozen=True):
    """An event of a job."""

    id: str
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, float | int | str] | None = None

    def as_object(self) -> dict[str, Any]:
        """The event object of the API."""
        return {"object": "fine_tuning.job.event", **self.model_dump(), "data": self.data or {}}


class JobStore:
    """All jobs and their events; each change is on the disk before anybody is told of it."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        """Read the records; one that cannot be read is told, and left alone."""
        self.root = folder
        self.changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, FineTuningJob] = {}
        self._events: dict[str, list[JobEvent]] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for record in folder.glob(f"*/{RECORD}"):
            try:
                job = FineTuningJob.model_validate_json(record.read_bytes())
            except (OSError, ValidationError):
                tell(f"{record}: cannot be read; the job is not listed")
                continue
            self._jobs[job.id] = job

    def folder(self, job: FineTuningJob) -> Path:
        """The folder of a job."""
        return self.root / job.id

    def get(self, name: str) -> FineTuningJob:
        """The job with this id. Raises RequestError where there is none."""
        if job := self._jobs.get(name):
            return job
        raise RequestError(
            f"there is no fine-tuning job {shown(name)}", HTTPStatus.NOT_FOUND, param="fine_tuning_job_id"
        )

    def newest_first(self) -> list[FineTuningJob]:
        """All jobs."""
        return sorted(self._jobs.values(), key=lambda job: job.created, reverse=True)

    def add(self, job: FineTuningJob, deployment: str) -> None:
        """Keep a new job with its deployment file; the record is the last, so that a job that is listed is whole."""
        self.folder(job).mkdir(mode=0o700)
        disk.replace(self.folder(job) / DEPLOYMENT, deployment)
        self._write(job)

    def change(self, name: str, unless: tuple[Status, ...] = (), **fields: Any) -> FineTuningJob:
        """Change fields of a job, unless it has one of these states, and return it as it is then."""
        with self.changed:
            job = self.get(name)
            if job.status not in unless:
                self._write(job := job.model_copy(update=fields))
            return job

    def _write(self, job: FineTuningJob) -> None:
        with self.changed:
            disk.replace(self.folder(job) / RECORD, job.model_dump_json())
            self._jobs[job.id] = job
            self.changed.notify_all()

    def events(self, job: FineTuningJob) -> list[JobEvent]:
        """The events of a job, the oldest first."""
        with self.changed:
            if job.id not in self._events:
                self._events[job.id] = _whole_lines(self.folder(job) / EVENTS)
            return list(self._events[job.id])

    def say(
        self,
        job: FineTuningJob,
        message: str,
        *,
        level: Literal["info", "warn", "error"] = "info",
        data: Mapping[str, float | int | str] | None = None,
    ) -> None:
        """Add an event; with `data` it has metrics."""
        kind = "metrics" if data else "message"
        event = JobEvent(
            id=new_id("ftevent"),
            created_at=int(time.time()),
            level=level,
            message=message,
            type=kind,
            data=dict(data) if data else None,
        )
        with self.changed:
            self.events(job)
            disk.append(self.folder(job) / EVENTS, event)
            self._events[job.id].append(event)


def _whole_lines(file: Path) -> list[JobEvent]:
    """The events of a file; a line that a power cut left unfinished is none."""
    events: list[JobEvent] = []
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return events
    for line in lines:
        try:
            events.append(JobEvent.model_validate_json(line))
        except ValidationError:
            continue
    return events
