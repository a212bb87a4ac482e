"""No row of one side is alike to a row of another, and the proof says so independently of how they were split."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import ROW_SCHEMA, SPLIT_SCHEMA, Splits, UniqueRows
from tasks.config import Split
from tasks.errors import DataError
from tasks.similarity import Pairs, alike, shingles
from tasks.split import SIDES, assign, find_clusters, random_leak_share, split

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def prompts(num_rows: int, seed: int = 0, copies: float = 0.3) -> list[str]:
    """Distinct texts of 8 to 25 words, a share of them an edited copy of an earlier one."""
    rng = random.Random(seed)
    texts: list[str] = []
    while len(texts) < num_rows:
        if texts and rng.random() < copies:
            said = rng.choice(texts).split()
            said[rng.randrange(len(said))] = rng.choice(WORDS)
        else:
            said = [rng.choice(WORDS) for _ in range(rng.randint(8, 25))]
        if " ".join(said) not in texts:
            texts.append(" ".join(said))
    return texts


@pytest.fixture
def unique(tmp_path: Path, write_rows: Any) -> Any:
    """`unique(texts, groups, order)` is what dedupe hands on, a row a text, with the rows in this order."""
    calls = iter(range(1000))

    def make(texts: list[str], groups: dict[int, str] | None = None, order: list[int] | None = None) -> UniqueRows:
        folder = tmp_path / f"unique{next(calls)}"
        table: pa.Table = write_rows(folder / "rows.parquet", [[text, "answer"] for text in texts])
        column = pa.array([(groups or {}).get(row) for row in range(len(texts))], pa.string())
        table = table.set_column(ROW_SCHEMA.get_field_index("group"), ROW_SCHEMA.field("group"), column)
        pq.write_table(table.take(order) if order else table, folder / "rows.parquet")
        (folder / "boilerplate.json").write_text('["answer this:"]')
        return UniqueRows(
            folder=folder, digest=folder.name, num_rows=len(texts), num_removed=0, reasons={}, boilerplate=()
        )

    return make


def sides(splits: Splits) -> dict[str, list[dict[str, Any]]]:
    return {side: pq.read_table(splits.path(f"{side}.parquet")).to_pylist() for side in SIDES}


def side_of(splits: Splits) -> dict[str, str]:
    return {row["row_id"]: side for side, rows in sides(splits).items() for row in rows}


def jaccard(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def test_no_pair_of_two_sides_reaches_the_threshold_and_the_proof_names_the_closest(unique: Any) -> None:
    splits = split.fn(unique(prompts(300)), Split(test=0.2, validation=0.2))
    texts = {side: [row["messages"][0]["content"] for row in rows] for side, rows in sides(splits).items()}
    across = {(a, b): max(jaccard(x, y) for x in texts[a] for y in texts[b]) for a in SIDES for b in SIDES if a < b}
    assert max(across.values()) < 0.6
    proof = json.loads(splits.path("proof.json").read_text())
    largest = max(across["test", "train"], across["test", "validation"])
    assert splits.largest_similarity == proof["largest_similarity"] == largest
    assert proof["holds"]
    closest = [row for rows in sides(splits).values() for row in rows]
    one, other = (
        next(row["messages"][0]["content"] for row in closest if row["row_id"] == proof["largest_pair"][end]["row_id"])
        for end in ("test", "outside")
    )
    assert jaccard(one, other) == largest
    assert proof["pairs_compared"] == sum(
        not shingles(x).isdisjoint(shingles(y)) for x in texts["test"] for y in texts["train"] + texts["validation"]
    )


def test_the_proof_finds_a_leak_that_clustering_would_have_missed(unique: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = unique(prompts(100))
    nothing = np.empty(0, dtype=np.int64)
    monkeypatch.setattr("tasks.split.alike", lambda keys, _: Pairs(np.arange(len(keys)), nothing, nothing, nothing))
    with pytest.raises(DataError, match="a test row repeats a row outside test"):
        split.fn(rows, Split(test=0.3, validation=0.2))


def test_sides_add_up_have_their_schema_and_keep_the_order(unique: Any) -> None:
    splits = split.fn(unique(prompts(200)), Split())
    assert splits.num_train + splits.num_validation + splits.num_test == 200
    lines: list[int] = []
    for side in SIDES:
        table = pq.read_table(splits.path(f"{side}.parquet"))
        assert table.schema == SPLIT_SCHEMA
        assert table.num_rows == getattr(splits, f"num_{side}")
        assert table["line"].to_pylist() == sorted(table["line"].to_pylist())
        lines += table["line"].to_pylist()
    assert sorted(lines) == list(range(1, 201))
    clusters = {row["line"]: row["cluster"] for rows in sides(splits).values() for row in rows}
    assert list(dict.fromkeys(clusters[line] for line in range(1, 201))) == list(range(splits.num_clusters))


def test_a_cluster_is_on_one_side_and_holds_exactly_what_is_connected(unique: Any) -> None:
    texts = prompts(120)
    by_side = sides(split.fn(unique(texts), Split()))
    cluster = {row["line"] - 1: row["cluster"] for rows in by_side.values() for row in rows}
    sizes = Counter(cluster.values())
    close = [(i, j) for i in range(120) for j in range(i) if jaccard(texts[i], texts[j]) >= Split().threshold]
    assert all(cluster[i] == cluster[j] for i, j in close)
    in_pairs = {row for pair in close for row in pair}
    assert {row for row in range(120) if sizes[cluster[row]] > 1} == in_pairs
    assert max(sizes.values()) > 2


def test_a_group_stays_together_whatever_its_rows_say(unique: Any) -> None:
    groups = {row: f"customer {row % 20}" for row in range(100)}
    by_side = sides(split.fn(unique(prompts(150), groups), Split(test=0.2, validation=0.2)))
    found = {side: {row["group"] for row in rows if row["group"]} for side, rows in by_side.items()}
    assert sum(len(names) for names in found.values()) == 20


@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_the_rows_moves_no_row(unique: Any, seed: int) -> None:
    texts, groups = prompts(200), {3: "a", 77: "a", 150: "b", 20: "b"}
    settings = Split(seed=seed)
    order = random.Random(5).sample(range(200), 200)
    assert side_of(split.fn(unique(texts, groups), settings)) == side_of(
        split.fn(unique(texts, groups, order), settings)
    )


def test_another_seed_is_another_split(unique: Any) -> None:
    rows = unique(prompts(200))
    assert side_of(split.fn(rows, Split(seed=0))) != side_of(split.fn(rows, Split(seed=1)))


@pytest.mark.parametrize("seed", range(20))
def test_sides_of_a_small_set_have_the_sizes_asked_for(seed: int) -> None:
    texts = prompts(800, seed=0)
    clusters = find_clusters(alike(texts, 0.6), [None] * 800)
    given = assign(clusters, [f"{seed} {row}" for row in range(800)], Split(test=0.17, validation=0.1, seed=seed))
    assert abs((given == SIDES.index("test")).sum() - 136) <= 2
    assert abs((given == SIDES.index("validation")).sum() - 80) <= 2


def test_a_quarter_more_rows_move_few_of_the_old_ones() -> None:
    texts = prompts(1000, copies=0.1)
    row_ids = [f"{hash_of:016x}" for hash_of in random.Random(1).sample(range(2**60), 1000)]
    before, after = (
        assign(find_clusters(alike(texts[:n], 0.6), [None] * n), row_ids[:n], Split()) for n in (800, 1000)
    )
    assert (before != after[:800]).mean() < 0.05


def test_a_large_cluster_trains() -> None:
    clusters = np.array([0] * 60 + list(range(1, 141)))
    for seed in range(10):
        given = assign(clusters, [f"{row:04}" for row in range(200)], Split(test=0.2, validation=0.2, seed=seed))
        assert set(given[:60].tolist()) == {SIDES.index("train")}


def test_clusters_that_are_all_large_still_fill_every_side() -> None:
    clusters = np.repeat(np.arange(10), 20)
    given = assign(clusters, [f"{row:04}" for row in range(200)], Split(test=0.2, validation=0.2))
    assert Counter(given.tolist()) == {0: 120, 1: 40, 2: 40}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (prompts(2, copies=0), "the validation side is empty|the test side is empty"),
        ([f"the same long question again and again from {'x' * i}" for i in range(1, 41)], "the largest of 40 rows"),
        ([], "the train side is empty"),
    ],
)
def test_an_empty_side_stops_with_the_counts_and_the_settings(unique: Any, texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as stopped:
        split.fn(unique(texts), Split())
    assert "split.test=0.1, split.validation=0.1, split.threshold=0.6" in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_boilerplate_makes_no_cluster_and_rows_without_anything_else_are_one(unique: Any) -> None:
    texts = [f"Answer this: {text}" for text in prompts(60, copies=0)]
    assert split.fn(unique(texts), Split()).num_clusters == 60


def test_equal_prompts_with_other_numbers_or_answers_are_one_cluster(unique: Any) -> None:
    texts = [*prompts(60, copies=0), *(f"how much do I pay for a parcel of {n} kilos to any town" for n in (3, 5))]
    splits = split.fn(unique(texts), Split())
    assert splits.num_clusters == 61


def test_a_random_split_leaks_as_counted_by_hand() -> None:
    texts = prompts(100, copies=0.5)
    shares = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(100).tolist()
        test, outside = order[:20], order[20:]
        leaks = [any(jaccard(texts[i], texts[j]) >= 0.6 for j in outside) for i in test]
        shares.append(sum(leaks) / 20)
    assert random_leak_share(alike(texts, 0.6), 20) == pytest.approx(sum(shares) / 20, abs=1e-6)
    assert random_leak_share(alike(["one two three"] * 10, 0.6), 2) == 1.0
