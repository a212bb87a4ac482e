"""No row of one split is alike to a row of another, and the proof says so independently of how they were split."""

import json
import logging
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import messages
from make_payloads import make_proof
from split_rows import WORDS, in_splits, jaccard, largest_across, prompt, prompts, row_of, split_of, split_rows

from tunewright.artifacts import ASSIGNMENTS_SCHEMA, QUARANTINE_SCHEMA, SPLIT_SCHEMA, Splits
from tunewright.artifacts.payloads import LeakProof
from tunewright.artifacts.placement import NONE, SPLITS
from tunewright.config import Split
from tunewright.errors import DataError
from tunewright.metrics.intervals import PowerAnalysis, by_cluster
from tunewright.similarity.sets import Pairs
from tunewright.tasks.split.assignment import Links
from tunewright.tasks.split.proof import random_leak_share, split_groups, visible_difference


def proof(splits: Splits) -> dict[str, Any]:
    return json.loads(splits.path("proof.json").read_text())


def test_no_pair_of_two_splits_reaches_the_threshold_and_the_proof_names_the_closest() -> None:
    splits = split_rows(prompts(300, edits=4), Split(test=0.2, validation=0.2))
    largest = largest_across(splits)
    assert 0.45 < largest < 0.6
    said = proof(splits)
    assert splits.largest_similarity == said["largest_similarity"] == largest
    text_of = {row["row_id"]: prompt(row) for rows in in_splits(splits).values() for row in rows}
    one, other = said["largest_pair"]
    assert jaccard(text_of[one["row_id"]], text_of[other["row_id"]]) == largest
    assert {end["split"] for end in (one, other)} == {split_of(splits)[end["row_id"]] for end in (one, other)}
    assert one["split"] != other["split"]


def test_a_proof_of_an_earlier_version_which_has_a_field_more_is_read(tmp_path: Path) -> None:
    fields = json.loads(make_proof().model_dump_json())
    (tmp_path / LeakProof.FILE).write_text(json.dumps(fields | {"holds": True}))
    assert LeakProof.load_from(tmp_path) == make_proof()


def test_where_no_pair_comes_near_the_proof_says_what_none_is_over() -> None:
    splits = split_rows(prompts(60, copies=0))
    assert proof(splits)["largest_pair"] == []
    assert largest_across(splits) <= splits.largest_similarity == proof(splits)["floor"] == pytest.approx(0.3)


@pytest.mark.parametrize("settings", [Split(test=0.4, validation=0.01), Split(test=0.01, validation=0.4)])
def test_the_proof_finds_a_leak_that_clustering_would_have_missed(
    settings: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(sets: Any, *_: Any, **__: Any) -> Pairs:
        nothing = np.empty(0, dtype=np.int64)
        return Pairs(np.arange(len(sets)), nothing, nothing, nothing.astype(float))

    monkeypatch.setattr("tunewright.similarity.engine.Engine.similar_pairs", staticmethod(alone))
    with pytest.raises(DataError, match=r"near-duplicates across splits, over split\.threshold: "):
        split_rows(prompts(100), settings)


def test_splits_add_up_have_their_schema_and_keep_the_order() -> None:
    splits = split_rows(prompts(200))
    assert splits.num_train + splits.num_validation + splits.num_test + splits.num_quarantined == 200
    lines: list[int] = []
    for split in SPLITS:
        table = pq.read_table(splits.path(f"{split}.parquet"))
        assert table.schema == SPLIT_SCHEMA
        assert table.num_rows == getattr(splits, f"num_{split}")
        assert table["line"].to_pylist() == sorted(table["line"].to_pylist())
        lines += table["line"].to_pylist()
    assert sorted(lines) == list(range(1, 201))
    clusters = {row["line"]: row["cluster"] for rows in in_splits(splits).values() for row in rows}
    assert list(dict.fromkeys(clusters[line] for line in range(1, 201))) == list(range(splits.num_clusters))
    assert pq.read_schema(splits.path("quarantine.parquet")) == QUARANTINE_SCHEMA
    memory = pq.read_table(splits.path("sides.parquet"))
    assert memory.schema == ASSIGNMENTS_SCHEMA
    assert {row["row_id"]: row["side"] for row in memory.to_pylist()} == split_of(splits)


def test_a_cluster_is_on_one_split_and_holds_exactly_what_is_connected() -> None:
    texts = prompts(120)
    by_split = in_splits(split_rows(texts))
    cluster = {row["line"] - 1: row["cluster"] for rows in by_split.values() for row in rows}
    sizes = Counter(cluster.values())
    close = [(i, j) for i in range(120) for j in range(i) if jaccard(texts[i], texts[j]) >= Split().threshold]
    assert all(cluster[i] == cluster[j] for i, j in close)
    in_pairs = {row for pair in close for row in pair}
    assert {row for row in range(120) if sizes[cluster[row]] > 1} == in_pairs
    assert max(sizes.values()) > 2


def test_a_group_stays_together_whatever_its_rows_say() -> None:
    rows = [row_of(text, group=f"customer {i % 20}" if i < 100 else None) for i, text in enumerate(prompts(150))]
    splits = split_rows(rows, Split(test=0.2, validation=0.2))
    by_split = in_splits(splits)
    found = {split: {row["group"] for row in rows if row["group"]} for split, rows in by_split.items()}
    assert sum(len(names) for names in found.values()) == 20
    assert proof(splits)["num_groups"] == 20


def test_a_random_split_leaks_by_groups_too() -> None:
    texts = prompts(100, copies=0)
    rows = [row_of(text, group=f"customer {i % 50}") for i, text in enumerate(texts)]
    shares = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(100).tolist()
        customers = {row % 50 for row in order[20:]}
        shares.append(sum(row % 50 in customers for row in order[:20]) / 20)
    splits = split_rows(rows, Split(test=0.2, stratify="none"))
    assert splits.random_leak_share == pytest.approx(sum(shares) / 20, abs=1e-6)
    assert splits.random_leak_share > 0.5


def test_a_group_in_two_splits_is_counted() -> None:
    group, split = np.array([0, 0, 1, 1, 2, -1, -1, 3]), np.array([0, 1, 2, 2, 0, 0, 1, NONE])
    assert split_groups(group, split) == (3, 1)


@pytest.mark.parametrize("settings", [Split(seed=0), Split(seed=1, stratify="none"), Split(by="time")])
def test_the_order_of_the_rows_moves_no_row(settings: Split) -> None:
    groups = {3: "a", 77: "a", 150: "b", 20: "b"}
    rows = [
        row_of(text, group=groups.get(i), source=f"file {i % 3}", time=f"2026-01-{i % 28 + 1:02}")
        for i, text in enumerate(prompts(200))
    ]
    assert split_of(split_rows(rows, settings)) == split_of(split_rows(random.Random(5).sample(rows, 200), settings))


def test_another_seed_is_another_split() -> None:
    assert split_of(split_rows(prompts(200), Split(seed=0))) != split_of(split_rows(prompts(200), Split(seed=1)))


@pytest.mark.parametrize("stratify", ["none", "source"])
@pytest.mark.parametrize("seed", range(4))
def test_splits_of_a_small_set_have_the_sizes_asked_for(seed: int, stratify: Any) -> None:
    rows = [row_of(text, source=f"file {i % 7}") for i, text in enumerate(prompts(800))]
    splits = split_rows(rows, Split(test=0.17, validation=0.1, seed=seed, stratify=stratify))
    assert abs(splits.num_test - 136) <= 2
    assert abs(splits.num_validation - 80) <= 2


def test_a_large_cluster_trains() -> None:
    rows = [row_of(text, group="large" if i < 60 else None) for i, text in enumerate(prompts(200, copies=0))]
    for seed in range(5):
        splits = split_rows(rows, Split(test=0.2, validation=0.2, seed=seed))
        assert sum(row["group"] == "large" for row in in_splits(splits)["train"]) == 60


def grouped(sizes: list[int], num_single: int) -> list[dict[str, Any]]:
    """Rows of a source of groups of these sizes, and so many of a source without any."""
    groups = [f"group {number}" for number, size in enumerate(sizes) for _ in range(size)]
    texts = prompts(len(groups) + num_single, copies=0)
    rows = [row_of(text, source="groups", group=group) for text, group in zip(texts, groups, strict=False)]
    return rows + [row_of(text, source="single") for text in texts[len(groups) :]]


@pytest.mark.parametrize("sizes", [[20] * 10, [20] * 10 + [150], [1] * 10 + [20] * 10], ids=len)
@pytest.mark.parametrize("seed", range(3))
def test_a_source_of_large_clusters_is_in_every_split_as_one_of_single_rows_is(sizes: list[int], seed: int) -> None:
    found = in_splits(split_rows(grouped(sizes, 200), Split(seed=seed)))
    for split in ("test", "validation"):
        groups = Counter(row["group"] for row in found[split] if row["source"] == "groups")
        assert abs(sum(groups.values()) - 0.1 * sum(sizes)) <= 15, "of which a cluster has 20"
        assert max(groups.values()) <= 20
        assert any(row["source"] == "single" for row in found[split])


def test_one_of_five_large_clusters_of_a_source_may_be_tested_and_none_of_two() -> None:
    settings = [Split(seed=seed) for seed in range(8)]
    five, two = (grouped([9] * number, 360) for number in (5, 2))
    tested = [sum(row["source"] == "groups" for row in in_splits(split_rows(five, each))["test"]) for each in settings]
    assert {*tested} == {0, 9}
    for each in settings:
        assert sum(row["source"] == "groups" for row in in_splits(split_rows(two, each))["train"]) == 18


def test_clusters_that_are_all_large_still_fill_every_split() -> None:
    rows = [row_of(text, group=f"group {i // 20}") for i, text in enumerate(prompts(200, copies=0))]
    splits = split_rows(rows, Split(test=0.2, validation=0.2))
    assert (splits.num_train, splits.num_validation, splits.num_test) == (120, 40, 40)


def test_beside_a_cluster_of_most_rows_test_and_validation_share_the_others() -> None:
    rows = [row_of(text, group="large" if i < 160 else None) for i, text in enumerate(prompts(200, copies=0))]
    splits = split_rows(rows, Split(test=0.25, validation=0.1))
    assert (splits.num_train, splits.num_validation, splits.num_test) == (160, 11, 29)
    assert (
        "one cluster has 160 of 200 rows (80 %), all in the train split: rows of one group, or near-duplicates "
        "directly or through others (split.threshold 0.6; a higher one makes smaller clusters)"
    ) in splits.warned


@pytest.mark.parametrize("by", ["cluster", "time"])
@pytest.mark.parametrize("sizes", [[1, 1, 1], [1, 1, 98], [98, 1, 1], [30, 40, 30], [5, 90, 5, 5]])
def test_three_clusters_are_enough_for_three_splits(sizes: list[int], by: Any) -> None:
    groups = [f"group {number}" for number, size in enumerate(sizes) for _ in range(size)]
    texts = prompts(len(groups), copies=0)
    rows = [
        row_of(text, group=group, time=f"2024-01-01T00:{i // 60:02}:{i % 60:02}")
        for i, (text, group) in enumerate(zip(texts, groups, strict=True))
    ]
    found = in_splits(split_rows(rows, Split(test=0.05, validation=0.02, by=by)))
    assert all(found.values())
    if by == "time":
        newest = [max(row["group"] for row in found[split]) for split in SPLITS]
        oldest = [min(row["group"] for row in found[split]) for split in SPLITS]
        assert all(newer < older for newer, older in zip(newest, oldest[1:], strict=False)), "newer rows are tested"


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (prompts(1, copies=0), "1 row makes 1 cluster, the largest of 1 row, with"),
        (prompts(2, copies=0), "the validation split is empty|the test split is empty"),
        ([f"the same long question again and again from {'x' * i}" for i in range(1, 41)], "the largest of 40 rows"),
        ([], "the train split is empty"),
    ],
)
def test_an_empty_split_stops_with_the_counts_and_the_settings(texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message) as stopped:
        split_rows(texts)
    assert "split.test=0.1, split.validation=0.1, split.threshold=0.6" in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert not stopped.value.see  # nothing was quarantined


def test_boilerplate_makes_no_cluster() -> None:
    assert split_rows([f"Answer this: {text}" for text in prompts(60, copies=0)]).num_clusters == 60


def test_equal_prompts_with_other_numbers_or_answers_are_one_cluster() -> None:
    texts = [*prompts(60, copies=0), *(f"how much do I pay for a parcel of {n} kilos to any town" for n in (3, 5))]
    rows = [row_of(text, answer=answer) for text, answer in zip([*texts, texts[-1]], [*"a" * 62, "b"], strict=True)]
    assert split_rows(rows).num_clusters == 61


def test_a_random_split_leaks_as_counted_by_hand() -> None:
    texts = prompts(100, copies=0.5)
    shares = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(100).tolist()
        test, outside = order[:20], order[20:]
        leaks = [any(jaccard(texts[i], texts[j]) >= 0.6 for j in outside) for i in test]
        shares.append(sum(leaks) / 20)
    splits = split_rows(texts, Split(test=0.2, stratify="none"))
    assert splits.num_test == 20
    assert splits.random_leak_share == pytest.approx(sum(shares) / 20, abs=1e-6)


def test_where_all_rows_are_equal_every_random_split_leaks() -> None:
    nothing = np.empty(0, dtype=np.int64)
    pairs = Pairs(np.zeros(10, np.int64), nothing, nothing, nothing.astype(float))
    assert random_leak_share(Links(pairs, np.full(10, -1)), np.arange(10), 2) == 1.0


def test_each_source_has_about_its_share_of_each_split() -> None:
    names = ["common"] * 400 + ["rare"] * 60 + [f"single {i}" for i in range(40)]
    rows = [row_of(text, source=name) for text, name in zip(prompts(500, copies=0.1), names, strict=True)]
    splits = split_rows(rows, Split(test=0.2, validation=0.2))
    for split, share in (("test", 0.2), ("validation", 0.2)):
        found = Counter(row["source"] for row in in_splits(splits)[split])
        assert abs(found["common"] - share * 400) <= 3
        assert abs(found["rare"] - share * 60) <= 3
        assert sum(found.values()) - found["common"] - found["rare"] > 0
    balance = proof(splits)["balance"]
    assert [stratum["name"] for stratum in balance["strata"][:2]] == ["common", "rare"]
    assert balance["strata"][0]["all"] == 0.8
    assert balance["largest_deviation"] < 0.05


def test_labels_are_balanced_where_answers_are_labels() -> None:
    rows = [row_of(text, answer=("Refund", "refund ", "loan")[i % 3]) for i, text in enumerate(prompts(300, copies=0))]
    splits = split_rows(rows, Split(stratify="label"))
    found = Counter(row["messages"][1]["content"].strip().lower() for row in in_splits(splits)["test"])
    assert found == {"refund": 20, "loan": 10}
    assert [stratum["name"] for stratum in proof(splits)["balance"]["strata"]] == ["Refund", "loan"]


@pytest.mark.parametrize(("stratify", "column"), [("label", "answer"), ("source", "source")])
def test_a_label_or_a_source_that_is_secret_or_personal_is_not_shown(stratify: Any, column: str) -> None:
    told = ["jane.miller@acme-bank.de", "AKIA" + "Q3EGRIKTZ7WUNXB5"]
    rows = [row_of(text, **{column: told[i % 2]}) for i, text in enumerate(prompts(100, copies=0))]
    shown = split_rows(rows, Split(stratify=stratify)).path("proof.json").read_text()
    assert shown.count("(not shown, it holds: ") == 3
    assert not any(secret.casefold() in shown.casefold() for secret in told)


DRAWN_LAST = (
    "and may be drawn last where together they are more than a quarter of a split or a third of their {}; a larger "
    "split.test or split.validation has room for more of them"
)


def test_a_source_without_a_test_row_is_warned_of_unless_its_rows_are_given_to_a_split() -> None:
    alike, others = " ".join(WORDS[:30]), [row_of(text, source="other") for text in prompts(160, copies=0)]
    rows = [row_of(f"{alike} {WORDS[40 + i]}", source="alike") for i in range(40)]
    (warning,) = [said for said in split_rows([*rows, *others]).warned if "no test row" in said]
    assert warning.startswith("no test row is from 1 source of 2, such as alike of 40 rows, so no score covers it; ")
    assert warning.endswith(
        "; rows that are near-duplicates or keep their earlier split cannot be drawn one by one, "
        f"{DRAWN_LAST.format('source')}"
    )
    assert not any("no test row" in said for said in split_rows(others).warned)
    given = [row | {"use_as": "train"} for row in rows]
    assert not any("no test row" in said for said in split_rows([*given, *others]).warned)


def test_labels_without_a_test_row_are_all_counted_and_groups_are_named_as_a_cause() -> None:
    def row(at: int, text: str) -> dict[str, Any]:
        label = "rare" if at < 4 else "grouped" if at < 34 else f"label {at % 4}"
        return row_of(text, answer=label, group="one" if at < 34 else None)

    rows = [row(at, text) for at, text in enumerate(prompts(200, copies=0))]
    (warning,) = [said for said in split_rows(rows, Split(stratify="label")).warned if "no test row" in said]
    which = "2 labels of 6, of which 1 has 10 rows or more, such as grouped of 30 rows, so no score covers them"
    cause = "rows that are near-duplicates, have one group or keep their earlier split cannot be drawn one by one"
    assert warning == f"no test row is from {which}; {cause}, {DRAWN_LAST.format('label')}"


def test_by_time_labels_without_a_test_row_are_warned_of() -> None:
    texts = prompts(200, copies=0)
    rows = [row_of(t, time=f"2026-{i:04}", answer="old" if i < 90 else f"label {i % 2}") for i, t in enumerate(texts)]
    (warning,) = [said for said in split_rows(rows, Split(by="time")).warned if "no test row" in said]
    which = "1 label of 3, such as old of 90 rows, so no score covers it"
    assert warning == f"no test row is from {which}; split.by=time tests only the newest clusters of rows"
    free = [row_of(text, time=f"2026-{i:04}", answer=f"it is {i}") for i, text in enumerate(texts)]
    assert not any("no test row" in said for said in split_rows(free, Split(by="time")).warned)


def test_free_answers_are_no_labels() -> None:
    rows = [row_of(text, answer=f"it is {i}") for i, text in enumerate(prompts(100, copies=0))]
    with pytest.raises(DataError, match=r"split.stratify=label: 100 rows have 100 different last answers.*at most 20"):
        split_rows(rows, Split(stratify="label"))


def timed(texts: list[str]) -> list[dict[str, Any]]:
    days = random.Random(2).sample(range(len(texts)), len(texts))
    return [row_of(t, time=f"2026-{d // 28 + 1:02}-{d % 28 + 1:02}") for t, d in zip(texts, days, strict=True)]


def test_by_time_the_newest_rows_test_and_nothing_that_trains_began_later() -> None:
    splits = split_rows(timed(prompts(200)), Split(by="time", test=0.2, validation=0.2))
    by_split = in_splits(splits)
    begins: dict[int, str] = {}
    for row in (row for rows in by_split.values() for row in rows):
        begins[row["cluster"]] = min(row["time"], begins.get(row["cluster"], "9"))
    began = {split: [begins[row["cluster"]] for row in rows] for split, rows in by_split.items()}
    assert max(began["train"]) <= min(began["validation"]) <= max(began["validation"]) <= min(began["test"])
    assert min(row["time"] for row in by_split["test"]) == min(began["test"])
    assert abs(splits.num_test - 40) <= 5
    newer = sum(row["time"] > min(began["test"]) for row in by_split["train"])
    assert splits.findings["train_newer_than_test"] == newer > 0
    (warning,) = [said for said in splits.warned if "newer than the oldest test row" in said]
    assert "; a cluster (near-duplicates) is as old as its oldest row" in warning
    assert "the split that they had" not in warning, "nothing was split before"
    assert proof(splits)["time"]["spans"]["test"] == [min(began["test"]), max(row["time"] for row in by_split["test"])]


def test_by_time_a_group_is_as_old_as_its_first_row_and_the_warning_says_so() -> None:
    rows = [row_of(t, time=f"2026-{i:04}", group=str(i % 40)) for i, t in enumerate(prompts(200, copies=0))]
    splits = split_rows(rows, Split(by="time"))
    assert {row["group"] for row in in_splits(splits)["test"]} == {"36", "37", "38", "39"}
    (warning,) = [said for said in splits.warned if "newer than the oldest test row" in said]
    assert "; a cluster (near-duplicates and rows of one group) is as old as its oldest row" in warning
    assert "map no field to group" in warning


def test_by_time_open_answers_are_no_error_and_the_log_says_that_strata_are_not_used(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tunewright"), "propagate", True)
    rows = [
        row_of(row["messages"][0]["content"], time=row["time"], answer=f"it is {i}")
        for i, row in enumerate(timed(prompts(100)))
    ]
    with caplog.at_level(logging.INFO, "tunewright"):
        splits = split_rows(rows, Split(by="time", stratify="label"))
    assert "split: split.stratify=label is not used with split.by=time" in caplog.text
    assert proof(splits)["balance"]["by"] == "none"


def test_a_test_row_that_ends_as_a_training_chat_goes_on_is_a_finding(caplog: pytest.LogCaptureFixture) -> None:
    """Other chats are no near-duplicates; case and white space are no difference, and another answer is one."""

    def chat(opening: str, *turns: str, side: str) -> dict[str, Any]:
        return row_of(opening) | {"messages": messages([opening, "yes", *turns]), "use_as": side}

    first, second, third, fourth, *others = prompts(30, copies=0)
    rows = [chat(text, text[::-1], "no", side="train" if at else "validation") for at, text in enumerate(others)]
    rows += [
        chat(first, "When do you open?", "At nine.", "And on Sunday?", "At ten.", side="train"),
        chat(second, "When do  you OPEN?", "At nine.", side="test"),
        chat(third, "When do you open?", "At ten.", side="test"),
        chat(fourth, "And on Sunday?", "At ten.", "When do you close?", "At six.", side="test"),
    ]
    splits = split_rows(rows)
    assert splits.num_test == 3
    assert splits.findings["test_in_training_chats"] == 1
    assert "split: 1 test row ends with a question and answer that a training chat has, too\n" in caplog.text


def test_a_test_split_that_is_too_small_to_decide_is_a_finding() -> None:
    assert split_rows(prompts(200, copies=0)).findings == {"too_small": 20}
    assert proof(split_rows(prompts(200, copies=0)))["smallest_visible_difference"] == pytest.approx(0.3552, abs=0.001)
    assert "too_small" not in split_rows(prompts(400, copies=0), Split(test=0.4)).findings


def test_five_points_show_from_about_seven_hundred_rows_on() -> None:
    assert visible_difference(680) > 0.05 > visible_difference(690)


@pytest.mark.parametrize("num_rows", [50, 140, 500])
def test_the_estimate_before_training_is_what_the_verdict_says_of_such_rows(num_rows: int) -> None:
    evidence = by_cluster(np.resize([1.0, -1.0, *[0.0] * 8], num_rows), np.arange(num_rows), -1, 1)
    measured = PowerAnalysis(evidence, 0.0, 0.975).smallest()
    assert visible_difference(num_rows) == pytest.approx(measured, rel=0.06)
