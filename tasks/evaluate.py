"""Every contender answers the same test rows greedily; every answer is kept and scored.

Sampling settings that a base carries along (generation_config.json) do not matter here: an answer is the likeliest
token, one after the other, up to a stop token of the contract or evaluation.max_new_tokens.
"""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright import metrics
from tunewright.artifacts import Answers, Contender, Tokens
from tunewright.artifacts.payloads import Contract
from tunewright.config import Evaluation
from tunewright.cost_model import on_device
from tunewright.errors import TunewrightError
from tunewright.metrics.labels import training_answers
from tunewright.modeling.models import load_model, load_tokenizer, merged
from tunewright.reports.progress import Countdown
from tunewright.store.stage import stage

log = logging.getLogger("tunewright")

ROWS = 1_000  # whose tokens are in memory at once

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
    ]
)


def answered(
    model: Any, tokenizer: Any, test: pa.Table, stops: Sequence[int], settings: Evaluation, contender: str = ""
) -> pa.Table:
    """Generate the model's answer to each row of `test` (TOKEN_SCHEMA): a table of ANSWER_SCHEMA in the same order."""
    from tunewright.generation import Answer, Greedy

    greedy = Greedy(model, stops=stops, max_new_tokens=settings.limit, batch=settings.batch)
    countdown = Countdown(len(test), "answers", "evaluation-progress", contender)
    written: list[dict[str, Any]] = []
    for start in range(0, len(test), ROWS):
        rows = test.slice(start, ROWS).to_pylist()
        answers = [Answer.of(row["input_ids"], row["labels"], row["prompt_length"]) for row in rows]
        greedy.answer(answers, on_progress=lambda number, before=start: countdown.tell(before + number))
        written += [
            {
                **{name: row[name] for name in ("row_id", "cluster", "reference", "tools")},
                "prompt": tokenizer.decode(answer.prompt, clean_up_tokenization_spaces=False),
                "answer": answer.text(tokenizer, row["reference"], stops),
                "stopped": answer.stopped,
                "num_tokens": len(answer.tokens),
                "nll": answer.nll,
                "num_reference_tokens": len(answer.reference),
            }
            for row, answer in zip(rows, answers, strict=True)
        ]
    return pa.Table.from_pylist(written, ANSWER_SCHEMA)


def scored(answers: pa.Table, choice: metrics.Choice) -> tuple[pa.Table, dict[str, float]]:
    """`answers` with a column for each chosen metric that has a score a row, and {metric: score}.

    Perplexity and stopped have no column of their own, since ANSWER_SCHEMA has what they are made of.
    """
    scores: dict[str, float] = {}
    for name in choice.names:
        scores[name], rows = metrics.measure(name, answers, choice.shape)
        if rows is not None and name not in ("perplexity", "stopped"):
            answers = answers.append_column(name, pa.array(rows, pa.float64()))
    return answers, scores


def _show_limit(test: pa.Table, limit: int) -> None:
    """Says before the first answer whether references have room; the verdict says what came of it (decide/reading)."""
    labels, prompts = (test.column(name).combine_chunks() for name in ("labels", "prompt_length"))
    behind = labels.value_lengths().to_numpy() - prompts.to_numpy()  # with what a template has after the stop token
    log.info("  up to %d tokens an answer; the longest reference has %d with its stop token", limit, behind.max())
    if longer := int((behind > limit + 1).sum()):
        text = "%d of %d references are longer than evaluation.max_new_tokens=%d: answers to these will be cut off"
        log.warning(text, longer, len(test), limit)


@stage(
    "{contender.name}",
    libraries=("torch", "transformers", "peft", "evaluate", "jsonschema", "sacrebleu", "pyarrow"),
    volatile=("seconds",),
)
def evaluate(
    folder: Path,
    contender: Contender,
    tokens: Tokens,
    evaluation: Evaluation,
    own: tuple[tuple[str, str], ...] = (),
    schema: str = "",
) -> Answers:
    """The contender's answer and scores on each test row, in the rows' order.

    A contender is another one in the key by its name, its weights or its registered version. `own` are the team's
    metrics, for the key alone, and `schema` is what evaluation.json_schema holds.
    Raises TunewrightError if it could not answer all rows, ConfigError if a metric cannot score them.
    """
    contract = Contract.load(tokens)
    test = pq.read_table(contender.prompts or tokens.path("test.parquet"))
    stops = contract.stop_token_ids
    if contender.name == "base":  # of all the same
        _show_limit(test, evaluation.limit)
    with on_device():
        started = time.monotonic()
        model = merged(load_model(contender.base, contender.model))
        answers = answered(model, load_tokenizer(contender.base), test, stops, evaluation, contender.name)
    failed = answers["row_id"].to_numpy()[~np.isfinite(answers["nll"].to_numpy())]
    if len(failed):
        raise TunewrightError(
            f"{contender.name} answered {len(answers) - len(failed)} of {len(answers)} test rows; the others, first "
            f"row {failed[0][:12]}, have NaN or infinite likelihoods: its weights are broken or training diverged"
        )
    has_tools = test["tools"].null_count < len(test)
    references = test.column("reference").to_pylist()
    choice = metrics.choose(evaluation.metrics, references, training_answers(tokens), schema, has_tools=has_tools)
    if contender.name == "base":  # of all the same
        log.info("  %s", choice.says())
    answers, scores = scored(answers, choice)
    pq.write_table(answers, folder / "answers.parquet")
    shown = scores | {"num_rows": len(answers), "measured": choice.says()}
    (folder / "scores.json").write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    seconds = {"seconds": round(time.monotonic() - started, 3), "tokens": sum(answers.column("num_tokens").to_pylist())}
    (folder / "seconds.json").write_text(json.dumps(seconds) + "\n", encoding="utf-8")
    return Answers(
        contender=contender.name,
        num_rows=len(answers),
        scores=scores,
        metric=choice.decides,
        measured=choice.says(),
        precision=str(model.dtype).removeprefix("torch."),
        max_new_tokens=evaluation.limit,
        is_prose="long texts" in choice.shape.kinds,
    )
