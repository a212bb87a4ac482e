"""Deduplication beside datasketch, rensa and exact matching alone, on the same rows with planted duplicates.

Every side runs in a process of its own, from a Parquet file to the numbers of the rows that it removes. Seconds, CPU
seconds of all threads and the memory that is added begin after a run over a few rows that imports and compiles; `times`
is how many times as much as ours each takes, and the smallest counts. CPU seconds change little on a busy machine.

datasketch and rensa are used as their documentation says, with 128 permutations, on the word 2-grams of the prompts
without the instruction that all rows of a source have; datasketch both with an update for each shingle, as on its first
page, and with MinHash.generator. Ours gets whole conversations: it finds that instruction itself, and looks at numbers
and answers too. benchmarks/plants.py says what was planted.

A removal is unverified if no row that stays has an exact Jaccard similarity (benchmarks/jaccard.py) of at least the
threshold to it. `in reach` are the planted pairs that have one: what a search that misses none finds.

    .venv/bin/python benchmarks/dedupe.py --rows 100000 --files data/*.jsonl    # no files: own sentences
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaccard import Similarities, shingles
from memory import watch
from plants import DUPLICATES, LOOKALIKES, Plant, Row

from tunewright.artifacts import ROW_SCHEMA

NUM_PERMUTATIONS = 128
WARM_UP_ROWS = 300
LEAST_RATIO = 8  # ours must be so many times as fast as datasketch, either way, by the clock and by CPU time
ROW_GROUP = 2_000
READ = ("messages", "use_as")  # what the stages read of a row to find duplicates
ROUNDING = 1e-9
CLOCKS = ("seconds", "cpu")
Result = dict[str, Any]


def write_table(rows: Iterable[Row], file: Path) -> None:
    """The rows as the stages have them (messages), and as texts: the prompt that tells a row, and all turns."""
    records = [
        {"messages": row.messages(), "prompt": "\n".join((*row.earlier, row.prompt)), "all": "\n".join(row.turns())}
        for row in rows
    ]
    schema = pa.schema([*map(ROW_SCHEMA.field, READ), ("prompt", pa.string()), ("all", pa.string())])
    pq.write_table(pa.Table.from_pylist(records, schema), file, row_group_size=ROW_GROUP)


def texts(file: Path, column: str) -> list[str]:
    """One of the text columns."""
    return pq.read_table(file, columns=[column])[column].to_pylist()


def ours(file: Path, threshold: float) -> list[int]:
    """The pure part of tunewright.tasks.dedupe."""
    from tunewright.config import Dedupe
    from tunewright.tasks.dedupe import find_repeats

    repeats, _ = find_repeats(file, Dedupe(threshold=threshold))
    return np.flatnonzero(~repeats.stays).tolist()


def datasketch(file: Path, threshold: float) -> list[int]:
    """MinHash with an update for each shingle, and MinHashLSH."""
    from datasketch import MinHash

    def sketch(text: str) -> Any:
        minhash = MinHash(num_perm=NUM_PERMUTATIONS)
        for shingle in shingles(text):
            minhash.update(shingle.encode())
        return minhash

    return _datasketch_lsh(map(sketch, texts(file, "prompt")), threshold)


def datasketch_bulk(file: Path, threshold: float) -> list[int]:
    """MinHash.generator, which hashes the shingles of a text at once, and MinHashLSH."""
    from datasketch import MinHash

    sets = ([shingle.encode() for shingle in shingles(text)] for text in texts(file, "prompt"))
    return _datasketch_lsh(MinHash.generator(sets, num_perm=NUM_PERMUTATIONS), threshold)


def _datasketch_lsh(sketches: Iterable[Any], threshold: float) -> list[int]:
    """Each sketch is looked up among those that stay."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS)
    removed = []
    for row, minhash in enumerate(sketches):
        if index.query(minhash):
            removed.append(row)
        else:
            index.insert(row, minhash)
    return removed


def rensa(file: Path, threshold: float) -> list[int]:
    """RMinHashDeduplicator with LSH, which checks its candidates by their sketches."""
    from rensa import RMinHashDeduplicator  # pyright: ignore[reportAttributeAccessIssue] it has no stubs

    index = RMinHashDeduplicator(threshold=threshold, num_perm=NUM_PERMUTATIONS, use_lsh=True)
    stays = index.add_pairs((str(row), shingles(text)) for row, text in enumerate(texts(file, "prompt")))
    return [row for row, kept in enumerate(stays) if not kept]


def exact(file: Path, threshold: float) -> list[int]:
    """Equal conversations, but for case and white space; it has no threshold."""
    seen: dict[str, int] = {}
    keys = (" ".join(text.casefold().split()) for text in texts(file, "all"))
    return [row for row, key in enumerate(keys) if seen.setdefault(key, row) != row]


SIDES: dict[str, Callable[[Path, float], list[int]]] = {
    side.__name__: side for side in (ours, datasketch, datasketch_bulk, rensa, exact)
}


def run_side(side: str, folder: Path, threshold: float) -> None:
    """In a process of its own: prints what the side removed, and when and how long it ran."""
    SIDES[side](folder / "first.parquet", threshold)
    begin, began = time.time(), time.process_time()
    removed = SIDES[side](folder / "rows.parquet", threshold)
    print(json.dumps({"begin": begin, "cpu": time.process_time() - began, "end": time.time(), "removed": removed}))


def measure(side: str, folder: Path, threshold: float) -> Result:
    """Return the output of run_side with its seconds and the largest increase of memory in MB."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--threshold", str(threshold)]
    seen = watch(command)
    found = seen.objects[0]
    memory = seen.peak(found["begin"], found["end"]) - seen.at(found["begin"])
    return found | {"seconds": found["end"] - found["begin"], "mb": memory}


def shares(removed: Sequence[int], truth: Sequence[Plant]) -> dict[str, float]:
    """The share of each kind of plants that was removed."""
    gone = set(removed)
    planted = Counter(plant.kind for plant in truth)
    found = Counter(plant.kind for plant in truth if plant.line - 1 in gone)
    return {kind: found[kind] / planted[kind] for kind in (*DUPLICATES, *LOOKALIKES)}


def judge(
    results: dict[str, Result], prompts: Sequence[str], truth: Sequence[Plant], threshold: float
) -> dict[str, float]:
    """Adds the unverified removals and the shares to the results; returns the share of plants that is in reach."""
    similarities = Similarities(prompts)
    for result in results.values():
        removed = np.array(result["removed"], dtype=np.int64)
        kept = np.setdiff1d(np.arange(len(prompts)), removed)
        result["unverified"] = int((similarities.largest(removed, kept) < threshold - ROUNDING).sum())
        result["shares"] = shares(result["removed"], truth)
    pairs = np.array([(plant.line - 1, plant.partner - 1) for plant in truth])
    near = similarities.of_pairs(pairs[:, 0], pairs[:, 1]) >= threshold - ROUNDING
    return shares(pairs[near, 0].tolist(), truth)


def table(results: dict[str, Result], in_reach: dict[str, float]) -> str:
    """One line a side."""
    heads = ("", "seconds", "times", "CPU s", "times", "MB", *DUPLICATES, *LOOKALIKES, "removed", "unverified")
    lines: list[tuple[str, ...]] = [heads]
    for side, result in results.items():
        taken = [f"{result[clock] / part:.1f}" for clock in CLOCKS for part in (1, results["ours"][clock])]
        found = [f"{share:.3f}" for share in result["shares"].values()]
        counts = [f"{len(result['removed']):,}", f"{result['unverified']:,}"]
        lines.append((side, *taken, f"{result['mb']:.0f}", *found, *counts))
    lines.append(("in reach", "", "", "", "", "", *(f"{in_reach[kind]:.3f}" for kind in DUPLICATES), *[""] * 5))
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def failures(results: dict[str, Result]) -> list[str]:
    """Describe each failed comparison with datasketch, wrong removal and unverified removal."""
    ours, other = results["ours"], results["datasketch"]
    missed = [kind for kind in DUPLICATES if ours["shares"][kind] < other["shares"][kind]]
    wrong = [kind for kind in LOOKALIKES if ours["shares"][kind]]
    found = [f"recall under datasketch's: {kind}" for kind in missed] + [f"wrongly removed: {kind}" for kind in wrong]
    ratio = min(results[side][clock] / ours[clock] for side in ("datasketch", "datasketch_bulk") for clock in CLOCKS)
    if ratio < LEAST_RATIO:
        found.append(f"{ratio:.2f} times datasketch's speed, under {LEAST_RATIO}")
    if ours["unverified"]:
        found.append(f"{ours['unverified']} unverified removals")
    return found


def main() -> None:
    """Prints the table; exits with 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threshold", type=float, default=0.6)
    parser.add_argument("--files", type=Path, nargs="*", default=(), help="JSONL whose sentences the text is made from")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        run_side(arguments.side, arguments.folder, arguments.threshold)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = list(corpus.make(arguments.rows, arguments.seed, arguments.files))
        write_table((row for row, _ in made), folder / "rows.parquet")
        write_table((row for row, _ in made[:WARM_UP_ROWS]), folder / "first.parquet")
        truth = [plant for _, plant in made if plant]
        results = {side: measure(side, folder, arguments.threshold) for side in SIDES}
        in_reach = judge(results, texts(folder / "rows.parquet", "prompt"), truth, arguments.threshold)
    print(f"{arguments.rows:,} rows, threshold {arguments.threshold:g}; removed share of what was planted, by kind")
    print(table(results, in_reach))
    found = failures(results)
    print("\n".join(f"does not hold: {failure}" for failure in found) or "all holds")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
