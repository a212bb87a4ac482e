"""What the base makes of a prompt on validation rows: how many answers are exact, how likely it finds the references.

Both take one pass over prompt and reference, and nothing is generated.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tunewright.modeling.chat import Tokenized


class PromptScore(NamedTuple):
    """Of a prompt, the better the larger: the share of exact answers decides, then the likelihood."""

    exact_match: float
    log_likelihood: float  # of the references, in nats per token


def try_out(model: Any, rows: Sequence[Tokenized], stops: Sequence[int], batch: int) -> PromptScore:
    """How good the answers are to rows as they are asked."""
    from tunewright.generation import Answer, Greedy

    answers = [Answer.of(row.input_ids, row.labels, row.prompt_length) for row in rows]
    longest = max(len(answer.reference) for answer in answers)
    Greedy(model, stops=stops, max_new_tokens=longest, batch=batch).answer(answers, generate=False)
    num_tokens = sum(len(answer.reference) for answer in answers)
    exact = sum(answer.is_reference(stops) for answer in answers)
    return PromptScore(exact / len(answers), -sum(answer.nll for answer in answers) / num_tokens)
