"""Forgetting: base and candidate do the same general tasks and read the same general texts (suite.py).

A model that learns one thing well can lose the rest (McCloskey & Cohen 1989, "Catastrophic interference"), which the
test rows do not show, since they are all of that one thing. So decide compares both results with the base's as
guardrails: the share of tasks done right, and the loss on texts, which shows damage long before a weak base has a right
answer to lose.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.artifacts import Contender, General
from tunewright.errors import TunewrightError
from tunewright.metrics.general_tasks import item, keep
from tunewright.modeling.chat import Chat
from tunewright.modeling.models import fastest_dtype, load_model, load_tokenizer
from tunewright.store.stage import stage
from tunewright.tasks.forgetting.suite import tasks, texts

MAX_NEW_TOKENS = 20  # what is asked for can be said in them, and a base that rambles costs no more
BATCH = 32


def done(model: Any, chat: Chat) -> Iterator[dict[str, Any]]:
    """Each task with what the model answers to it, greedily, and whether that is right: rows of GENERAL_SCHEMA."""
    from tunewright.generation import Answer, Greedy

    every, stops = tasks(), sorted(chat.stops.values())
    prompts = chat.ids(chat.texts([[{"role": "user", "content": each.prompt}] for each in every], ask=True))
    answers = [Answer(prompt=prompt, reference=stops[:1]) for prompt in prompts]
    Greedy(model, stops=stops, max_new_tokens=MAX_NEW_TOKENS, batch=BATCH).answer(answers)
    for number, (each, answer) in enumerate(zip(every, answers, strict=True)):
        said = chat.tokenizer.decode(answer.tokens, skip_special_tokens=True)
        right = float(each.is_right(said))
        yield item(f"general_tasks {number:03}", "general_tasks", each.part, each.prompt, said, right)


def read(model: Any, chat: Chat) -> Iterator[dict[str, Any]]:
    """Each text with its loss in nats per token: rows of GENERAL_SCHEMA."""
    from tunewright.generation import Answer, Greedy

    stops, bos = sorted(chat.stops.values()), chat.tokenizer.bos_token_id
    begin = stops[0] if bos is None else bos
    answers = [Answer(prompt=[begin], reference=ids) for ids in chat.ids([text for _, text in texts()])]
    Greedy(model, stops=stops, max_new_tokens=1, batch=BATCH).answer(answers, generate=False)
    for number, ((language, text), answer) in enumerate(zip(texts(), answers, strict=True)):
        loss = answer.nll / len(answer.reference)
        yield item(f"general_loss {number:03}", "general_loss", language, text, "", loss)


@stage("{contender.name}", libraries=("torch", "transformers", "peft", "tokenizers", "jinja2", "jsonschema", "pyarrow"))
def forgetting(folder: Path, contender: Contender) -> General:
    """Evaluate the contender on the built-in suite; a base only once, whatever is trained on it.

    Raises TunewrightError where the loss is NaN or infinite.
    """
    # In bfloat16 it takes two thirds of the time, and the loss moves by a thousandth.
    model = load_model(contender.base, contender.model, dtype=fastest_dtype())
    chat = Chat(load_tokenizer(contender.base), contender.base.weights)
    made = keep(folder, contender.name, [*done(model, chat), *read(model, chat)])
    if not math.isfinite(made.scores["general_loss"]):
        raise TunewrightError(f"{contender.name}: its loss on general texts is NaN or infinite: its weights are broken")
    return made
