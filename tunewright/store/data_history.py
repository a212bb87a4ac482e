"""The accepted versions of a pipeline's data: a line each in `<home>/versions/<name>.jsonl`.

What makes a version, and what follows from it, is said in data_versions.py.

`<home>/versions/splits/<name>/<id>/` has all that later data must know of a version: sides.parquet, one line for each
row that split placed and for each other row_id that ingest read, profile.json, from which drift is measured, and
boilerplate.json, by whose hashes later data leave out the same sentences. It takes 34 bytes a row, since it holds
row_ids and no texts: what a row said may be gone for privacy. It is written when the version is accepted, so that the
next run has the same splits although all artifacts were deleted.
"""

import shutil
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from tunewright import config
from tunewright.artifacts import ASSIGNMENTS_FILE, ASSIGNMENTS_SCHEMA, CheckedRows, Rows, Splits, UniqueRows
from tunewright.errors import ConfigError
from tunewright.machine import parquet
from tunewright.machine.bounded import Unreadable
from tunewright.similarity.prompts import BOILERPLATE, copy_boilerplate
from tunewright.store import disk
from tunewright.store.cache_key import hash_of
from tunewright.store.caching import digest_of
from tunewright.store.histories import up_to_date
from tunewright.store.manifest import fetch, share
from tunewright.store.shared import path_in_home, shared_store

DUPLICATE, QUARANTINED = "duplicate", "quarantined"  # why split was not given a row
PROFILE = "profile.json"
DIGITS = 20  # of the digest of the splits, with which the name of a folder begins
SCHEMA = pa.schema(
    [
        *ASSIGNMENTS_SCHEMA,
        ("records", pa.int32()),  # that ingest read
        ("checked", pa.bool_()),  # whether they passed check
        ("placed", pa.bool_()),  # whether the row is in its split, and not quarantined or gone
    ]
)


class StageOutput(BaseModel, frozen=True):
    """One stage's artifact of a data version: its key and digest."""

    stage: str
    key: str
    digest: str

    @property
    def folder(self) -> Path:
        """The artifact's folder in this home."""
        return config.home() / "artifacts" / self.stage / self.key


class Replaced(BaseModel, frozen=True):
    """An earlier acceptance of the same data under other settings, from a line of the history."""

    accepted: str  # UTC
    run: str
    moved: int | None  # rows that were in another split than those that replaced it have; None where it was gone
    known: int  # rows with a split in both, of which `moved` are some
    splits: str = ""  # digest of the splits


class Version(BaseModel, frozen=True):
    """One line: one accepted version of the data."""

    number: int  # within its history, from 1
    seed: int
    by: Literal["cluster", "time"]
    accepted: str  # UTC
    run: str  # the name of the flow run; empty for a call outside a flow
    parent: str  # digest of the rows of the version before; empty for the first
    rows: StageOutput
    checked: StageOutput
    unique: StageOutput
    splits: StageOutput
    counts: dict[str, int]  # read, rows, checked, unique, train, validation, test
    added: int | None  # records that the version before does not have; None where that one's rows are gone
    removed: int | None  # records of the version before that this one does not have
    replaced: tuple[Replaced, ...] = ()  # the oldest first
    assignments: str = ""  # their digest; empty in a line that was written before they were kept

    def is_back(self, position: int) -> bool:
        """Whether what replaced `replaced[position]` are the splits that it was first accepted with."""
        splits = [*(once.splits for once in self.replaced), self.splits.digest]
        return position > 0 and splits[position + 1] == splits[0]


def history(name: str, seed: int, by: str) -> list[Version]:
    """The versions of one history, the oldest first."""
    return [version for version in read(up_to_date(file_of(name))) if (version.seed, version.by) == (seed, by)]


def file_of(name: str) -> Path:
    """The file with all versions of a pipeline's data."""
    return config.home() / "versions" / f"{name}.jsonl"


def read(file: Path) -> list[Version]:
    """All versions in a file. Raises ConfigError where a line is none."""
    return disk.read(
        file, Version, "is not a data version; fix the line, or delete the file: the next run starts a new history"
    )


def write(file: Path, versions: Sequence[Version]) -> None:
    """Replaces the file in one step: after a kill it has all the old lines or all the new ones."""
    disk.replace(file, "".join(f"{version.model_dump_json()}\n" for version in versions))


def folder_of(name: str, version: Version) -> Path:
    """Return the folder with the assignments of a version of a pipeline's data."""
    led_there = hash_of([part.digest for part in (version.rows, version.checked, version.unique)])
    return place(name) / f"{version.splits.digest[:DIGITS]}-{led_there[:12]}"


def place(name: str) -> Path:
    """The folder with the assignments of all versions of a pipeline's data."""
    return config.home() / "versions" / "splits" / name


def keep(
    folder: Path,
    rows: Rows,
    checked: CheckedRows,
    unique: UniqueRows,
    splits: Splits,
    there: str,
    no_split: Collection[str],
) -> str:
    """Writes the assignments of a version to `folder` in one step, unless those with the digest `there` are there.

    `no_split` are the reasons of rows that are in no split. Returns the digest of the assignments.
    """
    if there and digest(folder) == there:
        share(folder)
        return there
    unfinished = folder.with_name(f".{folder.name}")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed run, since the history is locked
    unfinished.mkdir(parents=True)
    table = _table(rows, checked, splits, no_split)
    pq.write_table(table, unfinished / ASSIGNMENTS_FILE, compression="zstd")
    shutil.copyfile(checked.path(PROFILE), unfinished / PROFILE)
    copy_boilerplate(unique.path(BOILERPLATE), unfinished)
    disk.sync(*unfinished.iterdir(), unfinished)
    shutil.rmtree(folder, ignore_errors=True)  # others than `there`
    unfinished.rename(folder)
    disk.sync(folder.parent)
    share(folder, is_new=True)
    return digest(folder)


def digest(folder: Path) -> str:
    """The digest of the assignments in `folder`; empty where they are not whole."""
    since = (BOILERPLATE,) if (folder / BOILERPLATE).exists() else ()  # versions before it have none
    try:
        return hash_of([digest_of(folder / name) for name in (ASSIGNMENTS_FILE, PROFILE, *since)])
    except FileNotFoundError:
        return ""


def kept(name: str, version: Version) -> Path | None:
    """The sides.parquet of a version; None where it is gone or was altered, on which pyarrow can wait for ever."""
    folder = folder_of(name, version)
    fetch(folder)
    return folder / ASSIGNMENTS_FILE if version.assignments and digest(folder) == version.assignments else None


def records(file: Path) -> pa.Table:
    """Count the records of each row_id that ingest read (row_id, records), from the sides.parquet of a version."""
    return pq.read_table(file, columns=["row_id", "records"], filters=pc.field("records") > 0)


def trained(name: str, splits: str) -> set[str] | None:
    """The row_ids of the training rows of the version whose splits have this digest; None where they are not kept.

    Raises ConfigError where they cannot be read. Nothing holds them against a digest here, so a bounded child reads.
    """
    if store := shared_store():
        for folder in store.trees(path_in_home(place(name)), f"{splits[:DIGITS]}-"):
            fetch(place(name) / folder)
    file = next(place(name).glob(f"{splits[:DIGITS]}-*/{ASSIGNMENTS_FILE}"), None)
    if file is None:
        return None
    names = ["row_id", "side", "placed"]
    try:
        rows = pa.Table.from_batches(parquet.batches(str(file), names), pa.schema([SCHEMA.field(n) for n in names]))
    except (pa.ArrowException, Unreadable) as error:
        raise ConfigError(
            f"{file}: was altered and cannot be read ({error}); restore versions/ from a backup, or remove "
            f"{file.parent} to forget these rows"
        ) from error
    return {*rows.filter((pc.field("side") == "train") & pc.field("placed"))["row_id"].to_pylist()}


def forget(name: str, kept: Iterable[str]) -> None:
    """Removes the assignments of all versions of a pipeline but those whose splits have one of these digests."""
    beginnings = {digest[:DIGITS] for digest in kept}
    for folder in place(name).glob("*/"):
        if folder.name.partition("-")[0] not in beginnings:
            shutil.rmtree(folder)
    if store := shared_store():
        for folder in store.trees(path_in_home(place(name))):
            if folder.partition("-")[0] not in beginnings:
                store.remove(path_in_home(place(name) / folder))


def _table(rows: Rows, checked: CheckedRows, splits: Splits, no_split: Collection[str]) -> pa.Table:
    """SCHEMA: the lines of the split stage in their order, then the row_ids that it was not given."""
    of_split = pq.read_table(splits.path(ASSIGNMENTS_FILE), schema=ASSIGNMENTS_SCHEMA)
    read = pq.read_table(rows.path("rows.parquet"), columns=["row_id"])["row_id"].value_counts()
    row_ids, counts = read.field("values"), read.field("counts").to_numpy()
    passed = pq.read_table(checked.path("rows.parquet"), columns=["row_id"])["row_id"]
    others = row_ids.filter(pa.array(~_among(row_ids, of_split["row_id"])))
    because = pa.array(np.where(_among(others, passed), DUPLICATE, QUARANTINED), pa.string())
    rest = pa.table([others, pa.nulls(len(others), pa.string()), because], schema=ASSIGNMENTS_SCHEMA)
    table = pa.concat_tables([of_split, rest])
    ids = table["row_id"].combine_chunks()
    place = pc.index_in(ids, value_set=row_ids)  # pyright: ignore[reportAttributeAccessIssue]
    found = place.fill_null(len(counts)).to_numpy()
    _, first = np.unique(ids.dictionary_encode().indices.to_numpy(), return_index=True)
    number = np.zeros(len(ids), np.int32)
    number[first] = np.append(counts, 0)[found[first]]  # once, where a row_id has several lines
    placed = ~_among(table["because"].combine_chunks(), pa.chunked_array([[*no_split]], pa.string()))
    return pa.table([*table.columns, number, _among(ids, passed), placed], schema=SCHEMA)


def _among(values: pa.Array, those: pa.ChunkedArray) -> np.ndarray:
    """Whether each value is one of those."""
    found = pc.is_in(values, value_set=those.combine_chunks())  # pyright: ignore[reportAttributeAccessIssue]
    return found.to_numpy(zero_copy_only=False)
