"""Similarity, compared with its definition text by text: no pair of near-duplicates is missed."""

import random
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import similarity_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.caching import UserProvidedCacheLocator
from similarity_reference import jaccard

from tunewright.artifacts import MESSAGES
from tunewright.similarity.folding import fold_messages, fold_texts
from tunewright.similarity.hashing import compiled
from tunewright.similarity.prompts import (
    Segments,
    answers,
    cut,
    distinct_segments,
    find_boilerplate,
    read_boilerplate,
    segment_texts,
    segments,
    shingles,
    words,
    write_boilerplate,
)
from tunewright.similarity.sets import Sets, gather, leaders, nearest_across, similar_pairs

NOTHING = np.empty(0, np.uint64)
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
short_texts = st.lists(st.sampled_from(list("abcde")), min_size=0, max_size=9).map(" ".join)
odd_texts = st.text(
    st.one_of(
        st.sampled_from("ab1 2.:!?\n'-+×。：猫ไป²ß\u200b\u0301\u2028"),  # noqa: RUF001
        st.characters(codec="utf-8"),
    )
)
thresholds = st.sampled_from([0.3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 1.0])


def sets_of(texts: list[str], left_out: np.ndarray = NOTHING) -> Sets:
    return gather([shingles(cut(fold_texts(texts)), left_out)])


def prompt_segments(texts: list[str]) -> Segments:
    folded = fold_texts(texts)
    return segments(folded, folded.prompts)


def sentence(rng: random.Random, length: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(length))


def edited(text: str, share: float, rng: random.Random) -> str:
    """The text with so large a share of its words replaced by others."""
    found = text.split()
    for position in rng.sample(range(len(found)), round(share * len(found))):
        found[position] = rng.choice(WORDS)
    return " ".join(found)


def crowd(seed: int, num_rows: int = 60) -> list[str]:
    rng = random.Random(seed)
    texts = [sentence(rng, rng.randint(1, 30)) for _ in range(num_rows)]
    return texts + [edited(text, rng.choice([0.05, 0.1, 0.2]), rng) for text in texts]


def found_pairs(texts: list[str], threshold: float, enough: int = 1000) -> dict[tuple[int, int], float]:
    """All pairs of rows that `similar_pairs` implies: each listed pair, for all rows with those sets."""
    pairs = similar_pairs(sets_of(texts), threshold, enough)
    listed = dict(zip(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True), pairs.similarity, strict=True))
    first = pairs.first.tolist()
    similarity = {
        (i, j): 1.0 if first[i] == first[j] else listed.get((min(first[i], first[j]), max(first[i], first[j])))
        for i, j in combinations(range(len(texts)), 2)
    }
    return {pair: value for pair, value in similarity.items() if value is not None}


def expected_pairs(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    similarity = {(i, j): jaccard(texts[i], texts[j]) for i, j in combinations(range(len(texts)), 2)}
    return {pair: value for pair, value in similarity.items() if value >= threshold}


def components(pairs: dict[tuple[int, int], float], num_rows: int) -> set[frozenset[int]]:
    of = {row: {row} for row in range(num_rows)}
    for left, right in pairs:
        of[left] |= of[right]
        for row in of[left]:
            of[row] = of[left]
    return {frozenset(rows) for rows in of.values()}


@given(st.lists(odd_texts, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_shingles_segments_and_numbers_of_any_text_are_those_of_the_definition(texts: list[str]) -> None:
    made = cut(fold_texts(texts))
    indptr, items, _ = shingles(made, NOTHING)
    sets = [set(items[a:b].tolist()) for a, b in pairwise(indptr)]
    expected = [reference.shingles(text) for text in texts]
    assert [len(items) for items in sets] == [len(items) for items in expected]
    for (one, same), (other, same_too) in combinations(zip(sets, expected, strict=True), 2):
        assert len(one & other) == len(same & same_too)

    folded, found = fold_texts(texts), prompt_segments(texts)
    seen = {segment for text in texts for segment in reference.segments(text)}
    found_texts = segment_texts(folded, found, found.hashes.tolist()).values()
    assert sorted({text.casefold() for text in found_texts}) == sorted(seen)
    numbers = made.numbers.of_rows(found.indptr, np.ones(len(found.begins), np.bool_))
    by_row = [numbers.hashes[a:b].tolist() for a, b in pairwise(numbers.indptr)]
    for i, j in combinations(range(len(texts)), 2):
        same = [reference.numbers("\n".join(reference.segments(texts[k]))) for k in (i, j)]
        assert (by_row[i] == by_row[j]) == (same[0] == same[1])


@given(st.lists(short_texts, min_size=0, max_size=25), thresholds)
@settings(max_examples=150, deadline=None)
def test_every_pair_is_found_with_its_exact_similarity_and_no_other(texts: list[str], threshold: float) -> None:
    assert found_pairs(texts, threshold) == expected_pairs(texts, threshold)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_no_pair_of_longer_texts_is_missed(threshold: float) -> None:
    texts = crowd(1)
    assert found_pairs(texts, threshold) == expected_pairs(texts, threshold)


@pytest.mark.parametrize("enough", [0, 1, 3])
def test_fewer_partners_connect_the_same_rows(enough: int) -> None:
    rng = random.Random(6)
    texts = [edited(text, 0.1, rng) for text in [sentence(rng, 20) for _ in range(5)] for _ in range(12)]
    all_pairs, some = found_pairs(texts, 0.4), found_pairs(texts, 0.4, enough)
    assert len(some) < len(all_pairs)
    assert components(some, len(texts)) == components(all_pairs, len(texts))


@given(st.lists(short_texts, min_size=1, max_size=25), thresholds)
@settings(max_examples=150, deadline=None)
def test_a_row_has_a_leader_exactly_if_an_earlier_row_that_stays_is_alike(texts: list[str], threshold: float) -> None:
    expected: dict[int, tuple[int, float]] = {}
    for row, text in enumerate(texts):
        close = [(jaccard(text, texts[i]), -i) for i in range(row) if i not in expected]
        if close and max(close)[0] >= threshold:
            expected[row] = (-max(close)[1], max(close)[0])
    partner, similarity = leaders(sets_of(texts), threshold)
    assert {row: (partner[row], similarity[row]) for row in np.flatnonzero(partner >= 0).tolist()} == expected


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_rows_of_a_template_have_the_leaders_of_the_definition(threshold: float) -> None:
    rng = random.Random(7)
    template = sentence(rng, 12).split()
    fillings = [sentence(rng, rng.randint(1, 4)) for _ in range(6)]
    texts = [
        " ".join([*template[:4], rng.choice(fillings), *template[4:], *rng.sample(fillings, 2)]) for _ in range(80)
    ]
    texts = rng.sample(texts + crowd(3, 20), 120)
    similarity = {(i, j): jaccard(texts[i], texts[j]) for j in range(120) for i in range(j)}
    expected = [-1] * 120
    for row in range(120):
        close = [(similarity[i, row], -i) for i in range(row) if expected[i] < 0]
        if close and max(close)[0] >= threshold:
            expected[row] = -max(close)[1]
    assert leaders(sets_of(texts), threshold)[0].tolist() == expected


@pytest.mark.parametrize("floor", [0.2, 0.5])
def test_the_nearest_pair_of_two_splits_is_found_if_it_is_over_the_floor(floor: float) -> None:
    texts = crowd(2)
    splits = np.random.default_rng(5).integers(0, 3, len(texts))
    across = {pair: value for pair, value in expected_pairs(texts, floor).items() if splits[pair[0]] != splits[pair[1]]}
    nearest = nearest_across(sets_of(texts), splits, floor)
    assert nearest.similarity == max(across.values()) == across[nearest.one, nearest.other]
    apart = nearest_across(sets_of(texts[:60]), splits[:60], 0.9)
    assert (apart.one, apart.other, apart.similarity) == (-1, -1, 0.0)


@pytest.mark.parametrize(("share", "threshold"), [(0.05, 0.7), (0.1, 0.6)])
def test_planted_edits_of_words_are_found(share: float, threshold: float) -> None:
    rng = random.Random(2)
    originals = [sentence(rng, rng.randint(20, 60)) for _ in range(300)]
    pairs = similar_pairs(sets_of([*originals, *(edited(text, share, rng) for text in originals)]), threshold)
    planted = {(i, i + 300) for i in range(300)}
    found = set(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    assert len(found & planted) >= 0.95 * 300
    assert found <= planted


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("My card hasn't arrived yet.", "  MY card\n\thasn’t ARRIVED — yet!!! "),  # noqa: RUF001
        ("ｆｕｌｌ width text here", "full WIDTH text here"),  # noqa: RUF001
        ("Straße und Weg gesperrt", "STRASSE und weg gesperrt"),
        ("in\u200bvisible soft\u00adhyphen marks", "invisible softhyphen marks"),
    ],
)
def test_format_is_no_difference(text: str, same: str) -> None:
    assert found_pairs([text, same], 1.0) == {(0, 1): 1.0}


@pytest.mark.parametrize("text", ["", "?", "👍", "ok", "no!", "猫", "ไป"])
def test_a_text_of_fewer_words_than_two_is_compared_as_a_whole(text: str) -> None:
    assert sets_of([text]).sizes.tolist() == [1]
    assert found_pairs([text, text, f"{text} or something else"], 0.5) == {(0, 1): 1.0}


@pytest.mark.parametrize(("text", "other"), [("is x < y", "is x > y"), ("I am \U0001f600", "I am \U0001f621")])
def test_symbols_are_words(text: str, other: str) -> None:
    assert found_pairs([text, other], 0.9) == {}
    assert found_pairs([text, text.replace(" ", "  ")], 1.0) == {(0, 1): 1.0}


def test_each_of_many_symbols_is_a_word() -> None:
    folded = fold_texts(["<=" * 1000])
    assert len(words(folded, segments(folded, folded.prompts), NOTHING).hashes) == 2000


def test_combining_marks_part_no_word() -> None:
    folded = fold_texts(["हिन्दी में लिखो"])
    assert len(words(folded, segments(folded, folded.prompts), NOTHING).hashes) == 3


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("我的信用卡还没有收到请帮我查一下", "我的信用卡还没有收到,请帮我查一查", "请问怎样才能修改账户的密码"),
        ("注文した商品がまだ届かないので", "注文した商品がまだ届かないんで", "パスワードを忘れたので再設定したい"),
        ("ฉันยังไม่ได้รับบัตรเครดิตของฉันเลย", "ฉันยังไม่ได้รับบัตรเครดิตของฉัน", "อยากเปลี่ยนรหัสผ่านต้องทำอย่างไร"),
    ],
)
def test_scripts_without_spaces_are_compared_by_characters(text: str, near: str, far: str) -> None:
    similarity = found_pairs([text, near, far], 0.2)
    assert similarity.keys() == {(0, 1)}
    assert similarity[0, 1] >= 0.6


def test_guarded_rows_are_alike_only_with_the_same_numbers_and_answer() -> None:
    prompt = "where is the order with these {} green apples that my sister sent me last week"
    rows = [(2, "a"), (2, "A "), (3, "a"), (2, "b")]
    messages = [[("user", prompt.format(number)), ("assistant", answer)] for number, answer in rows]
    column = pa.array([[{"role": r, "content": c} for r, c in turns] for turns in messages], MESSAGES)
    folded = fold_messages(column)
    pairs = similar_pairs(gather([shingles(cut(folded), NOTHING, answers(folded))]), 0.5)
    assert pairs.first.tolist() == [0, 0, 2, 3]
    assert len(pairs.left) == 0
    assert len(similar_pairs(gather([shingles(cut(folded), NOTHING)]), 0.5).left) == 1


def test_the_order_of_the_texts_changes_no_pair() -> None:
    rng = random.Random(3)
    texts = [sentence(rng, 12) for _ in range(40)]
    texts += [edited(text, 0.1, rng) for text in texts]
    order = rng.sample(range(80), 80)
    shuffled = {frozenset((order[i], order[j])): s for (i, j), s in found_pairs([texts[i] for i in order], 0.6).items()}
    assert shuffled == {frozenset(pair): s for pair, s in found_pairs(texts, 0.6).items()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It costs 12.50 for 3, or 1,000.", ["12.50", "3", "1,000"]),
        ("2 + 2", ["2", "+2"]),
        ("2 × 2", ["2", "*2"]),  # noqa: RUF001
        ("minus -5", ["-5"]),
        ("２ apples", ["2"]),  # noqa: RUF001
        ("none", []),
    ],
)
def test_numbers_come_with_their_sign(text: str, found: list[str]) -> None:
    assert reference.numbers(text) == found


def test_what_is_compiled_is_kept_in_the_home_folder_where_no_other_can_be_written(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("numba.core.config.CACHE_DIR", "")
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [UserProvidedCacheLocator])
    assert compiled(crowd).__name__ == "crowd"
    assert list(home.glob("numba/tests_*"))


def test_what_many_rows_share_is_left_out(tmp_path: Path) -> None:
    rng = random.Random(4)
    own = [sentence(rng, 6) for _ in range(40)]
    texts = [f"Classify this message: {text}\nAnswer with the LABEL  only.\n\nThank you!" for text in own]
    folded, cut_up = fold_texts(texts), prompt_segments(texts)
    counts = find_boilerplate(distinct_segments(cut_up)[0], 40, 0.05)
    found = {value: text.casefold() for value, text in segment_texts(folded, cut_up, counts).items()}
    assert {found[value]: rows for value, rows in counts.items()} == reference.boilerplate(texts, 0.05)
    assert sorted(found.values()) == ["answer with the label only.", "classify this message:", "thank you!"]
    write_boilerplate(tmp_path, 0.05, counts, found)
    left_out = read_boilerplate(tmp_path)
    assert sets_of(texts, left_out).sizes.tolist() == sets_of(own).sizes.tolist()
    assert len(similar_pairs(sets_of([*texts, *own], left_out), 1.0).left) == 0
    assert similar_pairs(sets_of([*texts, *own], left_out), 1.0).first.tolist() == [*range(40), *range(40)]


@pytest.mark.parametrize(("times", "share", "is_left_out"), [(9, 0.05, False), (10, 0.05, True), (10, 0.2, False)])
def test_what_few_rows_share_is_no_boilerplate(times: int, share: float, is_left_out: bool) -> None:
    texts = [sentence(random.Random(i), 8) for i in range(91)] + ["Say it. Say it."] * times
    counts = find_boilerplate(distinct_segments(prompt_segments(texts))[0], len(texts), share)
    assert list(counts.values()) == [times] * is_left_out


def test_a_text_of_nothing_but_boilerplate_is_compared_whole() -> None:
    left_out = np.unique(prompt_segments(["Say it.\nNow."]).hashes)
    assert found_pairs(["Say it.\nNow.", "say it now"], 1.0) == {(0, 1): 1.0}
    assert similar_pairs(sets_of(["Say it.\nNow.", "say it now"], left_out), 1.0).first.tolist() == [0, 0]
