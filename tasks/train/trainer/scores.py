"""A metric of the answers to the validation rows, measured on the model in training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import torch

from tunewright import compat
from tunewright.config import Metric
from tunewright.generation import Answer, Greedy
from tunewright.metrics.catalogue import PER_ROW

COLUMNS = ["input_ids", "labels", "prompt_length", "reference"]
LIBRARY_ATTENTION = ("sdpa", "eager", "flash_attention_2")


class Scores:
    """The mean of `metric` over the rows of a TOKEN_SCHEMA file, answered greedily as evaluate does.

    A greedy answer is the reference exactly where at each of its tokens the likeliest is the reference's, so that
    exact_match takes one pass and generates nothing. Other metrics cut an answer at twice the longest reference.
    """

    def __init__(self, file: Path, tokenizer: Any, stops: Sequence[int], metric: Metric, batch: int) -> None:
        self.rows = pq.read_table(file, columns=COLUMNS).to_pylist()
        self.metric: Metric = metric
        self.tokenizer, self.stops, self.batch = tokenizer, stops, batch
        self.longest = max(len(_answer(row).reference) for row in self.rows)

    def __call__(self, model: Any, is_interrupted: Callable[[], bool]) -> float:
        """The mean, or what there is of it where it is interrupted. The model has to be in evaluation mode."""
        found: list[float] = []
        own = compat.attention_of(model) in LIBRARY_ATTENTION  # ours reads batches of a layout of its own
        # Compiled layers would be compiled again for each length of a cache.
        with compat.attending_by(model, "" if own else "sdpa"), torch.compiler.set_stance("force_eager"):
            for start in range(0, len(self.rows), self.batch):
                if is_interrupted():
                    break
                found += self._scored(model, self.rows[start : start + self.batch])
        return fmean(found) if found else 0.0

    def _scored(self, model: Any, rows: Sequence[Any]) -> list[float]:
        exact = self.metric == "exact_match"
        answers = [_answer(row) for row in rows]
        longest = self.longest if exact else 2 * self.longest
        greedy = Greedy(model, stops=self.stops, max_new_tokens=longest, batch=len(rows))
        with torch.random.fork_rng():
            greedy.answer(answers, generate=not exact)
        if exact:
            return [float(answer.is_reference(self.stops)) for answer in answers]
        measure = PER_ROW[self.metric]
        return [
            measure(answer.text(self.tokenizer, row["reference"], self.stops), row["reference"])
            for answer, row in zip(answers, rows, strict=True)
        ]


def _answer(row: Any) -> Answer:
    return Answer.of(row["input_ids"], row["labels"], row["prompt_length"])
