"""Rows for tests of the split: what dedupe hands on, and what the splits say; alike as written down by hand."""

import hashlib
import random
import uuid
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from conftest import messages

from tunewright.artifacts import HELD_OUT_SCHEMA, ROW_SCHEMA, Rows, Splits, UniqueRows
from tunewright.artifacts.placement import SPLITS
from tunewright.config import Split
from tunewright.similarity.folding import fold_texts
from tunewright.similarity.prompts import segments, write_boilerplate
from tunewright.tasks.split import split

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
BOILERPLATE = "Answer this:"


def prompts(num_rows: int, seed: int = 0, copies: float = 0.3, edits: int = 1) -> list[str]:
    """Distinct texts of 8 to 25 words, a share of them a copy of an earlier one with up to `edits` words changed."""
    rng = random.Random(seed)
    texts: list[str] = []
    while len(texts) < num_rows:
        if texts and rng.random() < copies:
            said = rng.choice(texts).split()
            for _ in range(rng.randint(1, edits)):
                said[rng.randrange(len(said))] = rng.choice(WORDS)
        else:
            said = [rng.choice(WORDS) for _ in range(rng.randint(8, 25))]
        if " ".join(said) not in texts:
            texts.append(" ".join(said))
    return texts


def jaccard(one: str, other: str) -> float:
    """The similarity of two texts of plain words."""
    first, second = (set(pairwise(text.split())) for text in (one, other))
    return len(first & second) / len(first | second)


def row_of(text: str, **columns: Any) -> dict[str, Any]:
    """A row with this prompt, and other columns as given; its answer is the column `answer`."""
    answer = columns.pop("answer", "answer")
    return {
        "row_id": hashlib.sha256(f"{text}\n{answer}".encode()).hexdigest(),
        "source": "made",
        "messages": messages([text, answer]),
        **columns,
    }


def unique_rows(rows: Iterable[str | dict[str, Any]]) -> UniqueRows:
    """The rows, plain texts among them, as what dedupe hands on; a line a row."""
    made = [row if isinstance(row, dict) else row_of(row) for row in rows]
    placed = [{"file": "data.jsonl", "line": line} | row for line, row in enumerate(made, start=1)]
    folder = _folder()
    pq.write_table(pa.Table.from_pylist(placed, ROW_SCHEMA), folder / "rows.parquet")
    folded = fold_texts([BOILERPLATE])
    hashes = segments(folded, folded.prompts).hashes.tolist()
    write_boilerplate(folder, 0.05, dict.fromkeys(hashes, 10), dict.fromkeys(hashes, BOILERPLATE))
    return UniqueRows(folder=folder, digest=folder.name, num_rows=len(made), num_removed=0, reasons={}, boilerplate=())


def held_out_rows(records: Sequence[str | tuple[str, str]]) -> Rows:
    """Return ingest's output for a held-out file of these records, each a text or a question with its answer."""
    folder = _folder()
    said = [
        {"text": each, "answered": 0}
        if isinstance(each, str)
        else {"text": "\n".join(each), "asked": len(each[0].splitlines()), "answered": len(each[1].splitlines())}
        for each in records
    ]
    records_at = [{"file": "eval.jsonl", "line": line} | each for line, each in enumerate(said, start=1)]
    pq.write_table(pa.Table.from_pylist(records_at, HELD_OUT_SCHEMA), folder / "held_out.parquet")
    return Rows(
        folder=folder,
        digest=folder.name,
        num_read=0,
        num_rows=0,
        num_quarantined=0,
        reasons={},
        detected={},
        num_held_out=len(records),
    )


def split_rows(
    rows: Iterable[str | dict[str, Any]],
    settings: Split = Split(),  # noqa: B008 it is frozen
    earlier: Splits | None = None,
    held_out: Sequence[str | tuple[str, str]] = (),
) -> Splits:
    """The stage's own result on these rows."""
    return split.fn(unique_rows(rows), held_out_rows(held_out), settings, earlier)


def in_splits(splits: Splits) -> dict[str, list[dict[str, Any]]]:
    """Side -> its rows."""
    return {split: pq.read_table(splits.path(f"{split}.parquet")).to_pylist() for split in SPLITS}


def split_of(splits: Splits) -> dict[str, str]:
    """Row_id -> split, of the rows that stand on one."""
    return {row["row_id"]: split for split, rows in in_splits(splits).items() for row in rows}


def quarantined(splits: Splits) -> dict[str, dict[str, Any]]:
    """Row_id -> its line in quarantine.parquet."""
    return {row["row_id"]: row for row in pq.read_table(splits.path("quarantine.parquet")).to_pylist()}


def prompt(row: dict[str, Any]) -> str:
    """Return the prompt of a row."""
    return row["messages"][0]["content"]


def largest_across(splits: Splits) -> float:
    """The largest similarity of two rows across splits, found by comparing all."""
    texts = [(split, prompt(row)) for split, rows in in_splits(splits).items() for row in rows]
    return max(jaccard(x, y) for i, (a, x) in enumerate(texts) for b, y in texts[:i] if a != b)


def _folder() -> Path:
    from tunewright import config

    folder = config.home().parent / uuid.uuid4().hex[:12]
    folder.mkdir(parents=True)
    return folder
