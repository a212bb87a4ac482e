"""Every contender answers the same sealed test rows greedily; every answer is kept and scored.

Sampling settings that a base carries along (generation_config.json) do not matter here: an answer is the likeliest
token, one after the other, up to a stop token of the contract or evaluation.max_new_tokens.
"""

import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task

from tasks import metrics
from tasks.artifacts import IGNORED, Answers, Contender, Tokens
from tasks.caching import cached
from tasks.config import Evaluation, Metric
from tasks.errors import TunewrightError, retry_transient
from tasks.models import load_model, load_tokenizer

log = logging.getLogger("tunewright")

ANSWER_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("cluster", pa.int64()),
        ("reference", pa.string()),
        ("answer", pa.string()),
        ("stopped", pa.bool_()),  # by a stop token of the model's own, not by max_new_tokens
        ("num_tokens", pa.int64()),  # of the answer, the stop token left out
        ("nll", pa.float64()),  # negative log-likelihood of the reference's tokens, summed, in nats
        ("num_reference_tokens", pa.int64()),  # of the reference, the stop token counted
    ]
)


def answered(model: Any, tokenizer: Any, test: pa.Table, stops: Sequence[int], settings: Evaluation) -> pa.Table:
    """What the model answers to each row of `test` (TOKEN_SCHEMA): a table of ANSWER_SCHEMA in the same order."""
    from tasks.greedy import Answer

    rows = test.to_pylist()
    answers = [
        Answer(
            prompt=row["input_ids"][: row["prompt_length"]],
            reference=[label for label in row["labels"][row["prompt_length"] :] if label != IGNORED],
        )
        for row in rows
    ]
    _answer(model, answers, stops, settings)
    return pa.Table.from_pylist(
        [
            {
                **{name: row[name] for name in ("row_id", "cluster", "reference")},
                "answer": _text(tokenizer, answer, row["reference"], stops),
                "stopped": answer.stopped,
                "num_tokens": len(answer.tokens),
                "nll": answer.nll,
                "num_reference_tokens": len(answer.reference),
            }
            for row, answer in zip(rows, answers, strict=True)
        ],
        ANSWER_SCHEMA,
    )


def _answer(model: Any, answers: Sequence[Any], stops: Sequence[int], settings: Evaluation) -> None:
    """Answers all, with half as many at once whenever the device's memory does not suffice."""
    import torch

    from tasks.greedy import Greedy

    batch = settings.batch
    while True:
        try:
            return Greedy(model, stops=stops, max_new_tokens=settings.max_new_tokens, batch=batch).answer(answers)
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            log.warning(
                "out of memory: going on with %d rows at once instead of evaluation.batch=%d", batch, settings.batch
            )


def _text(tokenizer: Any, answer: Any, reference: str, stops: Sequence[int]) -> str:
    """The answer as a server would send it; the reference's own text where it is that, token for token."""
    if answer.stopped and answer.tokens == [token for token in answer.reference if token not in stops]:
        return reference
    return tokenizer.decode(answer.tokens, skip_special_tokens=True)


def scored(answers: pa.Table, names: Sequence[Metric]) -> tuple[pa.Table, dict[str, float]]:
    """`answers` with a column for each metric that has a score a row, and {metric: score, "stopped": share}.

    json_valid is left out of both where not every reference is JSON itself.
    """
    said, wanted = (answers.column(name).to_pylist() for name in ("answer", "reference"))
    nlls, num_tokens = (answers.column(name).to_pylist() for name in ("nll", "num_reference_tokens"))
    scores: dict[str, float] = {}
    for name in metrics.applicable(names, wanted):
        given = (nlls, num_tokens) if name == "perplexity" else (said, wanted)
        result = metrics.load(name).compute(predictions=given[0], references=given[1])
        scores[name] = result[name]
        if name != "perplexity":
            answers = answers.append_column(name, pa.array(result["rows"], pa.float64()))
    return answers, scores | {"stopped": sum(answers.column("stopped").to_pylist()) / len(answers)}


def _check(answers: pa.Table, contender: str) -> None:
    """Raises TunewrightError if the model's likelihoods are no numbers somewhere."""
    rows = zip(answers.column("row_id").to_pylist(), answers.column("nll").to_pylist(), strict=True)
    failed = [row_id for row_id, nll in rows if not math.isfinite(nll)]
    if failed:
        raise TunewrightError(
            f"{contender} answered {len(answers) - len(failed)} of {len(answers)} test rows: on the others, the first "
            f"is row {failed[0][:12]}, its likelihoods are not finite, so its weights are broken or training diverged"
        )


def _load(contender: Contender) -> Any:
    """The contender's model; in float32 with its adapter merged, which gives the same answers a third faster."""
    import torch

    model = load_model(contender.base, contender.model)
    return model.merge_and_unload() if model.dtype == torch.float32 and hasattr(model, "merge_and_unload") else model


@task(
    name="evaluate",
    task_run_name="evaluate {contender.name}",
    retries=2,
    retry_delay_seconds=[5, 30],
    retry_condition_fn=retry_transient,
)
@cached(libraries=("torch", "transformers", "peft", "evaluate", "sacrebleu", "pyarrow"), volatile=("seconds",))
def evaluate(folder: Path, contender: Contender, tokens: Tokens, evaluation: Evaluation) -> Answers:
    """The contender's answer and scores on each test row, in the rows' order.

    A contender is another one in the key by its name, its weights or its registered version.
    Raises TunewrightError if it could not answer all rows.
    """
    started = time.monotonic()
    contract = json.loads(tokens.path("contract.json").read_text(encoding="utf-8"))
    test = pq.read_table(tokens.path("test.parquet"))
    stops = contract["stop_token_ids"]
    answers = answered(_load(contender), load_tokenizer(contender.base), test, stops, evaluation)
    _check(answers, contender.name)
    answers, scores = scored(answers, evaluation.metrics)
    pq.write_table(answers, folder / "answers.parquet")
    shown = scores | {"num_rows": len(answers)}
    (folder / "scores.json").write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    seconds = {"seconds": round(time.monotonic() - started, 3), "tokens": sum(answers.column("num_tokens").to_pylist())}
    (folder / "seconds.json").write_text(json.dumps(seconds) + "\n", encoding="utf-8")
    return Answers(contender=contender.name, num_rows=len(answers), scores=scores)
