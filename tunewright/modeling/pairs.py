"""Preference pairs as rows of tokens: one that branches behind its prompt, or two.

It is arithmetic on lengths alone and imports no library of training, so that a plan cuts as training does.
"""

from collections.abc import Mapping
from typing import Any

from tunewright.artifacts import IGNORED
from tunewright.modeling.micro_batching import Row, num_tokens

Pair = Mapping[str, Any]  # input_ids, labels, prompt_length and rejected_ids of TOKEN_SCHEMA


def last_answer(row: Mapping[str, Any]) -> list[int]:
    """The tokens of a row's last answer with its stop token, without what the template writes behind them."""
    return list(row["input_ids"][row["prompt_length"] : num_tokens(row) + 1])


def answers_of(pair: Pair) -> tuple[list[int], list[int]]:
    """The tokens of both answers, each with its stop token."""
    return last_answer(pair), list(pair["rejected_ids"])


def as_row(pair: Pair, *, branches: bool) -> Row:
    """The pair as one row: one that branches, or both rows of it one after another, which measures them alone."""
    chosen, rejected = answers_of(pair)
    length = pair["prompt_length"]
    prompt, unlearned = list(pair["input_ids"][:length]), [IGNORED] * length
    if not branches:
        ids = [*prompt, *chosen, *prompt, *rejected]
        return {"input_ids": ids, "labels": [*unlearned, *chosen, *unlearned, *rejected], "pair": pair}
    both = [*chosen[:-1], *rejected]
    second = length + len(chosen) - 1
    return {
        "input_ids": prompt + both,
        "labels": unlearned + both,
        "pair": pair,
        "prompt_length": length,
        "second": second,
        "last": chosen[-1],
    }


def two_rows(pair: Pair) -> list[Row]:
    """The chosen and the rejected answer, each behind the prompt."""
    length = pair["prompt_length"]
    prompt, unlearned = list(pair["input_ids"][:length]), [IGNORED] * length
    return [{"input_ids": prompt + each, "labels": unlearned + each} for each in answers_of(pair)]
