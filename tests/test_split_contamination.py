"""Training rows that have a passage of an evaluation row are found, and templates and forms of answers are not."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import messages
from hypothesis import given, settings
from hypothesis import strategies as st
from ingested import run
from split_rows import BOILERPLATE, WORDS, in_splits, prompts, quarantined, row_of, split_of, split_rows, unique_rows

from tunewright.artifacts import MESSAGES, Splits
from tunewright.config import Source, Split
from tunewright.tasks.split import split
from tunewright.tasks.split.passages import Search, Texts, conversations, first_asked, gather, passages_of

RNG = random.Random(7)
PASSAGE = " ".join(RNG.sample(WORDS, 13))
BASE = prompts(150, seed=4, copies=0)


def around(passage: str, num_words: int = 20) -> str:
    """A text that has the passage in its middle and nothing else in common with any other."""
    return " ".join([*RNG.choices(WORDS, k=num_words), passage, *RNG.choices(WORDS, k=num_words)])


def fixed_rows(*more: dict[str, Any]) -> list[dict[str, Any]]:
    splits = ["train"] * 100 + ["validation"] * 20 + ["test"] * 30
    return [*(row_of(text, use_as=split) for text, split in zip(BASE, splits, strict=True)), *more]


def conversation(prompt: str) -> Texts:
    return conversations(pa.chunked_array([pa.array([messages([prompt, "yes"])], MESSAGES)]), np.empty(0, np.uint64))


def contaminated(splits: Splits) -> set[str]:
    aside = quarantined(splits)
    assert {row["reason"] for row in aside.values()} <= {"contaminated"}
    return set(aside)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_training_row_with_thirteen_words_of_an_evaluation_row_goes_and_says_which(split: str) -> None:
    text = around(f"{PASSAGE.title()}!")
    train, other = row_of(text, use_as="train"), row_of(around(PASSAGE), use_as=split)
    splits = split_rows(fixed_rows(train, other))
    assert splits.reasons == {"contaminated": 1}
    aside = quarantined(splits)[train["row_id"]]
    begins = text.split().index(PASSAGE.split()[0].title()) + 1
    assert aside["detail"] == f"It shares a passage with {split} row data.jsonl:152, from word {begins} of this row on"
    assert split_of(splits)[other["row_id"]] == split
    assert json.loads(splits.path("proof.json").read_text())["decontamination"] == {
        "training_rows": 1,
        "removed": True,
        "by_partner": {split: 1},
        "held_out_records": 0,
        "in_held_out": {},
        "rows_in_held_out": [],
    }


KANA = [chr(code) for code in range(ord("ぁ"), ord("ん"))]


@pytest.mark.parametrize("before", ["", "表題 Ab12の", "\uff11.か\u3099は "])
def test_the_place_of_a_passage_without_spaces_is_its_character(before: str) -> None:
    passage = "".join(RNG.sample(KANA, 26))
    starts = (f"{before}{''.join(RNG.choices(KANA, k=40))}木。", f"{''.join(RNG.choices(KANA, k=40))}火。")
    texts = [f"{start}{passage}" for start in starts]
    train, other = row_of(texts[0], use_as="train"), row_of(texts[1], use_as="test")
    aside = quarantined(split_rows(fixed_rows(train, other)))[train["row_id"]]
    begins = texts[0].index(passage) + 1
    assert aside["detail"].endswith(f" row data.jsonl:152, from character {begins} of this row on")


def test_twenty_five_characters_without_spaces_are_not_enough() -> None:
    passage = "".join(RNG.sample(KANA, 25))
    ends = (("木", "火", "train"), ("水", "土", "test"))
    rows = [row_of(f"{''.join(RNG.choices(KANA, k=40))}{a}。{passage}{b}", use_as=split) for a, b, split in ends]
    assert not contaminated(split_rows(fixed_rows(*rows)))


def test_twelve_words_in_a_row_are_not_enough() -> None:
    twelve = " ".join(PASSAGE.split()[:12])
    rows = fixed_rows(row_of(around(twelve), use_as="train"), row_of(around(twelve), use_as="test"))
    assert not contaminated(split_rows(rows))


def test_a_question_of_the_test_split_in_an_answer_that_trains_is_found() -> None:
    train = row_of("please make up a question", use_as="train", answer=around(PASSAGE))
    assert contaminated(split_rows(fixed_rows(train, row_of(around(PASSAGE), use_as="test")))) == {train["row_id"]}


def test_what_only_the_answers_have_in_common_is_their_form() -> None:
    form = {"answer": f"{PASSAGE} a"}
    rows = fixed_rows(row_of(around("one"), use_as="train", **form), row_of(around("two"), use_as="test", **form))
    assert not contaminated(split_rows(rows))


@pytest.mark.parametrize(("num_rows", "found"), [(10, 10), (11, 0)])
def test_a_passage_that_more_than_ten_training_rows_have_is_a_template(num_rows: int, found: int) -> None:
    rows = [row_of(around(PASSAGE), use_as="train") for _ in range(num_rows)]
    splits = split_rows(fixed_rows(*rows, row_of(around(PASSAGE), use_as="test")))
    assert len(contaminated(splits)) == found


@pytest.mark.parametrize(("num_rows", "found"), [(10, 10), (11, 0)])
def test_a_template_is_one_too_where_its_rows_come_in_several_batches(num_rows: int, found: int) -> None:
    search = Search(gather([passages_of(conversation(around(PASSAGE)), np.array([99]))]), gather(()))
    for number in range(num_rows):
        search.look(conversation(around(PASSAGE)), np.array([number]), np.array([number]))
    assert len(search.shared().rows) == found


@pytest.mark.parametrize("split", [None, "test"])
def test_a_passage_of_one_prompt_is_no_template_however_many_answers_it_has(split: str | None) -> None:
    said = around(PASSAGE)
    rows = [row_of(said, use_as="train", answer=f"answer {i}") for i in range(30)]
    other = [row_of(around(PASSAGE), use_as=split)] if split else []
    splits = split_rows(fixed_rows(*rows, *other), held_out=[] if split else [f"{around(PASSAGE)}\nyes"])
    assert contaminated(splits) == {row["row_id"] for row in rows}
    assert len({row["detail"] for row in quarantined(splits).values()}) == 1


def test_a_prompt_is_known_again_where_its_rows_come_in_several_batches() -> None:
    questions, search = (
        dict[int, int](),
        Search(gather([passages_of(conversation(PASSAGE), np.array([99]))]), gather(())),
    )
    said = [around(PASSAGE), around(PASSAGE), around("nothing")]
    for number in range(40):
        texts, numbers = conversation(said[number % 3]), np.array([number])
        search.look(texts, numbers, first_asked(questions, texts, numbers))
    assert search.shared().rows.tolist() == [number for number in range(40) if number % 3 < 2]


@pytest.mark.parametrize(("num_rows", "found"), [(10, 10), (11, 0)])
def test_what_more_than_ten_answers_to_one_prompt_have_is_a_form(num_rows: int, found: int) -> None:
    rows = [row_of("please make up a question", use_as="train", answer=around(PASSAGE)) for _ in range(num_rows)]
    splits = split_rows(fixed_rows(*rows, row_of(around(PASSAGE), use_as="test")))
    assert len(contaminated(splits)) == found


def test_a_test_row_is_counted_in_held_out_with_each_of_its_answers() -> None:
    rows = [row_of(PASSAGE, use_as="test", answer=f"answer {i}") for i in range(12)]
    splits = split_rows(fixed_rows(*rows), held_out=[around(PASSAGE)])
    assert splits.findings["test_in_held_out"] == 12


def test_boilerplate_is_no_passage() -> None:
    rows = fixed_rows(
        row_of(f"{around('one')}\nAnswer this:\n{around('two')}", use_as="train"),
        row_of(f"Answer this: {around('three')}", use_as="test"),
    )
    assert not contaminated(split_rows(rows))


@pytest.mark.parametrize(("number", "is_warned"), [(30, True), (10, False)])
def test_many_training_rows_that_go_are_warned_of(
    number: int, is_warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    passages = [" ".join(RNG.sample(WORDS, 13)) for _ in range(number)]
    rows = [row_of(around(passage), use_as=split) for passage in passages for split in ("train", "test")]
    splits = split_rows(fixed_rows(*rows))
    assert splits.reasons == {"contaminated": number}
    assert ("30 of 130 training rows (23 %) share a passage with a row of another split" in caplog.text) == is_warned


def test_reported_contamination_stays_and_is_a_finding() -> None:
    rows = fixed_rows(row_of(around(PASSAGE), use_as="train"), row_of(around(PASSAGE), use_as="test"))
    splits = split_rows(rows, Split(decontaminate="report"))
    assert splits.num_quarantined == 0
    assert splits.findings["contaminated"] == 1
    assert splits.num_train == 101


def test_a_training_row_in_an_evaluation_file_goes_and_a_test_row_in_it_is_a_finding() -> None:
    rows = fixed_rows()
    train, validation, test = BASE[17], BASE[107], BASE[140]
    held_out = [around("one"), f"{train}\nthe answer", f"{around('two')} {test}", validation]
    splits = split_rows(rows, held_out=held_out)
    assert contaminated(splits) == {rows[17]["row_id"]}
    assert "held-out eval.jsonl:2" in quarantined(splits)[rows[17]["row_id"]]["detail"]
    assert splits.findings == {"validation_in_held_out": 1, "test_in_held_out": 1, "too_small": 30}
    named = json.loads(splits.path("proof.json").read_text())["decontamination"]["rows_in_held_out"]
    assert [(row["split"], row["row_id"]) for row in named] == [
        ("validation", rows[107]["row_id"]),
        ("test", rows[140]["row_id"]),
    ]


@pytest.mark.parametrize(
    ("record", "is_found"),
    [
        ("is my card here yet", True),
        ("banking\nIs my card  here, yet?\nno", True),
        ("Answer this: is my card here yet", True),
        ("is my card\nhere yet\nno", True),
        ("is my card here yet or not", False),
        ("no\nis my card here", False),
        ("", False),
    ],
)
def test_a_short_prompt_is_found_where_it_is_whole_lines_of_a_record(record: str, is_found: bool) -> None:
    train = row_of("Is my card here yet?", use_as="train")
    splits = split_rows(fixed_rows(train), held_out=["", record])
    assert contaminated(splits) == ({train["row_id"]} if is_found else set())
    if is_found:
        assert quarantined(splits)[train["row_id"]]["detail"] == "Its whole prompt occurs in held-out eval.jsonl:2"


def test_a_short_prompt_that_many_rows_have_is_no_template() -> None:
    rows = [row_of("is my card here yet", use_as="train", answer=f"answer {i}") for i in range(20)]
    splits = split_rows(fixed_rows(*rows), held_out=["is my card here yet"])
    assert contaminated(splits) == {row["row_id"] for row in rows}


def test_a_long_prompt_of_an_evaluation_file_that_many_rows_have_is_no_template_but_their_template_is() -> None:
    question, template = " ".join(RNG.sample(WORDS, 30)), " ".join(RNG.sample(WORDS, 20))
    same = [row_of(question, use_as="train", answer=f"answer {i}") for i in range(12)]
    lines = question.replace(" ", "\n", 2)
    two_lines = [row_of(lines, use_as="train", answer=f"other {i}") for i in range(12)]
    others = [row_of(f"{template} {around('of')}", use_as="train") for _ in range(12)]
    splits = split_rows(
        fixed_rows(*same, *two_lines, *others), held_out=[f"{question}\nyes", f"{template} me\n{lines}"]
    )
    assert contaminated(splits) == {row["row_id"] for row in [*same, *two_lines]}


def test_what_is_quarantined_shows_nothing_personal() -> None:
    address = "jane.miller@acme-bank.de"
    passage = f"write to {address} {PASSAGE}"
    train = row_of(around(passage), use_as="train", answer=f"\n{address}")
    aside = quarantined(split_rows(fixed_rows(train, row_of(around(passage), use_as="test"))))[train["row_id"]]
    assert "(not shown, it holds: " in aside["text"]
    assert address not in aside["text"] + aside["detail"]


def test_answers_of_an_evaluation_file_are_a_form_too() -> None:
    rows = fixed_rows(row_of(around("one"), use_as="train", answer=PASSAGE))
    assert not contaminated(split_rows(rows, held_out=[f"{around('two')}\n{PASSAGE} and more"]))
    assert contaminated(split_rows(rows, held_out=[f"{around(PASSAGE)}\nand more"])) == {rows[-1]["row_id"]}


FORM = "\n".join(f'"{word}": {{"slot": "{word}", "value": ""}},' for word in PASSAGE.split())


def test_a_known_answer_of_many_lines_is_a_form_and_a_known_question_is_found_in_prompts_and_answers() -> None:
    question = f"what is\n{PASSAGE.replace(' ', chr(10))}\nto you"
    form = row_of(around("one"), use_as="train", answer=FORM)
    asked = row_of(around(PASSAGE), use_as="train", answer=FORM)
    answered = row_of(around("two"), use_as="train", answer=around(PASSAGE))
    splits = split_rows(fixed_rows(form, asked, answered), held_out=[(around("three"), FORM), (question, "no")])
    assert contaminated(splits) == {asked["row_id"], answered["row_id"]}
    assert all("held-out eval.jsonl:2, from word" in row["detail"] for row in quarantined(splits).values())
    assert contaminated(split_rows(fixed_rows(form), held_out=[f"{around('three')}\n{FORM}"]))  # were it not known


def test_a_training_prompt_in_a_known_answer_is_found_if_it_is_long_and_no_leak_if_it_is_short() -> None:
    short, long = row_of("card arrival", use_as="train"), row_of(around(PASSAGE), use_as="train")
    records = [(around("one"), f"it is\ncard arrival\n{PASSAGE}")]
    assert contaminated(split_rows(fixed_rows(short, long), held_out=records)) == {long["row_id"]}
    asked = [("is it\ncard arrival", "card arrival")]
    assert contaminated(split_rows(fixed_rows(short), held_out=asked)) == {short["row_id"]}


def test_of_an_evaluation_file_like_the_training_file_only_what_both_ask_leaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said, again, long = around("one"), "book a table for two", around(PASSAGE)
    records = [
        {"instruction": BOILERPLATE, "input": text, "output": json.dumps({"slots": WORDS[:20]}), "source": "slots"}
        for text in (around("two"), again, long)
    ]
    Path("eval.jsonl").write_text("\n".join(map(json.dumps, records)))
    Path("train.jsonl").write_text(json.dumps({"prompt": "a", "completion": "b"}))
    ingested = run("train.jsonl", held_out=(Source(path="eval.jsonl"),))
    answer = records[0]["output"]
    trained = [row_of(f"{BOILERPLATE}\n\n{text}", use_as="train", answer=answer) for text in (said, again, long)]
    rows = fixed_rows(*trained)
    assert contaminated(split.fn(unique_rows(rows), ingested, Split(), None)) == {row["row_id"] for row in trained[1:]}


def test_the_whole_of_an_evaluation_set_is_found_whatever_the_length_of_its_prompts() -> None:
    texts = [" ".join(RNG.sample(WORDS, num_words)) for num_words in range(1, 40)]
    rows = fixed_rows(*(row_of(text, use_as="train") for text in texts))
    splits = split_rows(rows, held_out=[f"{text.upper()}.\nsome answer" for text in texts])
    assert contaminated(splits) == {row["row_id"] for row in rows[150:]}


SPACELESS = "我的银行卡还没有收到请问什么时候可以寄到我家里来呢谢"


@pytest.mark.parametrize(("num_characters", "is_found"), [(26, True), (25, False)])
def test_a_character_of_a_script_without_spaces_is_half_a_word(num_characters: int, is_found: bool) -> None:
    train = row_of(f"你好。{SPACELESS[:num_characters]}谢谢", use_as="train")
    splits = split_rows(fixed_rows(train), held_out=[f"问题{SPACELESS[:num_characters]}吗"])
    assert contaminated(splits) == ({train["row_id"]} if is_found else set())


def brute(train: str, other: str) -> bool:
    """Whether two prompts have 13 words in a row in common."""
    one, two = ([tuple(text.split()[i : i + 13]) for i in range(len(text.split()) - 12)] for text in (train, other))
    return not set(one).isdisjoint(two)


@given(st.integers(0, 2**32))
@settings(max_examples=5, deadline=None)
def test_what_is_found_is_what_comparing_all_prompts_finds(seed: int) -> None:
    rng = random.Random(seed)
    pool = [" ".join(rng.choices(WORDS, k=rng.randint(8, 18))) for _ in range(30)]
    texts = [
        " ".join([*rng.choices(WORDS, k=rng.randint(5, 40)), rng.choice(pool), *rng.choices(WORDS, k=30)])
        for _ in range(90)
    ]
    splits = split_rows([row_of(text) for text in texts], Split(test=0.2, validation=0.2))
    ids = {row_of(text)["row_id"]: text for text in texts}
    tested = [ids[row["row_id"]] for split in ("test", "validation") for row in in_splits(splits)[split]]
    expected = {i for i, text in ids.items() if text not in tested and any(brute(text, other) for other in tested)}
    assert contaminated(splits) == expected
    assert expected
