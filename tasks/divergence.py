"""The divergence: how far preference training, or training on rewards, moved the model from where it began.

For each token of the candidate's own answers to the test rows it is the KL divergence of the candidate's distribution
from that of its reference, the model before its last training. A model that was drawn far away may have found answers
that please its reward and nothing else (Gao et al. 2023, "Scaling Laws for Reward Model Overoptimization"). It is shown
beside the verdict, which does not depend on it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import Answers, Contender, Divergence, Tokens
from tunewright.artifacts.payloads import Contract
from tunewright.cost_model import on_devices
from tunewright.errors import TunewrightError
from tunewright.metrics.intervals import by_cluster
from tunewright.modeling.models import load_model, load_tokenizer
from tunewright.reports.progress import Countdown
from tunewright.store.stage import stage

if TYPE_CHECKING:
    from torch import Tensor

KL_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        ("cluster", pa.int64()),
        ("kl", pa.float64()),  # nats, summed over the tokens of the answer
        ("num_tokens", pa.int64()),  # of the answer, a stop token counted
    ]
)
CONFIDENCE = 0.95  # of each bound
REFERENCE = "reference"  # the name of its adapter beside the candidate's

LogProbabilities = Callable[[list[int], int], "Tensor"]


def log_probabilities(model: Any, ids: list[int], num_answer: int) -> "Tensor":
    """Return the log-probabilities of all tokens at each of the last `num_answer` places: [num_answer, vocabulary].

    They are float32, whatever the model computes in.
    """
    import torch

    from tunewright.generation.plain import answer_logits

    with torch.inference_mode():
        return answer_logits(model, ids, num_answer).log_softmax(-1)


def both(candidate: Contender, reference: Contender) -> tuple[LogProbabilities, LogProbabilities]:
    """The log-probabilities of the candidate and of the reference.

    With an adapter it is one model, whose adapter is exchanged or switched off: the base is in memory once.
    """
    model = load_model(candidate.base, candidate.model)
    if not hasattr(model, "disable_adapter"):
        return partial(log_probabilities, model), partial(
            log_probabilities, load_model(reference.base, reference.model)
        )
    own = model.active_adapter
    if reference.model:
        model.load_adapter(str(reference.model), REFERENCE)

    def with_own(ids: list[int], num_answer: int) -> "Tensor":
        model.set_adapter(own)
        return log_probabilities(model, ids, num_answer)

    def with_reference(ids: list[int], num_answer: int) -> "Tensor":
        if not reference.model:
            with model.disable_adapter():
                return log_probabilities(model, ids, num_answer)
        model.set_adapter(REFERENCE)
        return log_probabilities(model, ids, num_answer)

    return with_own, with_reference


def diverging(
    candidate: LogProbabilities, reference: LogProbabilities, tokenizer: Any, rows: pa.Table, stop: int
) -> Iterator[dict[str, Any]]:
    """Yield a row of KL_SCHEMA for each row with an answer; `rows` have the ids of its prompt, answer and stopped."""
    countdown = Countdown(len(rows), "answers", "divergence-progress")
    for number, row in enumerate(rows.to_pylist(), 1):
        answer = tokenizer(row["answer"], add_special_tokens=False)["input_ids"] + [stop] * row["stopped"]
        if answer:
            ids = [*row["input_ids"][: row["prompt_length"]], *answer]
            own, other = candidate(ids, len(answer)), reference(ids, len(answer))
            kl = float((own.exp() * (own - other)).sum().double())
            yield {"row_id": row["row_id"], "cluster": row["cluster"], "kl": kl, "num_tokens": len(answer)}
        countdown.tell(number, number / len(rows))


@stage("from {reference.name}", libraries=("torch", "transformers", "peft", "tokenizers", "numpy", "pyarrow"))
def divergence(
    folder: Path, candidate: Contender, reference: Contender, answers: Answers, tokens: Tokens
) -> Divergence:
    """Measure the KL divergence of the candidate from the reference on the candidate's `answers`.

    The name of the reference says what it is. kl.parquet has the divergence of each row. Raises TunewrightError where
    one is not a finite number.
    """
    prompts = pq.read_table(tokens.path("test.parquet"), columns=["row_id", "input_ids", "prompt_length"])
    given = pq.read_table(answers.path("answers.parquet"), columns=["row_id", "cluster", "answer", "stopped"])
    assert given["row_id"] == prompts["row_id"], "the candidate answers all test rows, in their order"
    for name in ("input_ids", "prompt_length"):
        given = given.append_column(name, prompts[name])
    stop = min(Contract.load(tokens).stop_token_ids)
    with on_devices():
        models = both(candidate, reference)
        found = [*diverging(*models, load_tokenizer(candidate.base), given, stop)]
    table = pa.Table.from_pylist(found, KL_SCHEMA)
    if not (np.isfinite(table["kl"].to_numpy()).all() and len(table)):
        raise TunewrightError("the KL divergence of the candidate is NaN or infinite, or it has no answer to measure")
    pq.write_table(table, folder / "kl.parquet")
    sums, sizes, clusters = (table[name].to_numpy() for name in ("kl", "num_tokens", "cluster"))
    per_token = by_cluster(sums / sizes, clusters, 0.0, float("inf"), sizes.astype(float))
    return Divergence(
        per_token=per_token.interval(CONFIDENCE),
        per_answer=float(sums.mean()),
        num_rows=len(table),
        reference=reference.name,
    )
