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
from tunewright.artifacts.payloads import Contract
from tunewright.config import Evaluation
from tunewright.reports.progress import TotalWork, part_of
from tunewright.store.caching import seconds_of
from tunewright.tasks.evaluate.answers import answer_part, asked, digest_of_rows
from tunewright.tasks.evaluate.interim import alpha_shares, blocks, is_settled

log = logging.getLogger("tunewright")


class Answered(NamedTuple):
    """The answers of a contender, and how they came about."""

    answers: pa.Table  # ANSWER_SCHEMA, in the order of the test rows
    precision: str  # of the weights that answered
    earlier_seconds: float  # that earlier evaluations took for answers that are found
    alpha_share: float = 1.0  # of the comparison of these rows


class AnsweredBlock(NamedTuple):
    """The answers to some of the test rows, and how they came about."""

    answers: pa.Table  # ANSWER_SCHEMA, in the order of the rows
    precision: str = ""  # of the weights that answered; empty of a model behind an API
    earlier_seconds: float = 0.0


def whole(contender: Contender, tokens: Tokens, evaluation: Evaluation) -> Answered:
    """The answers to all test rows."""
    return Answered(*answered_block(contender, tokens, evaluation, pq.read_table(asked(contender, tokens))))


def in_blocks(
    test: pa.Table,
    answer: Callable[[pa.Table], AnsweredBlock | None],
    scored: Callable[[pa.Table], pa.Table],
    rule: EndingRule | None,
) -> Answered:
    """The answers of a prompted contender until the rule ends it; to all test rows where there is no rule.

    `answer` answers some of the test rows, or says by None that no more are answered; `scored` adds the columns of the
    metrics to answers.
    """
    found = blocks(test["row_id"].to_pylist(), test["cluster"].to_pylist())
    candidate = pq.read_table(rule.candidate.path("answers.parquet")) if rule else None
    places, made, alpha_share, started = list[np.ndarray](), list[AnsweredBlock](), 1.0, time.monotonic()
    for block, share in zip(found, alpha_shares(len(found)), strict=True):
        with part_of(TotalWork(len(test), sum(map(len, places)), started)):
            answered = answer(test.take(block))
        if answered is None:
            break
        places.append(block)
        made.append(answered)
        if rule is None or candidate is None:
            continue
        alpha_share, number = share, sum(map(len, places))
        if number < len(test) and is_settled(
            scored(pa.concat_tables(each.answers for each in made)), candidate, rule, share
        ):
            log.info("  its comparison with the candidate is settled after %d of %d test rows", number, len(test))
            break
    in_order = pa.concat_tables(each.answers for each in made).take(np.argsort(np.concatenate(places)))
    return Answered(in_order, made[-1].precision, sum(each.earlier_seconds for each in made), alpha_share)


def answered_block(contender: Contender, tokens: Tokens, evaluation: Evaluation, rows: pa.Table) -> AnsweredBlock:
    """The answers to some of the rows that a contender is asked, and the seconds that they took if they were there."""
    stops, started = tuple(Contract.load(tokens).stop_token_ids), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.parquet")
        pq.write_table(rows, file)
        these = {"prompts": file, "prompts_digest": digest_of_rows(rows)}
        nameless = contender.model_copy(update={"name": "", "version": "", **these})
        part = answer_part.record(nameless, stops, evaluation.limit, evaluation.batch, evaluation.precision)
    answers = pq.read_table(part.path("answers.parquet"))
    answers = answers.set_column(answers.column_names.index("cluster"), "cluster", rows["cluster"])
    return AnsweredBlock(answers, part.precision, max(0.0, seconds_of(part) - (time.monotonic() - started)))
