"""The accepted versions of a pipeline's data, in the order in which they were accepted.

A version is what ingest made of the sources, known by its content digest. Once its rows have passed every data stage it
is accepted: it gets a line in `<home>/versions/<name>.jsonl`. The next data are held against it (check), and its rows
keep their sides (split). A line names its parent, so that data that were accepted before find the same version before
them as the first time, and nothing runs anew.

Another split.seed or split.by begins another history. To set one of them is to ask for other sides, which rows that
stay could not get; in a history of its own it gives what it says, and going back finds the old history where it was.
All other settings go on in the same history: rows keep their sides under another threshold or share, and what that
changes is what becomes of new rows.

The newest version of a history is replaced when its data are accepted under other settings, as by a trial with
split.sticky=false; an older one is not, since later ones stand on it. What was replaced stays in the line, and how many
rows are on another side by it is said. A run with the settings as they were puts the old sides back.
"""

import json
import logging
import os
import time
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks import config
from tasks.artifacts import SIDES_FILE, Artifact, CheckedRows, Rows, Splits, UniqueRows
from tasks.caching import kept, lock
from tasks.config import Split
from tasks.errors import ConfigError, TunewrightError
from tasks.split.columns import furthest
from tasks.split.writing import GONE

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


class Replaced(BaseModel):
    """What a line said before the same data were accepted under other settings."""

    model_config = ConfigDict(frozen=True)

    accepted: str  # UTC
    run: str
    moved: int | None  # rows that were on another side than those that replaced it have; None where it was gone
    known: int  # rows with a side in both, of which `moved` are some


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
    added: int | None  # records that the version before does not have; None where that one's rows are gone
    removed: int | None  # records of the version before that this one does not have
    replaced: tuple[Replaced, ...] = ()  # the oldest first


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
        same = {"accepted": known.accepted, "run": known.run, "replaced": known.replaced}
        if entry.model_copy(update=same) == known or known is not past[-1]:
            return known
        replaced = _replaced(known, splits)
        entry = entry.model_copy(update={"replaced": (*known.replaced, replaced)})
        _write(file, [entry if line is known else line for line in lines])
    _say(before.name, known, replaced)
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


def _replaced(known: Version, splits: Splits) -> Replaced:
    """What becomes of a line whose rows have other sides now, those that are set aside the side they return to."""
    here = splits.path(SIDES_FILE)
    there = here if known.splits.digest == splits.digest else known.splits.folder / SIDES_FILE
    moved, num_known = None, 0
    if there.is_file():
        is_here = pc.field("because") != GONE
        new, old = (
            furthest(pq.read_table(file, columns=["row_id", "side"], filters=is_here)) for file in (here, there)
        )
        both = new.join(old, "row_id", join_type="inner", right_suffix="_before").drop_null()
        moved, num_known = both.filter(pc.field("side") != pc.field("side_before")).num_rows, both.num_rows
    return Replaced(accepted=known.accepted, run=known.run, moved=moved, known=num_known)


def _say(name: str, known: Version, replaced: Replaced) -> None:
    """Warns where the sides of a version are others than those that it was accepted with."""
    if replaced.moved == 0:
        return
    when = f"{replaced.accepted[:16].replace('T', ' ')}{f' by run {replaced.run}' if replaced.run else ''}"
    moved = (
        f"and the sides that it was accepted with on {when} are gone, so how many rows are on another is not known"
        if replaced.moved is None
        else f"{replaced.moved:,} of {replaced.known:,} rows are on another side than when it was accepted on {when}"
    )
    log.warning(
        "version %d of the data of %s was split anew: %s; the next data follow the new sides, unless a run with the "
        "settings as they were puts the old ones back",
        *(known.number, name, moved),
    )


def _part(artifact: Artifact) -> Part:
    return Part(stage=artifact.stage, key=artifact.key, digest=artifact.digest)


def _changes(rows: Rows, parent: str, past: list[Version]) -> tuple[int | None, int | None]:
    """How many records came and went since the version before: what it had, and these, are the records of this one.

    Records are told apart by their row_id; of equal ones it counts how many there are. None where the rows are gone.
    """
    earlier = next((version.rows.folder / "rows.parquet" for version in past if version.rows.digest == parent), None)
    if earlier is None:
        return rows.num_rows, 0
    if not earlier.is_file():
        return None, None
    new, old = (_counted(file) for file in (rows.path("rows.parquet"), earlier))
    both = new.join(old, "row_id", join_type="full outer", right_suffix="_before")
    now, then = (np.asarray(both[name].fill_null(0)) for name in ("count_all", "count_all_before"))
    return int((now - then).clip(min=0).sum()), int((then - now).clip(min=0).sum())


def _counted(file: Path) -> pa.Table:
    """How many records of a row table have each row_id."""
    return pq.read_table(file, columns=["row_id"]).group_by("row_id").aggregate([([], "count_all")])


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
