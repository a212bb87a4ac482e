"""Validation of a job's files before it is queued: each record is read as the pipeline reads it."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from tunewright.cli import deployment_file
from tunewright.cli.api.files import StoredFile, StoredFiles
from tunewright.cli.api.jobs import DEPLOYMENT, FineTuningJob, JobError, JobStore
from tunewright.errors import TunewrightError
from tunewright.store.manifest import digest_of
from tunewright.tasks.ingest import judge
from tunewright.tasks.ingest.files import source_files
from tunewright.tasks.ingest.readers import read
from tunewright.tasks.ingest.tables import Tally


def fault(job: FineTuningJob, jobs: JobStore, files: StoredFiles) -> JobError | None:
    """Read the files of a job, say in its events how many examples they have, and return why it cannot run."""
    params = {"training_file": job.training_file, "validation_file": job.validation_file}
    there = {name: files.get(file) for name, file in params.items() if file}
    for param, file in there.items():
        jobs.say(job, f"Validating {param.replace('_', ' ')}: {file.id}")
        try:
            tally = _examples(jobs.folder(job) / DEPLOYMENT, file, files)
        except TunewrightError as error:
            said = as_uploaded(str(error), files, there.values())
            return JobError(code=f"invalid_{param}", message=said, param=param)
        said = f"{file.filename}: {tally.num_rows:,} examples"
        if refused := tally.reasons.total():
            (first, *_) = tally.firsts.values()
            said += f"; {refused:,} records are left out, such as {as_uploaded(first, files, there.values())}"
        jobs.say(job, said, level="warn" if refused else "info")
    return None


def as_uploaded(said: str, files: StoredFiles, uploaded: Iterable[StoredFile]) -> str:
    """A sentence with the names that the files were uploaded under, in place of their paths."""
    for file in uploaded:
        path = files.path(file)
        for name in (str(path), os.path.relpath(path)):
            said = said.replace(name, file.filename)
        said = re.sub(rf"\S*{re.escape(path.name)}", lambda _, name=file.filename: name, said)
    return said


def _examples(deployment: Path, stored: StoredFile, files: StoredFiles) -> Tally:
    """The account of a file's records. Raises TunewrightError where the pipeline would stop on it."""
    if digest_of(files.path(stored)) != stored.sha256:
        raise TunewrightError(f"{stored.filename}: is not what was uploaded; upload it again")
    data, path = deployment_file.load(deployment).settings.data, files.path(stored)
    (source,) = (each for each in data.sources if Path(each.path).name == path.name)
    own = data.model_copy(update={"sources": (source.model_copy(update={"path": str(path)}),), "held_out": ()})
    (file,) = source_files(own)
    tally = Tally()
    for item in read(file, data.max_line_bytes, None):
        tally.read(item, file, data.max_line_bytes, ())
    judge(own, [file], tally)
    return tally
