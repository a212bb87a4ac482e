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

import logging
import time
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect.runtime import flow_run
from pydantic import BaseModel, ConfigDict

from tasks.artifacts import SIDES_FILE, Artifact, CheckedRows, Rows, Splits, UniqueRows
from tasks.caching import kept, lock
from tasks.config import Split
from tasks.errors import ConfigError, TunewrightError
from tasks.history import Part, Replaced, Version, file_of, history, read, write
from tasks.split.columns import furthest
from tasks.split.writing import GONE

A = TypeVar("A", bound=Artifact)

log = logging.getLogger("tunewright")


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
    file = file_of(before.name)
    with lock(file):
        lines = read(file)
        past = [line for line in lines if (line.seed, line.by) == (before.seed, before.by)]
        known = next((line for line in past if line.rows.digest == rows.digest), None)
        if known is None and past and past[-1].rows.digest != before.parent:
            raise TunewrightError(
                f"registry.name={before.name}: another run accepted version {past[-1].number} of its data while this "
                f"one went on from version {before.number - 1}; run again to go on from that one"
            )
        if known is None:
            entry = _entry(before, rows, checked, unique, splits, _changes(rows, before.parent, past))
            write(file, [*lines, entry])
            return entry
        entry = _entry(before, rows, checked, unique, splits, (known.added, known.removed))
        same = {"accepted": known.accepted, "run": known.run, "replaced": known.replaced}
        if entry.model_copy(update=same) == known or known is not past[-1]:
            return known
        replaced = _replaced(known, splits)
        entry = entry.model_copy(update={"replaced": (*known.replaced, replaced)})
        write(file, [entry if line is known else line for line in lines])
    _say(before.name, entry)
    return entry


def _whole(kind: type[A], part: Part, name: str, settings: Split) -> A | None:
    """The artifact of the version before. Without stickiness it may be gone, and then nothing is held against it."""
    record = kept(kind, part.stage, part.key)
    if record is not None and record.digest == part.digest:
        return record
    fault = f"{part.folder}, of the version of {name} that was accepted last, is gone or was altered"
    if settings.sticky:
        raise ConfigError(
            f"split.sticky=true: {fault}: bring it back, or split anew: split.sticky=false, or without {file_of(name)}"
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
    return Replaced(accepted=known.accepted, run=known.run, moved=moved, known=num_known, splits=known.splits.digest)


def _say(name: str, version: Version) -> None:
    """Warns where the sides of a version are others now than those that it was accepted with before."""
    last = len(version.replaced) - 1
    once = version.replaced[last]
    if once.moved == 0:
        return
    if version.is_back(last):
        log.info(
            "version %d of the data of %s has the sides back that it was first accepted with, %s",
            *(version.number, name, _when(version.replaced[0])),
        )
        return
    moved = (
        f"and the sides that it was accepted with {_when(once)} are gone, so how many rows are on another is not known"
        if once.moved is None
        else f"{once.moved:,} of {once.known:,} rows are on another side than when it was accepted {_when(once)}"
    )
    log.warning(
        "version %d of the data of %s was split anew: %s; the next data follow the new sides, unless a run with the "
        "settings as they were puts the old ones back",
        *(version.number, name, moved),
    )


def _when(once: Replaced) -> str:
    return f"on {once.accepted[:16].replace('T', ' ')}{f' by run {once.run}' if once.run else ''}"


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
