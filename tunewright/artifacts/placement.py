"""The split of a row and why it is there: the values of sides.parquet."""

from enum import IntEnum

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

SPLITS = ("train", "validation", "test")  # a row of an earlier one gives way to a row of a later one
TRAIN, VALIDATION, TEST = range(3)
NONE = -1


class Because(IntEnum):
    """Why a row is in its split, or why it is quarantined."""

    DRAWN = 0
    BY_TIME = 1
    KEPT = 2  # it was in this split in the earlier version
    INHERITED = 3  # it is similar to a row that is assigned to this split
    GIVEN = 4  # its source has use_as
    REPLAY = 5  # it is a replay row, of those that were drawn
    BRIDGES_SPLITS = 6
    REPEATS_TEST_ROW = 7
    REPEATS_VALIDATION_ROW = 8
    CONTAMINATED = 9
    REPEATS_OWN_ROW = 10  # a replay row that repeats a row of another source
    NOT_DRAWN = 11  # a replay row for which split.replay has no room
    GROUP_OF_TEST_ROW = 12  # and not similar to it
    GROUP_OF_VALIDATION_ROW = 13


REPEATS = {TEST: Because.REPEATS_TEST_ROW, VALIDATION: Because.REPEATS_VALIDATION_ROW}
OF_GROUP = {TEST: Because.GROUP_OF_TEST_ROW, VALIDATION: Because.GROUP_OF_VALIDATION_ROW}
GONE = "gone"  # of rows that the version before has and this one does not
QUARANTINES = tuple(because for because in Because if because >= Because.BRIDGES_SPLITS)
# Why a row of sides.parquet is in no split, though it may name one to return to. The last is of old homes.
NOT_PLACED = (*(because.name.lower() for because in QUARANTINES), GONE, "bridges_sides")


def furthest(memory: pa.Table) -> pa.Table:
    """Return each row_id of a sides.parquet once, with the one of its splits that is nearest to test.

    It has several where a row was quarantined because of a user-provided row with the same messages.
    """
    order = np.argsort(-numbers_of(memory["side"]), kind="stable")
    ids = np.asarray(memory["row_id"].combine_chunks().dictionary_encode().indices)
    _, first = np.unique(ids[order], return_index=True)
    return memory.take(pa.array(np.sort(order[first])))


def numbers_of(column: pa.ChunkedArray) -> np.ndarray:
    """(rows,) the number of each row's split, or NONE, from its name."""
    return index_in(column.combine_chunks(), pa.array(SPLITS))


def index_in(values: pa.Array, those: pa.Array) -> np.ndarray:
    """Return the position of each value among `those`, or -1, which is NONE."""
    place = pc.index_in(values, value_set=those)  # pyright: ignore[reportAttributeAccessIssue]
    return np.asarray(place.fill_null(-1)).astype(np.int64)
