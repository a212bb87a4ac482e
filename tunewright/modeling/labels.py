"""The labels of a conversation that a chat template wrote, and the proof that they mean what they say.

An answer is what the model has to say after a prompt that a server sends: all that the template puts between that
prompt's end and the stop token, which is trained too. So a label never depends on how a template marks its turns.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from tunewright.artifacts import IGNORED
from tunewright.tools import parsing
from tunewright.tools.conversation import Message, text_of, tools_of

if TYPE_CHECKING:
    from tunewright.modeling.chat import ChatFormat


@dataclass(frozen=True)
class Tokenized:
    """One conversation. Labels are as long as the ids; `prompt_length` and `reference` are of the last answer."""

    input_ids: list[int]
    labels: list[int]
    prompt_length: int
    reference: str
    tools: str | None = None  # JSON of the definitions of its tools

    @property
    def answer_ids(self) -> list[int]:
        """The tokens of the last answer, with its stop token."""
        return [label for label in self.labels[self.prompt_length :] if label != IGNORED]


@dataclass(frozen=True)
class Untrainable:
    """Why a conversation cannot be trained: a reason code for the account, and a sentence for a person."""

    reason: str
    detail: str


class Turn(NamedTuple):
    """An answer's position in its conversation, and the prompt that asks for it, as text and ids."""

    number: int
    prompt: str
    prompt_ids: list[int]


def label(
    chat: "ChatFormat", messages: Sequence[Message], turns: Sequence[Turn], whole: str, ids: list[int], masks: bool
) -> Tokenized | Untrainable:
    """The labels of one conversation, whose answers are asked for by `turns`; `masks` leaves out their reasoning."""
    if wrong := _wrong_bos(chat, whole, ids) or _tools_left_out(messages, whole):
        return wrong
    stops = set(chat.stops.values())
    labels = [IGNORED] * len(ids)
    start, reference = len(ids), ""
    for turn in turns:
        if not whole.startswith(turn.prompt):
            return Untrainable("other_prompt", _other_prompt(turn, whole))
        if ids[: len(turn.prompt_ids)] != turn.prompt_ids:
            return Untrainable("joined_tokens", _joined(turn, messages[turn.number]["content"]))
        message, rest = messages[turn.number], whole[len(turn.prompt) :]
        reasoning = message.get("reasoning_content")
        if reasoning and reasoning.strip() not in rest[: _end(chat, rest)]:
            if turn is not turns[-1]:  # as templates do that drop the reasoning of earlier turns
                continue
            said = f"the chat template of model.base leaves out the reasoning of message {turn.number + 1}"
            return Untrainable("reasoning_left_out", f"{said}; set model.reasoning to dropped to train without it")
        begin = len(turn.prompt_ids)
        end = next((at for at in range(begin, len(ids)) if ids[at] in stops), None)
        answer = (
            _called(chat, turn.number, message, rest, ids[begin:end])
            if message.get("tool_calls")
            else _answer(chat, turn.number, rest, message["content"])
        )
        if isinstance(answer, Untrainable):
            return answer
        reference, start = answer, begin
        if end is None:
            said = f"the stop token after message {turn.number + 1} is text to the tokenizer, not a token"
            return Untrainable("no_stop_token", said)
        if masks and reasoning:
            begin += _num_reasoning(chat, turn, rest, reasoning, ids)
        labels[begin : end + 1] = ids[begin : end + 1]
    tools = tools_of(messages)
    return Tokenized(ids, labels, start, reference, json.dumps(tools, ensure_ascii=False) if tools else None)


def _end(chat: "ChatFormat", rest: str) -> int:
    """Where the answer that `rest` begins with ends."""
    stop = chat.stop.search(rest)
    return stop.start() if stop else len(rest)


def _tools_left_out(messages: Sequence[Message], whole: str) -> Untrainable | None:
    names = [tool["function"]["name"] for tool in tools_of(messages)]
    if missing := [name for name in names if name not in whole]:
        return Untrainable("tools_left_out", f"the chat template of model.base leaves out the tool {missing[0]!r}")
    return None


def _num_reasoning(chat: "ChatFormat", turn: Turn, rest: str, reasoning: str, ids: list[int]) -> int:
    """The tokens of an answer that are its reasoning and what the template puts before it, and no other character."""
    said = reasoning.strip()
    (read,) = chat.ids([turn.prompt + rest[: rest.index(said) + len(said)]])
    same = next((at for at, (a, b) in enumerate(zip(read, ids, strict=False)) if a != b), len(read))
    return max(0, same - len(turn.prompt_ids))


def _called(chat: "ChatFormat", turn: int, message: Message, rest: str, ids: list[int]) -> str | Untrainable:
    """Return an answer with calls as a model says it: as the template writes it, where its calls can be read back.

    Of a template of another form they cannot: then it is as Hermes writes it, and an answer counts as this one only
    where it is the same token for token.
    """
    said = rest[: _end(chat, rest)]
    calls = [parsing.Call(call["function"]["name"], call["function"]["arguments"]) for call in message["tool_calls"]]
    text = parsing.spoken(chat.tokenizer.decode(ids, skip_special_tokens=True))
    read = parsing.parse(text)
    same = [call.canonical for call in read.calls] == [call.canonical for call in calls]
    if same and read.content == message["content"].strip():
        return text
    written = [call.name in said and all(_is_in(value, said) for value in call.arguments.values()) for call in calls]
    if not all(written) or message["content"].strip() not in said:
        return Untrainable(
            "changed_answer", f"the chat template changes the calls of message {turn + 1}, which became {_short(said)}"
        )
    return text_of(message)


def _is_in(value: Any, text: str) -> bool:
    """Whether a text has an argument, as it stands or as JSON; what is within an argument is not looked at."""
    if isinstance(value, dict | list):
        return True
    return str(value) in text or any(json.dumps(value, ensure_ascii=way) in text for way in (True, False))


def _answer(chat: "ChatFormat", turn: int, rest: str, content: str) -> str | Untrainable:
    """Return the answer as the template renders it; `rest` is the conversation after its prompt, the answer first."""
    stop = chat.stop.search(rest)
    said = rest[: stop.start()] if stop else rest
    for answer in (content, content.strip()):
        if stop and said.rstrip().endswith(answer.rstrip()) and answer in said:
            return answer
    return Untrainable(
        "changed_answer",
        f"message {turn + 1} is not followed by a stop token, or the chat template changes it: the answer "
        f"{_short(content)} became {_short(said)}",
    )


def _wrong_bos(chat: "ChatFormat", whole: str, ids: list[int]) -> Untrainable | None:
    bos, bos_id = chat.tokenizer.bos_token, chat.tokenizer.bos_token_id
    if bos_id is None or ids.count(bos_id) == whole.count(bos):
        return None
    return Untrainable(
        "wrong_bos",
        f"{ids.count(bos_id)} tokens {bos} where the chat template writes {whole.count(bos)}: the tokenizer of "
        "model.base adds or loses some",
    )


def _other_prompt(turn: Turn, whole: str) -> str:
    """Find where the template writes the text before an answer in another way once the answer is there."""
    pairs = enumerate(zip(turn.prompt + "\0", whole + "\1", strict=False))
    same = next(at for at, (a, b) in pairs if a != b)
    return (
        f"a server would prompt for message {turn.number + 1} with another prompt than in training: "
        f"{_short(turn.prompt[same : same + 40])} where the row has {_short(whole[same : same + 40])}; the chat "
        "template of model.base treats a message differently when another follows it"
    )


def _joined(turn: Turn, answer: str) -> str:
    """Explain that no server's prompt ends where this answer begins, since one token would belong to both."""
    blank = answer[: len(answer) - len(answer.lstrip())]
    begins = f"begins with the blanks {_short(blank)}" if blank else f"begins with {_short(answer[:20])}"
    return (
        f"message {turn.number + 1} {begins}, which the tokenizer joins with the end of the prompt, "
        f"{_short(turn.prompt[-20:])}, into other tokens than a server sends"
        + ("; remove them from the answer where they mean nothing, and else " if blank else "; ")
        + "set model.chat_template to one that ends the prompt with a special token"
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:30]}...{text[-10:]}")
