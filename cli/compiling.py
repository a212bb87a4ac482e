"""Has numba compile what compares rows, into the cache beside its modules: `make setup` does.

Otherwise the first run would compile it, and all processes that a suite begins with, for 12 s of processor time each.
"""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import ROW_SCHEMA
from tunewright.config import Dedupe
from tunewright.similarity.engine import Engine
from tunewright.tasks import split
from tunewright.tasks.dedupe import find_repeats

WORDS = ("my parcel", "the red shoes", "a broken lamp", "one late letter")


def compile_all() -> None:
    """Compares some rows, as the stages do."""
    texts = [f"{one} and {other} did not come in time" for one in WORDS for other in WORDS]
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "late"}] for text in texts]
    engine = Engine()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.parquet"
        pq.write_table(pa.Table.from_pylist([{"messages": each} for each in turns], ROW_SCHEMA), file)
        find_repeats(file, Dedupe())
        sets = engine.sets(
            engine.over_batches(file, ["messages"], split.prompt_shingles, left_out=np.zeros(0, np.uint64))
        )
        engine.similar_pairs(sets, 0.5)
        engine.nearest_across(sets, np.arange(len(texts)) % 3, 0.25)


if __name__ == "__main__":
    compile_all()
