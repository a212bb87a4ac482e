"""The jobs at work: their files are validated, and one after the other is run, as a process `tunewright run`.

A process of its own is ended by SIGTERM like any run, and keeps a checkpoint; the same command resumes it. So a job is
paused, cancelled and resumed, and goes on after the server was killed, by what the pipeline does anyway.
"""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any

import psutil

from tunewright.cli.api import results
from tunewright.cli.api.curves import TrainingFollower
from tunewright.cli.api.files import StoredFiles
from tunewright.cli.api.jobs import DEPLOYMENT, ENDED, FineTuningJob, JobError, JobStore
from tunewright.cli.api.sentences import for_client
from tunewright.cli.api.validating import fault
from tunewright.cli.serve.asking import RequestError
from tunewright.config import STAGES
from tunewright.errors import one_line
from tunewright.machine import end_with_parent
from tunewright.tasks.train import trainer

POLL_SECONDS = 0.5
GRACE_SECONDS = 60.0  # for a run to keep a checkpoint and end, before it is killed
LOG, OUTCOME = "run.log", "outcome.json"
COMMAND = (  # modules beside the template can be imported, after all others, as in its own runs
    "import sys; sys.path.append(sys.argv.pop(1)); from tunewright.cli.main import main; main()"
)
STAGE_LINE = re.compile(rf"({'|'.join(STAGES)})(?: [a-z_]+)?")
OF_EXIT_CODES = {2: "invalid_settings", 3: "invalid_training_file", 4: "training_failed"}
STOPPED = ("paused", "cancelled")


class JobRunner:
    """The thread that runs queued jobs, the oldest first, and the one that validates new ones."""

    def __init__(
        self,
        jobs: JobStore,
        files: StoredFiles,
        folder: Path,
        environment: Mapping[str, str],
        begins: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        """Modules in `folder`, the template's, can be imported by runs; `begins` is called before each.

        `tell` gets errors as they are for the operator, with the paths that a client's have not.
        """
        self.jobs, self.files, self.folder, self.environment = jobs, files, folder, environment
        self.begins, self.tell = begins, tell
        self.command = [sys.executable, "-P", "-c", COMMAND, str(folder), "run"]
        self.estimates: dict[str, int | None] = {}  # when the training of a job is likely to end
        self._validating = ThreadPoolExecutor(1, "validating")
        self._thread = threading.Thread(target=self._work, name="jobs", daemon=True)
        self._is_stopping = threading.Event()

    def start(self) -> None:
        """Go on with the jobs that an earlier server left, then with new ones."""
        for job in reversed(self.jobs.newest_first()):
            if job.status == "running":
                self.jobs.say(job, "The server was started again; the job resumes from what it has made")
                self.jobs.change(job.id, status="queued")
            elif job.status == "validating_files":
                self.submit(job)
        self._thread.start()

    def stop(self) -> None:
        """End the run at hand, which the next server resumes; may be called from a signal handler."""
        self._is_stopping.set()

    def close(self) -> None:
        """Wait for its end."""
        self.stop()
        self._validating.shutdown(wait=False, cancel_futures=True)
        if self._thread.is_alive():
            self._thread.join(GRACE_SECONDS + 10)

    def submit(self, job: FineTuningJob) -> None:
        """Have the files of a job validated, then the job queued."""
        self._validating.submit(self._validate, job)

    def cancel(self, name: str) -> FineTuningJob:
        """Cancel a job for good. Raises RequestError where it has ended."""
        job = self._require(name, "cancel", ("validating_files", "queued", "running", "paused"))
        fields = {"status": "cancelled", "finished_at": int(time.time())}
        return self._changed(job, fields, "The job was cancelled")

    def pause(self, name: str) -> FineTuningJob:
        """End the run of a job, which keeps a checkpoint. Raises RequestError where there is nothing to pause."""
        job = self._require(name, "pause", ("validating_files", "queued", "running"))
        return self._changed(job, {"status": "paused"}, "The job was paused; what it has made is kept")

    def resume(self, name: str) -> FineTuningJob:
        """Queue a paused job again. Raises RequestError where it is not paused."""
        job = self._require(name, "resume", ("paused",))
        status = "queued" if job.is_validated else "validating_files"
        job = self._changed(job, {"status": status}, "The job was resumed")
        if job.status == "validating_files":
            self.submit(job)
        return job

    def _require(self, name: str, action: str, states: tuple[str, ...]) -> FineTuningJob:
        job = self.jobs.get(name)
        if job.status not in states:
            raise RequestError(
                f"{action}: the job is {job.status}; accepted: a job that is {' or '.join(states)}",
                HTTPStatus.BAD_REQUEST,
                code="invalid_state",
            )
        return job

    def _changed(self, job: FineTuningJob, fields: dict[str, Any], said: str) -> FineTuningJob:
        """Change a job, and say so, unless it has ended meanwhile."""
        job = self.jobs.change(job.id, ENDED, **fields)
        if job.status == fields["status"]:
            self.jobs.say(job, said)
        return job

    def _validate(self, job: FineTuningJob) -> None:
        try:
            found = fault(job, self.jobs, self.files, self.folder, self.tell)
        except Exception as error:  # one job's files must not end the validation of others
            found = self._error(job, one_line(error), "server_error")
        not_now = (*ENDED, "paused")
        if found:
            self._fail(self.jobs.get(job.id), found, unless=not_now)
        else:
            with self.jobs.changed:  # until it is said, the job does not begin
                if self.jobs.change(job.id, not_now, status="queued", is_validated=True).status == "queued":
                    self.jobs.say(job, "Files validated, moving job to queued state")

    def _fail(self, job: FineTuningJob, error: JobError, unless: tuple[Any, ...]) -> None:
        changed = self.jobs.change(job.id, unless, status="failed", error=error, finished_at=int(time.time()))
        if changed.status == "failed":
            self.jobs.say(job, f"The job failed: {error.message}", level="error")

    def _work(self) -> None:
        while not self._is_stopping.is_set():
            with self.jobs.changed:
                waiting = [job for job in self.jobs.newest_first() if job.status == "queued"]
                if not waiting:
                    self.jobs.changed.wait(POLL_SECONDS)
                    continue
                job = self.jobs.change(waiting[-1].id, status="running", began=time.time())
            try:
                self._run(job)
            except Exception as error:  # one job must not end the others
                self._fail(job, self._error(job, one_line(error), "server_error"), (*ENDED, "paused"))
            finally:
                self.estimates.pop(job.id, None)

    def _run(self, job: FineTuningJob) -> None:
        """Run a job to its end, or until it is paused or cancelled or the server stops."""
        self.begins()
        self.jobs.say(job, "Fine-tuning job started")
        folder = self.jobs.folder(job)
        follower = TrainingFollower(self.jobs.events(job))
        with (folder / LOG).open("ab") as log, (folder / OUTCOME).open("wb") as outcome:
            code = self._watched(job, follower, log, outcome)
        if code is None or self.jobs.get(job.id).status in STOPPED:
            return  # with the status that it was given; a running one is resumed by the next server
        printed = _last_json(folder / OUTCOME)
        if code == 0 and "model" in printed:
            self._succeed(job, printed, follower)
        else:
            said = str(printed.get("error") or f"the run ended with exit code {code}")
            error = self._error(
                job, said, OF_EXIT_CODES.get(code, "server_error"), "training_file" if code == 3 else None
            )
            self._fail(job, error, (*ENDED, "paused"))

    def _error(self, job: FineTuningJob, said: str, code: str, param: str | None = None) -> JobError:
        """An error for the client; the operator is told it as it is."""
        self.tell(f"{job.id}: {said}; the log is {self.jobs.folder(job) / LOG}")
        uploaded = self.files.of_job(job.training_file, job.validation_file)
        return JobError(code=code, message=for_client(said, self.files, uploaded, self.folder), param=param)

    def _watched(
        self, job: FineTuningJob, follower: TrainingFollower, log: IO[bytes], outcome: IO[bytes]
    ) -> int | None:
        """The exit code of the run of a job, whose points become events while it goes on; None where it was ended."""
        folder = self.jobs.folder(job)
        stages = _StageLines(folder / LOG)
        process = subprocess.Popen(
            [*self.command, str(folder / DEPLOYMENT), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=outcome,
            stderr=log,
            env={**self.environment, "NO_COLOR": "1"},
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGTERM),
        )
        asked_at: float | None = None
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_SECONDS)
            for stage in stages.new():
                self.jobs.say(job, f"Stage: {stage}")
            if work := _trainers_folder(process.pid):
                self._relay_points(job, follower, work / "metrics.jsonl")
            status = self.jobs.get(job.id).status
            if asked_at is not None:
                if time.monotonic() - asked_at > GRACE_SECONDS:
                    process.kill()
            elif self._is_stopping.is_set() or status in STOPPED:
                asked_at = time.monotonic()
                process.terminate()
            elif status == "queued":  # resumed before it was ended
                self.jobs.change(job.id, ENDED, status="running")
        return None if asked_at is not None and process.returncode else process.returncode

    def _relay_points(
        self, job: FineTuningJob, follower: TrainingFollower, metrics: Path, *, is_over: bool = False
    ) -> None:
        for message, figures in follower.read(metrics, is_over=is_over):
            self.jobs.say(job, message, data=figures)
        self.estimates[job.id] = follower.end()

    def _succeed(self, job: FineTuningJob, printed: dict[str, Any], follower: TrainingFollower) -> None:
        """Keep what a run has made, and say its verdict."""
        self._relay_points(job, follower, results.metrics_of(printed), is_over=True)
        fields = results.fields(job, printed, self.files)
        for message in results.messages(job, printed):
            self.jobs.say(job, message)
        if self.jobs.change(job.id, (*ENDED, "paused"), **fields).status == "succeeded":
            self.jobs.say(job, "The job has successfully completed")


def _trainers_folder(pid: int) -> Path | None:
    """The folder in which the trainer of a run works; None where none is at work."""
    with suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                command = process.cmdline()
                if f"{trainer.__name__}.__main__" in command:
                    return Path(command[command.index(f"{trainer.__name__}.__main__") + 1]).parent
    return None


def _last_json(file: Path) -> dict[str, Any]:
    """The JSON object in the last line of what a run printed; empty where there is none."""
    lines = file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    with suppress(ValueError):
        found = json.loads(lines[-1]) if lines else {}
        return found if isinstance(found, dict) else {}
    return {}


class _StageLines:
    """The lines of a run's log that say which stage begins."""

    def __init__(self, log: Path) -> None:
        self.log, self.position, self.said = log, log.stat().st_size, set[str]()

    def new(self) -> Iterator[str]:
        """The stages that were begun since the last call, each once."""
        with self.log.open("rb") as file:
            file.seek(self.position)
            while (line := file.readline()).endswith(b"\n"):
                self.position += len(line)
                stage = line.decode(errors="replace").strip()
                if STAGE_LINE.fullmatch(stage) and stage not in self.said:
                    self.said.add(stage)
                    yield stage
