"""The work of `tunewright predict`: read, fetch, answer part by part, and write the output."""

import logging
import re
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import torch

from tunewright.cli import interrupts
from tunewright.cli.predict import FILE
from tunewright.cli.predict.model import Answerer, FetchedVersion, Record, fetch, require_version
from tunewright.cli.predict.unfinished import Parts, check_output, unfinished
from tunewright.config import RecordFiles, Registry
from tunewright.errors import ConfigError, DataError
from tunewright.registry.rehearsal import measured_max_new_tokens
from tunewright.reports.pages import counted, located
from tunewright.reports.progress import Countdown
from tunewright.store.cache_key import Ingredients, of_call
from tunewright.tasks.ingest import SourceFile
from tunewright.tasks.ingest.files import files_of, is_remote
from tunewright.tasks.ingest.questions import count, questions
from tunewright.tasks.ingest.tables import Tally

log = logging.getLogger("tunewright")

ROWS = 1_000  # records of a part, which is answered at once, as evaluation does, and kept
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "jinja2", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of a call."""

    registry: Registry
    version: str | None
    source: RecordFiles
    output: Path | None
    overwrite: bool
    messages: bool
    max_new_tokens: int | None
    batch: int


@dataclass(kw_only=True)
class Predicted:
    """The outcome of a call."""

    name: str
    version: str
    alias: str | None  # None where a version was named by its number
    files: tuple[str, ...]
    output: Path
    max_new_tokens: int
    seconds: float = 0.0
    num_records: int = 0
    num_answered: int = 0
    num_cut_off: int = 0  # answers that ended at max_new_tokens
    num_resumed: int = 0  # records that an earlier call did
    reasons: Counter[str] = field(default_factory=Counter)  # of the refused records
    firsts: dict[str, str] = field(default_factory=dict)  # reason -> place and detail of the first record

    def add(self, table: pa.Table) -> None:
        """Count the rows of a part."""
        for row in table.select(["file", "line", "stopped", "reason", "detail"]).to_pylist():
            self.num_records += 1
            if reason := row["reason"]:
                self.reasons[reason] += 1
                self.firsts.setdefault(reason, f"{located(row['file'], row['line'])}, {row['detail']}")
            else:
                self.num_answered += 1
                self.num_cut_off += not row["stopped"]

    def said_of_refused(self) -> list[str]:
        """The refused records by reason, with the first of each."""
        return [f"{number:,} {reason}, first {self.firsts[reason]}" for reason, number in self.reasons.most_common()]


def predict(request: Request) -> Predicted:
    """Answer the records and write the output; goes on where an earlier call with the same answers was ended.

    Raises ConfigError for wrong options, DataError where no record can be answered, TunewrightError where the version
    cannot be used or another process writes the output.
    """
    began = time.monotonic()
    files = files_of(request.source, FILE)
    require_version(request.registry, request.version)  # before all records are read
    output = request.output or _default_output(request.source.path)
    check_output(output, [file.path for file in files if not is_remote(file.path)], overwrite=request.overwrite)
    with unfinished(output) as parts:
        tally = count(files)
        version = fetch(request.registry, request.version)
        most = request.max_new_tokens or measured_max_new_tokens(version.copy)
        found = Predicted(
            name=request.registry.name,
            version=version.number,
            alias=request.registry.alias if request.version is None else None,
            files=tuple(file.path for file in files),
            output=output,
            max_new_tokens=most,
        )
        _take_over(parts, found, _key(request, version, files, most), tally.num_read)
        for table in parts.tables():
            found.add(table)
        found.num_resumed = found.num_records
        if found.num_records < tally.num_read:
            answerer = Answerer(version, most, request.batch, messages=request.messages)
            log.info("%s answers %s in %s", version.uri, counted(tally.num_read, "record"), answerer.precision)
            _answer(answerer, files, parts, found, tally.num_read)
        if not found.num_answered:
            parts.discard()
            raise DataError(
                f"{', '.join(found.files)}: no record can be answered: {'; '.join(found.said_of_refused())}"
            )
        parts.finish(overwrite=request.overwrite)
    found.seconds = round(time.monotonic() - began, 1)
    return found


def _take_over(parts: Parts, found: Predicted, key: Ingredients, num_records: int) -> None:
    """Resume an earlier call, and say so; or say why it starts anew."""
    changed = parts.resume(key)
    if changed:
        names = dict.fromkeys(_in_words(each) for each in changed)
        log.warning("starts anew: since the unfinished call for %s changed: %s", found.output, ", ".join(names))
    if parts.files:
        done = min(len(parts.files) * ROWS, num_records)
        _tell_of(done, num_records)
        log.info("goes on after %s of %s, which an earlier call did", f"{done:,}", counted(num_records, "record"))


def _in_words(ingredient: str) -> str:
    if ingredient.startswith("code "):
        return "Tunewright's code"
    return re.sub(r"^library ", "", re.sub(rf"^{FILE}\b.*", FILE, ingredient))


def _key(request: Request, version: FetchedVersion, files: tuple[SourceFile, ...], most: int) -> Ingredients:
    """All that the answers depend on."""
    arguments: dict[str, Any] = {
        FILE: files,
        "the version": f"{version.uri} {version.digest}",
        "--max-new-tokens": most,
        "--batch": request.batch,
        "--messages": request.messages,
        "the device": "cuda" if torch.cuda.is_available() else "cpu",
        "records of a part": ROWS,
    }
    return of_call(arguments, __name__, LIBRARIES)


def _answer(
    answerer: Answerer,
    files: tuple[SourceFile, ...],
    parts: Parts,
    found: Predicted,
    total: int,
) -> None:
    """Answer the records that no part has yet."""
    before = found.num_records
    countdown = Countdown(total, "records", "predict-progress")
    records: Iterator[Record] = chain.from_iterable(questions(file, Tally()) for file in files)
    left = islice(records, before, None)
    while some := list(islice(left, ROWS)):
        done = found.num_records

        def tell(number: int, done: int = done) -> None:
            countdown.tell(done + number, (done + number - before) / (total - before))

        table = answerer.answer(some, tell)
        parts.add(table)
        found.add(table)
        _tell_of(found.num_records, total)


def _tell_of(done: int, total: int) -> None:
    """Have the line after Ctrl-C say what is kept."""
    interrupts.keep(f"{done:,} of {total:,} records are done, and the same command goes on after them")


def _default_output(path: str) -> Path:
    """FILE's name, without its endings, with .answers.jsonl. Raises ConfigError where FILE names several."""
    if re.search(r"[*?\[]", path):
        raise ConfigError(
            f"--output: missing; {FILE} {path} may name several files; accepted: a .jsonl or .parquet file"
        )
    name = PurePosixPath(urlsplit(path).path if "://" in path else path.rstrip("/")).name.rpartition(":")[2]
    stem = re.sub(r"(?i)\.(jsonl|ndjson|json|csv|parquet|arrow|txt)?(\.(gz|zst))?$", "", name)
    return Path(f"{stem or name}.answers.jsonl")
