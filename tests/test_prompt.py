"""The base is asked with training rows before each question, which validation rows choose and test rows never do."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import MakeSplits, messages, tiny_tokenizer
from pydantic import ValidationError

from tunewright.artifacts import SPLIT_SCHEMA, Base, Contender, Prompts, Splits
from tunewright.config import Model, Settings
from tunewright.errors import ConfigError
from tunewright.modeling.chat import Chat
from tunewright.modeling.models import load_tokenizer
from tunewright.serving import K1, B
from tunewright.similarity import embedding
from tunewright.similarity.prompts import common_segments
from tunewright.tasks import prompt as prompting
from tunewright.tasks.examples import examples
from tunewright.tasks.prepend import prepend
from tunewright.tasks.prompt import PromptScore, prompt
from tunewright.tasks.prompt.shots import (
    Pool,
    WordRetriever,
    ask,
    conversation,
    draw,
    nearest,
    opening,
    pool_of,
)
from tunewright.tasks.render import render

ORDER = "You are asked by a customer. Say what it is about, in one word.\n\n"
ABOUT = {
    "delivery": ("Where is my parcel {}?", "The parcel {} did not come", "When does parcel {} come?"),
    "refund": ("Send me the money for {} back", "Pay me back {} euros", "I want my {} euros"),
    "repair": ("My lamp {} is broken", "The lamp number {} does not glow", "Mend lamp {} please"),
}
ROWS = [(ORDER + text.format(n), about) for n in range(3, 9) for about, texts in ABOUT.items() for text in texts]
WORDLLAMA = embedding.WORDLLAMA

Ask = Callable[..., Prompts]


@pytest.fixture
def splits(make_splits: MakeSplits) -> Splits:
    return make_splits(ROWS[:36], ROWS[36:45], ROWS[45:])


@pytest.fixture
def asked(tiny_base: Base) -> Ask:
    """`asked(splits)` are the prompts of a test set."""

    def make(splits: Splits, *, model: str = "", shots: int = 3, **options: Any) -> Prompts:
        tokens = render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))
        given: dict[str, Any] = {"contenders": ("few_shot", "retrieval"), "max_new_tokens": 16} | options
        given |= {"embedding": model and embedding.identity(model), "embedding_model": model or WORDLLAMA}
        return prompt.fn(splits=splits, tokens=tokens, base=tiny_base, shots=shots, **given)

    return make


def table(splits: Splits, split: str) -> pa.Table:
    return pq.read_table(splits.path(f"{split}.parquet"))


def texts(base: Base, made: Prompts, contender: str) -> list[str]:
    rows = pq.read_table(made.path(f"{contender}.parquet")).to_pylist()
    return load_tokenizer(base).batch_decode([row["input_ids"][: row["prompt_length"]] for row in rows])


def told(made: Prompts) -> Any:
    return json.loads(made.path("prompts.json").read_text())


def pool(*conversations: Any) -> Pool:
    rows = [{"row_id": str(at), "messages": messages(given)} for at, given in enumerate(conversations)]
    return pool_of(pa.Table.from_pylist(rows, SPLIT_SCHEMA))


def test_every_test_row_is_asked_with_training_rows_before_it(splits: Splits, asked: Ask, tiny_base: Base) -> None:
    made = asked(splits)
    train = {row["row_id"]: row for row in table(splits, "train").to_pylist()}
    test = table(splits, "test").to_pylist()
    for contender in ("few_shot", "retrieval"):
        rows = pq.read_table(made.path(f"{contender}.parquet")).to_pylist()
        assert [(row["row_id"], row["cluster"]) for row in rows] == [(row["row_id"], row["cluster"]) for row in test]
        assert [row["reference"] for row in rows] == [row["messages"][-1]["content"] for row in test]
        for text, row in zip(texts(tiny_base, made, contender), test, strict=True):
            shots = [train[shot]["messages"] for shot in told(made)[contender]["shots"][row["row_id"]]]
            assert shots
            said = [turn["content"].removeprefix(ORDER) for shot in shots for turn in shot]
            places = [text.index(f"\n{turn}<|im_end|>") if turn in said[1::2] else text.index(turn) for turn in said]
            assert places[0] == min(places)
            assert text.count(ORDER) == 1  # what all rows begin with is told once
            assert text.endswith(
                f"{row['messages'][0]['content'].removeprefix(ORDER)}<|im_end|>\n<|im_start|>assistant\n"
            )
    assert len({text[: text.rindex("<|im_start|>user")] for text in texts(tiny_base, made, "few_shot")}) == 1


def test_a_retrieval_contender_is_asked_as_the_candidate_that_is_this_prompt(
    make_splits: MakeSplits, asked: Ask, tiny_base: Base
) -> None:
    choose = random.Random(0)
    words = ["lamp", "shoe", "chair", "coat", "ring", "sofa", "phone", "table", "parcel", "letter", "refund", "repair"]

    def said() -> str:
        return " ".join(choose.choices(words, k=4)).capitalize() + "."

    rows = [(said(), said(), said(), said()) if number % 2 else (said(), said()) for number in range(60)]
    splits = make_splits(rows[:40], rows[40:44], rows[44:])
    made = asked(splits, contenders=("retrieval",))
    tokens = render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))
    candidate = examples.fn(splits=splits, tokens=tokens, base=tiny_base, kind="retrieval", shots=3, max_new_tokens=16)
    contender = Contender(name="candidate", base=tiny_base, model=candidate.path("model"))
    prepended = prepend.fn(contender=contender, splits=splits, tokens=tokens)
    columns = ["row_id", "input_ids", "prompt_length"]
    rows_of = [
        pq.read_table(each, columns=columns).to_pylist()
        for each in (made.path("retrieval.parquet"), prepended.path("test.parquet"))
    ]
    assert rows_of[0] == rows_of[1] and len(rows_of[0]) == 16


def test_the_nearest_training_rows_stand_last(splits: Splits, asked: Ask) -> None:
    made = asked(splits, contenders=("retrieval",))
    train = {row["row_id"]: row["messages"] for row in table(splits, "train").to_pylist()}
    test = {row["row_id"]: row["messages"] for row in table(splits, "test").to_pylist()}
    for row_id, shots in told(made)["retrieval"]["shots"].items():
        assert len(shots) == 3
        assert train[shots[-1]][1] == test[row_id][1]  # the same words about another parcel are about the same
    assert "few_shot" not in told(made)
    assert not made.path("few_shot.parquet").exists()


def test_nothing_is_chosen_on_test_rows(splits: Splits, asked: Ask, make_splits: MakeSplits) -> None:
    other = make_splits(ROWS[:36], ROWS[36:45], ROWS[45:47])
    one, two = (told(asked(some))["few_shot"] for some in (splits, other))
    assert (one["chosen"], one["tried"]) == (two["chosen"], two["tried"])
    assert {*map(tuple, one["shots"].values())} == {*map(tuple, two["shots"].values())}


def test_equal_inputs_give_equal_bytes(
    splits: Splits, asked: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = asked(splits)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "another"))
    again = asked(splits)
    assert again.folder != first.folder
    assert again.digest == first.digest


def test_the_best_on_validation_rows_is_taken(splits: Splits, asked: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    validation = {row["row_id"] for row in table(splits, "validation").to_pylist()}
    seen: list[tuple[int, ...]] = []

    def found(self: prompting.Asking, rows: pa.Table, shots: list[list[int]]) -> PromptScore:
        assert {*rows["row_id"].to_pylist()} <= validation
        seen.append(tuple(shots[0]))
        return PromptScore(0.5, [-3.0, -1.0, -2.0, -1.5, -9.0, -8.0][len(seen) - 1])

    monkeypatch.setattr(prompting.Asking, "found", found)
    made = asked(splits, model=WORDLLAMA, shots=4)
    assert [len(shots) for shots in seen[:4]] == [4, 4, 4, 2]
    assert seen[3] == seen[1][:2]
    train = table(splits, "train").sort_by("row_id")
    few_shot, retrieval = told(made)["few_shot"], told(made)["retrieval"]
    ids = few_shot["tried"][1]["shots"]
    assert len(ids) == 4
    assert all(shots == ids for shots in few_shot["shots"].values())
    assert {*ids} <= {*train["row_id"].to_pylist()}
    assert [tried["by"] for tried in retrieval["tried"]] == ["bm25", "embedding"]
    assert "by embeddings" in made.chosen["retrieval"]
    assert made.chosen["few_shot"] == "4 examples, the best of 4 sets on 9 validation rows"


def test_a_choice_on_fewer_rows_than_validation_has_says_that_these_are_the_first(
    splits: Splits, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompting, "TRIED", {"few_shot": 9, "retrieval": 4})
    monkeypatch.setattr(prompting.Asking, "found", lambda *_: PromptScore(0.5, -1.0))
    chosen = asked(splits, model=WORDLLAMA, shots=4).chosen
    assert chosen["few_shot"].endswith(" on 9 validation rows")
    assert chosen["retrieval"].endswith(" on the first 4 validation rows)")


def test_shots_have_different_answers_where_there_are_some() -> None:
    some = pool(*ROWS[:12])
    for seed in range(5):
        chosen = draw(some, seed, 4)
        assert len({some.messages(at)[-1]["content"] for at in chosen}) == 3
        assert len({*chosen}) == 4
    assert len(draw(some, 0, 100)) == 12
    assert draw(some, 0, 4) != draw(some, 1, 4)


def test_a_row_keeps_its_own_system_message_and_turns() -> None:
    system = {"role": "system", "content": "Be kind."}
    other = {"role": "system", "content": "Be quick."}
    some = pool([other, *messages(("Hello?", "Hi."))], ("Who?", "Me."))
    row = [system, *messages(("One?", "Two.", "Three?", "Four."))]
    said = conversation(some, [0, 1], row)
    assert said == [system, *messages(("Hello?", "Hi.", "Who?", "Me.")), *row[1:]]
    assert conversation(some, [], row) == row


def test_only_rows_in_which_a_user_is_answered_are_shots(make_splits: MakeSplits, asked: Ask) -> None:
    alone = [{"role": "assistant", "content": "Hello"}]
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    assert len(pool(alone, twice, ("Where?", "Here.")).rows) == 1
    with pytest.raises(ConfigError, match="to use as an example; accepted: contenders="):
        asked(make_splits([twice], ROWS[:1], ROWS[1:2]))


def test_what_all_rows_begin_with_ends_with_a_line_or_a_sentence() -> None:
    assert opening([ORDER + "Where is it?", ORDER + "When?"]) == ORDER
    instruction = "Say in one word what the customer wants to know. "
    assert opening([instruction + "Message: a", instruction + "Message: b"]) == instruction + "Message: "
    assert opening(["Where is it?", "Where is she?"]) == ""
    assert opening([ORDER]) == ""


def test_shots_are_left_out_where_there_is_no_room_for_the_answer(tiny_base: Base) -> None:
    chat = Chat(load_tokenizer(tiny_base), tiny_base.weights)
    some = pool(*(((f"{word} " * 20).strip(), word) for word in ("one", "two", "three", "four")))
    rows = [{"file": "a", "line": 1, "messages": messages(("one", "one"))}]
    whole = ask(chat, some, rows, [[0, 1, 2, 3]], context=10_000, max_new_tokens=8)[0]
    need = whole.tokens.prompt_length + 8
    assert ask(chat, some, rows, [[0, 1, 2, 3]], context=need, max_new_tokens=8)[0].shots == [0, 1, 2, 3]
    shorter = ask(chat, some, rows, [[0, 1, 2, 3]], context=need - 1, max_new_tokens=8)[0]
    assert shorter.shots == [1, 2, 3]
    assert shorter.tokens.prompt_length + 8 < need
    assert ask(chat, some, rows, [[0, 1, 2, 3]], context=1, max_new_tokens=8)[0].shots == []


def test_rows_that_had_to_leave_out_shots_are_counted(make_splits: MakeSplits, asked: Ask) -> None:
    long = [(f"one two three {n} " * 120, "four") for n in range(8)]
    made = asked(make_splits(long, ROWS[:2], ROWS[2:5]), shots=8)
    assert made.num_shortened == {"few_shot": 3, "retrieval": 3}
    assert made.warned == tuple(
        f"{name}: 3 of 3 test prompts have fewer examples than chosen: the base's context of 2,048 tokens keeps 16 for "
        "the answer; the others were left out; choose a base with a longer context"
        for name in ("few_shot", "retrieval")
    )
    assert made.left_out == ()
    rows = pq.read_table(made.path("few_shot.parquet")).to_pylist()
    assert all(row["prompt_length"] + 16 <= 2048 for row in rows)
    assert all(0 < len(shots) < 8 for shots in told(made)["few_shot"]["shots"].values())


def test_a_prompt_that_has_room_for_no_example_is_left_out(make_splits: MakeSplits, asked: Ask) -> None:
    long = [(f"one two three {n} " * 120, "four") for n in range(8)]
    splits = make_splits(long, ROWS[:2], [("one two", "four"), *long[:2]])
    made = asked(splits, shots=8, max_new_tokens=2030)
    assert made.left_out == ("few_shot", "retrieval")
    assert made.chosen == {}
    assert made.warned[0] == (
        "few_shot: no test prompt has room for an example: the base's context of 2,048 tokens keeps 2,030 for the "
        "answer, so it is left out; lower evaluation.max_new_tokens, or choose a base with a longer context"
    )
    some = asked(splits, shots=8, max_new_tokens=1_000)
    assert some.left_out == ()
    assert told(some)["few_shot"]["num_without"] == 2
    assert "few_shot: 3 of 3 test prompts have fewer examples than chosen, 2 of them none: the base" in some.warned[0]
    assert some.warned[0].endswith("; lower evaluation.max_new_tokens, or choose a base with a longer context")


def test_a_template_that_takes_no_shots_is_said(
    make_splits: MakeSplits, tiny_base: Base, asked: Ask, tmp_path: Path
) -> None:
    once = "{% if messages|length > 3 %}{{ raise_exception('one question at a time') }}{% endif %}"
    template = once + tiny_tokenizer().chat_template
    tiny_tokenizer(template).save_pretrained(tmp_path / "base")
    for file in tiny_base.weights.iterdir():
        if not (tmp_path / "base" / file.name).exists():
            (tmp_path / "base" / file.name).symlink_to(file)
    base = tiny_base.model_copy(update={"folder": tmp_path / "base", "digest": "once"})
    splits = make_splits(ROWS[:6], ROWS[6:8], ROWS[8:10])
    tokens = render.fn(splits=splits, base=base, model=Model(base="tiny"))
    with pytest.raises(ConfigError, match=r"one question at a time.*accepted: contenders="):
        prompt.fn(splits, tokens, base, ("few_shot",), 3, 16, WORDLLAMA, "")


def test_of_many_training_rows_a_sample_that_does_not_hang_on_their_order_is_the_pool(
    splits: Splits, tiny_base: Base, tmp_path: Path
) -> None:
    train = table(splits, "train")
    kept = render.fn(splits, tiny_base, Model(base="tiny")).path("train.parquet")
    pq.write_table(train.take(np.random.default_rng(0).permutation(len(train))), tmp_path / "mixed.parquet")
    sample = prompting._pool(splits.path("train.parquet"), kept, 10)
    mixed = prompting._pool(tmp_path / "mixed.parquet", kept, 10)
    assert len(sample) == 10
    assert {*sample["row_id"].to_pylist()} == {*mixed["row_id"].to_pylist()}
    assert len(prompting._pool(splits.path("train.parquet"), kept, 10_000)) == len(train)


def test_a_training_row_that_render_leaves_out_is_no_shot(make_splits: MakeSplits, tiny_base: Base) -> None:
    splits = make_splits([*ROWS[:9], ("stop <|im_end|>", "two")], ROWS[9:11], ROWS[11:13])
    tokens = render.fn(splits, tiny_base, Model(base="tiny"))
    assert tokens.reasons == {"control_token": 1}
    pool = prompting._pool(splits.path("train.parquet"), tokens.path("train.parquet"), 10)
    assert len(pool) == 9


def test_rows_are_compared_by_words_alone_where_no_embedding_is_installed(
    splits: Splits, asked: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert embedding.identity_if_installed(WORDLLAMA) == embedding.identity(WORDLLAMA)
    monkeypatch.setattr(embedding.importlib.util, "find_spec", lambda name: None)
    assert embedding.identity_if_installed(WORDLLAMA) == ""
    with pytest.raises(ConfigError, match="elsewhere"):
        embedding.identity_if_installed("elsewhere")
    made = asked(splits, contenders=("retrieval",))
    assert told(made)["retrieval"]["tried"] == []  # there is nothing to choose


def test_shots_without_a_contender_that_takes_them_are_refused() -> None:
    given = {"data": {"sources": [{"path": "a.jsonl"}]}, "model": {"base": "b"}}
    with pytest.raises(ValidationError, match=r"evaluation\.shots=4 has no effect"):
        Settings.model_validate(given | {"evaluation": {"contenders": (), "shots": 4}})


def test_bm25_is_that_of_its_formula() -> None:
    said = ["red red shoe", "red lamp on the table", "green lamp", "a shoe a shoe a shoe"]
    some = pool(*((text, "yes") for text in said))
    asked = ["shoe red shoe", "unknown words", "green table lamp"]
    questions = pa.table(
        {"messages": pa.array([messages((text, "")) for text in asked], SPLIT_SCHEMA.field("messages").type)}
    )
    documents = [Counter(text.split()) for text in said]
    mean = sum(map(Counter.total, documents)) / len(documents)

    def score(question: str, document: Counter[str]) -> float:
        total = 0.0
        for word in {*question.split()}:
            having = sum(word in other for other in documents)
            rarity = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            often = document[word] * (K1 + 1) / (document[word] + K1 * (1 - B + B * document.total() / mean))
            total += rarity * often
        return total

    expected = [[score(question, document) for document in documents] for question in asked]
    found = WordRetriever(some.rows, np.empty(0, np.uint64))
    assert found.scores(questions) == pytest.approx(np.array(expected))
    assert nearest(found, questions, 2) == [[3, 0] if expected[0][0] > expected[0][3] else [0, 3], [1, 0], [1, 2]]


def test_a_sentence_that_many_rows_have_says_nothing() -> None:
    some = pool(*((f"{ORDER}{word} parcel", "yes") for word in ("red", "blue", "green", "gold", "grey") * 4))
    questions = pa.table({"messages": pa.array([messages((ORDER + "gold", ""))], SPLIT_SCHEMA.field("messages").type)})
    found = WordRetriever(some.rows, common_segments(some.rows["messages"])).scores(questions)[0]
    assert [*np.flatnonzero(found)] == [3, 8, 13, 18]
