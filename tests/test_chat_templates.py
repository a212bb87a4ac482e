"""A base without a chat template is trained by one that is named or given, and stops where that ends an answer."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML, tiny_tokenizer

from tunewright.artifacts import Base
from tunewright.errors import ConfigError
from tunewright.modeling import chat_templates, models
from tunewright.modeling.chat import Chat, Tokenized, tokenize
from tunewright.tasks.base import base as load_base

TALK = [
    {"role": "user", "content": "Where is my order?"},
    {"role": "assistant", "content": "On its way."},
    {"role": "user", "content": "Since when?"},
    {"role": "assistant", "content": "Since Monday."},
]
SYSTEM = {"role": "system", "content": "Be kind."}


def without_template(tiny_base: Base, folder: Path, *special: str) -> Base:
    """The tiny base with a tokenizer that has no template, and these special tokens."""
    shutil.copytree(tiny_base.weights, folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer = tiny_tokenizer("", bos="<s>", eos="</s>", extra=special)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    return tiny_base.model_copy(update={"folder": folder, "reference": str(folder)})


def made(base: Base, template: str, folder: Path) -> Base:
    """Return the output of stage `base` for a base with a template."""
    folder.mkdir()
    found = load_base.fn.__wrapped__(  # pyright: ignore[reportFunctionMemberAccess] without its artifact
        folder, base.reference, None, "", chat_templates.text(template)
    )
    return found.model_copy(update={"folder": folder})


def byte_level(special: Sequence[str]) -> Any:
    """A tokenizer as that of GPT-2, which knows the words of TALK with the blank before them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2_000, min_frequency=1, special_tokens=[*special], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([" " + message["content"] for message in TALK], trainer)
    return made


def as_sentencepiece(special: Sequence[str]) -> Any:
    """A tokenizer as that of Llama 2, which merges over the whole text, with a blank before it, and knows bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    learned = Tokenizer(models.BPE())
    learned.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=2_000, min_frequency=1, show_progress=False)
    words = [f"{message['role'].capitalize()}: {message['content']}" for message in TALK]
    learned.train_from_iterator(words, trainer)
    model = json.loads(learned.to_str())["model"]
    tokens = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    merges = [tuple(pair) for pair in model["merges"]]
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens([*special])
    return made


@pytest.mark.parametrize("name", chat_templates.names())
@pytest.mark.parametrize("kind", [byte_level, as_sentencepiece])
def test_no_template_joins_an_answer_with_its_prompt(
    name: str, kind: Callable[[Sequence[str]], Any], tiny_base: Base
) -> None:
    from transformers import PreTrainedTokenizerFast

    template = chat_templates.text(name)
    stop, needed = chat_templates.stop_and_needs(template)
    special = list(dict.fromkeys(["<s>", "</s>", *needed]))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=kind(special), bos_token="<s>", eos_token=stop or "</s>", chat_template=template
    )
    assert len(tokenizer(" On its way.", add_special_tokens=False)["input_ids"]) < 6, "it knows these words"
    (row,) = tokenize(Chat(tokenizer, tiny_base.weights), [TALK], last_only=False)
    assert isinstance(row, Tokenized), row


@pytest.mark.parametrize("name", chat_templates.names())
@pytest.mark.parametrize("system", [False, True])
def test_each_template_trains_answers_and_their_stop_token(
    name: str, system: bool, tiny_base: Base, tmp_path: Path
) -> None:
    stop, needed = chat_templates.stop_and_needs(chat_templates.text(name))
    base = made(without_template(tiny_base, tmp_path / "base", *needed), name, tmp_path / "made")
    chat = Chat(models.load_tokenizer(base), base.weights)
    assert chat.stop_token == (stop or "</s>")
    talk = [SYSTEM, *TALK] if system else TALK
    (row,) = tokenize(chat, [talk], last_only=False)
    assert isinstance(row, Tokenized)
    trained = [token for token in row.labels if token >= 0]
    said = chat.tokenizer.decode(trained).replace(chat.stop_token, "|").replace(" |", "|").strip()
    assert said.replace("| ", "|") == "On its way.|Since Monday.|"
    whole = chat.tokenizer.decode(row.input_ids)
    assert ("Be kind." in whole) == system
    assert "Where is my order?" in whole


def test_a_base_without_a_template_names_the_setting_and_those_that_fit(tiny_base: Base, tmp_path: Path) -> None:
    base = without_template(tiny_base, tmp_path / "base", "<|im_start|>", "<|im_end|>")
    with pytest.raises(ConfigError, match=r"no chat template; set model\.chat_template to a built-in template") as e:
        Chat(models.load_tokenizer(base), base.weights)
    assert str(e.value).endswith("fits this tokenizer (alpaca, chatml, hermes, mistral, plain) or to a Jinja file")


def test_a_template_whose_tokens_the_tokenizer_lacks_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    base = without_template(tiny_base, tmp_path / "base")
    with pytest.raises(ConfigError) as refused:
        made(base, "llama3", tmp_path / "made")
    assert str(refused.value) == (
        "model.chat_template: the tokenizer of model.base has no <|eot_id|>, <|start_header_id|>, <|end_header_id|>, "
        "which the template writes; those whose tokens it has: alpaca, mistral, plain"
    )


@pytest.mark.parametrize(
    ("given", "words"), [("chatlm", "no such file"), ("/dev/zero", "no such file"), (".", "no such")]
)
def test_a_template_that_is_nowhere_is_refused(given: str, words: str) -> None:
    with pytest.raises(ConfigError, match=f"model.chat_template={given}: there is {words}.*; accepted: alpaca, chatml"):
        chat_templates.text(given)


def test_a_file_is_a_template_and_its_text_is_part_of_the_base(tiny_base: Base, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{#- stop: <|end|> -#}" + CHATML.replace("<|im_end|>", "<|end|>"))
    base = without_template(tiny_base, tmp_path / "base", "<|im_start|>", "<|end|>")
    found = made(base, str(file), tmp_path / "made")
    assert Chat(models.load_tokenizer(found), found.weights).stop_token == "<|end|>"
    assert (found.folder / "chat_template.jinja").read_text() == file.read_text()
    file.write_text("x" * (chat_templates.MOST_BYTES + 1))
    with pytest.raises(ConfigError, match="has more than 200000 bytes"):
        chat_templates.text(str(file))


def test_a_template_that_is_set_goes_before_the_bases_own(tiny_base: Base, tmp_path: Path) -> None:
    found: Any = made(tiny_base, "plain", tmp_path / "made")
    chat = Chat(models.load_tokenizer(found), found.weights)
    assert chat.texts([TALK[:1]], ask=True)[0].endswith("User:\nWhere is my order?\n\nAssistant:\n")
    assert json.loads((tiny_base.weights / "tokenizer_config.json").read_text())
