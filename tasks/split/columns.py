"""The columns of rows.parquet that fit in memory, the last version's splits, and the strata that splits share."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import ASSIGNMENTS_FILE, ASSIGNMENTS_SCHEMA, ROW_SCHEMA, Artifact
from tunewright.artifacts.payloads import Balance, Deviation, Stratum
from tunewright.artifacts.placement import NONE, NOT_PLACED, SPLITS, TEST, TRAIN, furthest, index_in, numbers_of
from tunewright.errors import ConfigError
from tunewright.reports.pages import counted, percent
from tunewright.similarity.engine import read_pieces
from tunewright.tools.conversation import conversation_of, is_undesirable

READ = ["row_id", "file", "line", "source", "group", "time", "use_as"]
REPORTED = 50
UNEVEN = 0.1  # of a split: rows of one stratum more or fewer than its share, from which that is warned of
UNEVEN_ROWS = 5  # that are more or fewer by chance in any split


class Times(NamedTuple):
    """The times of rows."""

    ranks: np.ndarray  # (rows,) the place of a row's time in `values`, -1 for none
    values: pa.Array  # rising


@dataclass(frozen=True)
class RowColumns:
    """All that is known of rows but what they say."""

    table: pa.Table  # READ
    row_ids: pa.Array
    group: np.ndarray  # (rows,) the number of the row's group, -1 for none
    given: np.ndarray  # (rows,) the split that its source is given to, or NONE
    replay: np.ndarray  # (rows,) whether it is a replay row, which is given to train

    def __len__(self) -> int:
        return len(self.row_ids)

    @property
    def has_groups(self) -> bool:
        """Whether any row has a group."""
        return bool((self.group >= 0).any())

    def place(self, row: int) -> str:
        """Return the place of a row, as file:line."""
        return f"{self.table['file'][row].as_py()}:{self.table['line'][row].as_py()}"

    def identity(self, row: int) -> dict[str, Any]:
        """Return the fields that identify a row."""
        return {name: self.table[name][row].as_py() for name in ("row_id", "file", "line")}

    def times(self) -> Times:
        """The times of all rows; only those that are given to a split may have none (tasks/ingest)."""
        encoded = self.table["time"].combine_chunks().dictionary_encode()
        order = pc.sort_indices(encoded.dictionary)  # pyright: ignore[reportAttributeAccessIssue]
        rank = np.empty(len(order), np.int64)
        rank[np.asarray(order)] = np.arange(len(order))
        codes = np.asarray(encoded.indices.fill_null(-1))
        return Times(np.append(rank, -1)[codes], encoded.dictionary.take(order))


def read_columns(file: Path) -> RowColumns:
    """The columns of rows.parquet."""
    table = pq.read_table(file, columns=READ, schema=ROW_SCHEMA, read_dictionary=["file", "source"])
    group = table["group"].combine_chunks().dictionary_encode().indices.fill_null(-1)
    replay = index_in(table["use_as"].combine_chunks(), pa.array(["replay"])) == 0
    given = np.where(replay, TRAIN, numbers_of(table["use_as"]))
    return RowColumns(table, table["row_id"].combine_chunks(), np.asarray(group).astype(np.int64), given, replay)


def undesirable(file: Path) -> np.ndarray:
    """(rows,) whether the answer of a row is undesirable: it is no reference, so such a test row is not asked."""
    found = list[bool]()
    for piece in read_pieces(file, ["chat"]):
        rows = ({"messages": [], "chat": chat} for chat in piece["chat"].to_pylist())
        found += ["undesirable" in (row["chat"] or "") and is_undesirable(conversation_of(row)) for row in rows]
    return np.array(found)


class EarlierSplits(NamedTuple):
    """The splits that rows had in all earlier versions, and in the last of them alone."""

    split: np.ndarray  # (rows,) the split that each row had in any version, or NONE
    gone: pa.Table  # ASSIGNMENTS_SCHEMA, of rows with a split that are no longer there
    last: np.ndarray  # (rows,) the split that each row had in the last version, or NONE
    listed: np.ndarray  # (rows,) whether the last version names the row at all
    num_left: int  # rows of the last version's splits, but replay rows, that are no longer there


def earlier_splits(row_ids: pa.Array, earlier: Artifact | None) -> EarlierSplits:
    """Read the splits of `earlier`, the last version. Raises ConfigError where it is not whole."""
    if earlier is None:
        none = np.full(len(row_ids), NONE)
        return EarlierSplits(none, ASSIGNMENTS_SCHEMA.empty_table(), none, none != NONE, 0)
    file = earlier.path(ASSIGNMENTS_FILE)
    if not file.is_file():
        raise ConfigError(
            f"split.sticky=true: {file} is missing, which has the splits of the previous version; restore it, or set "
            "split.sticky=false to split anew"
        )
    table = pq.read_table(file, schema=ASSIGNMENTS_SCHEMA)
    listed = index_in(row_ids, table["row_id"].combine_chunks()) != NONE
    table = table.filter(pa.array(numbers_of(table["side"]) != NONE))
    placed = index_in(table["because"].combine_chunks(), pa.array(NOT_PLACED)) == NONE
    split, gone = _looked_up(row_ids, table)
    last, left = _looked_up(row_ids, table.filter(pa.array(placed)))
    return EarlierSplits(split, gone, last, listed, left.filter(pc.field("because") != "replay").num_rows)


def _looked_up(row_ids: pa.Array, memory: pa.Table) -> tuple[np.ndarray, pa.Table]:
    """(rows,) the split that each row has in `memory`, or NONE; and what it has of rows that are no longer there."""
    table = furthest(memory)
    known = table["row_id"].combine_chunks()
    splits = np.append(numbers_of(table["side"]), NONE)
    return splits[index_in(row_ids, known)], table.filter(pa.array(index_in(known, row_ids) < 0))


@dataclass(frozen=True)
class Strata:
    """The stratum of each row, by its place in `names`, which are sorted."""

    of: np.ndarray  # (rows,)
    names: list[str]
    said: list[str]  # each name as it was first said


def strata_of(said: Iterable[str], named: Callable[[str], str] = str) -> Strata:
    """The strata of rows, given what is said of each, and how that is `named`."""
    first: dict[str, tuple[int, str]] = {}
    of = np.fromiter((first.setdefault(named(each), (len(first), each))[0] for each in said), np.int64)
    order = sorted(first)
    rank = np.empty(len(order), np.int64)
    rank[[first[name][0] for name in order]] = np.arange(len(order))
    return Strata(rank[of], order, [first[name][1] for name in order])


def untested(strata: Strata, split: np.ndarray, by: str, cause: str) -> list[str]:
    """Warn of the strata, `by` source or label, without a test row, if one has the rows for a test row.

    `cause` says why that may be.
    """
    from tunewright.privacy.excerpts import in_a_line

    rows, tested = (np.bincount(strata.of[of], minlength=len(strata.names)) for of in (split != NONE, split == TEST))
    missed = (tested == 0) & (rows > 0)
    least = -(-int(rows.sum()) // max(int(tested.sum()), 1))  # the rows that a test row stands for
    large = np.flatnonzero(missed & (rows >= least))
    if not len(large):
        return []
    number, largest = int(missed.sum()), large[rows[large].argmax()]
    which = f"{counted(number, by)} of {int((rows > 0).sum()):,}"
    if number > len(large):
        which += f", of which {len(large):,} {'has' if len(large) == 1 else 'have'} {least:,} rows or more"
    size = counted(int(rows[largest]), "row")
    covered = "it" if number == 1 else "them"
    return [
        f"no test row is from {which}, such as {in_a_line(strata.said[largest])} of {size}, so no score covers "
        f"{covered}; {cause}"
    ]


def uneven(strata: Strata, split: np.ndarray, by: str, drawn: Iterable[int], cause: str) -> list[str]:
    """Warn of the stratum, `by` source or label, of which each of the `drawn` splits has far more or fewer rows.

    A stratum without a test row is warned of in another sentence (untested). `cause` says why that may be.
    """
    from tunewright.privacy.excerpts import in_a_line

    said, num_strata = [], len(strata.names)
    overall = np.bincount(strata.of[split != NONE], minlength=num_strata) / max(1, int((split != NONE).sum()))
    for number in drawn:
        rows = np.bincount(strata.of[split == number], minlength=num_strata)
        surplus = np.where(rows > 0, rows - overall * rows.sum(), 0)
        most = int(np.abs(surplus).argmax())
        if abs(surplus[most]) > max(UNEVEN * rows.sum(), UNEVEN_ROWS):
            said.append(
                f"the {SPLITS[number]} split is uneven: {percent(rows[most] / rows.sum())} of its "
                f"{counted(int(rows.sum()), 'row')} are of {by} {in_a_line(strata.said[most])}, beside "
                f"{percent(overall[most])} of all rows; {cause}"
            )
    return said


def balance(strata: Strata, split: np.ndarray, by: str | None) -> Balance:
    """Return the share of each stratum in all splits and in each, the largest first, and the largest deviation.

    The largest deviation is that of a stratum's share in one split from its share in all, 0 to 1. A name is masked
    where it holds something secret or personal.
    """
    from tunewright.privacy.excerpts import in_a_line

    in_split, num_strata = split != NONE, len(strata.names)
    counts = np.bincount(split[in_split] * num_strata + strata.of[in_split], minlength=len(SPLITS) * num_strata)
    counts = counts.reshape(len(SPLITS), num_strata)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    overall = counts.sum(axis=0) / max(int(counts.sum()), 1)
    deviation = np.abs(shares - overall)
    largest = np.unravel_index(int(deviation.argmax()), deviation.shape) if deviation.size else None
    most = Deviation(split=SPLITS[largest[0]], stratum=in_a_line(strata.said[largest[1]])) if largest else None
    listed = np.lexsort((np.arange(num_strata), -overall))[:REPORTED].tolist()
    return Balance(
        by=by,
        num_strata=num_strata,
        largest_deviation=round(float(deviation.max(initial=0.0)), 6),
        deviates_most=most,
        strata=tuple(
            Stratum(
                name=in_a_line(strata.said[s]),
                all=round(float(overall[s]), 6),
                **{name: round(float(shares[position, s]), 6) for position, name in enumerate(SPLITS)},
            )
            for s in listed
        ),
    )
