"""Train, validation and test that share no near duplicate, and the proof of it.

A cluster is what must stay together: rows whose prompts are alike, directly or through others, and rows of one group.
Clusters are ordered by a hash of their smallest row_id, whatever the order of the rows, and sides are filled in that
order, test first. Filling keeps sides of some hundred rows within a row or two of the share asked for, where a
threshold on the hash would be off by a tenth; a quarter more rows move 1 to 2% of the old ones. Clusters of more than
a tenth of a side come last: a large one trains, and fills no test set with one question.
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

from tasks.artifacts import ROW_SCHEMA, SPLIT_SCHEMA, Splits, UniqueRows
from tasks.caching import cached
from tasks.config import Split
from tasks.errors import DataError, retry_transient
from tasks.similarity import BOILERPLATE, Nearest, Pairs, alike, nearest_across, prompt_text, without

SIDES = ("train", "validation", "test")
LARGE_SHARE = 0.1  # of a side: a cluster that is larger is taken only where the smaller ones do not fill the side
RANDOM_SPLITS = 20


def find_clusters(pairs: Pairs, groups: list[str | None]) -> np.ndarray:
    """The cluster of each row, numbered by first appearance: connected by similarity or by an equal group."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    first_of: dict[str, int] = {}
    group = [row if name is None else first_of.setdefault(name, row) for row, name in enumerate(groups)]
    rows = np.arange(len(groups))
    ends = np.concatenate([rows, rows, pairs.left]), np.concatenate([pairs.first, np.array(group, int), pairs.right])
    graph = coo_matrix((np.ones(len(ends[0]), dtype=np.int8), ends), shape=(len(groups), len(groups)))
    _, labels = connected_components(graph, directed=False)
    numbered: dict[int, int] = {}
    return np.array([numbered.setdefault(label, len(numbered)) for label in labels.tolist()], dtype=np.int64)


def assign(clusters: np.ndarray, row_ids: list[str], settings: Split) -> np.ndarray:
    """The side of each row, as its position in SIDES; a cluster is on one side."""
    sizes = np.bincount(clusters)
    smallest: dict[int, str] = {}
    for cluster, row_id in zip(clusters.tolist(), row_ids, strict=True):
        smallest[cluster] = min(row_id, smallest.get(cluster, row_id))
    drawn = {c: hashlib.sha256(f"{settings.seed} {row_id}".encode()).digest() for c, row_id in smallest.items()}
    side_of = np.zeros(len(sizes), dtype=np.int64)
    for side in ("test", "validation"):
        wanted = getattr(settings, side) * len(row_ids)
        free = np.flatnonzero(side_of == 0).tolist()
        for cluster in sorted(free, key=lambda c: (sizes[c] > max(1, LARGE_SHARE * wanted), drawn[c])):
            if sizes[cluster] <= 2 * wanted:  # else the side would be further from its share with it than without
                side_of[cluster] = SIDES.index(side)
                wanted -= sizes[cluster]
    return side_of[clusters]


def random_leak_share(pairs: Pairs, num_test: int) -> float:
    """The share of test rows with a similar row outside test, had the rows been drawn at random; mean of 20 draws."""
    num_rows = len(pairs.first)
    shares = []
    for seed in range(RANDOM_SPLITS):
        outside = np.ones(num_rows, dtype=bool)
        outside[np.random.default_rng(seed).permutation(num_rows)[:num_test]] = False
        leaks = np.bincount(pairs.first[outside], minlength=num_rows) > 0
        neighbours = leaks.copy()
        np.logical_or.at(neighbours, pairs.left, leaks[pairs.right])
        np.logical_or.at(neighbours, pairs.right, leaks[pairs.left])
        shares.append(neighbours[pairs.first[~outside]].mean())
    return round(float(np.mean(shares)), 6)


def _stop_if_empty(counts: dict[str, int], clusters: np.ndarray, settings: Split) -> None:
    for side, count in counts.items():
        if count == 0:
            found = ", ".join(f"{name} {num_rows}" for name, num_rows in counts.items())
            sizes = np.bincount(clusters, minlength=1)
            raise DataError(
                f"the {side} side is empty ({found}): {len(clusters)} rows make {len(set(clusters))} clusters, the "
                f"largest of {sizes.max()} rows, with split.test={settings.test:g}, split.validation="
                f"{settings.validation:g}, split.threshold={settings.threshold:g}; each side needs a cluster"
            )


def _proof(rows: pa.Table, nearest: Nearest, clusters: np.ndarray, settings: Split) -> dict[str, Any]:
    test, outside = rows.select(["row_id", "file", "line"]).take([nearest.inside, nearest.outside]).to_pylist()
    sizes = Counter(np.bincount(clusters).tolist())
    return {
        "threshold": settings.threshold,
        "pairs_compared": nearest.num_compared,
        "largest_similarity": nearest.similarity,
        "largest_pair": {"test": test, "outside": outside},
        "holds": nearest.similarity < settings.threshold,
        "cluster_sizes": {str(size): sizes[size] for size in sorted(sizes)},  # size -> clusters of that size
    }


@task(
    name="split",
    task_run_name="split test={settings.test} validation={settings.validation}",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=retry_transient,
)
@cached(libraries=("pyarrow", "numpy"))
def split(folder: Path, rows: UniqueRows, settings: Split) -> Splits:
    """The three sides by cluster; DataError where a side is empty or a test row is alike to a row outside test."""
    table = pq.read_table(rows.path("rows.parquet"), schema=ROW_SCHEMA)
    left_out = set(json.loads(rows.path(BOILERPLATE).read_text(encoding="utf-8")))
    keys = [without(prompt_text(messages), left_out) for messages in table["messages"].to_pylist()]
    pairs = alike(keys, settings.threshold)
    clusters = find_clusters(pairs, table["group"].to_pylist())
    sides = assign(clusters, table["row_id"].to_pylist(), settings)
    counts = {name: int((sides == side).sum()) for side, name in enumerate(SIDES)}
    _stop_if_empty(counts, clusters, settings)
    nearest = nearest_across(keys, sides == SIDES.index("test"))
    proof = _proof(table, nearest, clusters, settings)
    if not proof["holds"]:
        raise DataError(f"a test row repeats a row outside test, over split.threshold: {proof['largest_pair']}")
    proof |= {"rows": counts, "random_leak_share": random_leak_share(pairs, counts["test"])}
    (folder / "proof.json").write_text(json.dumps(proof, ensure_ascii=False, indent=1), encoding="utf-8")
    table = table.append_column(SPLIT_SCHEMA.field("cluster"), pa.array(clusters, pa.int64()))
    for side, name in enumerate(SIDES):
        pq.write_table(table.filter(pa.array(sides == side)), folder / f"{name}.parquet")
    return Splits(
        num_train=counts["train"],
        num_validation=counts["validation"],
        num_test=counts["test"],
        num_clusters=len(np.unique(clusters)),
        largest_similarity=nearest.similarity,
        random_leak_share=proof["random_leak_share"],
    )
