"""Forgetting: base and candidate do the same general tasks and read the same general texts (suite.jsonl).

A model that learns one thing well can lose the rest (McCloskey & Cohen 1989, "Catastrophic interference"), which the
test rows do not show, since they are all of that one thing. So decide compares both results with the base's as
guardrails: the share of tasks done right, and the loss on texts, which shows damage long before a weak base has a right
answer to lose.

All of them were written for this project, so that no model can have learnt them by heart and none of them is anybody's
benchmark. It is a smoke detector, not a leaderboard: what a base could do before, a tuned model should still do.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

from tunewright.artifacts import Contender, General
from tunewright.cost_model import on_devices
from tunewright.data_checks.answers import refusal
from tunewright.errors import TunewrightError
from tunewright.metrics import row_score
from tunewright.metrics.catalogue import general_item, keep_general
from tunewright.metrics.schemas import Schema
from tunewright.modeling.chat import Chat
from tunewright.modeling.models import load_model, load_tokenizer, merged
from tunewright.reports.progress import Countdown, told_while_slow
from tunewright.store.stage import stage

TEXT = "text"  # begins the part of a line that is no task but a text to be read; its language follows
FENCE = re.compile(r"```(?:json)?\n(.*?)(?:\n```)?", re.DOTALL)  # a fence around JSON is a chat model's habit
SUMS = 24


@dataclass(frozen=True, kw_only=True)
class GeneralTask:
    """A question and what its answer must satisfy; of what is left out nothing is asked."""

    part: str
    prompt: str
    says: tuple[str, ...] = ()  # any of these words or phrases
    lacks: tuple[str, ...] = ()  # none of these
    with_case: bool = False  # whether upper and lower case count in them
    matches: str = ""  # a regular expression for the whole answer
    json: dict[str, Any] | None = None  # a schema
    number: int | None = None  # the last number of the answer
    refuses: bool | None = None  # whether it begins with a refusal

    def is_right(self, answer: str) -> bool:
        """Whether an answer satisfies all of it."""
        text = answer.strip()
        fenced = FENCE.fullmatch(text)
        return (
            (not self.says or self._has(self.says, text))
            and not self._has(self.lacks, text)
            and (not self.matches or re.fullmatch(self.matches, text) is not None)
            and (self.json is None or Schema(json.dumps(self.json)).valid(fenced[1] if fenced else text) == 1)
            and (self.number is None or row_score("numeric")(text, str(self.number)) == 1)
            and (self.refuses is None or (refusal(text) is not None) == self.refuses)
        )

    def _has(self, phrases: tuple[str, ...], text: str) -> bool:
        any_of = "|".join(map(re.escape, phrases))
        return bool(phrases) and bool(re.search(rf"(?<!\w)(?:{any_of})(?!\w)", text, 0 if self.with_case else re.I))


@cache
def tasks() -> tuple[GeneralTask, ...]:
    """All tasks, in an order that stays."""
    written = []
    for line in _lines():
        if not line["part"].startswith(TEXT):
            line.update({name: tuple(value) for name, value in line.items() if isinstance(value, list)})
            written.append(GeneralTask(**line))
    return *written, *_arithmetic(Random(0))  # noqa: S311 for sums


@cache
def texts() -> tuple[tuple[str, str], ...]:
    """(language, text) of all texts."""
    found = [(line["part"], line["text"]) for line in _lines() if line["part"].startswith(TEXT)]
    return tuple((part.removeprefix(f"{TEXT} "), text) for part, text in found)


def _lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(__file__).with_name("suite.jsonl").read_text("utf-8").splitlines()]


def _arithmetic(random: Random) -> Iterator[GeneralTask]:
    """Sums, each kind in turn, no two alike, from `random()` alone: it is the same in every version of Python."""
    pairs = sorted(product(range(2, 13), repeat=2), key=lambda _: random.random())
    for number, (one, other) in enumerate(pairs[:SUMS]):
        asked, result = (
            (f"{one} + {other}", one + other),
            (f"{one + other} - {one}", other),
            (f"{one} times {other}", one * other),
        )[number % 3]
        yield GeneralTask(part="arithmetic", prompt=f"What is {asked}? Answer with the number only.", number=result)


MAX_NEW_TOKENS = 20  # what is asked for can be said in them, and a base that rambles costs no more
BATCH = 128  # all tasks at once: their prompts and answers are short


def done(model: Any, chat: Chat) -> Iterator[dict[str, Any]]:
    """Each task with what the model answers to it, greedily, and whether that is right: rows of GENERAL_SCHEMA."""
    from tunewright.generation import Answer, Greedy

    every, stops = tasks(), sorted(chat.stops.values())
    answers = Answer.to_prompts(chat, [each.prompt for each in every])
    countdown = Countdown(len(answers), "general tasks", "forgetting-progress")
    Greedy(model, stops=stops, max_new_tokens=MAX_NEW_TOKENS, batch=BATCH).answer(answers, on_progress=countdown.tell)
    for number, (each, answer) in enumerate(zip(every, answers, strict=True)):
        said = chat.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        right = float(each.is_right(said))
        yield general_item(f"general_tasks {number:03}", "general_tasks", each.part, each.prompt, said, right)


def read(model: Any, chat: Chat) -> Iterator[dict[str, Any]]:
    """Each text with its loss in nats per token: rows of GENERAL_SCHEMA."""
    from tunewright.generation import Answer, Greedy

    stops, bos = sorted(chat.stops.values()), chat.tokenizer.bos_token_id
    begin = stops[0] if bos is None else bos
    answers = [Answer(prompt=[begin], reference=ids) for ids in chat.ids([text for _, text in texts()])]
    with told_while_slow(f"reading {len(answers)} general texts"):
        Greedy(model, stops=stops, max_new_tokens=1, batch=BATCH).answer(answers, generate=False)
    for number, ((language, text), answer) in enumerate(zip(texts(), answers, strict=True)):
        loss = answer.nll / len(answer.reference)
        yield general_item(f"general_loss {number:03}", "general_loss", language, text, "", loss)


@stage("{contender.name}", libraries=("torch", "transformers", "peft", "tokenizers", "jinja2", "jsonschema", "pyarrow"))
def forgetting(folder: Path, contender: Contender, precision: str) -> General:
    """Evaluate the contender on the built-in suite, in the precision of all its answers; a base only once.

    Raises TunewrightError where the loss is NaN or infinite.
    """
    with on_devices():
        model = merged(load_model(contender.base, contender.model, dtype=precision))
        chat = Chat(load_tokenizer(contender.base), contender.base.weights)
        made = keep_general(folder, contender.name, [*done(model, chat), *read(model, chat)])
    if not math.isfinite(made.scores["general_loss"]):
        raise TunewrightError(f"{contender.name}: its loss on general texts is NaN or infinite: its weights are broken")
    return made.model_copy(update={"uniform_loss": math.log(model.get_input_embeddings().num_embeddings)})
