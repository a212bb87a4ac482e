"""The accepted versions of a pipeline's data, in the order in which they were accepted.

A version is what ingest made of the sources, known by its content digest. Once its rows have passed every data stage it
is accepted: it gets a line in `<home>/versions/<name>.jsonl`. The next data are compared with it (check), and its rows
keep their splits (split). A line names its parent, so that data that were accepted before find the same version before
them as the first time, and nothing runs anew.

Another split.seed or split.by begins another history. To set one of them is to ask for other splits, which rows that
stay could not get; in a history of its own it gives what it says, and going back finds the old history where it was.
All other settings go on in the same history: rows keep their splits under another threshold or share, and what that
changes is what becomes of new rows.

What later data must know of a version lies with its line (data_history.py), so that all artifacts can be deleted.

The newest version of a history is replaced when its data are accepted under other settings, as by a trial with
split.sticky=false; an older one is not, since later ones stand on it. What was replaced stays in the line, and how many
rows are in another split by it is said. A run with the settings as they were puts the old splits back.
"""

import logging
from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect.runtime import flow_run
from pydantic import BaseModel

from tunewright.artifacts import ASSIGNMENTS_FILE, Artifact, CheckedRows, Rows, Splits, UniqueRows
from tunewright.artifacts.placement import GONE, furthest
from tunewright.config import Split
from tunewright.errors import ConfigError, TunewrightError
from tunewright.similarity.prompts import BOILERPLATE
from tunewright.store import data_history
from tunewright.store.caching import kept
from tunewright.store.data_history import Replaced, StageOutput, Version, file_of, history, read, write
from tunewright.store.disk import now
from tunewright.store.histories import held, up_to_date
from tunewright.store.lineage import NO_SPLIT

log = logging.getLogger("tunewright")


class Before(BaseModel, frozen=True):
    """The version before some data in a history, as far as the stages need it."""

    name: str
    seed: int
    by: Literal["cluster", "time"]
    number: int | None  # that these data have, or will have once accepted; None of a sample, which is no version
    parent: str  # digest of the rows of the version before; empty for the first
    checked: Artifact | None  # with profile.json and the row_ids
    checked_number: int | None = None  # of the version that `checked` is of
    splits: Artifact | None  # with sides.parquet; None also where split.sticky is false
    unique: Artifact | None = None  # with boilerplate.json; likewise
    is_sample: bool = False  # of the data: compared with the version before them, but no version


def require_history(name: str) -> None:
    """Raises ConfigError where the shared store is another one than the history of a pipeline's data comes from."""
    up_to_date(file_of(name))


def before(name: str, rows: Rows, settings: Split, *, is_sample: bool = False) -> Before:
    """The version before `rows` in the history that split.seed and split.by name; `is_sample` is so with data.limit.

    Raises ConfigError where it is not kept which row of it is in which split, unless split.sticky is false.
    """
    past = history(name, settings.seed, settings.by)
    known = next((version for version in past if version.rows.digest == rows.digest), None)
    parent = known.parent if known else past[-1].rows.digest if past else ""
    earlier = next((version for version in past if version.rows.digest == parent), None)
    checked, unique, splits, compared = _kept(name, earlier, past[-1], settings) if earlier else (None,) * 4
    return Before(
        name=name,
        seed=settings.seed,
        by=settings.by,
        number=known.number if known else None if is_sample else len(past) + 1,
        parent=parent,
        checked=checked,
        checked_number=compared,
        splits=splits if settings.sticky else None,
        unique=unique if settings.sticky else None,
        is_sample=is_sample,
    )


def accept(
    before: Before,
    rows: Rows,
    checked: CheckedRows,
    unique: UniqueRows,
    splits: Splits,
    *,
    all_rows: Rows | None = None,
    keep: int = 30,
) -> Version | None:
    """Enters the version into the ledger, or what it has come to now if it is the newest; returns its line.

    `all_rows` are `rows` with the general rows that rehearse adds, if any: these count, but make no other version, so
    that another base finds the same version before it and draws no new splits.
    `before` is what the stages were given; a sample is no version, and None. Of the newest `keep` versions of a history
    it stays known which row is in which split. Raises TunewrightError where another version was accepted in the
    meantime: rows of that one could have changed splits.
    """
    if before.is_sample:
        return None
    assert before.number
    file = file_of(before.name)
    with held(file):
        lines = read(file)
        past = [line for line in lines if (line.seed, line.by) == (before.seed, before.by)]
        known = next((line for line in past if line.rows.digest == rows.digest), None)
        if known is None and past and past[-1].rows.digest != before.parent:
            raise TunewrightError(
                f"registry.name={before.name}: another run accepted version {past[-1].number} of its data while this "
                f"run was based on version {before.number - 1}; run again"
            )
        if known and known is not past[-1]:
            return known
        counted = all_rows or rows
        is_counted = known and known.counts["rows"] == counted.num_rows
        changes = (known.added, known.removed) if known and is_counted else _changes(before, counted, past)
        entry = _entry(before, rows, counted, checked, unique, splits, changes)
        folder, there = data_history.folder_of(before.name, entry), known.assignments if known else ""
        assigned = data_history.keep(folder, counted, checked, unique, splits, there, NO_SPLIT)
        apart = {"accepted", "run", "replaced", "assignments"}
        if known and known.model_dump(exclude=apart) == entry.model_dump(exclude=apart):
            entry = known
        elif known:
            entry = entry.model_copy(update={"replaced": (*known.replaced, _replaced(before.name, known, splits))})
        entry = entry.model_copy(update={"assignments": assigned})
        if entry != known:
            lines = [entry if line is known else line for line in lines] if known else [*lines, entry]
            write(file, lines)
            newest: dict[tuple[int, str], list[Version]] = {}  # of each history
            for line in lines:
                newest[line.seed, line.by] = [*newest.get((line.seed, line.by), []), line][-keep:]
            remembered = [version for past in newest.values() for version in past]
            replaced = [once.splits for version in remembered for once in version.replaced]
            data_history.forget(before.name, [*(version.splits.digest for version in remembered), *replaced])
    if known and entry.replaced != known.replaced:
        _say(before.name, entry)
    return entry


def _kept(
    name: str, earlier: Version, newest: Version, settings: Split
) -> tuple[Artifact | None, Artifact | None, Artifact | None, int | None]:
    """Return check's, dedupe's and split's artifacts of the version before, as far as they are needed; its number.

    If they are gone, those of the newest version are used, in which all rows of the history have the same splits.
    Without stickiness both may be gone, and then nothing is compared.
    """
    for version in (earlier, newest):
        if found := _recalled(name, version):
            if version is not earlier:
                log.info("rows keep the splits of version %d; those of %d are not kept", newest.number, earlier.number)
            return *found, version.number
    fault = (
        f"{data_history.folder_of(name, newest)}, which has the split of each row of version {newest.number} of the "
        f"data of {name}, is missing or was altered"
    )
    if settings.sticky:
        raise ConfigError(
            f"split.sticky=true: {fault}: restore versions/ from a backup, or split anew, which can make trained "
            f"rows test rows: split.sticky=false, or without {file_of(name)}"
        )
    log.warning("%s: the data are not compared with it", fault)
    return None, None, None, None


def _recalled(name: str, version: Version) -> tuple[Artifact, Artifact | None, Artifact] | None:
    """Return the stored copy of a version's check, dedupe and split results, or their artifacts if intact; else None.

    A version that was accepted before boilerplate was kept has no copy of dedupe's.
    """
    folder, parts = data_history.folder_of(name, version), (version.checked, version.unique, version.splits)
    if data_history.kept(name, version):
        checked, unique, splits = (
            Artifact(stage=part.stage, key=part.key, digest=part.digest, folder=folder) for part in parts
        )
        return checked, unique if unique.path(BOILERPLATE).is_file() else None, splits
    checked, unique, splits = (
        found if found and found.digest == part.digest else None
        for part in parts
        for found in [kept(Artifact, part.stage, part.key)]
    )
    return (checked, unique, splits) if checked and splits else None


def _entry(
    before: Before,
    rows: Rows,
    counted: Rows,
    checked: CheckedRows,
    unique: UniqueRows,
    splits: Splits,
    changes: tuple[int | None, int | None],
) -> Version:
    assert before.number
    return Version(
        number=before.number,
        seed=before.seed,
        by=before.by,
        accepted=now(),
        run=flow_run.name or "",
        parent=before.parent,
        rows=_part(rows),
        checked=_part(checked),
        unique=_part(unique),
        splits=_part(splits),
        counts={
            "read": counted.num_read,
            "general": counted.num_general,
            "rows": counted.num_rows,
            "checked": checked.num_rows,
            "unique": unique.num_rows,
            "train": splits.num_train,
            "validation": splits.num_validation,
            "test": splits.num_test,
        },
        added=changes[0],
        removed=changes[1],
    )


def _replaced(name: str, known: Version, splits: Splits) -> Replaced:
    """Count the rows that changed split in a replaced acceptance; quarantined rows have the split they return to."""
    here = splits.path(ASSIGNMENTS_FILE)
    there = here if known.splits.digest == splits.digest else data_history.kept(name, known)
    moved, num_known = None, 0
    if there:
        is_here = pc.field("because") != GONE
        new, old = (
            furthest(pq.read_table(file, columns=["row_id", "side"], filters=is_here)) for file in (here, there)
        )
        both = new.join(old, "row_id", join_type="inner", right_suffix="_before").drop_null()
        moved, num_known = both.filter(pc.field("side") != pc.field("side_before")).num_rows, both.num_rows
    return Replaced(accepted=known.accepted, run=known.run, moved=moved, known=num_known, splits=known.splits.digest)


def _say(name: str, version: Version) -> None:
    """Warns where the splits of a version are others now than those that it was accepted with before."""
    last = len(version.replaced) - 1
    once = version.replaced[last]
    if once.moved == 0:
        return
    if version.is_back(last):
        log.info(
            "version %d of the data of %s has its first accepted splits again, %s",
            *(version.number, name, _when(version.replaced[0])),
        )
        return
    moved = (
        f"the splits that were accepted {_when(once)} are gone, so the number of moved rows is unknown"
        if once.moved is None
        else f"{once.moved:,} of {once.known:,} rows are in another split than when it was accepted {_when(once)}"
    )
    log.warning(
        "version %d of the data of %s was split anew: %s; later data keep the new splits, unless a run with the "
        "earlier settings restores the old ones",
        *(version.number, name, moved),
    )


def _when(once: Replaced) -> str:
    return f"on {once.accepted[:16].replace('T', ' ')}{f' by run {once.run}' if once.run else ''}"


def _part(artifact: Artifact) -> StageOutput:
    return StageOutput(stage=artifact.stage, key=artifact.key, digest=artifact.digest)


def _changes(before: Before, rows: Rows, past: Sequence[Version]) -> tuple[int | None, int | None]:
    """Count the records that came and went since the version before.

    Records are told apart by their row_id; of equal ones it counts how many there are. None where it is not kept which
    records that version had.
    """
    earlier = next((version for version in past if version.rows.digest == before.parent), None)
    if earlier is None:
        return rows.num_rows, 0
    file = data_history.kept(before.name, earlier)
    if file is None:
        return None, None
    now = pq.read_table(rows.path("rows.parquet"), columns=["row_id"])
    new = now.group_by("row_id").aggregate([([], "count_all")]).rename_columns(["row_id", "records"])
    both = new.join(data_history.records(file), "row_id", join_type="full outer", right_suffix="_before")
    now, then = (np.asarray(both[name].fill_null(0)).astype(np.int64) for name in ("records", "records_before"))
    return int((now - then).clip(min=0).sum()), int((then - now).clip(min=0).sum())
