"""Catalogue of the metrics: name in words, direction, unit and range, for decisions and pages.

A metric has one score a row, of which the paired decision is made; its score over all rows is their mean, but for
perplexity (over all tokens) and length_ratio (over all characters). macro_f1 has none a row.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright.artifacts import GENERAL_SCHEMA, General
from tunewright.metrics.calls import needless_call, tool_arguments, tool_call, tool_name
from tunewright.metrics.intervals import Floats
from tunewright.metrics.numbers import numeric
from tunewright.metrics.texts import (
    bleu,
    chrf,
    exact_match,
    json_field_f1,
    json_valid,
    length_ratio,
    normalized_match,
    rouge_l,
    token_f1,
)

AT_LEAST = "gate.at_least"  # the opponent: the score that is asked for
CONSTANT = "constant"  # the contender: always the training answer that scores best so
EXACT = {"exact_match", "accuracy"}  # by which that is the most frequent answer


def general_item(row_id: str, metric: str, part: str, prompt: str, answer: str, score: float) -> dict[str, Any]:
    """A row of GENERAL_SCHEMA."""
    return dict(zip(GENERAL_SCHEMA.names, (row_id, metric, part, prompt, answer, score), strict=True))


def keep_general(folder: Path, contender: str, items: list[dict[str, Any]]) -> General:
    """Writes general.parquet and general.json, the mean score of each metric and of each part."""
    pq.write_table(pa.Table.from_pylist(items, GENERAL_SCHEMA), folder / "general.parquet")
    general_scores = _means(items, "metric") | _means(items, "part")
    (folder / "general.json").write_text(json.dumps(general_scores, indent=1) + "\n", encoding="utf-8")
    return General(contender=contender, scores=general_scores)


def general_tables(general: Sequence[General]) -> dict[str, pa.Table]:
    """All items of each contender, in the order of the records."""
    names = dict.fromkeys(each.contender for each in general)
    found = [(each.contender, pq.read_table(each.path("general.parquet"))) for each in general]
    return {name: pa.concat_tables(table for whose, table in found if whose == name) for name in names}


def general_scores(general: Sequence[General]) -> dict[str, dict[str, float]]:
    """The mean scores of each contender, of all records."""
    names = dict.fromkeys(each.contender for each in general)
    return {
        name: {what: score for each in general if each.contender == name for what, score in each.scores.items()}
        for name in names
    }


def _means(items: list[dict[str, Any]], by: str) -> dict[str, float]:
    return {
        value: fmean(row["score"] for row in items if row[by] == value) for value in dict.fromkeys(r[by] for r in items)
    }


def baseline(metric: str) -> str:
    """Name the baseline in words, as measured by `metric`."""
    return "majority-class baseline" if metric in EXACT else "best constant baseline"


def constant_answer(metric: str) -> str:
    """Describe the answer that the baseline always gives, as measured by `metric`."""
    learnt = (
        "the most frequent training answer"
        if metric in EXACT
        else "the training answer that scores best on training rows, as far as a sample of at most 400 training "
        "answers (40 if they are long) shows"
    )
    return f"{learnt}, or the candidate's own most frequent answer, where that is over half of them and scores higher"


RowScore = Callable[[str, str], float]  # of answer and reference
Score = TypeVar("Score", float, Floats)  # one, or those of rows [rows]


@dataclass(frozen=True)
class Description:
    """A metric as a reader needs it; `low` and `high` bound the score of a row."""

    name: str
    in_words: str
    higher_is_better: bool = True
    unit: str = "of 1"
    low: float = 0.0
    high: float = 1.0
    rows: str = "test rows"  # what it has the scores of
    more_help: bool = True  # whether there can be more of them

    def gain(self, ours: Score, theirs: Score) -> Score:
        """Return the improvement of ours: positive where they are better, whichever direction is better."""
        return ours - theirs if self.higher_is_better else theirs - ours


CATALOGUE: dict[str, Description] = {
    described.name: described
    for described in (
        Description("exact_match", "exact match"),
        Description("normalized_match", "match ignoring case and punctuation"),
        Description("token_f1", "token F1"),
        Description("chrf", "chrF"),
        Description("rouge_l", "ROUGE-L"),
        Description("bleu", "BLEU"),
        Description("accuracy", "accuracy"),
        Description("macro_f1", "macro F1"),
        Description("unparseable", "share of invalid labels", higher_is_better=False),
        Description("json_field_f1", "JSON field F1"),
        Description("json_valid", "JSON validity"),
        Description("schema_valid", "schema validity"),
        Description("numeric", "correct final number"),
        Description("tool_call", "correct tool calls"),
        Description("tool_name", "correct tool, or rightly none"),
        Description("tool_arguments", "share of equal arguments"),
        Description("needless_call", "share of needless tool calls", higher_is_better=False),
        Description("tool_schema", "share of answers whose calls fit the tools' schemas"),
        # Of a row whether, and by how much, the chosen answer is likelier per token than the rejected one.
        Description("preference_accuracy", "preference accuracy"),
        Description(
            "preference_margin",
            "preference margin",
            unit="nats per token",
            low=-math.inf,
            high=math.inf,
        ),
        # A row's score is its mean negative log-likelihood; the score over all rows is the exponential of that.
        Description("perplexity", "loss in nats per token", False, "nats per token", 0.0, math.inf),
        Description("stopped", "share of answers that end with the stop token"),
        Description("length_ratio", "length relative to the reference", unit="of the reference's", high=math.inf),
    )
}

# What the stages forgetting and lm_eval measure on tasks and texts that are no test rows.
GENERAL: dict[str, Description] = {
    described.name: described
    for described in (
        Description("general_tasks", "share of general tasks correct", rows="general tasks", more_help=False),
        Description(
            "general_loss", "loss on general texts", False, "nats per token", 0.0, math.inf, "general texts", False
        ),
        Description("lm_eval", "lm-eval score", rows="lm-eval documents", more_help=False),
    )
}

# Those that answer and reference suffice for.
OF_TEXTS = (exact_match, normalized_match, token_f1, chrf, rouge_l, bleu, length_ratio)
OF_CALLS = (tool_call, tool_name, tool_arguments, needless_call)
PER_ROW: dict[str, RowScore] = {
    score.__name__: score for score in (*OF_TEXTS, json_field_f1, json_valid, numeric, *OF_CALLS)
}
