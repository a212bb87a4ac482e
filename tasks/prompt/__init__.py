"""The base with the best prompt that the training rows make, without training: what fine-tuning has to be worth.

few_shot: the same shots before each question; which of a few draws, and how many of them, validation rows tell.
retrieval: before each question the training rows most like it; whether by words or by embeddings, validation rows tell.
documents: before each question the passages of a team's own documents most like it, chosen as for retrieval.
Test rows are only written as they will be asked: nothing is chosen on them. A model behind an API is asked with the
shots of few_shot, as messages (messages.jsonl).
"""

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import TOKEN_SCHEMA, Base, Prompts, Splits, Tokens
from tunewright.cost_model import on_devices
from tunewright.errors import ConfigError, DataError
from tunewright.modeling.chat import Chat, Reasoning, without_reasoning
from tunewright.modeling.models import fastest_dtype, load_model, load_tokenizer
from tunewright.reports.pages import counted
from tunewright.reports.progress import told_while_slow
from tunewright.serving import ExamplePrompt, StaticModel, context_length
from tunewright.similarity import embedding as embeddings
from tunewright.similarity.prompts import common_segments
from tunewright.store.stage import stage
from tunewright.tasks.prompt.documents import PassagePool, TextFile, read
from tunewright.tasks.prompt.shots import (
    Embeddings,
    InContext,
    Pool,
    PromptedRow,
    WordRetriever,
    ask,
    conversation,
    draw,
    nearest,
    pool_of,
)
from tunewright.tools.conversation import Message, before, conversation_of, tools_of

__all__ = ["prompt"]

log = logging.getLogger("tunewright")

POOL = 50_000  # training rows that shots are taken from, the first by their id where there are more
TRIED = {"few_shot": 32, "retrieval": 16, "documents": 16}  # validation rows that each prompt is tried on
DRAWS = 3  # of the shots of few_shot
NUM_PASSAGES = (4, 1)  # before a question
WORDS = {"bm25": "BM25", "embedding": "embeddings"}
BATCH = 16
REJECTED = ("rejected_ids", "rejected")
COLUMNS = ["row_id", "file", "line", "cluster", "messages", "chat"]
ROWS = 1_000  # in memory at once


class PromptScore(NamedTuple):
    """Score of a prompt, higher is better: by the share of exact answers, then by likelihood."""

    exact_match: float
    log_likelihood: float  # of the references, in nats per token


class Asking:
    """The base, its template, what shots are taken from, and the room that there is for them."""

    def __init__(self, base: Base, splits: Splits, tokens: Tokens, max_new_tokens: int) -> None:
        self.base = base
        self.chat = Chat(load_tokenizer(base), base.weights)
        self.stops = sorted(self.chat.stops.values())
        self.train = splits.path("train.parquet"), tokens.path("train.parquet")
        self.validation = _asked(splits, tokens, "validation").sort_by("row_id")  # a sample, whatever its beginning
        self.test = _asked(splits, tokens, "test")
        config = json.loads((base.weights / "config.json").read_text(encoding="utf-8"))
        self.context = context_length(config) or 2**31
        self.max_new_tokens = max_new_tokens
        self.reasoning: Reasoning = tokens.reasoning
        self.model: Any = None

    @cached_property
    def pool(self) -> Pool:
        """The training rows that can be shots."""
        return pool_of(_pool(*self.train, POOL))

    def examples(self, chosen: Sequence[int]) -> list[list[Message]]:
        """Return the conversations of some of the pool's rows, as a version keeps them."""
        conversations = [self.pool.messages(at) for at in chosen]
        return [[*without_reasoning(each)] for each in conversations] if self.reasoning == "dropped" else conversations

    def ask(self, rows: pa.Table, shots: Sequence[list[int]], of: InContext | None = None) -> list[PromptedRow]:
        """The rows with these shots before them, training rows unless they are `of` something else."""
        room = {"context": self.context, "max_new_tokens": self.max_new_tokens}
        return ask(self.chat, of or self.pool, rows.to_pylist(), shots, reasoning=self.reasoning, **room)

    @property
    def more_room(self) -> str:
        """Return what makes room for more examples: less for the answer only where that holds much of the context."""
        lower = "lower evaluation.max_new_tokens, or " if self.max_new_tokens > self.context / 8 else ""
        return f"{lower}choose a base with a longer context"

    def conversation(self, row: dict[str, Any], shots: Sequence[int]) -> Sequence[Message]:
        """A row with these shots before it and without its answer, with its tools."""
        return before(conversation(self.pool, shots, conversation_of(row)), -1)

    def found(self, rows: pa.Table, shots: Sequence[list[int]], of: InContext | None = None) -> PromptScore:
        """Score the base on validation rows with these examples, in one forward pass without generation."""
        from tunewright.generation import Answer, Greedy

        if self.model is None:  # half the time in bfloat16, and nothing but a choice hangs on it
            self.model = load_model(self.base, dtype=fastest_dtype())
        tokens = [row.tokens for row in self.ask(rows, shots, of)]
        answers = [Answer.of(each.input_ids, each.labels, each.prompt_length) for each in tokens]
        lengths = [len(answer.reference) for answer in answers]
        Greedy(self.model, stops=self.stops, max_new_tokens=max(lengths), batch=BATCH).answer(answers, generate=False)
        exact = sum(answer.is_reference(self.stops) for answer in answers)
        return PromptScore(exact / len(answers), -sum(answer.nll for answer in answers) / sum(lengths))


def few_shot(asking: Asking, number: int) -> tuple[list[list[int]], dict[str, Any]]:
    """The shots of each test row: the best draw for all, or half of it if that is better; and what was tried."""
    rows = asking.validation.slice(0, TRIED["few_shot"])
    draws = {tuple(draw(asking.pool, seed, number)) for seed in range(DRAWS)}
    tried = {shots: asking.found(rows, [[*shots]] * len(rows)) for shots in sorted(draws)}
    best = max(tried, key=lambda each: tried[each])
    if half := best[: len(best) // 2]:
        tried[half] = asking.found(rows, [[*half]] * len(rows))
        best = max(tried, key=lambda each: tried[each])
    shown = [{"shots": asking.pool.ids(shots)} | _rounded(found) for shots, found in tried.items()]
    of = f"the best of {counted(len(tried), 'set')} on {_in_words(rows, asking.validation)}"
    says = f"{counted(len(best), 'example')}, {of}"
    return [[*best]] * len(asking.test), {"chosen": says, "tried": shown}


def retrieval(asking: Asking, number: int, model: StaticModel | None) -> tuple[list[list[int]], dict[str, Any]]:
    """The shots of each test row: the rows most like it, by what does better on validation rows; and what was tried."""
    _, examples, search = chosen_search(asking, number, model)
    return nearest_examples(examples, asking.test), search


def chosen_search(asking: Asking, number: int, model: StaticModel | None) -> tuple[str, ExamplePrompt, dict[str, Any]]:
    """Return what finds the rows most like a question, as validation rows tell: its kind, itself, what was tried.

    It is what a version serves that is this prompt, so that both are asked the same.
    """
    examples = asking.examples(range(len(asking.pool.rows)))
    models = {"bm25": None} | ({"embedding": model} if model else {})
    prompts = {name: served(examples, asking.pool.opening, number, by) for name, by in models.items()}
    rows = asking.validation.slice(0, TRIED["retrieval"])
    tried = {name: asking.found(rows, nearest_examples(each, rows)) for name, each in prompts.items() if model}
    best = max(tried, key=lambda name: tried[name], default="bm25")
    nearest_rows = f"{number} nearest rows" if number > 1 else "the nearest row"
    says = f"{nearest_rows} of {len(asking.pool.rows)} by {WORDS[best]}"
    if others := [WORDS[name] for name in tried if name != best]:
        says += f" (chosen over {' and '.join(others)} on {_in_words(rows, asking.validation)})"
    shown = [{"by": name} | _rounded(found) for name, found in tried.items()]
    return best, prompts[best], {"chosen": says, "tried": shown}


def served(examples: list[list[Message]], opening: str, number: int, model: StaticModel | None = None) -> ExamplePrompt:
    """Return the prompt that has `number` of the examples before a question, as a version would serve it."""
    return ExamplePrompt(examples, opening, 0, number, model, compares_answers=True)


def nearest_examples(prompt: ExamplePrompt, rows: pa.Table) -> list[list[int]]:
    """Return the places of the examples before each of the rows, the most similar last."""
    return [prompt.chosen(conversation_of(row)) for row in rows.to_pylist()]


def with_documents(
    asking: Asking, passages: PassagePool, model: StaticModel | None
) -> tuple[list[list[int]], dict[str, Any]]:
    """The passages of each test row: so many of the most similar as do best on validation rows; and what was tried."""
    known = pq.ParquetFile(asking.train[0]).iter_batches(POOL, columns=["messages"])
    left_out = common_segments(next(known)["messages"])
    retrievers: dict[str, WordRetriever | Embeddings] = {"bm25": WordRetriever(passages.rows, left_out)}
    if model:
        retrievers["embedding"] = Embeddings(passages.rows, left_out, model)
    rows = asking.validation.slice(0, TRIED["documents"])
    numbers = sorted({min(number, len(passages.texts)) for number in NUM_PASSAGES}, reverse=True)
    tried = {
        (name, number): asking.found(rows, nearest(retriever, rows, number), passages)
        for name, retriever in retrievers.items()
        for number in numbers
    }
    by, number = max(tried, key=lambda each: tried[each])
    most_similar = f"the {number} most similar passages" if number > 1 else "the most similar passage"
    says = f"{most_similar} of {len(passages.texts):,} by {WORDS[by]}"
    says += f" (the best of {counted(len(tried), 'choice')} on {_in_words(rows, asking.validation)})"
    shown = [{"by": name, "passages": some} | _rounded(found) for (name, some), found in tried.items()]
    return nearest(retrievers[by], asking.test, number), {"chosen": says, "tried": shown}


def _in_words(rows: pa.Table, validation: pa.Table) -> str:
    """Count the validation rows that prompts were tried on, and say where these are only the first."""
    first = "the first " if len(rows) < len(validation) else ""
    return f"{first}{counted(len(rows), 'validation row')}"


class Written(NamedTuple):
    """The test prompts of a contender: the ids of each row's shots, and how many rows had to leave out some or all."""

    shots: dict[str, list[str]]
    num_shortened: int
    num_without: int

    def warning(self, name: str, asking: Asking, what: str, then: str) -> str:
        """Say of how many prompts the base's context has no room for all shots, and what helps; empty if of none."""
        if not self.num_shortened:
            return ""
        said = f"{self.num_shortened:,} of {len(self.shots):,} test prompts have fewer {what} than chosen"
        if self.num_without:
            said += f", {self.num_without:,} of them none"
        if self.has_none:
            said = f"no test prompt has room for {'a passage' if what == 'passages' else 'an example'}"
        because = f"the base's context of {asking.context:,} tokens keeps {asking.max_new_tokens:,} for the answer"
        return f"{name}: {said}: {because}{then}"

    @property
    def has_none(self) -> bool:
        """Whether every test row is asked as the base alone is asked."""
        return self.num_without == len(self.shots)


def write(file: Path, asking: Asking, shots: Sequence[list[int]], of: InContext) -> Written:
    """Writes the test rows as they are asked."""
    ids: dict[str, list[str]] = {}
    num_shortened = num_without = 0
    with pq.ParquetWriter(file, TOKEN_SCHEMA) as writer:
        for start in range(0, len(shots), ROWS):
            rows, wanted = asking.test.slice(start, ROWS), shots[start : start + ROWS]
            written = asking.ask(rows, wanted, of)
            names: dict[str, list[Any]] = {name: rows[name].to_pylist() for name in ("row_id", "cluster")}
            names["replay"] = [False] * len(rows)
            names |= {name: rows[name].to_pylist() for name in REJECTED}
            rest = [name for name in TOKEN_SCHEMA.names if name not in names]
            columns = {name: [vars(row.tokens)[name] for row in written] for name in rest}
            writer.write_table(pa.table(names | columns, TOKEN_SCHEMA))
            ids |= {row_id: of.ids(row.shots) for row_id, row in zip(names["row_id"], written, strict=True)}
            num_shortened += sum(len(row.shots) < len(some) for row, some in zip(written, wanted, strict=True))
            num_without += sum(not row.shots for row in written)
    return Written(ids, num_shortened, num_without)


def write_messages(file: Path, asking: Asking, shots: Sequence[list[int]]) -> None:
    """Writes what a model behind an API is asked: a line of row_id, messages and tools for each test row."""
    with file.open("w", encoding="utf-8") as lines:
        for row, some in zip(asking.test.to_pylist(), shots, strict=True):
            messages = asking.conversation(row, some)
            asked = {"row_id": row["row_id"], "messages": list(messages), "tools": tools_of(messages)}
            lines.write(json.dumps(asked, ensure_ascii=False) + "\n")


def _asked(splits: Splits, tokens: Tokens, split: str) -> pa.Table:
    """The rows of a split that render kept, in their order, with the rejected answers that it made of pairs."""
    kept = pq.read_table(tokens.path(f"{split}.parquet"), columns=["row_id", *REJECTED])
    rows = pq.read_table(splits.path(f"{split}.parquet"), columns=COLUMNS)
    ids = kept["row_id"].combine_chunks()
    rows = rows.filter(pc.is_in(rows["row_id"], value_set=ids))  # pyright: ignore[reportAttributeAccessIssue]
    for name in REJECTED:
        rows = rows.append_column(name, kept[name])
    return rows


def _pool(rows: Path, tokens: Path, number: int) -> pa.Table:
    """The training rows that render kept, without replay rows; or a sample: those whose hash comes first."""
    kept = pq.read_table(tokens, columns=["row_id"], filters=~pc.field("replay"))["row_id"]
    wanted = pc.field("row_id").isin(np.sort(kept.to_numpy())[:number])
    batches = pq.ParquetFile(rows).iter_batches(ROWS, columns=COLUMNS)
    return pa.concat_tables(pa.Table.from_batches([batch]).filter(wanted) for batch in batches)


def _rounded(found: PromptScore) -> dict[str, float]:
    return {name: round(value, 6) for name, value in found._asdict().items()}


@stage("shots={shots}", libraries=("torch", "transformers", "tokenizers", "jinja2", "numpy", "pyarrow"))
def prompt(
    folder: Path,
    splits: Splits,
    tokens: Tokens,
    base: Base,
    contenders: tuple[str, ...],
    shots: int,
    max_new_tokens: int,
    embedding_model: str,
    embedding: str,
    asks_apis: bool = False,
    documents: tuple[TextFile, ...] = (),
) -> Prompts:
    """The test rows as each of the contenders is asked them, and with `asks_apis` a model behind an API.

    `embedding` tells the content of `embedding_model`, and is empty where rows are compared by their words alone.
    Raises ConfigError where the base cannot be asked so.
    """
    asking = Asking(base, splits, tokens, max_new_tokens)
    made: dict[str, dict[str, Any]] = {}
    warned: list[str] = []
    fixed: list[list[int]] = []  # the shots of few_shot
    try:
        with on_devices(), told_while_slow("choosing the prompts of the contenders"):
            model = embeddings.load_model(embedding_model) if embedding else None
            for name in contenders:
                of: InContext = read(documents) if name == "documents" else asking.pool
                match of:
                    case PassagePool():
                        chosen, search = with_documents(asking, of, model)
                    case _ if name == "few_shot":
                        chosen, search = few_shot(asking, shots)
                        fixed = chosen
                    case _:
                        chosen, search = retrieval(asking, shots, model)
                written = write(folder / f"{name}.parquet", asking, chosen, of)
                made[name] = search | {"left_out": written.has_none} | written._asdict()
                log.info("%s: %s", name, search["chosen"])
                what = "passages" if name == "documents" else "examples"
                room = f"; {asking.more_room}"
                then = f", so it is left out{room}" if written.has_none else f"; the others were left out{room}"
                if warning := written.warning(name, asking, what, then):
                    warned.append(warning)
                    log.warning("prompt: %s", warning)
            if asks_apis:
                write_messages(folder / "messages.jsonl", asking, fixed or few_shot(asking, shots)[0])
    except DataError as error:
        raise ConfigError(
            f"evaluation.contenders: the base cannot be evaluated few-shot: {error}; accepted: contenders=[]"
        ) from error
    shown: dict[str, Any] = {"num_train": splits.num_train}
    if asks_apis or {*contenders} - {"documents"}:
        shown |= {"opening": asking.pool.opening, "num_in_pool": len(asking.pool.rows)}
    text = json.dumps(shown | made, ensure_ascii=False, indent=1)
    (folder / "prompts.json").write_text(text + "\n", encoding="utf-8")
    return Prompts(
        chosen={name: told["chosen"] for name, told in made.items() if not told["left_out"]},
        num_shortened={name: told["num_shortened"] for name, told in made.items()},
        left_out=tuple(name for name, told in made.items() if told["left_out"]),
        warned=tuple(warned),
    )
