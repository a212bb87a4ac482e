"""Results on general tasks and texts, item by item, in one format for every stage that evaluates them."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import GENERAL_SCHEMA, General


def item(row_id: str, metric: str, part: str, prompt: str, answer: str, score: float) -> dict[str, Any]:
    """A row of GENERAL_SCHEMA."""
    return dict(zip(GENERAL_SCHEMA.names, (row_id, metric, part, prompt, answer, score), strict=True))


def keep(folder: Path, contender: str, items: list[dict[str, Any]]) -> General:
    """Writes general.parquet and general.json, the mean score of each metric and of each part."""
    pq.write_table(pa.Table.from_pylist(items, GENERAL_SCHEMA), folder / "general.parquet")
    scores = _means(items, "metric") | _means(items, "part")
    (folder / "general.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return General(contender=contender, scores=scores)


def tables(general: Sequence[General]) -> dict[str, pa.Table]:
    """All items of each contender, in the order of the records."""
    names = dict.fromkeys(each.contender for each in general)
    found = [(each.contender, pq.read_table(each.path("general.parquet"))) for each in general]
    return {name: pa.concat_tables(table for whose, table in found if whose == name) for name in names}


def scores(general: Sequence[General]) -> dict[str, dict[str, float]]:
    """The mean scores of each contender, of all records."""
    names = dict.fromkeys(each.contender for each in general)
    return {
        name: {what: score for each in general if each.contender == name for what, score in each.scores.items()}
        for name in names
    }


def _means(items: list[dict[str, Any]], by: str) -> dict[str, float]:
    return {
        value: fmean(row["score"] for row in items if row[by] == value) for value in dict.fromkeys(r[by] for r in items)
    }
