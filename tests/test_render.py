"""The loss covers only the answers and their stop tokens, and the prompt is exactly what a server sends."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CHATML, MakeSplits, messages, tiny_tokenizer

from tunewright.artifacts import Base, Tokens
from tunewright.artifacts.payloads import Contract
from tunewright.config import Model
from tunewright.errors import ConfigError, DataError
from tunewright.machine import bounded
from tunewright.modeling.chat import Chat, Tokenized, Untrainable, tokenize
from tunewright.modeling.models import check_served, copy_tokenizer, load_tokenizer
from tunewright.tasks.render import Bound, preview, render
from tunewright.tasks.render.report import UNPRINTABLE, measure, segments

LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
THINKING = (  # as Qwen3's: only the last answer is written with its (empty) thoughts
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if loop.last and m['role'] == 'assistant' %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LOOPS = "".join(f"{{% for {i} in range(99999) %}}" for i in "abc") + "{% endfor %}" * 3  # 10^15 turns
HEADERS = ("<|start_header_id|>", "<|end_header_id|>")
TWO_TURNS = ("one two", "three", "Where is my order?", "It left — 注文 👩‍🚀 héllo")
SPLITS = ("train", "validation", "test")
MODEL = Model(base="tiny")

MakeBase = Callable[..., Base]


@pytest.fixture
def make_base(tmp_path: Path) -> MakeBase:
    """`make_base(tokenizer, **config)` is a base without weights: rendering needs none."""

    def make(tokenizer: Any, **config: Any) -> Base:
        folder = tmp_path / "base"
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
        return Base(
            folder=folder, digest="tiny", reference="tiny", revision=None, location=Path(), weights_digest="tiny"
        )

    return make


def llama_2() -> Any:
    return tiny_tokenizer(LLAMA_2, "<s>", "</s>")


def llama_3() -> Any:
    return tiny_tokenizer(LLAMA_3, "<|begin_of_text|>", "<|eot_id|>", HEADERS)


TOKENIZERS = pytest.mark.parametrize(
    "tokenizer", [tiny_tokenizer, llama_2, llama_3], ids=["chatml", "llama2", "llama3"]
)


def without_bos() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    return tokenizer


def joining(text: str) -> Any:
    """A ChatML tokenizer to which these characters are one token, as real ones have one for many line breaks."""
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False)])
    return tokenizer


def rendered(make_splits: MakeSplits, base: Base, conversation: Any, model: Model = MODEL) -> Tokens:
    """The conversation on all three splits."""
    return render.fn(make_splits([conversation], [conversation], [conversation]), base, model)


def rows(tokens: Tokens, split: str = "train") -> list[dict[str, Any]]:
    return pq.read_table(tokens.path(f"{split}.parquet")).to_pylist()


def trained(base: Base, row: dict[str, Any]) -> str:
    return load_tokenizer(base).decode([label for label in row["labels"] if label != -100])


@TOKENIZERS
def test_every_answer_and_its_stop_token_is_trained_and_nothing_else(
    tokenizer: Callable[[], Any], make_base: MakeBase, make_splits: MakeSplits
) -> None:
    base = make_base(tokenizer())
    row = rows(rendered(make_splits, base, TWO_TURNS))[0]
    stop = load_tokenizer(base).eos_token
    assert trained(base, row).replace(" " + stop, stop).split(stop) == [
        " three" if stop == "</s>" else "three",
        " " + TWO_TURNS[-1] if stop == "</s>" else TWO_TURNS[-1],
        "",
    ]
    assert all(label in (-100, id_) for id_, label in zip(row["input_ids"], row["labels"], strict=True))


@TOKENIZERS
def test_the_prompt_is_what_a_server_would_send(
    tokenizer: Callable[[], Any], make_base: MakeBase, make_splits: MakeSplits
) -> None:
    base = make_base(tokenizer())
    tokens = rendered(make_splits, base, TWO_TURNS)
    sent = load_tokenizer(base).apply_chat_template(messages(TWO_TURNS)[:-1], add_generation_prompt=True)["input_ids"]
    for split in SPLITS:
        row = rows(tokens, split)[0]
        assert row["input_ids"][: row["prompt_length"]] == sent
        assert row["reference"] == TWO_TURNS[-1]


def test_of_a_test_row_the_last_answer_alone_is_trained(tiny_base: Base, make_splits: MakeSplits) -> None:
    tokens = rendered(make_splits, tiny_base, TWO_TURNS)
    assert trained(tiny_base, rows(tokens, "test")[0]) == TWO_TURNS[-1] + "<|im_end|>"
    assert trained(tiny_base, rows(tokens, "validation")[0]) == f"three<|im_end|>{TWO_TURNS[-1]}<|im_end|>"


def test_what_a_template_puts_before_an_answer_is_the_models_to_say(
    make_base: MakeBase, make_splits: MakeSplits
) -> None:
    base = make_base(tiny_tokenizer(THINKING))
    row = rows(rendered(make_splits, base, ("one", "two", "three", "four")))[0]
    assert trained(base, row) == "two<|im_end|><think>\n\n</think>\n\nfour<|im_end|>"
    assert row["reference"] == "four"


def test_the_reference_is_what_the_template_leaves_of_the_answer(make_base: MakeBase, make_splits: MakeSplits) -> None:
    row = rows(rendered(make_splits, make_base(llama_3()), ("one", "  two \n")))[0]
    assert row["reference"] == "two"


def test_padding_masked_by_length_keeps_the_stop_token_and_masked_by_id_does_not(
    tiny_base: Base, make_splits: MakeSplits
) -> None:
    tokens = rendered(make_splits, tiny_base, ("one", "two"))
    contract = json.loads(tokens.path("contract.json").read_text())
    row, pad = rows(tokens)[0], contract["pad_token_id"]
    ids, labels = row["input_ids"] + [pad] * 5, row["labels"] + [-100] * 5
    by_length = [label if at < len(row["labels"]) else -100 for at, label in enumerate(labels)]
    by_id = [-100 if id_ == pad else label for id_, label in zip(ids, labels, strict=True)]
    assert contract["pad_is_stop_token"]
    assert by_length == labels
    assert by_id != labels


def test_a_row_over_max_length_stops_the_run_and_says_where_it_is(tiny_base: Base, make_splits: MakeSplits) -> None:
    splits = make_splits([("one", "two"), ("three " * 40, "four")], [("five", "six")], [("seven", "eight")])
    said = (
        r"^1 of 4 rows is longer than model.max_length=50 .*: it has \d+; the longest is "
        r"data.jsonl line 2: raise .*on_long=quarantine.*; see "
    )
    with pytest.raises(DataError, match=said) as caught:
        render.fn(splits, tiny_base, MODEL.model_copy(update={"max_length": 50}))
    (refused,) = pq.read_table(str(caught.value).rpartition("; see ")[2]).to_pylist()
    assert (refused["line"], refused["reason"]) == (2, "too_many_tokens")
    with pytest.raises(DataError, match=r"leaves no row in train: 1 of .*: raise model.max_length to \d+ to train on"):
        emptied = make_splits([("three " * 40, "four")], [("five", "six")], [("seven", "eight")])
        render.fn(emptied, tiny_base, MODEL.model_copy(update={"max_length": 50, "on_long": "quarantine"}))
    twice = make_splits([("one", "two"), *[("three " * 40, "four")] * 2], [("five", "six")], [("seven", "eight")])
    with pytest.raises(DataError, match=r"^2 of 5 rows are longer than model.max_length=50 .*: they have "):
        render.fn(twice, tiny_base, MODEL.model_copy(update={"max_length": 50}))


def test_quarantine_keeps_the_account_and_truncates_nothing(tiny_base: Base, make_splits: MakeSplits) -> None:
    long, unanswered = ("three " * 40, "four"), [{"role": "user", "content": "five"}]
    splits = make_splits([("one", "two"), long, unanswered], [("five", "six")], [("seven", "eight"), long])
    tokens = render.fn(splits, tiny_base, Model(base="tiny", max_length=50, on_long="quarantine"))
    quarantine = pq.read_table(tokens.path("quarantine.parquet")).to_pylist()
    assert [(row["line"], row["reason"]) for row in quarantine] == [
        (2, "too_many_tokens"),
        (3, "nothing_trained"),
        (6, "too_many_tokens"),
    ]
    assert tokens.reasons == {"too_many_tokens": 2, "nothing_trained": 1}
    (warned,) = tokens.warned
    assert re.fullmatch(
        r"2 of 6 rows \(33 %\) are longer than model\.max_length=50 tokens and are quarantined, 1 of the 2 test rows "
        r"among them, so that the verdict says nothing of such rows; raise model\.max_length to \d+ to train on them",
        warned,
    )
    assert (tokens.num_train, tokens.num_validation, tokens.num_test, tokens.num_quarantined) == (1, 1, 1, 3)
    assert tokens.longest == max(len(row["input_ids"]) for split in SPLITS for row in rows(tokens, split))
    assert tokens.num_trained_tokens == sum(label != -100 for label in rows(tokens)[0]["labels"])


def test_rows_that_a_user_provided_split_loses_are_told(tiny_base: Base, make_splits: MakeSplits) -> None:
    long = ("three " * 40, "four")
    splits = make_splits([("one", "two")] * 9, [("five", "six"), long], [("seven", "eight"), long, long])
    file = splits.path("test.parquet")
    table = pq.read_table(file)
    place = table.schema.get_field_index("use_as")
    pq.write_table(table.set_column(place, table.schema.field("use_as"), pa.array(["test"] * 3)), file)
    model = Model(base="tiny", max_length=50, on_long="quarantine")
    assert render.fn(splits, tiny_base, model, max_quarantined_share=0.5).warned == (
        "2 of the 3 rows of the user-provided test set cannot be used with model.base and are quarantined: "
        "too_many_tokens 2; first: data.jsonl line 13",
    )


JAPANESE = "ご注文いただいた商品は倉庫から発送されましたので、到着までもう少しお待ちください。"
ENGLISH = "Your order has left the warehouse today"


def test_many_long_rows_of_one_language_and_source_are_named_with_the_rows_of_others(
    tiny_base: Base, make_splits: MakeSplits
) -> None:
    many = ([(f"{JAPANESE}{n}", "はい") for n in range(4)] + [(f"{ENGLISH} {n}", "yes") for n in range(2)]) * 2
    splits = make_splits(many, many[3:6], many[3:6])
    for name in SPLITS:
        file = splits.path(f"{name}.parquet")
        table = pq.read_table(file)
        sources = ["b.jsonl" if "商品" in turns[0]["content"] else "a.jsonl" for turns in table["messages"].to_pylist()]
        place = table.column_names.index("source")
        pq.write_table(table.set_column(place, table.schema.field("source"), pa.array(sources)), file)
    (warned,) = render.fn(
        splits, tiny_base, MODEL.model_copy(update={"max_length": 60, "on_long": "quarantine"})
    ).warned
    assert re.match(
        r"10 of 18 rows \(56 %\) are longer than model\.max_length=60 tokens and are quarantined, 1 of the 3 test rows "
        r"among them, so that the verdict says nothing of such rows: they are 10 of the 10 rows of source b\.jsonl "
        r"\(and 0 of the 8 rows of another\) and 10 of the 10 rows of language ja \(and 0 of the 8 rows of another\); "
        "raise model",
        warned,
    ), warned


def test_the_advice_for_long_rows_goes_up_to_the_context_of_the_base() -> None:
    bound = Bound(max_length=2048, context=8192)
    assert bound.cure(3000, "quarantine") == "raise model.max_length to 3000 to train on them"
    assert bound.cure(9000, "quarantine") == (
        "raise model.max_length up to 8192, which is all that the base reads, and shorten those that are longer still, "
        "or use a base with a longer context"
    )
    assert bound.cure(9000, "error").startswith(
        "set model.on_long=quarantine to quarantine such rows, raise model.max_length up to 8192"
    )
    whole = Bound(max_length=8192, context=8192)
    assert whole.cure(9000, "quarantine") == "shorten them, or use a base with a longer context"


def test_a_row_longer_than_the_base_can_read_is_refused(make_base: MakeBase, make_splits: MakeSplits) -> None:
    base = make_base(tiny_tokenizer(), max_position_embeddings=30)
    with pytest.raises(DataError, match=r"the 30 tokens of the context of model[.]base .* shorten them"):
        rendered(make_splits, base, ("three " * 40, "four"))


def test_the_lengths_of_rows_over_max_length_are_told_with_the_setting(
    tiny_base: Base, make_splits: MakeSplits
) -> None:
    splits = make_splits([("two " * n, "three") for n in (40, 50, 60)], [("five " * 70, "six")], [("five " * 9, "ten")])
    said = (
        r"^4 of 5 rows .* model.max_length=50 tokens .* they have (\d+) to (\d+), median (\d+);.*max_length to (\d+),"
    )
    with pytest.raises(DataError, match=said) as caught:
        render.fn(splits, tiny_base, MODEL.model_copy(update={"max_length": 50}))
    found = re.match(said, str(caught.value))
    assert found
    shortest, longest, median, cure = map(int, found.groups())
    assert 50 < shortest < median < longest == cure
    rendered(make_splits, tiny_base, ("five " * 70, "six"), MODEL.model_copy(update={"max_length": cure}))


def test_a_row_without_an_answer_is_quarantined(tiny_base: Base, make_splits: MakeSplits) -> None:
    splits = make_splits([[{"role": "user", "content": "one"}], *[("one", "two")] * 4], [("a", "b")], [("c", "d")])
    assert render.fn(splits, tiny_base, MODEL).reasons == {"nothing_trained": 1}


def test_an_answer_that_begins_with_blanks_is_quarantined_with_the_true_reason(
    make_base: MakeBase, make_splits: MakeSplits
) -> None:
    base = make_base(joining("\n\n"))
    splits = make_splits([*[("one", "two")] * 4, ("one", "\n two")], [("a", "b")], [("c", "d")])
    tokens = render.fn(splits, base, MODEL)
    (refused,) = pq.read_table(tokens.path("quarantine.parquet")).to_pylist()
    assert (refused["line"], refused["reason"]) == (5, "joined_tokens")
    assert re.match(
        r"message 2 begins with the blanks '\\n ', which the tokenizer joins with .*assistant\\n.* "
        r"remove them from the answer where they mean nothing, and else set model.chat_template to one that ends the "
        r"prompt with a special token",
        refused["detail"],
    )
    assert (tokens.num_train, tokens.num_quarantined) == (4, 1)


def test_more_rows_that_cannot_be_trained_than_may_be_quarantined_stop_the_run(
    make_base: MakeBase, make_splits: MakeSplits
) -> None:
    base = make_base(joining("\n\n"))
    splits = make_splits([*[("one", "two")] * 6, *[("one", "\n two")] * 2], [("a", "b")], [("c", "d")])
    said = (
        r"^2 of 10 rows cannot be trained .* checks.max_quarantined_share=0.1: 2 joined_tokens, first data.jsonl line 7"
    )
    with pytest.raises(DataError, match=said):
        render.fn(splits, base, MODEL, max_quarantined_share=0.1)
    assert render.fn(splits, base, MODEL, max_quarantined_share=0.2).num_quarantined == 2


@pytest.mark.parametrize(
    "fault",
    ["message['content'].nothing.at_all", "message['content'] + 1", "1 // (message['content'] | length - 4)"],
)
def test_what_a_template_raises_on_one_row_quarantines_that_row(
    fault: str, make_base: MakeBase, make_splits: MakeSplits
) -> None:
    broken = (
        "{% for message in messages %}{% if 'bad!' in message['content'] %}{{ " + fault + " }}{% endif %}{% endfor %}"
    )
    base = make_base(tiny_tokenizer(broken + CHATML))
    splits = make_splits([*[("one", "two")] * 4, ("bad!", "two")], [("a", "b")], [("c", "d")])
    tokens = render.fn(splits, base, MODEL)
    assert (tokens.num_train, tokens.reasons) == (4, {"refused_by_template": 1})


def test_a_split_that_becomes_empty_is_an_error(tiny_base: Base, make_splits: MakeSplits) -> None:
    splits = make_splits([("one", "two")], [("three " * 40, "four")], [("five", "six")])
    with pytest.raises(DataError, match="no row in validation"):
        render.fn(splits, tiny_base, Model(base="tiny", max_length=50, on_long="quarantine"))


def test_a_control_token_in_the_text_is_refused(tiny_base: Base, make_splits: MakeSplits) -> None:
    with pytest.raises(DataError, match=r"data.jsonl line 1: the text of user has '<\|im_end\|>'"):
        rendered(make_splits, tiny_base, ("stop <|im_end|>", "two"))


def test_a_template_that_trims_what_comes_last_is_refused(make_base: MakeBase, make_splits: MakeSplits) -> None:
    trimming = CHATML.replace(
        "message['content'] +", "(message['content'].strip() if loop.last else message['content']) +"
    )
    base = make_base(tiny_tokenizer(trimming))
    rendered(make_splits, base, ("one", "two"))
    with pytest.raises(DataError, match=r"data.jsonl line 1: a server would prompt for message 2 with another prompt"):
        rendered(make_splits, base, ("one  ", "two"))


def test_a_prompt_whose_last_token_melts_into_the_answer_is_refused(
    make_base: MakeBase, make_splits: MakeSplits
) -> None:
    melting = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
        "{{ eos_token if m['role'] == 'assistant' else ' ' }}{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt else '' }}"
    )
    base = make_base(tiny_tokenizer(melting))
    with pytest.raises(
        DataError, match=r"joined_tokens, first data.jsonl line 1: message 2 begins with 'two three', .* joins"
    ):
        rendered(make_splits, base, ("one", "two three"))


@pytest.mark.parametrize("eos", [{}, [0.5], ["<|im_end|>"], [[1]]])
def test_a_stop_token_that_is_no_number_is_one_line(make_base: MakeBase, eos: Any) -> None:
    base = make_base(tiny_tokenizer(CHATML))
    (base.weights / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    said = r"^model\.base=.*: generation_config\.json has eos_token_id=[^\n]*; accepted: the number of a token"
    with pytest.raises(ConfigError, match=said):
        Chat(load_tokenizer(base), base.weights)


def test_a_stop_token_of_a_number_that_no_token_has_is_none(make_base: MakeBase) -> None:
    base = make_base(tiny_tokenizer(), eos_token_id=[-1, 10**9])
    assert [*Chat(load_tokenizer(base), base.weights).stops] == ["<|im_end|>"]


@pytest.mark.parametrize(
    ("says", "said"),
    [("{{ '\\ud800' }}", "UnicodeEncodeError: "), ("{{ raise_exception('a\\nb\\ud800') }}", r"a b\\ud800$")],
    ids=["half of a pair", "two lines"],
)
def test_what_no_tokenizer_or_terminal_takes_of_a_template_is_one_line(
    make_base: MakeBase, says: str, said: str
) -> None:
    base = make_base(tiny_tokenizer(CHATML + says))
    with pytest.raises(
        ConfigError, match=rf"^model\.base=.*: its chat template cannot write a plain answer: {said}"
    ) as e:
        Chat(load_tokenizer(base), base.weights)
    assert len(str(e.value).encode().splitlines()) == 1


def test_a_template_that_never_says_stop_is_refused(make_base: MakeBase, make_splits: MakeSplits) -> None:
    base = make_base(tiny_tokenizer(CHATML, eos="<|endoftext|>", extra=("<|im_end|>",)))
    with pytest.raises(ConfigError, match="would never stop"):
        rendered(make_splits, base, ("one", "two"))


def test_a_stop_token_named_by_the_models_config_is_enough(make_base: MakeBase, make_splits: MakeSplits) -> None:
    tokenizer = tiny_tokenizer(CHATML, eos="<|endoftext|>", extra=("<|im_end|>",))
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokens = rendered(make_splits, make_base(tokenizer, eos_token_id=[stop]), ("one", "two"))
    contract = json.loads(tokens.path("contract.json").read_text())
    assert contract["stop_token"] == "<|im_end|>"
    assert contract["stop_token_ids"] == sorted([stop, tokenizer.eos_token_id])
    assert not contract["pad_is_stop_token"] or contract["pad_token_id"] == tokenizer.eos_token_id


def test_an_answer_that_the_template_changes_is_refused(make_base: MakeBase, make_splits: MakeSplits) -> None:
    forgetful = CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +")
    base = make_base(tiny_tokenizer(forgetful))
    with pytest.raises(DataError, match=r"changes it: the answer '<think>one</think>two' became 'two'"):
        rendered(make_splits, base, ("one", "<think>one</think>two"))


def test_an_answer_that_ends_only_with_the_next_question_is_refused(
    make_base: MakeBase, make_splits: MakeSplits
) -> None:
    late = CHATML.replace(
        "'<|im_end|>' + '\n'", "('<|im_end|>' if loop.last or message['role'] != 'assistant' else '') + '\n'"
    )
    base = make_base(tiny_tokenizer(late))
    rendered(make_splits, base, ("one", "two"))
    with pytest.raises(DataError, match="message 2 is not followed by a stop token"):
        rendered(make_splits, base, TWO_TURNS)


def test_a_tokenizer_that_adds_its_own_bos_is_refused(make_base: MakeBase) -> None:
    class Doubling(Chat):
        def ids(self, texts: list[str]) -> list[list[int]]:
            return [[self.tokenizer.bos_token_id, *ids] for ids in super().ids(texts)]

    base, row = make_base(llama_3()), [messages(("one", "two"))]
    assert isinstance(tokenize(Chat(load_tokenizer(base), base.weights), row, last_only=False)[0], Tokenized)
    (refused,) = tokenize(Doubling(load_tokenizer(base), base.weights), row, last_only=False)
    assert isinstance(refused, Untrainable)
    assert refused.detail.startswith("2 tokens <|begin_of_text|> where the chat template writes 1")


def test_a_base_without_a_template_is_refused(make_base: MakeBase, make_splits: MakeSplits) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        rendered(make_splits, make_base(tokenizer), ("one", "two"))


def test_a_conversation_that_the_template_refuses_is_named(make_base: MakeBase, make_splits: MakeSplits) -> None:
    with_system = [{"role": "system", "content": "Be brief."}, *messages(("one", "two"))]
    splits = make_splits([("one", "two"), with_system], [("a", "b")], [("c", "d")])
    said = r"first data.jsonl line 2: .* refuses the conversation: Only user and assistant"
    with pytest.raises(DataError, match=said):
        render.fn(splits, make_base(llama_2()), MODEL)


def test_a_template_that_writes_todays_date_renders_the_same_tomorrow(
    make_base: MakeBase, make_splits: MakeSplits
) -> None:
    base = make_base(tiny_tokenizer("{{ 'Today is ' + strftime_now('%d %b %Y') + '\n' }}" + CHATML))
    tokens = rendered(make_splits, base, ("one", "two"))
    assert load_tokenizer(base).decode(rows(tokens)[0]["input_ids"]).startswith("Today is 26 Jul 2024\n<|im_start|>")
    assert json.loads(tokens.path("contract.json").read_text())["date_in_template"] == "26 Jul 2024"


def test_the_contract_has_the_system_message_that_every_training_row_has(
    tiny_base: Base, make_splits: MakeSplits
) -> None:
    def told(*systems: str, test: str = "") -> str:
        def row(number: int, system: str) -> list[dict[str, Any]]:
            begin = [{"role": "system", "content": system}] if system else []
            said = {"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}
            return [*begin, *said]

        train = [row(number, system) for number, system in enumerate(systems)]
        splits = make_splits(train, [row(90, "Be odd.")], [row(91, test)])
        made = render.fn(splits=splits, base=tiny_base, model=Model(base="tiny"))
        return Contract.load(made).system_message

    assert told("Be brief.", "Be brief.") == "Be brief."
    assert told("Be brief.", "Be long.", test="Be brief.") == ""
    assert told("Be brief.", "") == ""
    assert told("", "") == ""


def test_the_contract_says_how_a_server_asks(tiny_base: Base, make_splits: MakeSplits) -> None:
    contract = json.loads(rendered(make_splits, tiny_base, ("one", "two")).path("contract.json").read_text())
    assert contract["chat_template"] == CHATML
    assert contract["generation_prompt"] == "<|im_start|>assistant\n"
    assert (contract["stop_token"], contract["stop_token_ids"]) == ("<|im_end|>", [2])
    assert contract["special_tokens"] == {"<|endoftext|>": 0, "<|im_end|>": 2, "<|im_start|>": 1}


def test_the_report_counts_what_the_tables_hold(tiny_base: Base, make_splits: MakeSplits) -> None:
    train = [("one two", "three"), ("one four", "five"), TWO_TURNS]
    tokens = render.fn(make_splits(train, [("a", "b")], [("c", "d")]), tiny_base, MODEL)
    split = measure(tokens.path("train.parquet"))
    ids = [row["input_ids"] for row in rows(tokens)]
    assert split.whole.tolist() == [len(row) for row in ids]
    assert split.trained.tolist() == [sum(label != -100 for label in row["labels"]) for row in rows(tokens)]
    assert split.num_answers.tolist() == [1, 1, 2]
    shared = split.shared_prefix
    assert len({tuple(row[:shared]) for row in ids}) == 1 < len({tuple(row[: shared + 1]) for row in ids})
    assert tokens.longest_answer == max(len(row["input_ids"]) - row["prompt_length"] for row in rows(tokens))
    report = json.loads(tokens.path("report.json").read_text())
    assert report["splits"]["train"]["tokens"] == sum(map(len, ids))
    assert sum(count for _, _, count in report["histograms"]["whole"]) == 3


def test_the_preview_shows_the_whole_row_with_its_answers_in_marks_and_in_green(
    tiny_base: Base, make_splits: MakeSplits
) -> None:
    tokens = rendered(make_splits, tiny_base, TWO_TURNS)
    (text,) = preview(tokens)
    green = "".join(text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style))
    assert green == f"three<|im_end|>{TWO_TURNS[-1]}<|im_end|>"
    head, _, row = text.plain.partition("\n")
    assert head.endswith(" tokens, between ⟦ and ⟧")
    assert row.translate({ord("⟦"): None, ord("⟧"): None}) == load_tokenizer(tiny_base).decode(
        rows(tokens)[0]["input_ids"]
    )
    assert re.findall("⟦(.*?)⟧", row, re.DOTALL) == ["three<|im_end|>", f"{TWO_TURNS[-1]}<|im_end|>"]


def test_rows_that_are_shown_are_named_by_their_file_and_line(tiny_base: Base, make_splits: MakeSplits) -> None:
    train = [(f"question {n}", "answer " * (1 + 20 * (n == 5))) for n in range(30)]
    splits = make_splits(train, [("a", "b")], [("c", "d")])
    tokens = render.fn(splits, tiny_base, MODEL.model_copy(update={"max_length": 200}))
    table = pq.read_table(splits.path("train.parquet")).to_pylist()
    places = {row["row_id"]: f"{row['file']} line {row['line']}" for row in table}
    examples = json.loads(tokens.path("report.json").read_text())["examples"]
    assert len(examples) == 6
    for example in examples:
        assert example["place"] == places[example["row_id"]]
        assert example["place"] in tokens.path("report.html").read_text()
    heads = [text.plain.partition("\n")[0] for text in preview(tokens, 3)]
    assert heads[0].startswith(f"{places[table[0]['row_id']]} (the first training row): ")
    assert heads[1].startswith(f"{places[table[5]['row_id']]} (the longest training row): ")
    assert heads[2].startswith(f"{examples[2]['place']}: ")


def test_the_longest_row_of_all_splits_is_told_from_the_longest_training_row(
    tiny_base: Base, make_splits: MakeSplits
) -> None:
    tokens = render.fn(make_splits([("a", "b"), ("c", "d " * 9)], [("e", "f " * 30)], [("g", "h")]), tiny_base, MODEL)
    report = json.loads(tokens.path("report.json").read_text())
    in_train, of_all = (report["splits"][name]["lengths"]["whole"]["max"] for name in ("train", "validation"))
    assert in_train < of_all
    page = " ".join(tokens.path("report.html").read_text().split())
    assert f"<b>{of_all}</b><span>tokens in the longest row of all splits, limit " in page
    assert "(the longest training row)</strong><span>the loss covers " in page


def test_the_pieces_of_a_row_are_its_text_whatever_tokens_a_character_takes(tiny_base: Base) -> None:
    tokenizer = load_tokenizer(tiny_base)
    ids = tokenizer("<|im_start|>a👩‍🚀é\x1b[31m<|im_end|>", add_special_tokens=False)["input_ids"]
    pieces = segments(tokenizer, ids, [-100] * 2 + ids[2:])
    assert "".join(text for text, _, _ in pieces) == UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", tokenizer.decode(ids))
    assert [(trained, special) for _, trained, special in pieces] == [
        (False, True),
        (False, False),
        (True, False),
        (True, True),
    ]


def test_the_report_takes_nothing_from_the_data_or_the_net(tiny_base: Base, make_splits: MakeSplits) -> None:
    page = rendered(make_splits, tiny_base, ("<script>alert(1)</script>", "two")).path("report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_one_row_is_not_said_to_be_several(tiny_base: Base, make_splits: MakeSplits, make_base: MakeBase) -> None:
    page = rendered(make_splits, tiny_base, ("one", "two")).path("report.html").read_text()
    assert ">training row</span>" in page and "largest bin: 1 row<" in page and "1 rows" not in page
    bare = (
        "{% for m in messages %}{{ ('' if loop.index0 else '<|im_start|>') + m['content'] + '<|im_end|>' }}{% endfor %}"
    )
    two = make_splits([("one", "two"), ("three", "two")], [("one", "two")], [("one", "two")])
    page = render.fn(two, make_base(tiny_tokenizer(bare)), MODEL).path("report.html").read_text()
    assert "<b>1</b><span>token in their shared prefix</span>" in page
    assert "default-src 'none'" in page and "http:" not in page and "https:" not in page
    assert "<mark>two</mark><mark><i>&lt;|im_end|&gt;</i></mark>" in page


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (without_bos, "the tokenizer has none"),
        (llama_2, "token id 1; the template writes it, so a server must not add special tokens to the prompt"),
    ],
)
def test_the_report_says_of_the_beginning_of_a_sequence_who_writes_it(
    tiny_base: Base, make_splits: MakeSplits, tmp_path: Path, tokenizer: Any, said: str
) -> None:
    folder = Path(shutil.copytree(tiny_base.weights, tmp_path / "base"))
    tokenizer().save_pretrained(folder)
    base = tiny_base.model_copy(update={"folder": folder, "location": Path()})
    page = rendered(make_splits, base, ("one", "two")).path("report.html").read_text()
    assert f"<td>beginning of sequence</td><td>{said}</td>" in page


def test_equal_inputs_make_equal_bytes(
    tiny_base: Base, make_splits: MakeSplits, monkeypatch: Any, tmp_path: Path
) -> None:
    first = rendered(make_splits, tiny_base, TWO_TURNS)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "elsewhere"))
    second = rendered(make_splits, tiny_base, TWO_TURNS)
    assert first.folder != second.folder
    assert first.digest == second.digest
    assert first.path("report.html").read_bytes() == second.path("report.html").read_bytes()


def of_another_class(make_base: MakeBase) -> Base:
    """A base whose config.json alone says of which class its tokenizer is."""
    base = make_base(tiny_tokenizer(), model_type="gemma2")
    file = base.weights / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    del settings["tokenizer_class"]
    file.write_text(json.dumps(settings))
    return base


def test_the_tokenizer_of_a_version_is_the_measured_one_where_config_json_names_its_class(
    make_base: MakeBase, make_splits: MakeSplits, tmp_path: Path
) -> None:
    base = of_another_class(make_base)
    check_served(base, load_tokenizer(base), ["Where is my\n\norder?"])
    copy_tokenizer(base.weights, tmp_path / "copy")
    copied = base.model_copy(update={"folder": tmp_path / "copy"})
    assert type(load_tokenizer(copied)) is type(load_tokenizer(base))
    (tmp_path / "copy" / "config.json").unlink()
    assert type(load_tokenizer(copied)) is not type(load_tokenizer(base)), "else this test tells nothing"


def test_a_tokenizer_that_would_be_another_one_in_a_version_is_refused_before_training(
    make_base: MakeBase, make_splits: MakeSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_config(weights: Path, folder: Path) -> None:
        shutil.copytree(weights, folder, dirs_exist_ok=True)
        (folder / "config.json").unlink()

    monkeypatch.setattr("tunewright.modeling.models.copy_tokenizer", without_config)
    said = (
        r"tokenizer is a GemmaTokenizer, but a TokenizersBackend when loaded without the weights, "
        r"with other tokens for '"
    )
    with pytest.raises(ConfigError, match=said):
        rendered(make_splits, of_another_class(make_base), TWO_TURNS)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOPS, "takes more than 1 s of processor time"),
        ("{{ 'a' * 3000000000 }}", "takes more than 500 MB of memory"),
        ("{{ '%2000000000d' % 1 }}", "takes more than 500 MB of memory"),
        ("{{ 'a' | center(3000000000) }}", "takes more than 500 MB of memory"),
        (
            "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
            "takes more than 500 MB of memory",
        ),
        ("{{ 'a' * 60000000 }}{{ 'a' * 6000000 }}", "writes more than 64,000,000 characters for 2 conversations"),
        (
            "{% macro deep() %}{{ deep() }}{% endmacro %}{{ deep() }}",
            "RecursionError: maximum recursion depth exceeded",
        ),
        ("{% include 'other' %}", "TypeError: no loader for this environment specified"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe."),
    ],
)
def test_a_template_that_takes_too_much_is_refused_in_one_line(
    template: str, said: str, make_base: MakeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 1 if "processor time" in said else 60)  # to write so much takes a while
    base = make_base(tiny_tokenizer(template))
    with pytest.raises(ConfigError) as raised:
        Chat(load_tokenizer(base), base.weights)
    assert str(raised.value) == f"model.base={base.weights}: its chat template cannot write a plain answer: {said}"


def test_a_template_that_loops_for_one_row_alone_is_refused(
    make_base: MakeBase, make_splits: MakeSplits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 1)
    base = make_base(tiny_tokenizer(f"{{% if messages[0].content == 'loop' %}}{LOOPS}{{% endif %}}{CHATML}"))
    splits = make_splits([("one", "two"), ("loop", "three")], [("a", "b")], [("c", "d")])
    with pytest.raises(DataError, match=r"the chat template of model.base for 2 conversations takes more than 1 s of"):
        render.fn(splits, base, MODEL)
