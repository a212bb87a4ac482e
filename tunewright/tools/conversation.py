"""A conversation that says more than role and content: tools, calls, reasoning, weights, and a rejected answer.

A row of texts alone is a list of messages, as ever. One of these also has the column `chat` (ROW_SCHEMA), JSON of its
tools and messages as chat templates take them; its column `messages` then has each call as text, so that whatever
compares, checks or shows texts sees the calls. A preference pair ends with the chosen answer, and `rejected` is the
answer to the same prompt that was not preferred. An undesirable row ends with an answer that nobody wants (KTO's label
false), which no model may learn.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Self, TypeVar

Message = dict[str, Any]  # role and content; tool_calls, tool_call_id, name, reasoning_content and weight as needed
Said = TypeVar("Said", bound=Mapping[str, Any])  # a turn, with a content or perhaps without
Tool = dict[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}


class Conversation(list[Message]):
    """Messages as chat templates take them, the tools that they may call, and what is known of the last answer.

    Slices are plain lists.
    """

    def __init__(
        self,
        messages: Iterable[Message] = (),
        tools: Sequence[Tool] = (),
        rejected: str | None = None,
        *,
        undesirable: bool = False,
    ) -> None:
        super().__init__(messages)
        self.tools = list(tools)
        self.rejected = rejected  # beside the last message, which was preferred; None where the row is no pair
        self.undesirable = undesirable  # whether the last message is an answer that the model must not learn

    def __add__(self, others: list[Message]) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self)([*self, *others], self.tools)

    def __radd__(self, others: list[Message]) -> Self:
        return type(self)([*others, *self], self.tools, self.rejected, undesirable=self.undesirable)


def tools_of(messages: Sequence[Message]) -> list[Tool]:
    """The tools of a conversation; none of a plain list."""
    return messages.tools if isinstance(messages, Conversation) else []


def rejected_of(messages: Sequence[Message]) -> str | None:
    """The rejected answer of a preference pair; None of any other conversation."""
    return messages.rejected if isinstance(messages, Conversation) else None


def is_undesirable(messages: Sequence[Message]) -> bool:
    """Whether the last answer of a conversation is one that nobody wants."""
    return isinstance(messages, Conversation) and messages.undesirable


def with_rejected(pair: Conversation) -> Conversation:
    """The conversation of a preference pair that ends with its rejected answer."""
    return Conversation([*pair[:-1], {"role": "assistant", "content": pair.rejected}], pair.tools)


def before(messages: Sequence[Message], number: int) -> Sequence[Message]:
    """The first messages of a conversation, with its tools."""
    first = messages[:number]
    return Conversation(first, messages.tools) if isinstance(messages, Conversation) else first


def prompt_and_answer(turns: Sequence[Said]) -> tuple[Sequence[Said], Said | None]:
    """The turns before the last answer, and that answer: all turns and None where the assistant says nothing."""
    for position in reversed(range(len(turns))):
        if turns[position]["role"] == "assistant":
            return turns[:position], turns[position]
    return turns, None


def chat_of(messages: Sequence[Message]) -> str | None:
    """The column `chat` of a row; None where role and content say all."""
    if not isinstance(messages, Conversation):
        return None
    held: dict[str, Any] = {"tools": messages.tools, "messages": list(messages)}
    if messages.rejected is not None:
        held["rejected"] = messages.rejected
    if messages.undesirable:
        held["undesirable"] = True
    return json.dumps(held, ensure_ascii=False)


def conversation_of(row: Mapping[str, Any]) -> list[Message]:
    """The conversation of a row of a row table, as a chat template takes it."""
    if not (chat := row.get("chat")):
        return row["messages"]
    held = json.loads(chat)
    return Conversation(
        held["messages"], held["tools"], held.get("rejected"), undesirable=held.get("undesirable", False)
    )


def identity_of(chat: str) -> str:
    """The sha256 of a column `chat`, whatever the order of the fields in its objects."""
    return _digest(json.loads(chat))


def identity_beside_texts(chat: str) -> str:
    """The sha256 of a column `chat` but for the texts of its messages, which the column `messages` has."""
    held = json.loads(chat)
    held["messages"] = [{**message, "content": None} for message in held["messages"]]
    return _digest(held)


def _digest(held: dict[str, Any]) -> str:
    return sha256(json.dumps(held, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def answer_hash(chat: str) -> str:
    """The sha256 of the tools, the label and the rejected answer in a column `chat`, but for white space at its end."""
    held = json.loads(chat)
    tools = tools_hash(held["tools"])
    if held.get("undesirable"):
        return sha256(f"{tools} undesirable".encode()).hexdigest()
    return sha256(f"{tools}\n{held['rejected'].rstrip()}".encode()).hexdigest() if "rejected" in held else tools


def tools_hash(tools: Sequence[Tool]) -> str:
    """The sha256 of tools, in whatever order and with their fields in whatever order."""
    return sha256("\n".join(sorted(json.dumps(tool, sort_keys=True) for tool in tools)).encode()).hexdigest()


def texts_of(messages: Sequence[Message]) -> list[dict[str, str]]:
    """The messages as role and text, of which the calls are a part: the column `messages` of a row."""
    return [{"role": each["role"], "content": text_of(each)} for each in messages]


def text_of(message: Message) -> str:
    """The content of a message with each of its calls behind it, as Hermes and Qwen write them."""
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return "\n".join(filter(None, [message["content"] or "", *(call_text(c["name"], c["arguments"]) for c in calls)]))


def call_text(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as Hermes and Qwen write it."""
    said = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{said}\n</tool_call>"


def shown_turns(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The column `messages` of a row, and its rejected answer behind them as a turn of the role `rejected`.

    An undesirable answer is a turn of the role `undesirable`.
    """
    turns, held = row["messages"], json.loads(row.get("chat") or "{}")
    if held.get("undesirable"):
        return [*turns[:-1], turns[-1] | {"role": "undesirable"}]
    return turns if held.get("rejected") is None else [*turns, {"role": "rejected", "content": held["rejected"]}]


def is_trained(message: Message) -> bool:
    """Whether a message is an answer that the model learns."""
    return message["role"] == "assistant" and message.get("weight") != 0


def more_texts(held: Mapping[str, Any]) -> list[str]:
    """Return the texts of a parsed `chat` that `messages` has not: reasoning, definitions of tools, `rejected`."""
    reasoning = [message["reasoning_content"] for message in held["messages"] if message.get("reasoning_content")]
    rejected = [held["rejected"]] if "rejected" in held else []
    return [*reasoning, *(json.dumps(tool, ensure_ascii=False) for tool in held["tools"]), *rejected]
