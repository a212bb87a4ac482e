"""Conversations that begin with shots: training rows as earlier turns, fixed ones or those most like the question.

What all training rows begin with, such as an instruction, stands once, before the first shot: the prompt is shorter,
and no worse. Where shots speak to a system message of their own, the row's own is the one that stays.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from tunewright.errors import DataError
from tunewright.modeling.chat import Chat, Reasoning, Tokenized, Untrainable, tokenize, with_examples
from tunewright.reports.pages import located
from tunewright.serving import BM25, LENGTH, StaticModel, most_similar, without_system
from tunewright.similarity.folding import fold_messages
from tunewright.similarity.prompts import Runs, segments, words
from tunewright.similarity.semantic import prompt_texts
from tunewright.tools.conversation import Message, conversation_of

EXCHANGE = "user assistant(?: tool(?: tool)* assistant)*"
ALTERNATING = re.compile(rf"{EXCHANGE}(?: {EXCHANGE})*")  # roles of a row that can be a shot
SHORTEST_OPENING = 40  # characters, under which it is not worth to be told once
QUESTIONS = 64  # that are compared with the pool at once


@dataclass(frozen=True)
class Pool:
    """The training rows that can be shots, and what they all begin with."""

    rows: pa.Table
    opening: str

    def messages(self, at: int) -> list[Message]:
        """The conversation of one of the rows."""
        return conversation_of(self.rows.slice(at, 1).to_pylist()[0])

    def ids(self, chosen: Sequence[int]) -> list[str]:
        """The row ids of some of the rows."""
        return [self.rows["row_id"][at].as_py() for at in chosen]

    def before(self, chosen: Sequence[int], messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with some of the rows as earlier turns."""
        return conversation(self, chosen, messages)


class InContext(Protocol):
    """The material that stands before a question: training rows, or passages of documents."""

    def ids(self, chosen: Sequence[int]) -> list[str]:
        """Return the names of some of it."""
        ...

    def before(self, chosen: Sequence[int], messages: Sequence[Message]) -> Sequence[Message]:
        """Return the messages with some of it before the question."""
        ...


class PromptedRow(NamedTuple):
    """A row as it is asked, and the shots before it."""

    tokens: Tokenized
    shots: list[int]

    def length(self, max_new_tokens: int) -> int:
        """The tokens of the prompt and of the longest answer."""
        return max(len(self.tokens.input_ids), self.tokens.prompt_length + max_new_tokens)


def pool_of(rows: pa.Table) -> Pool:
    """The rows in which a user is answered, turn by turn, also with tools. Raises DataError where there are none."""
    roles = [" ".join(turn["role"] for turn in without_system(messages)) for messages in rows["messages"].to_pylist()]
    usable = rows.filter(pa.array([bool(ALTERNATING.fullmatch(each)) for each in roles], pa.bool_()))
    if not len(usable):
        raise DataError("no training row has alternating user and assistant turns to use as an example")
    return Pool(
        usable, opening([without_system(messages)[0]["content"] for messages in usable["messages"].to_pylist()])
    )


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


def conversation(pool: Pool, shots: Sequence[int], messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with the shots before them, behind their own system message; the tools are those of the messages."""
    return with_examples([pool.messages(at) for at in shots], pool.opening, messages)


def ask(
    chat: Chat,
    pool: InContext,
    rows: Sequence[dict[str, Any]],
    shots: Sequence[list[int]],
    *,
    context: int,
    max_new_tokens: int,
    reasoning: Reasoning = "trained",
) -> list[PromptedRow]:
    """Each row with its shots before it, the first of which are left out until there is room for the answer.

    `context` is what the base can read. Raises DataError where the template cannot write such a conversation.
    """
    asked: dict[int, PromptedRow] = {}
    waiting = dict(enumerate(shots))
    while waiting:
        conversations = [pool.before(some, conversation_of(rows[at])) for at, some in waiting.items()]
        written = tokenize(chat, conversations, last_only=True, reasoning=reasoning)
        for (at, some), tokens in zip(waiting.items(), written, strict=True):
            if isinstance(tokens, Untrainable):
                where = f"{located(rows[at]['file'], rows[at]['line'])} behind {len(some)} shots"
                raise DataError(f"{where}: {tokens.detail}")
            asked[at] = PromptedRow(tokens, some)
        waiting = {at: some[1:] for at, some in waiting.items() if some and asked[at].length(max_new_tokens) > context}
    return [asked[at] for at in range(len(rows))]


def nearest(retriever: "WordRetriever | Embeddings", questions: pa.Table, number: int) -> list[list[int]]:
    """Return the pool's rows most similar to each question, the most similar last; of equal ones the first."""
    found: list[list[int]] = []
    for start in range(0, len(questions), QUESTIONS):
        found += [most_similar(scores, number) for scores in retriever.scores(questions.slice(start, QUESTIONS))]
    return found


class WordRetriever:
    """BM25 of the words of the prompts."""

    def __init__(self, pool: pa.Table, left_out: np.ndarray) -> None:
        self.left_out = left_out
        self.index = BM25(*_words(pool, left_out))

    def scores(self, questions: pa.Table) -> np.ndarray:
        """(questions, pool) float64: over the different words of each question."""
        bounds, words = _words(questions, self.left_out)
        return np.stack([self.index.scores(words[begin:end]) for begin, end in pairwise(bounds)])


class Embeddings:
    """The cosine of a static model's vectors."""

    def __init__(self, pool: pa.Table, left_out: np.ndarray, model: StaticModel) -> None:
        self.left_out, self.model = left_out, model
        self.vectors = model.embed(prompt_texts(pool, left_out))

    def scores(self, questions: pa.Table) -> np.ndarray:
        """(questions, pool) float32."""
        asked = self.model.embed(prompt_texts(questions, self.left_out)).astype(np.float32) / LENGTH
        return asked @ self.vectors.astype(np.float32).T


def _words(rows: pa.Table, left_out: np.ndarray) -> Runs:
    folded = fold_messages(rows["messages"])
    return words(folded, segments(folded, folded.prompts), left_out)
