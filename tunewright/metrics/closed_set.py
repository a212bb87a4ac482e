"""Whether the last answers of rows are labels: a closed set, each of which is given again and again."""

from pathlib import Path

import numpy as np

from tunewright.artifacts import no_replay
from tunewright.errors import DataError
from tunewright.similarity.engine import read_pieces
from tunewright.similarity.folding import fold_messages
from tunewright.similarity.prompts import answers

ROWS_OF_A_STRATUM = 5  # on average, or splits cannot have their share of each label


def count_answers(file: Path) -> tuple[int, int]:
    """Count the different last answers of rows.parquet, regardless of case and white space, and its rows.

    Replay rows do not count.
    """
    found, num_rows = np.empty(0, np.uint64), 0
    for batch in read_pieces(file, ["messages", "use_as"]):
        rows = batch.filter(no_replay())
        found = np.union1d(found, answers(fold_messages(rows["messages"])))
        num_rows += len(rows)
    return len(found), num_rows


def stop_if_open(num_different: int, num_rows: int) -> None:
    """Raises DataError where the answers of so many rows are no closed set."""
    if ROWS_OF_A_STRATUM * num_different > num_rows:
        raise DataError(
            f"split.stratify=label: {num_rows} rows have {num_different} different last answers, so these are not "
            f"labels; accepted: at most {num_rows // ROWS_OF_A_STRATUM}, or split.stratify=source or none"
        )
