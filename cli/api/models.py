"""The fine-tuned models of finished jobs: each is loaded when it is asked, one at a time."""

from http import HTTPStatus

from tunewright.cli.api.jobs import FineTuningJob, JobStore
from tunewright.cli.api.template import Template
from tunewright.cli.predict.model import fetch
from tunewright.cli.serve.answering import ServedVersion, free_memory
from tunewright.cli.serve.asking import RequestError
from tunewright.cli.serve.queue import RequestQueue, Tell


class FineTunedModels(RequestQueue):
    """The requests to the models of the jobs, and the one model that is in memory."""

    def __init__(self, jobs: JobStore, template: Template, max_waiting: int, tell: Tell) -> None:
        super().__init__(max_waiting, tell)
        self.jobs, self.registry, self.bases = jobs, template.settings.registry, tuple(template.bases)
        self._served: tuple[str, ServedVersion] | None = None  # the id of a job, and its version

    def start(self) -> None:
        """Nothing goes on beside the requests."""

    @property
    def models(self) -> list[str]:
        """The models of the jobs that have succeeded, the newest first."""
        return [job.model_name for job in self.jobs.newest_first() if job.status == "succeeded"]

    @property
    def loaded(self) -> list[tuple[str, ServedVersion]]:
        """The version in memory."""
        served = self._served
        return [(self.jobs.get(served[0]).name, served[1])] if served else []

    def created(self, name: str) -> int:
        """When the job had made its model."""
        return self._job(name).finished_at or self.began

    def require_model(self, name: str) -> None:
        """Raises RequestError where no job has made this model."""
        self._job(name)

    def answered_as(self, name: str, served: ServedVersion) -> str:
        """The name of the request, which means one version for ever."""
        return name

    def version_for(self, name: str) -> ServedVersion:
        """The version of a model, which is verified and loaded unless it is in memory."""
        job = self._job(name)
        if self._served and self._served[0] == job.id:
            return self._served[1]
        self._release()
        assert job.result
        registry = self.registry.model_copy(update={"name": job.name})
        self.tell(f"loading {name}")
        try:
            version = ServedVersion(fetch(registry, job.result.version))
        except Exception:
            self.num_failed_swaps += 1
            raise
        self._served = (job.id, version)
        self.num_swaps += 1
        return version

    def release(self) -> None:
        """Have the model leave the memory once it has answered, so that a training can use it."""
        if not self._stopping.is_set():
            self._worker.submit(self._release)

    def _release(self) -> None:
        self._served = None
        free_memory()

    def _job(self, name: str) -> FineTuningJob:
        accepted = "the fine_tuned_model of a job that succeeded"
        for job in self.jobs.newest_first():
            if job.status == "succeeded" and name in (job.model_name, job.checkpoint_name):
                return job
            if job.status == "succeeded" and name.startswith(f"{job.model_name}:"):
                accepted = f"{job.model_name}, or the one checkpoint of it that is kept, {job.checkpoint_name}"
        why = "can be fine-tuned, but is not served" if name in self.bases else "is not served here"
        raise RequestError(
            f"the model {ascii(name)[:120]} {why}; accepted: {accepted}",
            HTTPStatus.NOT_FOUND,
            param="model",
            code="model_not_found",
        )
