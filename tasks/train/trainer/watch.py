"""Looks at each step's loss before the weights change: what is no number ends training, and a spike names its rows.

An evaluation measures a metric of the answers to the validation rows on the model in training.
"""

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.parquet as pq
import torch

from tunewright import compat
from tunewright.config import Metric
from tunewright.generation import Answer, Greedy
from tunewright.metrics.catalogue import PER_ROW
from tunewright.tasks.train.trainer import ranks
from tunewright.tools.parsing import said_beside

Row = Mapping[str, Any]  # row_id, input_ids, labels

NAMED = 3  # rows that are named
WINDOW = 50  # steps that a loss is compared with
FEWEST = 20  # of them, before anything is called a spike
MOST_SPIKES = 50  # each costs a forward pass of its rows one by one
COLUMNS = ["input_ids", "labels", "prompt_length", "reference"]
LIBRARY_ATTENTION = ("sdpa", "eager", "flash_attention_2")


class BatchRows:
    """The rows that a batch was made of. A type of its own, so that no library walks through them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows


def with_rows(collate: Callable[[Sequence[Row]], dict[str, Any]]) -> Callable[[Sequence[Row]], dict[str, Any]]:
    """The collator, whose batches carry the rows that they were made of as `drawn`."""
    return lambda rows: {**collate(rows), "drawn": BatchRows(rows)}


class Watch:
    """Monitor of each step's rows and loss: a NaN or infinite loss ends training, and a spike names its rows."""

    def __init__(self, losses: Sequence[float] = (), section: str = "training") -> None:
        self.section = section  # of the settings of its steps
        self.losses = list(losses)  # of the steps before the one that a resumed run goes on with
        self.rows: Sequence[Row] = ()
        self.alone: Callable[[Row], float] = lambda _: math.nan  # a row's own loss, with the weights as they are
        self.spikes = 0
        self.found: list[tuple[str, float]] = []  # (row_id, loss) of the last step's worst rows where it was a spike
        self.sample: dict[str, Any] = {}  # answers that the step drew to one prompt, for people

    def step(self, rows: Sequence[Row], loss: float, step: int) -> None:
        """Notes a step, before its update. Raises FloatingPointError where the loss is not a number."""
        self.rows, self.found = rows, []
        if not math.isfinite(loss):
            self.fail(f"the loss is {loss}", step)
        if self.spikes < MOST_SPIKES and is_spike(loss, self.losses[-WINDOW:]):
            self.spikes += 1
            losses = self._losses()
            self.found = sorted(losses, key=lambda item: -item[1])[:NAMED] if len(losses) > 1 else losses
        self.losses.append(loss)

    def stop_naming(self) -> None:
        """Names no rows of a spike: a loss that goes up and down around 0 has none."""
        self.spikes, self.alone = MOST_SPIKES, lambda _: 0.0

    def fail(self, what: str, step: int) -> NoReturn:
        """Ends training with the step, the rows and how to see them."""
        broken = [row_id for row_id, loss in self._losses() if not math.isfinite(loss)]
        ids = broken or [*dict.fromkeys(str(row["row_id"]) for row in self.rows)]
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        named = ", ".join(row_id[:12] for row_id in ids[:NAMED]) + more
        rows = "row" if len(ids) == 1 else "rows"
        own = f"; on its own, {rows} {named} gives" if len(ids) == 1 else f"; on their own, {rows} {named} give"
        whose = f"{own} a NaN or infinite loss" if broken else f"; its {rows}: {named}"
        see = f"; tunewright data FILE --row {ids[0][:12]} shows its source" if ids else ""
        raise FloatingPointError(f"{what} at step {step}{whose}. Try a lower {self.section}.learning_rate{see}")

    def _losses(self) -> list[tuple[str, float]]:
        return [(str(row["row_id"]), round(self.alone(row), 4)) for row in self.rows]


def is_spike(loss: float, before: Sequence[float]) -> bool:
    """Whether a loss stands out of those before it: by half their median, and by six of their deviations.

    The deviation is the median absolute one, scaled to a normal distribution's: spikes before do not hide it.
    """
    if len(before) < FEWEST:
        return False
    median = statistics.median(before)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in before)
    return loss - median > max(0.5 * median, 6 * deviation)


class Scores:
    """The mean of `metric` over the rows of a TOKEN_SCHEMA file, answered greedily as evaluate does.

    Each rank answers its part of them.

    A greedy answer is the reference exactly where at each of its tokens the likeliest is the reference's, so that
    exact_match takes one pass and generates nothing. Other metrics cut an answer at twice the longest reference.
    """

    def __init__(self, file: Path, tokenizer: Any, stops: Sequence[int], metric: Metric, batch: int) -> None:
        self.rows = pq.read_table(file, columns=COLUMNS).to_pylist()
        self.metric: Metric = metric
        self.tokenizer, self.stops, self.batch = tokenizer, stops, batch
        self.longest = max(len(asked_of(row).reference) for row in self.rows)

    def __call__(self, model: Any, is_interrupted: Callable[[], bool]) -> float:
        """The mean, or what there is of it where it is interrupted. The model has to be in evaluation mode."""
        return mean_score(model, self.rows, self.batch, partial(self._scored, model), is_interrupted)

    def _scored(self, model: Any, rows: Sequence[Any]) -> list[float]:
        exact = self.metric == "exact_match"
        answers = [asked_of(row) for row in rows]
        longest = self.longest if exact else 2 * self.longest
        greedy = Greedy(model, stops=self.stops, max_new_tokens=longest, batch=len(rows))
        greedy.answer(answers, generate=not exact)
        if exact:
            return [float(answer.is_reference(self.stops)) for answer in answers]
        measure = PER_ROW[self.metric]
        return [
            measure(said_beside(answer.text(self.tokenizer, wanted, self.stops), wanted), wanted)
            for answer, wanted in zip(answers, (row["reference"] for row in rows), strict=True)
        ]


def mean_score(
    model: Any,
    rows: Sequence[Any],
    batch: int,
    scored: Callable[[Sequence[Any]], list[float]],
    is_interrupted: Callable[[], bool],
) -> float:
    """The mean of the scores of rows, `batch` at once, that the ranks share; of those before an interruption.

    It draws no random numbers of training's.
    """
    found = list[float]()
    number, rank = share_of(model)
    with answering(model), torch.random.fork_rng():
        for start in range(0, len(rows), batch * number):
            if is_interrupted():
                break
            first = start + batch * rank
            if some := rows[first : first + batch]:
                found += scored(some)
    return ranks.total(math.fsum(found)) / max(1, ranks.total(len(found)))


def share_of(model: Any) -> tuple[int, int]:
    """(ranks, this rank) that share answering; those of a sharded model go forward together, so that each does all."""
    return (1, 0) if compat.is_sharded(model) else (ranks.number(), ranks.own())


@contextlib.contextmanager
def answering(model: Any) -> Iterator[None]:
    """Has a model in training answer within: our attention of training reads batches of a layout of its own."""
    own = compat.attention_of(model) in LIBRARY_ATTENTION
    # Compiled layers would be compiled again for each length of a cache.
    with compat.attending_by(model, "" if own else "sdpa"), torch.compiler.set_stance("force_eager"):
        yield


def asked_of(row: Any) -> Answer:
    """The question of a row of TOKEN_SCHEMA, and its reference."""
    return Answer.of(row["input_ids"], row["labels"], row["prompt_length"])
