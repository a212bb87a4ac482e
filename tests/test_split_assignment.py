"""Rows of an earlier version and user-provided rows stay in their split; what fits in none is quarantined."""

import json
import logging
import math
import random
import re
import tracemalloc
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from make_payloads import make_earlier_rows, make_proof
from split_rows import (
    WORDS,
    in_splits,
    jaccard,
    largest_across,
    prompt,
    prompts,
    quarantined,
    row_of,
    split_of,
    split_rows,
)

from tunewright.artifacts import Splits
from tunewright.artifacts.payloads import LeakProof
from tunewright.artifacts.placement import NONE, SPLITS, TEST, TRAIN, VALIDATION, Because
from tunewright.config import Split, from_here
from tunewright.errors import ConfigError, DataError
from tunewright.reports.account import GONE, growth_sentence
from tunewright.reports.pages import percent
from tunewright.similarity.engine import Engine
from tunewright.similarity.folding import fold_texts
from tunewright.similarity.prompts import cut, shingles
from tunewright.similarity.sets import Pairs, gather, similar_pairs
from tunewright.store import lineage
from tunewright.store.refusals import of_stage
from tunewright.tasks.split.assignment import Assignment, Linked, Links, fix, numbered, settle
from tunewright.tasks.split.columns import strata_of
from tunewright.tasks.split.draw import draw
from tunewright.tasks.split.joins import Joined
from tunewright.tasks.split.proof import in_words, versions

EVEN = Split(test=0.25, validation=0.25)


@st.composite
def linked_rows(drawn: st.DrawFn) -> tuple[set[tuple[int, int]], list[int], list[int], list[int], list[int]]:
    """(pairs, the first row of each row's set, groups, given splits, earlier splits) of up to 12 rows."""
    num_rows = drawn(st.integers(4, 12))
    numbers = st.integers(0, num_rows - 1)
    first = [drawn(st.sampled_from([i, i, i, *range(i)])) for i in range(num_rows)]
    first = [first[i] if first[first[i]] == first[i] else i for i in range(num_rows)]
    ends = drawn(st.sets(st.tuples(numbers, numbers), max_size=16))
    pairs = {(min(first[a], first[b]), max(first[a], first[b])) for a, b in ends if first[a] != first[b]}
    split = st.sampled_from([NONE, NONE, NONE, TRAIN, VALIDATION, TEST])
    few = st.sampled_from([NONE] * 5 + [TRAIN, VALIDATION, TEST])
    group = [drawn(st.sampled_from([-1, -1, -1, 0, 1])) for _ in range(num_rows)]
    earlier = [drawn(split) for _ in range(num_rows)]
    are_given = drawn(st.booleans())
    given = [drawn(few) if are_given else NONE for _ in range(num_rows)]
    return pairs, first, group, given, earlier


def links_of(pairs: set[tuple[int, int]], first: list[int], group: list[int]) -> Links:
    ends = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return Links(Pairs(np.array(first), ends[:, 0], ends[:, 1], np.linspace(0.6, 0.9, len(ends))), np.array(group))


class Known:
    """Joins of rows of which all links are known, by their definition."""

    def __init__(self, links: Links, rows: np.ndarray) -> None:
        place = {row: number for number, row in enumerate(rows.tolist())}
        self.first, self.group = (column[rows].tolist() for column in (links.pairs.first, links.group))
        ends = zip(links.pairs.left.tolist(), links.pairs.right.tolist(), strict=True)
        self.alike = dict(zip(ends, links.pairs.similarity.tolist(), strict=True))
        self.size = len(place)

    def similarity(self, one: int, other: int) -> float | None:
        """Return the similarity of two rows; nan if only their group links them, None if nothing does."""
        first, second = sorted((self.first[one], self.first[other]))
        if first == second or (first, second) in self.alike:
            return 1.0 if first == second else self.alike[first, second]
        return math.nan if self.group[one] == self.group[other] >= 0 else None

    def linked(self, asked: np.ndarray, others: np.ndarray) -> Linked:
        partner, similarity = [NONE] * self.size, [math.nan] * self.size
        for row in np.flatnonzero(asked).tolist():
            found = [(other, self.similarity(row, other)) for other in np.flatnonzero(others).tolist()]
            found = [(other, value) for other, value in found if value is not None]
            if found:
                partner[row], similarity[row] = max(found, key=lambda f: (-1 if math.isnan(f[1]) else f[1], -f[0]))
        return Linked(np.array(partner), np.array(similarity))

    def clusters(self, rows: np.ndarray) -> np.ndarray:
        cluster = rows.tolist()
        for _ in cluster:
            for i, one in enumerate(rows.tolist()):
                linked = [j for j, other in enumerate(rows.tolist()) if self.similarity(one, other) is not None]
                cluster[i] = min(cluster[j] for j in linked)
        return numbered(np.array(cluster, np.int64))


def stand(links: Links, given: list[int], earlier: list[int], row_ids: list[str]) -> tuple[Assignment, np.ndarray]:
    """Where all rows come to stand, and where they were fixed to."""
    fixed, because, exact = fix(np.array(given), np.array(earlier))
    splits = settle(links.clusters(), fixed, because, exact, partial(Known, links))
    strata = strata_of(["all"] * len(given))
    draw(splits, pa.array(row_ids), strata, None, np.array(given) == NONE, exact, EVEN)
    return splits, fixed


def are_linked(pairs: set[tuple[int, int]], first: list[int], group: list[int], one: int, other: int) -> bool:
    a, b = sorted((first[one], first[other]))
    return a == b or (a, b) in pairs or (group[one] >= 0 and group[one] == group[other])


@given(linked_rows())
@settings(max_examples=200, deadline=None)
def test_no_two_linked_rows_stand_on_two_splits_and_no_fixed_row_moves(made: Any) -> None:
    pairs, first, group, user_provided_splits, earlier = made
    rows = range(len(first))
    splits, fixed = stand(links_of(pairs, first, group), user_provided_splits, earlier, [f"{i:02}" for i in rows])
    split = splits.split.tolist()
    for one in rows:
        for other in range(one):
            if split[one] != split[other] and NONE not in (split[one], split[other]):
                assert not are_linked(pairs, first, group, one, other)
        assert split[one] in (fixed[one], NONE) or fixed[one] == NONE
        if fixed[one] == TEST:
            assert split[one] == TEST
        if split[one] == NONE:
            partners = splits.partners[one]
            assert partners
            assert all(are_linked(pairs, first, group, one, partner.row) for partner in partners)
            assert all(split[partner.row] == partner.split for partner in partners)
            if splits.because[one] == Because.BRIDGES_SPLITS:
                assert len({partner.split for partner in partners}) > 1
        else:
            same = [other for other in rows if splits.cluster[other] == splits.cluster[one]]
            assert {split[other] for other in same} == {split[one]}
    for exact in (VALIDATION, TEST):
        if exact in user_provided_splits:
            assert all(user_provided_splits[row] == exact for row in rows if split[row] == exact)


@given(linked_rows(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_where_rows_come_to_stand_does_not_depend_on_their_order(made: Any, shuffle: random.Random) -> None:
    pairs, first, group, user_provided_splits, earlier = made
    order = list(range(len(first)))
    shuffle.shuffle(order)
    place = {row: position for position, row in enumerate(order)}
    firsts: dict[int, int] = {}
    for position, row in enumerate(order):
        firsts.setdefault(first[row], position)
    moved = {tuple(sorted((firsts[a], firsts[b]))) for a, b in pairs}
    shuffled = links_of(moved, [firsts[first[row]] for row in order], [group[row] for row in order])  # pyright: ignore[reportArgumentType]
    straight, _ = stand(
        links_of(pairs, first, group), user_provided_splits, earlier, [f"{i:02}" for i in range(len(first))]
    )
    other, _ = stand(
        shuffled, [user_provided_splits[r] for r in order], [earlier[r] for r in order], [f"{r:02}" for r in order]
    )
    assert straight.split.tolist() == [other.split[place[row]] for row in range(len(first))]
    assert straight.because.tolist() == [other.because[place[row]] for row in range(len(first))]


def grown(seed: int, num_rows: int) -> list[dict[str, Any]]:
    """Rows, a third of them edited copies of earlier ones, some in groups."""
    rng = random.Random(seed)
    return [
        row_of(text, group=f"group {rng.randrange(num_rows // 5)}" if rng.random() < 0.2 else None)
        for text in prompts(num_rows, seed=seed, edits=3)
    ]


@given(st.integers(0, 2**32), st.lists(st.sampled_from([0.5, 0.6, 0.8]), min_size=4, max_size=4))
@settings(max_examples=5, deadline=None)
def test_as_rows_arrive_and_go_no_row_ever_changes_splits(seed: int, thresholds: list[float]) -> None:
    rng, rows = random.Random(seed), grown(seed, 240)
    seen: dict[str, str] = {}
    splits: Splits | None = None
    for version, threshold in enumerate(thresholds):
        here = [row for row in rows[: 120 + 40 * version] if rng.random() < 0.9]  # another tenth is away each time
        splits = split_rows(rng.sample(here, len(here)), Split(threshold=threshold, test=0.2, validation=0.2), splits)
        now = split_of(splits)
        assert all(seen.get(row_id, split) == split for row_id, split in now.items())
        assert len(now) + splits.num_quarantined == len(here)
        assert largest_across(splits) < threshold
        seen |= now
    assert set(seen.values()) == set(SPLITS)


def test_a_quarter_more_rows_move_no_row_and_set_few_aside() -> None:
    rows = prompts(500, copies=0.1)
    before = split_rows(rows[:400])
    after = split_rows(rows, earlier=before)
    assert split_of(before).items() <= split_of(after).items()
    assert after.num_quarantined <= 3
    assert abs(after.num_test - 50) <= 3
    assert abs(after.num_validation - 50) <= 3
    moved = split_of(split_rows(rows, Split(sticky=False), before))
    assert any(moved[row_id] != split for row_id, split in split_of(before).items())


def test_a_share_that_rows_of_the_version_before_make_impossible_is_one_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows = prompts(300, copies=0)
    before, half = split_rows(rows[:240]), Split(test=0.5)
    caplog.clear()

    def said(*given: Any) -> list[str]:
        caplog.clear()
        split_rows(*given)
        return [message for message in caplog.messages if "is not reached" in message]

    (line,) = said(rows, half, before)
    assert line == (
        "split: split.test 0.5 is not reached: 84 of 300 rows (28 %), as old rows keep their split; split.sticky=false "
        "draws all anew"
    )
    (less,) = said(rows[:240], Split(test=0.02), before)  # and one that has too many of them
    assert less.startswith("split: split.test 0.02 is not reached: 24 of 240 rows (10 %)")
    assert said(rows, Split(test=0.5, sticky=False), before) == []
    assert said(rows, Split(), before) == []
    assert said(prompts(240, copies=0.9), half) == []  # clusters alone
    in_groups = [row_of(text, group=None if n < 60 else f"{n % 2}") for n, text in enumerate(rows)]
    (half_of_it,) = said(
        in_groups, Split(test=0.15, validation=0.1)
    )  # the 60 rows without a group are too few for both
    assert half_of_it == (
        "split: split.validation 0.1 is not reached: 15 of 300 rows (5 %), as near-duplicates and rows of one group "
        "stay in one split"
    )


def test_a_larger_share_takes_no_more_of_a_new_source_than_its_share_and_the_run_says_what_is_missing() -> None:
    texts = prompts(600, copies=0)
    rows = [row_of(text, source="abcd"[at // 150]) for at, text in enumerate(texts)]
    before = split_rows(rows[:450], Split(test=0.1))
    assert not any("uneven" in said for said in before.warned)
    splits = split_rows(rows, Split(test=0.2), before)
    assert split_of(before).items() <= split_of(splits).items()
    found = {name: Counter(row["source"] for row in rows)["d"] for name, rows in in_splits(splits).items()}
    assert abs(found["test"] - 30) <= 1
    assert abs(found["validation"] - 15) <= 1
    _, short, uneven = splits.warned
    assert short.startswith("split.test 0.2 is not reached: 75 of 600 rows (12 %), as old rows keep their split; ")
    assert uneven == (
        "the test split is uneven: 40 % of its 75 rows are of source d, beside 25 % of all rows; rows that are "
        "near-duplicates or keep their earlier split cannot be drawn one by one, and may be drawn last where together "
        "they are more than a quarter of a split or a third of their source; a larger split.test or split.validation "
        "has room for more of them"
    )


def test_new_rows_of_many_labels_are_tested_as_often_as_the_share_says() -> None:
    texts = prompts(600, copies=0)
    rows = [row_of(text, answer=f"label {at % 60}") for at, text in enumerate(texts)]
    before = split_rows(rows[:300], Split(stratify="label"))
    assert abs(split_rows(rows, Split(stratify="label"), before).num_test - 60) <= 1


BASE = prompts(60, seed=9, copies=0)
MIDDLE = "where do I find the number of my card"
TRAINED, TESTED = f"{MIDDLE} when it is lost", f"please tell me {MIDDLE}"


def fixed_rows(**splits: list[str]) -> list[dict[str, Any]]:
    """Forty training, ten validation and ten test rows, and more texts for each split."""
    split_of_base = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    rows = [row_of(text, use_as=split) for text, split in zip(BASE, split_of_base, strict=True)]
    return rows + [row_of(text, use_as=split) for split, texts in splits.items() for text in texts]


def free(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row | {"use_as": None} for row in rows]


def test_the_texts_below_are_alike_as_they_say() -> None:
    assert jaccard(TRAINED, TESTED) == pytest.approx(8 / 15)
    assert jaccard(TRAINED, MIDDLE) == pytest.approx(8 / 12)
    assert jaccard(TESTED, MIDDLE) == pytest.approx(8 / 11)


def test_a_row_that_is_alike_to_rows_of_two_splits_is_quarantined_and_names_both() -> None:
    rows = fixed_rows(train=[TRAINED], test=[TESTED])
    splits = split_rows([*free(rows), row_of(MIDDLE)], earlier=split_rows(rows))
    (aside,) = quarantined(splits).values()
    assert (aside["row_id"], aside["line"]) == (row_of(MIDDLE)["row_id"], 63)
    assert (aside["reason"], splits.reasons) == ("bridges_splits", {"bridges_splits": 1})
    assert aside["detail"] == (
        "It is similar to train row data.jsonl:61 (similarity 0.67) and to test row data.jsonl:62 (similarity 0.73); "
        "on either split it would repeat a row of the other"
    )
    assert MIDDLE in aside["text"]
    assert set(split_of(splits)) == {row["row_id"] for row in rows}


def test_a_row_of_a_training_rows_group_that_is_alike_to_a_test_row_names_both() -> None:
    rows = [row | {"group": "me" if i == 0 else None} for i, row in enumerate(fixed_rows(test=[TESTED]))]
    splits = split_rows([*free(rows), row_of(MIDDLE, group="me")], earlier=split_rows(rows))
    (aside,) = quarantined(splits).values()
    assert aside["detail"] == (
        "It has the same group as train row data.jsonl:1 and is similar to test row data.jsonl:61 (similarity 0.73), "
        "so no split can take it"
    )


def test_of_a_chain_between_two_splits_one_link_is_quarantined_and_the_other_joins_its_split() -> None:
    links = links_of({(0, 1), (1, 2), (2, 3)}, [0, 1, 2, 3], [-1] * 4)
    splits, _ = stand(links, [NONE] * 4, [TRAIN, NONE, NONE, TEST], list("abcd"))
    assert splits.split.tolist() == [TRAIN, NONE, TEST, TEST]
    assert [(p.row, p.split) for p in splits.partners[1]] == [(0, TRAIN), (2, TEST)]


def test_a_new_row_joins_the_split_of_the_old_row_that_it_repeats_also_through_another_new_row() -> None:
    rows = fixed_rows(train=[f"so {MIDDLE}"], validation=["which of my payments are on hold since the end of May"])
    new = [
        "which of my payments are on hold since the end of June",
        "and all my payments are on hold since the end of June",
    ]
    splits = split_rows([*free(rows), row_of(MIDDLE), *(row_of(text) for text in new)], earlier=split_rows(rows))
    assert jaccard(new[1], prompt(rows[-1])) < 0.6 <= jaccard(new[1], new[0])
    assert [split_of(splits)[row_of(text)["row_id"]] for text in (MIDDLE, *new)] == [
        "train",
        "validation",
        "validation",
    ]
    because = json.loads(splits.path("proof.json").read_text())["because"]
    assert because["train"] == {"kept": 41, "inherited": 1}
    assert because["validation"] == {"kept": 11, "inherited": 2}


def test_a_new_row_joins_the_split_of_its_group() -> None:
    rows = [row | {"group": "me" if i == 45 else None} for i, row in enumerate(fixed_rows())]
    new = row_of("nothing like what anybody else has ever asked here", group="me")
    assert split_of(split_rows([*free(rows), new], earlier=split_rows(rows)))[new["row_id"]] == "validation"


def test_old_rows_that_a_lower_threshold_finds_alike_keep_the_test_row_and_come_back_with_a_higher_one() -> None:
    rows = fixed_rows(train=[TRAINED], test=[TESTED])
    first = split_rows(rows)
    lower = split_rows(free(rows), Split(threshold=0.5), first)
    assert {i: row["reason"] for i, row in quarantined(lower).items()} == {rows[-2]["row_id"]: "repeats_test_row"}
    assert split_of(lower) == {i: split for i, split in split_of(first).items() if i != rows[-2]["row_id"]}
    assert split_of(split_rows(free(rows), earlier=lower)) == split_of(first)


def test_a_row_that_was_away_comes_back_to_its_split() -> None:
    rows = fixed_rows(test=[TESTED])
    away = split_rows(free(rows[:-1]), earlier=split_rows(rows))
    assert pq.read_table(away.path("sides.parquet")).to_pylist()[-1] == {
        "row_id": rows[-1]["row_id"],
        "side": "test",
        "because": "gone",
    }
    assert split_of(split_rows(free(rows), earlier=away))[rows[-1]["row_id"]] == "test"


def test_a_row_that_a_given_test_row_repeated_tests_when_that_split_is_not_given_any_more() -> None:
    rows = [row_of(text, use_as="test") for text in [TESTED, *BASE[:5]]] + [row_of(text) for text in BASE[5:]]
    trained = split_rows([row_of(TESTED), *BASE], Split(test=0.05, validation=0.05))
    assert split_of(trained)[rows[0]["row_id"]] == "train"
    for earlier in (None, trained):
        copied = split_rows([row_of(TESTED), *rows], EVEN, earlier)
        remembered = pq.read_table(copied.path("sides.parquet")).to_pylist()
        assert [row["row_id"] for row in remembered].count(rows[0]["row_id"]) == 2
        assert split_of(split_rows(free([row_of(TESTED), *rows[1:]]), EVEN, copied))[rows[0]["row_id"]] == "test"
        away = split_rows(free(rows[1:]), EVEN, copied)
        gone = [
            row["side"] for row in pq.read_table(away.path("sides.parquet")).to_pylist() if row["because"] == "gone"
        ]
        assert gone == ["test"]


@pytest.mark.parametrize("by_source", [True, False])
def test_a_test_split_whose_rows_are_gone_is_empty_by_the_history_which_is_said_with_what_helps(
    by_source: bool,
) -> None:
    rows = [row_of(text) for text in prompts(80, copies=0)]
    first = split_rows([*rows[:60], *(row | {"use_as": "test"} for row in rows[60:])] if by_source else rows)
    tested = {row_id for row_id, split in split_of(first).items() if split == "test"}
    with pytest.raises(DataError) as error:
        split_rows([row for row in rows if row["row_id"] not in tested], earlier=first)
    assert re.match(
        rf"the test split is empty \(train \d+, validation \d+, test 0\): rows keep the split that they had in the "
        rf"version before \(split.sticky=true\): {80 - len(tested)} are here again, and its {len(tested)} test rows "
        r"are gone; put them back \(data.limit may leave them out\), add others in a source with use_as: test, or "
        "draw all splits anew with another split.seed or registry.name",
        str(error.value),
    )
    kept = [row for row in rows if row["row_id"] not in tested]
    assert split_rows(kept, Split(seed=1)).num_test > 0, "what is advised helps"
    other = [row_of(text, use_as="test") for text in prompts(5, seed=9, copies=0)]
    assert split_rows([*kept, *other], earlier=first).num_test == 5


def test_training_rows_that_are_all_validation_rows_are_said_to_fit_in_no_split() -> None:
    rows = [row_of(text, use_as=split) for text in BASE[:9] for split in ("train", "validation")]
    with pytest.raises(DataError, match=r"; 9 fit in no split \(repeats_validation_row 9\); see "):
        split_rows(rows)


def test_test_rows_of_one_group_are_said_to_count_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    tested = [row_of(text, use_as="test", group="a") for text in prompts(28, seed=1, copies=0)]
    monkeypatch.setattr(logging.getLogger("tunewright"), "propagate", True)
    splits = split_rows([*(row_of(text) for text in prompts(60, copies=0)), *tested])
    assert splits.num_test == 28
    assert (
        "28 test rows count as 1 independent row (near-duplicates and rows of one group count once) and can show only "
        "a difference of more than about 1.00 between two models, in a score from 0 to 1 "
        "(estimated before training): "
    ) in caplog.text


@pytest.mark.parametrize(
    ("count", "clusters", "said"),
    [(1, 1, "1 test row can show only"), (9, 9, "9 test rows can show only"), (9, 4, "count as 4 independent rows (")],
)
def test_rows_that_do_not_all_count_are_said_to_count_as_fewer(count: int, clusters: int, said: str) -> None:
    proof = make_proof(test_clusters=clusters, smallest_visible_difference=0.5)
    assert said in in_words("too_small", count, proof)


@pytest.mark.parametrize(
    ("provided", "advice"),
    [
        ((), "use more data or a larger split.test"),
        (("validation",), "use more data or a larger split.test"),
        (("validation", "test"), "add rows to the source with use_as: test"),
    ],
)
def test_more_test_rows_come_from_where_the_test_split_is_from(provided: tuple[str, ...], advice: str) -> None:
    proof = make_proof(user_provided_splits=provided, test_clusters=9, smallest_visible_difference=0.5)
    assert in_words("too_small", 9, proof).endswith(f": for a clearer verdict, {advice}")


def test_an_earlier_version_that_is_not_whole_is_an_error_that_names_the_setting() -> None:
    earlier = split_rows(BASE)
    earlier.path("sides.parquet").unlink()
    with pytest.raises(ConfigError, match=r"split.sticky=true: .*sides.parquet is missing"):
        split_rows(BASE, earlier=earlier)
    assert split_rows(BASE, Split(sticky=False), earlier).num_quarantined == 0


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_given_split_has_exactly_its_rows_and_what_repeats_one_is_quarantined(split: str) -> None:
    given_rows = [row_of(text, use_as=split) for text in [*BASE[:7], TESTED]]
    others = [row_of(text) for text in [*BASE[7:], MIDDLE]]
    splits = split_rows([*given_rows, *others], Split(test=0.2, validation=0.2))
    assert {row["row_id"] for row in in_splits(splits)[split]} == {row["row_id"] for row in given_rows}
    (aside,) = quarantined(splits).values()
    assert (aside["row_id"], aside["reason"]) == (others[-1]["row_id"], f"repeats_{split}_row")
    assert aside["detail"] == f"It is similar to {split} row data.jsonl:8 (similarity 0.73), so no split can take it"
    proof = json.loads(splits.path("proof.json").read_text())
    assert proof["user_provided_splits"] == [split]
    other = "validation" if split == "test" else "test"
    assert proof["because"][other] == {"drawn": round(0.2 * 53)}


def test_a_row_of_a_test_rows_group_is_quarantined_and_says_so() -> None:
    given_rows = [row_of(text, use_as="test", group="me") for text in BASE[:7]]
    others = [row_of(text, group="me" if i == 0 else None) for i, text in enumerate(BASE[7:])]
    (aside,) = quarantined(split_rows([*given_rows, *others])).values()
    assert aside["detail"] == "It has the same group as test row data.jsonl:1, so no split can take it"
    assert aside["reason"] == "group_of_test_row"


def test_many_rows_that_go_because_of_their_group_are_warned_of() -> None:
    given_rows = [row_of(text, use_as="test", group=f"group {i}") for i, text in enumerate(BASE[:7])]
    others = [row_of(text, group=f"group {i}") for i, text in enumerate(BASE[7:])]
    (warning,) = (said for said in split_rows([*given_rows, *others]).warned if "group" in said)
    assert warning.startswith(
        f"7 of {len(BASE)} rows ({percent(7 / len(BASE))}) have the same group as a row of another split and are "
        "quarantined (group_of_test_row 7), as rows of one group stay in one split: give a validation or test set"
    )


def test_what_repeats_a_row_that_is_given_to_train_trains_and_others_are_drawn() -> None:
    rows = [row_of(text, use_as="train") for text in [*BASE[:20], TRAINED]] + [row_of(t) for t in [*BASE[20:], MIDDLE]]
    splits = split_rows(rows, EVEN)
    assert {row["row_id"] for row in rows[:21]} < {row["row_id"] for row in in_splits(splits)["train"]}
    assert split_of(splits)[rows[-1]["row_id"]] == "train"
    assert splits.num_quarantined == 0
    assert splits.num_test == splits.num_validation == 10  # a quarter of the 41 that are not given


def test_a_given_split_takes_its_rows_from_where_they_were_and_frees_the_others() -> None:
    before = split_rows(BASE, EVEN)
    tested = {row["row_id"] for row in in_splits(before)["test"]}
    trained = in_splits(before)["train"][:5]
    given_ids = {row["row_id"] for row in trained}
    rows = [row_of(t) | {"use_as": "test" if row_of(t)["row_id"] in given_ids else None} for t in BASE]
    after = split_rows(rows, EVEN, before)
    assert {row["row_id"] for row in in_splits(after)["test"]} == given_ids
    splits = split_of(after)
    stayed = sum(splits.get(row_id) == split for row_id, split in split_of(before).items())
    versions = json.loads(after.path("proof.json").read_text())["versions"]
    assert versions == {
        "earlier": before.digest,
        "known_rows": 60,
        "stayed": stayed,
        "given_elsewhere": 5,
        "freed_by_a_given_split": len(tested),
        "quarantined": 0,
        "returned": 0,
        "returned_in_split": 0,
        "gone": 0,
    }


def test_splits_on_which_most_rows_cannot_stand_stop_the_run() -> None:
    rows = fixed_rows()
    regrouped = [row | {"use_as": None, "group": f"group {i % 5}"} for i, row in enumerate(rows)]
    with pytest.raises(
        DataError,
        match=r"50 of 60 rows fit in no split \(group_of_test_row 50\).*rows of one group.*split.sticky=false",
    ) as stopped:
        split_rows(regrouped, earlier=split_rows(rows))
    (left,) = of_stage("split")
    assert str(stopped.value).endswith(f"; see {from_here(left.path('quarantine.parquet'))}")
    aside = pq.read_table(left.path("quarantine.parquet"))
    assert aside["reason"].to_pylist() == ["group_of_test_row"] * 50
    assert "contaminated" not in str(stopped.value)  # advice on what did not occur


def test_what_became_of_the_version_before_is_said_in_words() -> None:
    def proof(earlier: str | None, stayed: int, quarantined: int = 0) -> LeakProof:
        versions = make_earlier_rows(earlier=earlier, known_rows=80, stayed=stayed, gone=3, quarantined=quarantined)
        return make_proof(versions=versions, quarantined={"bridges_splits": 2})

    assert growth_sentence(proof(None, 0)) == ""
    assert growth_sentence(proof("digest", 80)) == (
        f"Since the previous version: 80 rows kept their split, 3 are {GONE}, 12 are new or had no split."
    )
    apart = make_earlier_rows(earlier="digest", known_rows=80, stayed=80, returned=9)
    assert growth_sentence(make_proof(versions=apart, quarantined={"contaminated": 2})) == (
        "Since the previous version: 80 rows kept their split, 3 are new, 9 had been quarantined or removed."
    )
    moved = "79 rows kept their split, 1 moved to another split, 3 are gone"
    assert moved in growth_sentence(proof("digest", 79))
    assert "79 rows kept their split, 1 is quarantined now, 3 are gone (del" in growth_sentence(proof("digest", 79, 1))
    counts = {"known_rows": 80, "stayed": 77, "quarantined": 2, "gone": 3, "returned": 9, "returned_in_split": 4}
    summed = make_proof(versions=make_earlier_rows(earlier="digest", **counts), quarantined={"contaminated": 11})
    assert sum(summed.rows.values()) == 90
    assert growth_sentence(summed) == (
        "Since the previous version: 90 rows in splits = 77 that kept theirs + 1 that moved to another + 8 that are "
        "new + 4 that had been quarantined or removed; of its rows 2 are quarantined now, 3 are gone (deleted "
        "from the files, refused by a check or removed as duplicates)."
    )
    both = ": 77 rows kept their split, 1 moved to another split, 2 are quarantined now, 3 are gone (deleted from"
    assert both in growth_sentence(proof("digest", 77, 2))


def test_what_became_of_rows_counts_since_the_previous_version_alone() -> None:
    rows = fixed_rows(train=[TRAINED], test=[TESTED])
    first = split_rows(rows)
    fewer, lower = free(rows[1:]), Split(threshold=0.5)
    second = split_rows(fewer, lower, first)
    third = split_rows(fewer, lower, second)
    back = split_rows(free(rows), earlier=third)
    assert [growth_sentence(LeakProof.load(each)).partition(": ")[2] for each in (second, third, back)] == [
        f"60 rows in splits = 60 that kept theirs; of its rows 1 is quarantined now, 1 is {GONE}.",
        "60 rows in splits = 60 that kept theirs.",
        "62 rows in splits = 60 that kept theirs + 2 that had been quarantined or removed.",
    ]
    assert split_of(back) == split_of(first)


def test_a_row_of_the_version_before_that_is_quarantined_now_has_not_moved() -> None:
    split, before = np.array([0, 1, NONE, 2]), np.array([0, 0, 1, NONE])
    found = versions(split, np.full(4, NONE), before, frozenset(), np.array([True, True, True, True]), 0, "digest")
    assert (found.known_rows, found.stayed, found.quarantined, found.returned) == (3, 1, 1, 1)


@st.composite
def templated(drawn: st.DrawFn) -> tuple[list[str], list[int], list[int], list[int]]:
    """(texts, groups, given splits, earlier splits): texts of two templates that grow into one another."""
    slots = st.lists(st.sampled_from(WORDS[30:33]), min_size=1, max_size=2).map(" ".join)
    num_rows = drawn(st.integers(10, 40))
    begins = [drawn(st.integers(0, 4)) for _ in range(num_rows)]
    texts = [f"{' '.join(WORDS[3 * begin : 3 * begin + 10])} {drawn(slots)}" for begin in begins]
    few = st.sampled_from([NONE, NONE, NONE, TRAIN, VALIDATION, TEST])
    group = [drawn(st.sampled_from([-1] * 8 + [0, 1])) for _ in range(num_rows)]
    are_given = drawn(st.booleans())
    given = [drawn(few) if are_given else NONE for _ in range(num_rows)]
    return texts, group, given, [drawn(few) for _ in range(num_rows)]


@given(templated())
@settings(max_examples=150, deadline=None)
def test_rows_that_are_compared_when_asked_for_stand_where_they_do_with_all_links_known(made: Any) -> None:
    texts, group, user_provided_splits, earlier = made
    folded = fold_texts(texts)
    sets = gather([shingles(cut(folded), np.empty(0, np.uint64))])
    links = Links(similar_pairs(sets, 0.6, enough=len(texts)), np.array(group))
    fixed, because, exact = fix(np.array(user_provided_splits), np.array(earlier))
    asked, known = (
        settle(links.clusters(), fixed, because, exact, joins_of)
        for joins_of in (partial(Joined, Engine(), sets, links, 0.6), partial(Known, links))
    )
    assert asked.split.tolist() == known.split.tolist()
    assert asked.because.tolist() == known.because.tolist()
    assert asked.cluster.tolist() == known.cluster.tolist()
    assert str(asked.partners) == str(known.partners), "nan is not nan"


def test_what_a_cluster_of_millions_of_pairs_takes_is_memory_for_its_rows() -> None:
    rng = random.Random(9)
    texts = [f"{' '.join(WORDS[:14])} {' '.join(rng.choices(WORDS, k=2))}" for _ in range(4_000)]
    split = np.array([rng.choice([TRAIN, VALIDATION, TEST, NONE]) for _ in texts])
    sets = gather([shingles(cut(fold_texts(texts)), np.empty(0, np.uint64))])
    links = Links(similar_pairs(sets, 0.6), np.full(len(texts), -1))
    tracemalloc.start()
    settled = settle(
        links.clusters(), *fix(np.full(len(texts), NONE), split), partial(Joined, Engine(), sets, links, 0.6)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000 * len(texts), "8 million pairs take 200 million bytes"
    assert (settled.split == np.where((split == TEST) | (split == NONE), TEST, NONE)).all()
    first_test = {row: partners[0].row for row, partners in settled.partners.items()}
    assert {split[row] for row in first_test} == {TRAIN, VALIDATION}
    assert {split[row] for row in first_test.values()} == {TEST}


def test_lineage_takes_a_reason_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = split_rows(BASE)
    file = splits.path("sides.parquet")
    table = pq.read_table(file)
    reasons = pa.array(["by_a_new_rule", "contaminated", *table["because"].to_pylist()[2:]])
    pq.write_table(table.set_column(2, "because", reasons), file)
    monkeypatch.setattr("tunewright.store.data_history.kept", lambda *_: file)
    past: Any = [SimpleNamespace(number=1)]
    ids, splits = table["row_id"].to_pylist(), table["side"].to_pylist()
    assert lineage.splits(ids[0], "", past) == [{"version": 1, "split": splits[0], "because": "by_a_new_rule"}]
    assert lineage.splits(ids[1], "", past) == [{"version": 1, "split": None, "because": "contaminated"}]
