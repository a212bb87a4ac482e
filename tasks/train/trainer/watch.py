"""Looks at each step's loss before the weights change: what is no number ends training, and a spike names its rows."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

Row = Mapping[str, Any]  # row_id, input_ids, labels

NAMED = 3  # rows that are named
WINDOW = 50  # steps that a loss is compared with
FEWEST = 20  # of them, before anything is called a spike
MOST_SPIKES = 50  # each costs a forward pass of its rows one by one


class BatchRows:
    """The rows that a batch was made of. A type of its own, so that no library walks through them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows


def with_rows(collate: Callable[[Sequence[Row]], dict[str, Any]]) -> Callable[[Sequence[Row]], dict[str, Any]]:
    """The collator, whose batches carry the rows that they were made of as `drawn`."""
    return lambda rows: {**collate(rows), "drawn": BatchRows(rows)}


class Watch:
    """Monitor of each step's rows and loss: a NaN or infinite loss ends training, and a spike names its rows."""

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self.losses = list(losses)  # of the steps before the one that a resumed run goes on with
        self.rows: Sequence[Row] = ()
        self.alone: Callable[[Row], float] = lambda _: math.nan  # a row's own loss, with the weights as they are
        self.spikes = 0
        self.found: list[tuple[str, float]] = []  # (row_id, loss) of the last step's worst rows where it was a spike

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

    def fail(self, what: str, step: int) -> NoReturn:
        """Ends training with the step, the rows and how to see them."""
        broken = [row_id for row_id, loss in self._losses() if not math.isfinite(loss)]
        ids = broken or [str(row["row_id"]) for row in self.rows]
        more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
        named = ", ".join(row_id[:12] for row_id in ids[:NAMED]) + more
        rows = "row" if len(ids) == 1 else "rows"
        own = f"; on its own, {rows} {named} gives" if len(ids) == 1 else f"; on their own, {rows} {named} give"
        whose = f"{own} a NaN or infinite loss" if broken else f"; its {rows}: {named}"
        see = f"; tunewright data FILE --row {ids[0][:12]} shows its source" if ids else ""
        raise FloatingPointError(f"{what} at step {step}{whose}. Try a lower training.learning_rate{see}")

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
