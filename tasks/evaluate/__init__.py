"""Every contender answers the same test rows greedily; every answer is kept and scored.

A contender that is only prompted ends once its comparison with the candidate is settled (interim.py).

Sampling settings that a base carries along (generation_config.json) do not matter here: an answer is the likeliest
token, one after the other, up to a stop token of the contract or evaluation.max_new_tokens.
"""

import json
import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tunewright import metrics
from tunewright.artifacts import Answers, Contender, EndingRule, Tokens
from tunewright.config import Evaluation
from tunewright.metrics.labels import training_answers
from tunewright.metrics.shape import OF_PAIRS
from tunewright.store.stage import stage
from tunewright.tasks.evaluate.answers import ANSWER_SCHEMA, LIBRARIES, asked, one_contender
from tunewright.tasks.evaluate.apis import ApiAnswers
from tunewright.tasks.evaluate.blocks import answered_block, in_blocks, whole

__all__ = ["ANSWER_SCHEMA", "evaluate", "scored"]

OF_LIKELIHOODS = ("perplexity", *OF_PAIRS)

log = logging.getLogger("tunewright")


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


def _show_limit(rows: Path, limit: int) -> None:
    """Says before the first answer whether references have room; the verdict says what came of it (decide/reading)."""
    test = pq.read_table(rows, columns=["labels", "prompt_length"])
    labels, prompts = (column.combine_chunks() for column in test.columns)
    behind = labels.value_lengths().to_numpy() - prompts.to_numpy()  # with what a template has after the stop token
    answers = (row[start:] for row, start in zip(labels.to_pylist(), prompts.to_pylist(), strict=True))
    longest = max(sum(token >= 0 for token in answer) for answer in answers)
    log.info("  up to %d tokens an answer; the longest reference has %d with its stop token", limit, longest)
    if longer := int((behind > limit + 1).sum()):
        text = "%d of %d references are longer than evaluation.max_new_tokens=%d: answers to these will be cut off"
        log.warning(text, longer, len(test), limit)


def _prompt_tokens(test: pa.Table, answers: pa.Table) -> int:
    is_answered = np.isin(test["row_id"].to_numpy(), answers["row_id"].to_numpy())
    return int(test["prompt_length"].to_numpy()[is_answered].sum())


@stage(
    "{contender.name}",
    libraries=(*LIBRARIES, "evaluate", "jsonschema", "numpy", "sacrebleu", "scipy"),
    unkeyed=("decides",),
)
def evaluate(
    folder: Path,
    contender: Contender,
    tokens: Tokens,
    evaluation: Evaluation,
    own: tuple[tuple[str, str], ...] = (),
    schema: str = "",
    rule: EndingRule | None = None,
    decides: str = "auto",
) -> Answers:
    """The contender's answer and scores on each test row, in the rows' order; with a `rule` until it ends it.

    A contender is another one in the key by its name, its weights or its registered version. `own` are the team's
    metrics, for the key alone, `schema` is what evaluation.json_schema holds, and `decides` is gate.metric, for the log
    alone.

    Raises TunewrightError if it could not answer all rows, ConfigError if a metric cannot score them, ApiError if a
    model behind an API does not answer, ApiRefused if it refuses.
    """
    if contender.name == "base":  # of all the same
        _show_limit(asked(contender, tokens), evaluation.limit)
    test = pq.read_table(asked(contender, tokens))
    references, has_tools = test.column("reference").to_pylist(), test["tools"].null_count < len(test)
    num_pairs = len(test) - test["rejected_ids"].null_count
    choice = metrics.choose(
        evaluation.metrics, references, training_answers(tokens), schema, has_tools=has_tools, num_pairs=num_pairs
    )
    if contender.name == "base":  # of all the same
        by_default = f"; by default {choice.decides} decides (gate.metric)" if choice.decides else ""
        said = by_default if decides == "auto" else f"; {decides} decides (gate.metric)"
        log.info("  %s%s; evaluation.metrics adds metrics", choice.says(), said)
    by_api = ApiAnswers(contender, evaluation) if contender.api else None
    if by_api:
        choice = replace(
            choice, names=tuple(name for name in choice.names if name not in OF_LIKELIHOODS)
        )  # which no API tells
        rule = None if rule and rule.metric in OF_LIKELIHOODS else rule
    with one_contender(contender.name):
        if contender.prompts and not contender.model_digest:
            answer = by_api.answer if by_api else partial(answered_block, contender, tokens, evaluation)
            found = in_blocks(test, answer, lambda answers: scored(answers, choice)[0], rule)
        else:
            found = whole(contender, tokens, evaluation)
    answers, scores = scored(found.answers, choice)
    pq.write_table(answers, folder / "answers.parquet")
    num_unanswered = len(test) - len(answers)
    shown = scores | {"num_rows": len(answers), "measured": choice.says()}
    if found.alpha_share < 1:
        shown |= {"num_unanswered": num_unanswered, "alpha_share": found.alpha_share}
    (folder / "scores.json").write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")
    return Answers(
        contender=contender.name,
        num_rows=len(answers),
        num_unanswered=num_unanswered,
        alpha_share=found.alpha_share,
        scores=scores,
        metric=choice.decides,
        measured=choice.says(),
        not_measured=choice.left_out,
        faults=tuple(choice.shape.faults()),
        untrained=choice.shape.untrained(),
        precision=found.precision,
        max_new_tokens=evaluation.limit,
        num_prompt_tokens=by_api.use.input_tokens if by_api else _prompt_tokens(test, answers),
        is_prose="long texts" in choice.shape.kinds,
        api=by_api and by_api.use,
        earlier_seconds=round(found.earlier_seconds, 1),
    )
