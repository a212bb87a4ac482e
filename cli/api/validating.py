"""Validation of a job's files before it is queued: what the pipeline would surely refuse is refused here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tunewright.accepted import in_full
from tunewright.artifacts import ROW_SCHEMA
from tunewright.cli import deployment_file
from tunewright.cli.api.files import StoredFile, StoredFiles
from tunewright.cli.api.jobs import DEPLOYMENT, FineTuningJob, JobError, JobStore
from tunewright.cli.api.sentences import UPLOAD_AS, for_client, named, without_advice
from tunewright.config import Settings
from tunewright.errors import DataError, TunewrightError
from tunewright.reports.pages import counted
from tunewright.store.manifest import digest_of
from tunewright.tasks.ingest import judge
from tunewright.tasks.ingest.files import SourceFile, source_files
from tunewright.tasks.ingest.parsing import RefusedRecord
from tunewright.tasks.ingest.readers import read
from tunewright.tasks.ingest.tables import Tally

LINE, MESSAGES = map(ROW_SCHEMA.get_field_index, ("line", "messages"))
SPLITS = 3  # train, validation, test: each needs a prompt of its own, as rows with equal prompts stay together
Tell = Callable[[str], None]


class Examples(BaseModel):
    """An account of a file's records, and of what later stages need of them."""

    tally: Tally
    num_unanswered: int = 0  # rows that do not end with an answer
    first_unanswered: int = 0  # its line
    prompts: set[str] = set()  # of rows with an answer; no more than there are splits

    def add(self, row: tuple[Any, ...]) -> None:
        """Count a row in the order of ROW_SCHEMA."""
        line, messages = row[LINE], row[MESSAGES]
        if messages[-1]["role"] != "assistant":
            self.num_unanswered += 1
            self.first_unanswered = self.first_unanswered or line
        elif len(self.prompts) < SPLITS:
            self.prompts.add(repr([(each["role"], each["content"]) for each in messages[:-1]]))

    @property
    def unanswered(self) -> str:
        """How many rows do not end with an answer, and the line of the first."""
        return (
            f"{self.num_unanswered:,} of {counted(self.tally.num_rows, 'example')} "
            f"{'has' if self.num_unanswered == 1 else 'have'} no assistant message at the end to train on, "
            f"first line {self.first_unanswered}"
        )


class _Refused(Exception):
    """A file that no job can use: a sentence for its client."""


def fault(job: FineTuningJob, jobs: JobStore, files: StoredFiles, folder: Path, tell: Tell) -> JobError | None:
    """Read the files of a job, say in its events how many examples they have, and return why it cannot run.

    `folder` is that of the template; `tell` gets the errors with the paths that a client's have not.
    """
    params = {"training_file": job.training_file, "validation_file": job.validation_file}
    there = {name: files.get(file) for name, file in params.items() if file}
    settings = deployment_file.load(jobs.folder(job) / DEPLOYMENT).settings
    found: dict[str, Examples] = {}
    for param, file in there.items():
        jobs.say(job, f"Validating {param.replace('_', ' ')}: {file.id}")
        try:
            examples = found[param] = _examples(settings, file, files)
            _require_usable(examples, file, files, settings)
        except _Refused as refused:
            return JobError(code=f"invalid_{param}", message=str(refused), param=param)
        except TunewrightError as error:
            tell(f"{job.id}: {error}")
            said = f"{for_client(str(error), files, there.values(), folder)}; {UPLOAD_AS}"
            return JobError(code=f"invalid_{param}", message=said, param=param)
        _say(job, jobs, file, examples)
    if refused := _fault_of_all(found, there, settings):
        param, said = refused
        return JobError(code=f"invalid_{param}", message=said, param=param)
    return None


def _say(job: FineTuningJob, jobs: JobStore, file: StoredFile, examples: Examples) -> None:
    said, refused = f"{file.filename}: {counted(examples.tally.num_rows, 'example')}", examples.tally.reasons.total()
    if refused:
        is_one = "is" if refused == 1 else "are"
        said += f"; {counted(refused, 'record')} {is_one} left out: {_reasons(examples.tally)}"
    if examples.num_unanswered:
        said += f"; {examples.unanswered}: left out"
    jobs.say(job, said, level="warn" if refused or examples.num_unanswered else "info")


def _examples(settings: Settings, stored: StoredFile, files: StoredFiles) -> Examples:
    """The account of a file's records. Raises TunewrightError where it cannot be read as a whole."""
    path = files.path(stored)
    if digest_of(path) != stored.sha256:
        raise _Refused(f"{named(stored)}: is not what was uploaded; upload it again")
    (file,) = _source_files(settings, path)
    examples = Examples(tally=Tally())
    for item in read(file, settings.data.max_line_bytes, None):
        row = examples.tally.read(item, file, settings.data.max_line_bytes, ())
        if not isinstance(row, RefusedRecord):
            examples.add(tuple(row))
    return examples


def _source_files(settings: Settings, path: Path) -> tuple[SourceFile, ...]:
    (source,) = (each for each in settings.data.sources if Path(each.path).name == path.name)
    own = {"sources": (source.model_copy(update={"path": str(path)}),), "held_out": ()}
    return source_files(settings.data.model_copy(update=own))


def _require_usable(examples: Examples, file: StoredFile, files: StoredFiles, settings: Settings) -> None:
    """Raises _Refused where the pipeline would stop on this file, whatever the other one has."""
    tally, path = examples.tally, files.path(file)
    try:
        judge(settings.data, (), tally)
    except DataError as error:
        if _is_array(path):
            raise _Refused(f"{named(file)}: is a JSON array; {UPLOAD_AS}") from error
        if not tally.num_read:
            raise _Refused(f"{named(file)}: has no record; {UPLOAD_AS}") from error
        refused, share = tally.reasons.total(), settings.data.max_refused_share
        some = f"{refused:,} of {counted(tally.num_read, 'record')} cannot be used"
        said = f"{named(file)}: {some}, accepted are at most {in_full(100 * share)} %: {_reasons(tally)}"
        raise _Refused(said + (f"; {UPLOAD_AS}" if "bad_encoding" in tally.reasons else "")) from error
    if examples.num_unanswered == tally.num_rows:
        raise _Refused(f"{named(file)}: {examples.unanswered}")


def _reasons(tally: Tally) -> str:
    """The refused records by reason, with the line of the first of each and what is wrong with it."""
    said: list[str] = []
    for reason, number in tally.reasons.most_common():
        detail = tally.firsts[reason].partition(" line ")[2]
        advice = " (leave blank lines out)" if reason == "blank_line" else ""
        said.append(f"{number:,} {reason}{advice}, first line {detail}")
    return without_advice("; ".join(said))


def _fault_of_all(
    found: dict[str, Examples], there: dict[str, StoredFile], settings: Settings
) -> tuple[str, str] | None:
    """The parameter at fault and why, where the pipeline would stop on the files together."""
    unanswered = {param: each.num_unanswered for param, each in found.items()}
    num_rows, share = sum(each.tally.num_rows for each in found.values()), settings.checks.max_quarantined_share
    is_all = len(settings.data.sources) == len(found)  # the deployment file adds no rows of its own
    if is_all and sum(unanswered.values()) > share * num_rows:
        param = max(unanswered, key=lambda each: unanswered[each])
        return param, f"{named(there[param])}: {found[param].unanswered}; accepted are at most {in_full(100 * share)} %"
    given = {each.use_as for each in settings.data.sources} & {"validation", "test"}
    names = [name for name in ("training", "validation", "test") if name not in given]
    if (num_prompts := len(found["training_file"].prompts)) < len(names):
        rows = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
        return "training_file", (
            f"{named(there['training_file'])}: {counted(num_prompts, 'different prompt')}; accepted: {len(names)} or "
            f"more, since it is split into {rows} rows, and rows with equal prompts stay together"
        )
    return None


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1_000).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
