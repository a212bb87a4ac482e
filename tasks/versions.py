"""The accepted versions of a pipeline's data, in the order in which they were accepted.

A version is what ingest made of the sources, known by its content digest. Once its rows have passed every data stage it
is accepted: it gets a line in `<home>/versions/<name>.jsonl`. The next data are held against it (check), and its rows
keep their sides (split). A line names its parent, so that data that were accepted before find the same version before
them as the first time, and nothing runs anew. Another split.seed or split.by is another history.

The newest version of a history is replaced when its data are accepted under other settings; an older one is not, since
later ones stand on it.
"""

import json
import logging
import os
import time
from pathlib import Path
from typing import Literal, TypeVar

import pyarrow.parquet as pq
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks import config
from tasks.artifacts import Artifact, CheckedRows, Rows, Splits, UniqueRows
from tasks.caching import kept, lock
from tasks.config import Split
from tasks.errors import ConfigError, TunewrightError

A = TypeVar("A", bound=Artifact)

log = logging.getLogger("tunewright")


class Part(BaseModel):
    """What one stage made of a version: where its artifact lies, and what is in it."""

    model_config = ConfigDict(frozen=True)

    stage: str
    key: str
    digest: str

    @property
    def folder(self) -> Path:
        """The artifact's folder in this home."""
        return config.home() / "artifacts" / self.stage / self.key


class Version(BaseModel):
    """One line of a ledger: one accepted version of the data."""

    model_config = ConfigDict(frozen=True)

    number: int  # within its history, from 1
    seed: int
    by: Literal["cluster", "time"]
    accepted: str  # UTC
    run: str  # the name of the flow run; empty for a call outside a flow
    parent: str  # digest of the rows of the version before; empty for the first
    rows: Part
    checked: Part
    unique: Part
    splits: Part
    counts: dict[str, int]  # read, rows, checked, unique, train, validation, test
    added: int | None  # rows whose row_id the version before does not have; None where that one's rows are gone
    removed: int | None


class Before(BaseModel):
    """What stands before some data in a history: all that the stages need of the version before."""

    model_config = ConfigDict(frozen=True)

    name: str
    seed: int
    by: Literal["cluster", "time"]
    number: int  # that these data have, or will have once accepted
    parent: str  # digest of the rows of the version before; empty for the first
    checked: CheckedRows | None
    splits: Splits | None  # None also where split.sticky is false
    is_sample: bool = False  # of the data: held against the version before them, but no version


def before(name: str, rows: Rows, settings: Split, *, is_sample: bool = False) -> Before:
    """The version before `rows` in the history that split.seed and split.by name; `is_sample` is so with data.limit.

    Raises ConfigError where its artifacts are gone or altered, unless split.sticky is false.
    """
    past = history(name, settings.seed, settings.by)
    known = next((version for version in past if version.rows.digest == rows.digest), None)
    parent = known.parent if known else past[-1].rows.digest if past else ""
    earlier = next((version for version in past if version.rows.digest == parent), None)
    return Before(
        name=name,
        seed=settings.seed,
        by=settings.by,
        number=known.number if known else len(past) + 1,
        parent=parent,
        checked=_whole(CheckedRows, earlier.checked, name, settings) if earlier else None,
        splits=_whole(Splits, earlier.splits, name, settings) if earlier and settings.sticky else None,
        is_sample=is_sample,
    )


def accept(before: Before, rows: Rows, checked: CheckedRows, unique: UniqueRows, splits: Splits) -> Version | None:
    """Enters the version into the ledger, or what it has come to now if it is the newest; returns its line.

    `before` is what the stages were given; a sample is no version, and None. Raises TunewrightError where another
    version was accepted in the meantime: rows of that one could have changed sides.
    """
    if before.is_sample:
        return None
    file = ledger(before.name)
    with lock(file):
        lines = _read(file)
        past = [line for line in lines if (line.seed, line.by) == (before.seed, before.by)]
        known = next((line for line in past if line.rows.digest == rows.digest), None)
        if known is None and past and past[-1].rows.digest != before.parent:
            raise TunewrightError(
                f"registry.name={before.name}: another run accepted version {past[-1].number} of its data while this "
                f"one went on from version {before.number - 1}; run again to go on from that one"
            )
        if known is None:
            entry = _entry(before, rows, checked, unique, splits, _changes(rows, before.parent, past))
            _write(file, [*lines, entry])
            return entry
        entry = _entry(before, rows, checked, unique, splits, (known.added, known.removed))
        same = entry.model_copy(update={"accepted": known.accepted, "run": known.run}) == known
        if same or known is not past[-1]:
            return known
        _write(file, [entry if line is known else line for line in lines])
        return entry


def history(name: str, seed: int, by: str) -> list[Version]:
    """The versions of one history, the oldest first."""
    return [version for version in _read(ledger(name)) if (version.seed, version.by) == (seed, by)]


def ledger(name: str) -> Path:
    """The file with all versions of a pipeline's data."""
    return config.home() / "versions" / f"{name}.jsonl"


def _whole(kind: type[A], part: Part, name: str, settings: Split) -> A | None:
    """The artifact of the version before. Without stickiness it may be gone, and then nothing is held against it."""
    record = kept(kind, part.stage, part.key)
    if record is not None and record.digest == part.digest:
        return record
    fault = f"{part.folder}, of the version of {name} that was accepted last, is gone or was altered"
    if settings.sticky:
        raise ConfigError(
            f"split.sticky=true: {fault}: bring it back, or split anew: split.sticky=false, or without {ledger(name)}"
        )
    log.warning("%s: the data are not compared with it", fault)
    return None


def _entry(
    before: Before,
    rows: Rows,
    checked: CheckedRows,
    unique: UniqueRows,
    splits: Splits,
    changes: tuple[int | None, int | None],
) -> Version:
    return Version(
        number=before.number,
        seed=before.seed,
        by=before.by,
        accepted=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        run=flow_run.name or "",
        parent=before.parent,
        rows=_part(rows),
        checked=_part(checked),
        unique=_part(unique),
        splits=_part(splits),
        counts={
            "read": rows.num_read,
            "rows": rows.num_rows,
            "checked": checked.num_rows,
            "unique": unique.num_rows,
            "train": splits.num_train,
            "validation": splits.num_validation,
            "test": splits.num_test,
        },
        added=changes[0],
        removed=changes[1],
    )


def _part(artifact: Artifact) -> Part:
    return Part(stage=artifact.stage, key=artifact.key, digest=artifact.digest)


def _changes(rows: Rows, parent: str, past: list[Version]) -> tuple[int | None, int | None]:
    """How many rows came and went since the version before, by row_id; None where that one's rows are gone."""
    earlier = next((version.rows.folder / "rows.parquet" for version in past if version.rows.digest == parent), None)
    if earlier is None:
        return rows.num_rows, 0
    if not earlier.is_file():
        return None, None
    old, new = (pq.read_table(file, columns=["row_id"]) for file in (earlier, rows.path("rows.parquet")))
    return (
        new.join(old, "row_id", join_type="left anti").num_rows,
        old.join(new, "row_id", join_type="left anti").num_rows,
    )


def _read(file: Path) -> list[Version]:
    """All versions in a ledger. Raises ConfigError where a line is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    versions: list[Version] = []
    for number, line in enumerate(lines, start=1):
        try:
            versions.append(Version.model_validate_json(line))
        except ValidationError:
            raise ConfigError(
                f"{file} line {number}: {json.dumps(line[:60])} is no version of data; mend the line, or delete the "
                "file, and the next run begins a new history"
            ) from None
    return versions


def _write(file: Path, versions: list[Version]) -> None:
    """Replaces the ledger in one step: after a kill it has all the old lines or all the new ones."""
    unfinished = file.with_suffix(".unfinished")
    with unfinished.open("w", encoding="utf-8") as opened:
        opened.writelines(f"{version.model_dump_json()}\n" for version in versions)
        opened.flush()
        os.fsync(opened.fileno())
    unfinished.replace(file)
