"""A call is trained as the model's own template writes it, read back equal from that text, and scored as a call."""

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML, tiny_tokenizer
from test_ingest_tools import TOOLS, call

from tunewright.artifacts import IGNORED
from tunewright.errors import ConfigError
from tunewright.generation import Answer
from tunewright.modeling import chat_templates
from tunewright.modeling.chat import Chat, Tokenized, Untrainable, tokenize
from tunewright.tools.conversation import Conversation, call_text, chat_of, conversation_of
from tunewright.tools.parsing import Call, Parsed, parse, spoken

TEMPLATES = Path(str(find_spec("trl") and find_spec("trl").origin)).parent / "chat_templates"  # pyright: ignore[reportOptionalMemberAccess]
MISTRAL = (
    "{{ bos_token }}{% if tools %}{{ '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST]' + message['content'] + '[/INST]' }}"
    "{% elif message['role'] == 'tool' %}{{ '[TOOL_RESULTS]' + message['content'] + '[/TOOL_RESULTS]' }}"
    "{% elif message['tool_calls'] %}{% for call in message['tool_calls'] %}"
    "{% if call['id'] | length != 9 %}{{ raise_exception('an id has nine characters') }}{% endif %}"
    "{{ '[TOOL_CALLS]' + call['function']['name'] + '[ARGS]' + (call['function']['arguments'] | tojson) }}"
    "{% endfor %}{{ eos_token }}{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
MARKS = ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]")
LLAMA = ("<|start_header_id|>", "<|end_header_id|>", "<|python_tag|>")
ARGUMENTS = {"city": 'Köln, "Süd" <a>\n', "days": 2}

# template, its bos and eos, and its other special tokens
FORMS: dict[str, tuple[str, str, str, Sequence[str]]] = {
    "hermes": ("", "<|im_start|>", "<|im_end|>", ()),
    "qwen2_5": ("", "<|im_start|>", "<|im_end|>", ()),
    "qwen3": ("", "<|im_start|>", "<|im_end|>", ()),
    "qwen3_5_nothink": ("", "<|im_start|>", "<|im_end|>", ()),
    "llama3_1": ("", "<|begin_of_text|>", "<|eot_id|>", LLAMA),
    "mistral": (MISTRAL, "<s>", "</s>", MARKS),
}


def text_of_form(name: str) -> str:
    """The text of a template: given above, of the project, or of TRL."""
    own = chat_templates.names()
    return FORMS[name][0] or (
        chat_templates.text(name) if name in own else (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    )


def chat(template: str, tmp_path: Path, bos: str = "<|im_start|>", eos: str = "<|im_end|>", *more: str) -> Chat:
    """A tokenizer with a template, as a base has it."""
    return Chat(tiny_tokenizer(template, bos, eos, more), tmp_path)


def talk(*answers: dict[str, Any], question: str = "Weather?") -> Conversation:
    """A question, the answers to it, and after each call its result."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for answer in answers:
        calls = [
            each | {"id": f"call{at:05d}", "function": each["function"] | {"arguments": ARGUMENTS}}
            for at, each in enumerate(answer.get("tool_calls", ()))
        ]
        messages.append(answer | {"content": answer["content"] or ""} | ({"tool_calls": calls} if calls else {}))
        results = [{"role": "tool", "content": "rain", "tool_call_id": each["id"], "name": "f"} for each in calls]
        messages += results if answer is not answers[-1] else []
    return Conversation(messages, TOOLS)


def one(chat: Chat, messages: Conversation, **options: Any) -> Tokenized:
    """The tokens of one conversation that can be trained."""
    (made,) = tokenize(chat, [messages], **{"last_only": False, **options})
    assert isinstance(made, Tokenized), made
    return made


def trained(chat: Chat, made: Tokenized) -> str:
    """The trained text, with special tokens."""
    return chat.tokenizer.decode([label for label in made.labels if label != IGNORED])


@pytest.mark.parametrize("name", FORMS)
def test_a_call_that_a_template_writes_is_trained_to_its_stop_token_and_read_back_equal(
    name: str, tmp_path: Path
) -> None:
    _, bos, eos, more = FORMS[name]
    made_chat = chat(text_of_form(name), tmp_path, bos, eos, *more)
    made_chat.require_tools()
    asked = one(made_chat, talk(call({})))
    assert parse(asked.reference) == Parsed("", [Call("get_weather", ARGUMENTS)])
    assert asked.reference in chat_said(made_chat, asked)
    assert trained(made_chat, asked).endswith(eos)
    assert parse(trained(made_chat, asked).removesuffix(eos)).calls == [Call("get_weather", ARGUMENTS)]
    assert asked.tools == json.dumps(TOOLS, ensure_ascii=False)
    whole = one(made_chat, talk(call({}), {"role": "assistant", "content": "It rains."}))
    assert trained(made_chat, whole).count(eos) == 2  # the call's and the answer's: the result is no part of it
    assert whole.reference == "It rains."
    assert "get_weather" in made_chat.tokenizer.decode(whole.input_ids[: whole.prompt_length])


def chat_said(made_chat: Chat, made: Tokenized) -> str:
    """The answer as a server sends it."""
    return made_chat.tokenizer.decode(made.input_ids[made.prompt_length :], skip_special_tokens=True)


def test_two_calls_of_one_answer_are_one_reference(tmp_path: Path) -> None:
    both = call({}) | {"tool_calls": call({})["tool_calls"] * 2, "content": "Let me see."}
    made_chat = chat(chat_templates.text("hermes"), tmp_path)
    assert parse(one(made_chat, talk(both)).reference) == Parsed("Let me see.", [Call("get_weather", ARGUMENTS)] * 2)


def test_the_built_in_template_writes_rows_without_tools_as_chatml_does(tmp_path: Path) -> None:
    hermes, chatml = (chat(chat_templates.text(name), tmp_path) for name in ("hermes", "chatml"))
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert hermes.texts([messages, messages[1:]]) == chatml.texts([messages, messages[1:]])
    assert hermes.generation_prompt == chatml.generation_prompt


def test_a_template_of_another_form_trains_calls_that_only_equal_tokens_match(tmp_path: Path) -> None:
    template = chat_templates.text("hermes").replace("<tool_call>", "CALL").replace("</tool_call>", "DONE")
    made = one(chat(template, tmp_path), talk(call({})))
    assert made.reference == call_text("get_weather", ARGUMENTS)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (CHATML, "leaves out the definitions of tools"),
        ("{% if tools %}{{ tools | tojson }}{% endif %}" + CHATML, "leaves out the calls of tools"),
        (
            "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('no tool') }}{% endif %}{% endfor %}"
            + CHATML,
            r"refuses a tool's call or result \(no tool\)",
        ),
    ],
)
def test_a_template_without_tools_is_one_error_that_names_the_setting(template: str, why: str, tmp_path: Path) -> None:
    made_chat = chat(template, tmp_path)
    with pytest.raises(ConfigError, match=f"{why}; set model.chat_template to hermes or to a Jinja file"):
        made_chat.require_tools()


def test_an_answer_of_weight_0_is_read_and_not_trained(tmp_path: Path) -> None:
    made_chat = chat(chat_templates.text("hermes"), tmp_path)
    answers = [{"role": "assistant", "content": text} for text in ("Sun.", "Rain.")]
    first = talk(answers[0] | {"weight": 0}) + talk(answers[1], question="And now?")
    made = one(made_chat, first)
    assert trained(made_chat, made) == "Rain.<|im_end|>"
    assert "Sun." in made_chat.tokenizer.decode(made.input_ids)
    assert made == one(made_chat, first, last_only=True)


@pytest.mark.parametrize("name", ["hermes", "qwen3"])
def test_reasoning_is_trained_masked_or_dropped(name: str, tmp_path: Path) -> None:
    made_chat = chat(text_of_form(name), tmp_path)
    messages = talk({"role": "assistant", "content": "Rain.", "reasoning_content": "It is autumn."})
    whole, masked, dropped = (one(made_chat, messages, reasoning=how) for how in ("trained", "masked", "dropped"))
    assert trained(made_chat, whole) == "<think>\nIt is autumn.\n</think>\n\nRain.<|im_end|>"
    assert trained(made_chat, masked) == "\n</think>\n\nRain.<|im_end|>"
    assert masked.input_ids == whole.input_ids
    answers = [Answer.of(made.input_ids, made.labels, made.prompt_length) for made in (masked, whole)]
    assert answers[0].reference == answers[1].reference  # a model that is asked has to say both
    assert "autumn" not in made_chat.tokenizer.decode(dropped.input_ids)
    assert whole.reference == masked.reference == dropped.reference == "Rain."
    asked = one(made_chat, messages, last_only=True, reasoning="masked")
    assert asked.labels == whole.labels  # what a test row is compared with, the model has to say as a whole


def test_an_earlier_answer_whose_reasoning_the_template_drops_is_not_trained_without_it(tmp_path: Path) -> None:
    made_chat = chat(text_of_form("qwen3"), tmp_path)
    answers = [{"role": "assistant", "content": each, "reasoning_content": f"Hm {each}"} for each in ("Sun.", "Rain.")]
    made = one(made_chat, talk(answers[0]) + talk(answers[1], question="And now?"))
    assert trained(made_chat, made) == "<think>\nHm Rain.\n</think>\n\nRain.<|im_end|>"


def test_reasoning_that_a_template_leaves_out_is_refused_with_the_setting(tmp_path: Path) -> None:
    messages = Conversation(talk({"role": "assistant", "content": "Rain.", "reasoning_content": "It is autumn."}))
    made_chat = chat(CHATML, tmp_path)
    (made,) = tokenize(made_chat, [messages], last_only=False)
    assert isinstance(made, Untrainable)
    assert (made.reason, made.detail.endswith("set model.reasoning to dropped to train without it")) == (
        "reasoning_left_out",
        True,
    )
    assert trained(made_chat, one(made_chat, messages, reasoning="dropped")) == "Rain.<|im_end|>"


def test_a_control_token_in_a_tool_or_a_call_is_refused(tmp_path: Path) -> None:
    made_chat = chat(chat_templates.text("hermes"), tmp_path)
    messages = talk(call({}))
    messages.tools = [{"type": "function", "function": {"name": "get_weather", "description": "<|im_end|>"}}]
    (made,) = tokenize(made_chat, [messages], last_only=False)
    assert isinstance(made, Untrainable)
    assert made.reason == "control_token"


def test_a_conversation_survives_its_row() -> None:
    messages = talk(call({}), {"role": "assistant", "content": "Rain.", "weight": 0})
    again: Any = conversation_of({"messages": [], "chat": chat_of(messages)})
    assert (again, again.tools) == (messages, messages.tools)


F, G = Call("f", {"a": 1}), Call("g", {})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', Parsed("", [F])),
        ("<tool_call><function=f><parameter=a>1</parameter></function></tool_call>", Parsed("", [F])),
        ("So <tool_call>f\n<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>", Parsed("So", [F])),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]', Parsed("", [F, G])),
        ('[TOOL_CALLS]f[CALL_ID]x1[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}', Parsed("", [F, G])),
        ('f{"a": 1}g{}', Parsed("", [F, G])),  # the same without special tokens
        ('{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', Parsed("", [F, G])),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}', Parsed("", [F])),
        ('<think>\nf{"a": 1}</think>\n\n{"name": "f", "arguments": {"a": 1}}', Parsed("", [F])),
        ('<tool_call>\n{"name": "f", "argu', Parsed("", [Call("", {})])),
        ("[TOOL_CALLS] what?", Parsed("", [Call("", {})])),
        ('{"name": "Ann", "age": 3}', Parsed('{"name": "Ann", "age": 3}', [])),
        ('Note {"a": 1}', Parsed('Note {"a": 1}', [])),
        ('{"name": "f", "arguments": {}} is a call', Parsed('{"name": "f", "arguments": {}} is a call', [])),
        ("[]", Parsed("[]", [])),
        ("", Parsed("", [])),
    ],
)
def test_calls_are_read_in_each_form_and_texts_are_none(text: str, expected: Parsed) -> None:
    assert parse(text) == expected


def test_what_is_said_is_what_stands_behind_the_reasoning() -> None:
    assert spoken("<think>\na\n</think>\n\nb") == "b"
    assert spoken(" b") == " b"
