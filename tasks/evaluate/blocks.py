"""The answers of a contender: whole, or block by block until its comparison with the candidate is settled.

The answers to each block are an artifact of their own (answers.py), so a run that needs more rows answers the rest.
"""

import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import Contender, EndingRule, Tokens
from tunewright.config import Evaluation
from tunewright.store.cache_key import hash_of
from tunewright.store.caching import seconds_of
from tunewright.tasks.evaluate.answers import AnswerPart, answer_part, asked
from tunewright.tasks.evaluate.interim import alpha_shares, blocks, is_settled

log = logging.getLogger("tunewright")


class Answered(NamedTuple):
    """The answers of a contender, and how they came about."""

    answers: pa.Table  # ANSWER_SCHEMA, in the order of the test rows
    precision: str  # of the weights that answered
    earlier_seconds: float  # that earlier evaluations took for answers that are found
    alpha_share: float = 1.0  # of the comparison of these rows


def whole(contender: Contender, tokens: Tokens, evaluation: Evaluation) -> Answered:
    """The answers to all test rows."""
    part, seconds = _part(contender, tokens, evaluation)
    return Answered(pq.read_table(part.path("answers.parquet")), part.precision, seconds)


def in_blocks(
    contender: Contender,
    tokens: Tokens,
    evaluation: Evaluation,
    scored: Callable[[pa.Table], pa.Table],
    rule: EndingRule | None,
) -> Answered:
    """The answers of a prompted contender until the rule ends it; to all test rows where there is no rule.

    `scored` adds the columns of the metrics to answers.
    """
    test = pq.read_table(asked(contender, tokens))
    found = blocks(test["row_id"].to_pylist(), test["cluster"].to_pylist())
    if len(found) == 1:
        return whole(contender, tokens, evaluation)
    candidate = pq.read_table(rule.candidate.path("answers.parquet")) if rule else None
    places, tables, seconds = list[np.ndarray](), list[pa.Table](), 0.0
    precision, alpha_share = "", 1.0
    for block, share in zip(found, alpha_shares(len(found)), strict=True):
        part, earlier = _part_of(test.take(block), contender, tokens, evaluation)
        places.append(block)
        tables.append(pq.read_table(part.path("answers.parquet")))
        precision, seconds = part.precision, seconds + earlier
        if rule is None or candidate is None:
            continue
        alpha_share, number = share, sum(map(len, places))
        if number < len(test) and is_settled(scored(pa.concat_tables(tables)), candidate, rule, share):
            log.info("  its comparison with the candidate is settled after %d of %d test rows", number, len(test))
            break
    in_order = pa.concat_tables(tables).take(np.argsort(np.concatenate(places)))
    return Answered(in_order, precision, seconds, alpha_share)


def _part_of(rows: pa.Table, contender: Contender, tokens: Tokens, evaluation: Evaluation) -> tuple[AnswerPart, float]:
    """The answers to some of a contender's rows, which are asked as prompts of their own."""
    digest = hash_of([contender.prompts_digest, rows["row_id"].to_pylist()])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.parquet")
        pq.write_table(rows, file)
        asked_these = contender.model_copy(update={"prompts": file, "prompts_digest": digest})
        return _part(asked_these, tokens, evaluation)


def _part(contender: Contender, tokens: Tokens, evaluation: Evaluation) -> tuple[AnswerPart, float]:
    """Answers, and the seconds that they took in an earlier evaluation; 0 where they are made now."""
    started = time.monotonic()
    part = answer_part.record(contender, tokens, evaluation.limit, evaluation.batch)
    return part, max(0.0, seconds_of(part) - (time.monotonic() - started))
