"""Conversations that begin with shots: training rows as earlier turns, in the model's own chat template.

What all training rows begin with, such as an instruction, stands once, before the first shot: the prompt is shorter,
and no worse. Where shots speak to a system message of their own, the row's own is the one that stays.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa

from tunewright.errors import ConfigError, DataError
from tunewright.modeling.chat import Chat, Message, Tokenized, Untrainable, tokenize

SHORTEST_OPENING = 40  # characters, under which it is not worth to be told once


@dataclass(frozen=True)
class Pool:
    """The training rows that can be shots, and what they all begin with."""

    rows: pa.Table
    opening: str

    def messages(self, at: int) -> list[Message]:
        """The conversation of one of the rows."""
        return self.rows["messages"][at].as_py()

    def ids(self, shots: Sequence[int]) -> list[str]:
        """The row ids of some of the rows."""
        return [self.rows["row_id"][at].as_py() for at in shots]


class PromptedRow(NamedTuple):
    """A row as it is asked, and the shots before it."""

    tokens: Tokenized
    shots: list[int]

    def length(self, max_new_tokens: int) -> int:
        """The tokens of the prompt and of the longest answer."""
        return max(len(self.tokens.input_ids), self.tokens.prompt_length + max_new_tokens)


def pool_of(rows: pa.Table) -> Pool:
    """The rows in which a user is answered, turn by turn. Raises ConfigError where there are none."""
    roles = [[turn["role"] for turn in _turns(messages)] for messages in rows["messages"].to_pylist()]
    alternate = [bool(each) and each == ["user", "assistant"] * (len(each) // 2) for each in roles]
    usable = rows.filter(pa.array(alternate, pa.bool_()))
    if not len(usable):
        raise ConfigError(
            "evaluation.contenders: no training row has alternating user and assistant turns to use as an example; "
            "accepted: contenders=[]"
        )
    return Pool(usable, opening([_turns(messages)[0]["content"] for messages in usable["messages"].to_pylist()]))


def opening(texts: Sequence[str]) -> str:
    """The lines or sentences that all texts begin with; empty if that is little."""
    first, last = min(texts), max(texts)
    same = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    shared = first[:same] if len(texts) > 1 else ""
    end = max(shared.rfind(mark) + len(mark) if mark in shared else 0 for mark in ("\n", ". ", ": "))
    return shared[:end] if end >= SHORTEST_OPENING else ""


def draw(pool: Pool, seed: int, number: int) -> list[int]:
    """Rows of the pool with different answers, as far as there are any."""
    order = random.Random(seed).sample(range(len(pool.rows)), len(pool.rows))  # noqa: S311
    answers = pool.rows["messages"]
    chosen: dict[str, int] = {}
    for at in order:
        chosen.setdefault(answers[at].as_py()[-1]["content"], at)
        if len(chosen) == number:
            break
    distinct = [*chosen.values()]
    return (distinct + [at for at in order if at not in distinct])[:number]


def conversation(pool: Pool, shots: Sequence[int], messages: Sequence[Message]) -> list[Message]:
    """The messages with the shots before them, behind their own system message."""
    begun = [turn for at in shots for turn in _turns(pool.messages(at))]
    turns = _turns(messages)
    system, (first, *rest) = messages[: len(messages) - len(turns)], [*begun, *turns]
    if pool.opening and first["content"].startswith(pool.opening):  # the others leave it out
        rest = [turn | {"content": turn["content"].removeprefix(pool.opening) or turn["content"]} for turn in rest]
    return [*system, first, *rest]


def ask(
    chat: Chat,
    pool: Pool,
    rows: Sequence[dict[str, Any]],
    shots: Sequence[list[int]],
    *,
    context: int,
    max_new_tokens: int,
) -> list[PromptedRow]:
    """Each row with its shots before it, the first of which are left out until there is room for the answer.

    `context` is what the base can read. Raises DataError where the template cannot write such a conversation.
    """
    asked: dict[int, PromptedRow] = {}
    waiting = dict(enumerate(shots))
    while waiting:
        conversations = [conversation(pool, some, rows[at]["messages"]) for at, some in waiting.items()]
        for (at, some), tokens in zip(waiting.items(), tokenize(chat, conversations, last_only=True), strict=True):
            if isinstance(tokens, Untrainable):
                where = f"{rows[at]['file']} line {rows[at]['line']} behind {len(some)} shots"
                raise DataError(f"{where}: {tokens.detail}")
            asked[at] = PromptedRow(tokens, some)
        waiting = {at: some[1:] for at, some in waiting.items() if some and asked[at].length(max_new_tokens) > context}
    return [asked[at] for at in range(len(rows))]


def _turns(messages: Sequence[Message]) -> list[Message]:
    first = next((at for at, message in enumerate(messages) if message["role"] != "system"), len(messages))
    return list(messages[first:])
