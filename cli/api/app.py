"""The paths of files and fine-tuning jobs, beside those of the models."""

import asyncio
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from tunewright.accepted import shown
from tunewright.cli.api.creating import create
from tunewright.cli.api.files import RESULT, UPLOAD, StoredFiles
from tunewright.cli.api.identifiers import page
from tunewright.cli.api.jobs import ENDED, FineTuningJob, JobStore
from tunewright.cli.api.running import JobRunner
from tunewright.cli.api.template import Template
from tunewright.cli.api.uploading import upload
from tunewright.cli.serve.app import AsJson, body_of
from tunewright.cli.serve.asking import RequestError

MOST_JOBS = 100  # that wait
OF_METADATA = re.compile(r"metadata\[(.+)\]")


class FineTuningApi:
    """The handlers of the paths."""

    def __init__(self, template: Template, files: StoredFiles, jobs: JobStore, runner: JobRunner) -> None:
        self.template, self.files, self.jobs, self.runner = template, files, jobs, runner

    def routes(self) -> list[Route]:
        """The paths."""
        jobs = "/v1/fine_tuning/jobs"
        found: list[tuple[str, str, Callable[..., Any]]] = [
            ("POST", "/v1/files", self.upload),
            ("GET", "/v1/files", self.list_files),
            ("GET", "/v1/files/{id}", self.file),
            ("DELETE", "/v1/files/{id}", self.delete_file),
            ("GET", "/v1/files/{id}/content", self.content),
            ("POST", jobs, self.create),
            ("GET", jobs, self.list_jobs),
            ("GET", f"{jobs}/{{id}}", self.job),
            ("POST", f"{jobs}/{{id}}/cancel", self.cancel),
            ("POST", f"{jobs}/{{id}}/pause", self.pause),
            ("POST", f"{jobs}/{{id}}/resume", self.resume),
            ("GET", f"{jobs}/{{id}}/events", self.events),
            ("GET", f"{jobs}/{{id}}/checkpoints", self.checkpoints),
        ]
        return [Route(path, function, methods=[method]) for method, path, function in found]

    async def upload(self, request: Request) -> Response:
        """Keep an uploaded file."""
        return AsJson((await upload(request, self.files)).as_object())

    async def list_files(self, request: Request) -> Response:
        """The files, the newest first unless `order` is asc."""
        purpose, order = request.query_params.get("purpose"), request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise RequestError(f"order {shown(order)}: accepted: asc, desc", param="order")
        found = [file.as_object() for file in self.files.newest_first() if purpose in (None, file.purpose)]
        return AsJson(page(found[:: 1 if order == "desc" else -1], request.query_params, usual=10_000, most=10_000))

    async def file(self, request: Request) -> Response:
        """One file."""
        return AsJson(self.files.get(request.path_params["id"]).as_object())

    async def delete_file(self, request: Request) -> Response:
        """Delete a file that no job needs any more."""
        file = self.files.get(request.path_params["id"])
        for job in self.jobs.newest_first():
            if job.status not in ENDED and file.id in (job.training_file, job.validation_file):
                said = f"{file.id} is in use by {job.id}, which is {job.status}; cancel the job first"
                raise RequestError(said, param="file_id", code="file_in_use")
        await asyncio.to_thread(self.files.delete, file)
        return AsJson({"id": file.id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """The bytes of a file."""
        file = self.files.get(request.path_params["id"])
        kind = {UPLOAD: "application/jsonl", RESULT: "text/csv"}[file.purpose]
        return FileResponse(self.files.path(file), media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

    async def create(self, request: Request) -> Response:
        """Create a job."""
        body = await body_of(request)
        if sum(job.status not in ENDED for job in self.jobs.newest_first()) >= MOST_JOBS:
            said = f"{MOST_JOBS} jobs are waiting already; cancel some, or try again later"
            raise RequestError(said, HTTPStatus.TOO_MANY_REQUESTS, code="rate_limit_exceeded")
        job = await asyncio.to_thread(create, body, self.template, self.files, self.jobs)
        self.jobs.say(job, f"Created fine-tuning job: {job.id}")
        self.runner.submit(job)
        return self._as_json(self.jobs.get(job.id))

    async def list_jobs(self, request: Request) -> Response:
        """The jobs, the newest first; those with the metadata that the request names."""
        query = request.query_params
        wanted = {match[1]: value for key, value in query.items() if (match := OF_METADATA.fullmatch(key))}
        found = [
            self._object(job)
            for job in self.jobs.newest_first()
            if wanted.items() <= (job.metadata or {}).items() and not (query.get("metadata") == "null" and job.metadata)
        ]
        return AsJson(page(found, query, usual=20, most=100))

    async def job(self, request: Request) -> Response:
        """One job."""
        return self._as_json(self.jobs.get(request.path_params["id"]))

    async def cancel(self, request: Request) -> Response:
        """Cancel a job."""
        return self._as_json(self.runner.cancel(request.path_params["id"]))

    async def pause(self, request: Request) -> Response:
        """Pause a job."""
        return self._as_json(self.runner.pause(request.path_params["id"]))

    async def resume(self, request: Request) -> Response:
        """Resume a paused job."""
        return self._as_json(self.runner.resume(request.path_params["id"]))

    async def events(self, request: Request) -> Response:
        """The events of a job, the newest first."""
        found = self.jobs.events(self.jobs.get(request.path_params["id"]))
        return AsJson(page([each.as_object() for each in reversed(found)], request.query_params, usual=20, most=1_000))

    async def checkpoints(self, request: Request) -> Response:
        """The checkpoint of a job that is kept."""
        found = self.jobs.get(request.path_params["id"]).checkpoints()
        return AsJson(page(found, request.query_params, usual=10, most=100))

    def _object(self, job: FineTuningJob) -> dict[str, Any]:
        return job.as_object(self.runner.estimates.get(job.id) if job.status == "running" else None)

    def _as_json(self, job: FineTuningJob) -> Response:
        return AsJson(self._object(job))
