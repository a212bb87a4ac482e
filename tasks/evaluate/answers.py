"""The answers of a contender before any score, an artifact of its own: another metric or gate decodes nothing again.

Its key has the rows as they are asked. So neither do more training rows, another contender, or a model behind an API.
Such parts lie beside the other artifacts, in <home>/artifacts/answer_part, and are kept like those; one that is deleted
is made again when it is needed.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import Artifact, Contender, Tokens
from tunewright.cost_model import devices_of_run, on_devices
from tunewright.errors import TunewrightError
from tunewright.modeling.models import load_model, load_tokenizer, merged
from tunewright.reports.progress import Countdown
from tunewright.store.caching import cached
from tunewright.tasks.evaluate.several import HowToAnswer, several

if TYPE_CHECKING:
    from tunewright.generation import Answer

LIBRARIES = ("torch", "transformers", "peft", "pyarrow")
ROWS = 1_000  # in memory at once

ANSWER_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("cluster", pa.int64()),
        ("prompt", pa.string()),  # all that the model was asked, with the template's text and any examples
        ("reference", pa.string()),
        ("answer", pa.string()),
        ("stopped", pa.bool_()),  # by a stop token of the model's own, not by max_new_tokens
        ("num_tokens", pa.int64()),  # of the answer, the stop token left out
        ("nll", pa.float64()),  # negative log-likelihood of the reference's tokens, summed, in nats
        ("num_reference_tokens", pa.int64()),  # of the reference, the stop token counted
        ("tools", pa.string()),  # JSON of the definitions of the row's tools; null without any
        # Of a preference pair the mean log-likelihood of the reference's tokens less that of the rejected answer's, in
        # nats per token; null elsewhere.
        ("margin", pa.float64()),
    ]
)


class AnswerPart(Artifact, frozen=True):
    """answer_part: answers.parquet (ANSWER_SCHEMA), of one contender."""

    precision: str  # of the weights that answered, such as float32


# The answers to rows (TOKEN_SCHEMA) and the precision of the weights; it is told how many rows are answered.
Answering = Callable[[pa.Table, HowToAnswer, Callable[[int], None]], tuple[pa.Table, str]]


@dataclass
class KeptModel:
    """A contender's model at work, from the first answers that are made to the last."""

    until_last: ExitStack  # then it gives the devices back
    name: str  # of the contender
    answer: Answering | None = None


_KEPT: ContextVar[KeptModel] = ContextVar("kept")


@contextmanager
def one_contender(name: str) -> Iterator[None]:
    """All answers that are made in the block are of one contender: its model is loaded once, and holds the devices."""
    with ExitStack() as until_last:
        token = _KEPT.set(KeptModel(until_last, name))
        try:
            yield
        finally:
            _KEPT.reset(token)


def _answering(contender: Contender, precision: str) -> Answering:
    kept, number = _KEPT.get(), devices_of_run()
    if kept.answer is None:
        kept.until_last.enter_context(on_devices(number))
        if number > 1:
            kept.answer = kept.until_last.enter_context(several(contender, precision, number)).answered
        else:
            kept.answer = alone(contender, precision)
    return kept.answer


def alone(contender: Contender, precision: str) -> Answering:
    """A contender's model in this process."""
    model = merged(load_model(contender.base, contender.model, dtype=precision))
    return partial(_answered_by, model, load_tokenizer(contender.base))


def _answered_by(
    model: Any, tokenizer: Any, test: pa.Table, how: HowToAnswer, tell: Callable[[int], None]
) -> tuple[pa.Table, str]:
    answers = answered(model, tokenizer, test, how.stops, how.max_new_tokens, how.batch, tell=tell)
    return answers, str(model.dtype).removeprefix("torch.")


@cached(libraries=LIBRARIES)
def answer_part(
    folder: Path, contender: Contender, stops: tuple[int, ...], max_new_tokens: int, batch: int, precision: str
) -> AnswerPart:
    """Answer each row of the contender's prompts, in their order, within `one_contender`, which names the contender.

    By its own name it would be another one in the key: a champion has answered as a candidate, most often these rows.
    Raises TunewrightError if the contender could not answer all.
    """
    assert contender.prompts
    how = HowToAnswer(stops=stops, max_new_tokens=max_new_tokens, batch=batch)
    test = pq.read_table(contender.prompts)
    answer, name = _answering(contender, precision), _KEPT.get().name
    answers, computed = answer(test, how, Countdown(len(test), "answers", "evaluation-progress", name).tell)
    failed = answers["row_id"].to_numpy()[~np.isfinite(answers["nll"].to_numpy())]
    if len(failed):
        raise TunewrightError(
            f"{name} answered {len(answers) - len(failed)} of {len(answers)} test rows; the others, first "
            f"row {failed[0][:12]}, have NaN or infinite likelihoods: its weights are broken or training diverged"
        )
    pq.write_table(answers, folder / "answers.parquet")
    return AnswerPart(precision=computed)


def asked(contender: Contender, tokens: Tokens) -> Path:
    """The test rows as a contender is asked, TOKEN_SCHEMA; of a model behind an API, as they are asked otherwise."""
    return tokens.path("test.parquet") if contender.api or not contender.prompts else contender.prompts


def digest_of_rows(rows: pa.Table) -> str:
    """The hash of rows (TOKEN_SCHEMA) as they are asked: without their clusters, whose numbers depend on other rows."""
    digest = hashlib.sha256()
    for batch in rows.drop_columns(["cluster"]).to_batches(ROWS):
        for row in batch.to_pylist():
            digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()


def answered(
    model: Any,
    tokenizer: Any,
    test: pa.Table,
    stops: Sequence[int],
    max_new_tokens: int,
    batch: int,
    *,
    tell: Callable[[int], None] = lambda _: None,
) -> pa.Table:
    """Generate the model's answer to each row of `test` (TOKEN_SCHEMA): a table of ANSWER_SCHEMA in the same order.

    `tell` is called with the number of rows that are answered.
    """
    from tunewright.generation import Greedy

    greedy = Greedy(model, stops=stops, max_new_tokens=max_new_tokens, batch=batch)
    written: list[dict[str, Any]] = []
    for rows, answers in greedy.answer_table(test, tell):
        pairs = _rejected(model, rows, batch)
        written += [
            {
                **{name: row[name] for name in ("row_id", "cluster", "reference", "tools")},
                "prompt": tokenizer.decode(answer.prompt, clean_up_tokenization_spaces=False),
                "answer": answer.text(tokenizer, row["reference"], stops),
                "stopped": answer.stopped,
                "num_tokens": len(answer.tokens),
                "nll": answer.nll,
                "num_reference_tokens": len(answer.reference),
                "margin": pairs[at].mean_nll - answer.mean_nll if at in pairs else None,
            }
            for at, (row, answer) in enumerate(zip(rows, answers, strict=True))
        ]
    return pa.Table.from_pylist(written, ANSWER_SCHEMA)


def _rejected(model: Any, rows: Sequence[dict[str, Any]], batch: int) -> dict[int, "Answer"]:
    """The rejected answers of the rows that are preference pairs, by their places, each with its likelihood."""
    from tunewright.generation import Answer, Greedy

    pairs = {
        at: Answer(list(row["input_ids"][: row["prompt_length"]]), list(row["rejected_ids"]))
        for at, row in enumerate(rows)
        if row["rejected_ids"] is not None
    }
    if pairs:
        greedy = Greedy(model, stops=(), max_new_tokens=1, batch=batch)
        greedy.answer([*pairs.values()], generate=False)
    return pairs
