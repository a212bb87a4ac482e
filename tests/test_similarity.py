"""What counts as alike, and that no pair of alike texts is missed."""

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import similarity
from tasks.similarity import alike, boilerplate, nearest_across, numbers, shingles, without, words

WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]
short_texts = st.lists(st.sampled_from(list("abcde")), min_size=0, max_size=9).map(" ".join)


def sentence(rng: random.Random, length: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(length))


def edited(text: str, share: float, rng: random.Random) -> str:
    """The text with so large a share of its words replaced by others."""
    found = text.split()
    for position in rng.sample(range(len(found)), round(share * len(found))):
        found[position] = rng.choice(WORDS)
    return " ".join(found)


def jaccard(one: str, other: str) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def found_pairs(texts: list[str], threshold: float) -> dict[tuple[int, int], float]:
    """All pairs of rows that `alike` implies: those it lists, for every row that has the set of a listed one."""
    pairs = alike(texts, threshold)
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


@given(st.lists(short_texts, min_size=0, max_size=25), st.sampled_from([0.3, 0.5, 0.6, 2 / 3, 0.7, 0.75, 1.0]))
@settings(max_examples=150, deadline=None)
def test_every_pair_is_found_with_its_exact_similarity_and_no_other(texts: list[str], threshold: float) -> None:
    assert found_pairs(texts, threshold) == expected_pairs(texts, threshold)


def test_no_pair_is_missed_where_the_work_is_done_in_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "PRODUCTS_AT_ONCE", 50)
    monkeypatch.setattr(similarity, "PAIRS_AT_ONCE", 7)
    rng = random.Random(1)
    texts = [sentence(rng, rng.randint(1, 30)) for _ in range(60)]
    texts += [edited(text, rng.choice([0.05, 0.1, 0.2]), rng) for text in texts]
    assert found_pairs(texts, 0.5) == expected_pairs(texts, 0.5)
    inside = np.arange(120) < 60
    assert nearest_across(texts, inside).similarity == max(jaccard(a, b) for a in texts[:60] for b in texts[60:])


@pytest.mark.parametrize(("share", "threshold"), [(0.05, 0.7), (0.1, 0.6)])
def test_planted_edits_of_words_are_found(share: float, threshold: float) -> None:
    rng = random.Random(2)
    originals = [sentence(rng, rng.randint(20, 60)) for _ in range(300)]
    pairs = alike([*originals, *(edited(text, share, rng) for text in originals)], threshold)
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
    assert shingles(text) == shingles(same)


@pytest.mark.parametrize("text", ["", "?", "👍", "ok", "no!", "猫", "ไป"])
def test_a_text_of_fewer_words_than_two_is_compared_as_a_whole(text: str) -> None:
    assert len(shingles(text)) == 1


def test_combining_marks_part_no_word() -> None:
    assert words("हिन्दी में लिखो") == ["हिन्दी", "में", "लिखो"]


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("我的信用卡还没有收到请帮我查一下", "我的信用卡还没有收到,请帮我查一查", "请问怎样才能修改账户的密码"),
        ("注文した商品がまだ届かないので", "注文した商品がまだ届かないんで", "パスワードを忘れたので再設定したい"),
        ("ฉันยังไม่ได้รับบัตรเครดิตของฉันเลย", "ฉันยังไม่ได้รับบัตรเครดิตของฉัน", "อยากเปลี่ยนรหัสผ่านต้องทำอย่างไร"),
    ],
)
def test_scripts_without_spaces_are_compared_by_characters(text: str, near: str, far: str) -> None:
    assert jaccard(text, near) >= 0.6
    assert jaccard(text, far) < 0.2


def test_rows_of_two_kinds_are_not_alike() -> None:
    texts = ["where is my order now"] * 4
    assert alike(texts, 0.5, ["a", "b", "a", "b"]).first.tolist() == [0, 1, 0, 1]


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
        ("It costs 12.50 for 3", ("12", "50", "3")),
        ("2 + 2", ("2", "+2")),
        ("2 * 2", ("2", "*2")),
        ("minus -5", ("-5",)),
        ("２ apples", ("2",)),  # noqa: RUF001
        ("none", ()),
    ],
)
def test_numbers_come_with_their_sign(text: str, found: tuple[str, ...]) -> None:
    assert numbers(text) == found


def test_what_many_rows_share_is_left_out() -> None:
    rng = random.Random(4)
    own = [sentence(rng, 6) for _ in range(40)]
    texts = [f"Classify this message: {text}\nAnswer with the LABEL  only.\n\nThank you!" for text in own]
    left_out = boilerplate(texts, 0.05)
    assert left_out == ["answer with the label only.", "classify this message:", "thank you!"]
    assert [without(text, set(left_out)) for text in texts] == own


def test_what_few_rows_share_is_no_boilerplate() -> None:
    texts = [sentence(random.Random(i), 8) for i in range(91)]
    assert boilerplate(texts + ["Say it."] * 9, 0.05) == []
    assert boilerplate(texts + ["Say it."] * 10, 0.05) == ["say it."]
    assert boilerplate(texts + ["Say it."] * 10, 0.2) == []


def test_a_text_of_nothing_but_boilerplate_is_compared_whole() -> None:
    assert without("Say it.\nNow.", {"say it.", "now."}) == "Say it.\nNow."


@given(st.text())
def test_any_text_has_a_shingle_and_loses_nothing_that_is_not_left_out(text: str) -> None:
    assert len(shingles(text)) >= 1
    assert "".join(without(text, set()).split()) == "".join(text.split())
