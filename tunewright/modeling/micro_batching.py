"""Divide the rows of an optimizer step into micro-batches, and these into groups of similar length.

It is arithmetic on lengths alone and imports no library of training, so that a plan cuts as training does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from tunewright.artifacts import IGNORED

Row = Mapping[str, Any]  # input_ids and labels of equal length, labels not shifted
Layout = Literal["shared", "packed", "flash", "padded"]
# What a group more costs, as numbers of an attention matrix that could be computed meanwhile: a CPU's calls are a
# millisecond a layer (measured: an eighth of it to eight times as much is slower), a GPU starts its kernels as slowly
# and multiplies a hundred times as fast.
GROUP = {"cpu": 2**14, "cuda": 2**20}


def cut(
    rows: Sequence[Row], layout: Layout, micro_batch: int, max_tokens: int | None, ranks: int = 1
) -> list[list[Row]]:
    """The rows in micro-batches: those that begin alike, or are of like length, are together; equals stay in order.

    They are at least as many as the ranks, where there are as many rows.
    """
    micro_batch = min(micro_batch, math.ceil(len(rows) / ranks))
    if len(rows) <= micro_batch and max_tokens is None:
        return [list(rows)]
    key: Callable[[Row], Any] = (lambda row: row["input_ids"]) if layout == "shared" else num_tokens
    gathered: list[list[Row]] = []
    batch = _MicroBatch(layout)
    for row in sorted(rows, key=key):
        tokens = batch.tokens_with(row)
        if len(batch.rows) == micro_batch or (max_tokens and batch.rows and tokens > max_tokens):
            batch = _MicroBatch(layout)
        if not batch.rows:
            gathered.append(batch.rows)
        batch.add(row)
    return gathered


def shared_out(cuts: Sequence[Sequence[Row]], ranks: int) -> list[list[Sequence[Row]]]:
    """The micro-batches of each of so many ranks: at most one fewer than any other, and as even in tokens as may be."""
    each = math.ceil(len(cuts) / ranks)
    shares: list[list[int]] = [[] for _ in range(ranks)]
    tokens = [sum(map(num_tokens, rows)) for rows in cuts]
    for at in sorted(range(len(cuts)), key=lambda at: -tokens[at]):
        open_to = (share for share in shares if len(share) < each)
        min(open_to, key=lambda share: sum(tokens[other] for other in share)).append(at)
    return [[cuts[at] for at in sorted(share)] for share in shares]


class _MicroBatch:
    """Rows that are gathered in order, and how many tokens are computed for them."""

    def __init__(self, layout: Layout) -> None:
        self.layout: Layout = layout
        self.rows: list[Row] = []
        self.prefix = self.total = self.longest = 0

    def tokens_with(self, row: Row) -> int:
        """The tokens that are computed with one row more."""
        number, length = len(self.rows) + 1, num_tokens(row)
        if self.layout == "padded":
            return number * max(self.longest, length)
        return self.total + length - (number - 1) * self._prefix_with(row)

    def add(self, row: Row) -> None:
        self.prefix = self._prefix_with(row)
        self.rows.append(row)
        self.total += num_tokens(row)
        self.longest = max(self.longest, num_tokens(row))

    def _prefix_with(self, row: Row) -> int:
        if self.layout != "shared":
            return 0
        if not self.rows:
            return own_from(row)
        return min(self.prefix, own_from(row), common(self.rows[0]["input_ids"], row["input_ids"]))


def side_by_side(rows: Sequence[Row], prefix: int, a_group: int | None) -> list[list[Row]]:
    """The rows of a packed micro-batch, shortest first, in the groups that attend side by side.

    A group's rows are padded to its longest one while they attend. The groups are those for which the numbers of the
    attention matrices and `a_group` for each group are the fewest; None makes one group of all.
    """
    ordered = sorted(rows, key=num_tokens)
    if a_group is None:
        return [ordered]
    lengths = [num_tokens(row) for row in ordered]
    fewest = {0: (0, 0)}  # for so many of the first rows: the fewest numbers, and where their last group begins
    for end, total in enumerate(lengths, start=1):
        if total not in lengths[end : end + 1]:  # rows of one length stay together
            sizes = ((before + (end - at) * (total - prefix) * total, at) for at, (before, _) in fewest.items())
            size, begin = min(sizes)
            fewest[end] = size + a_group, begin
    groups, end = [], len(ordered)
    while end:
        begin = fewest[end][1]
        groups.append(ordered[begin:end])
        end = begin
    return groups[::-1]


def group_cost(device: Literal["cpu", "cuda"], *, compiled: bool) -> int | None:
    """Return the cost of a group for `side_by_side`; None with compiling, which is redone for each number of groups."""
    return None if compiled else GROUP[device]


def shared_prefix(rows: Sequence[Row]) -> int:
    """Return the length of the prefix that all rows share, in tokens, before the first label of any."""
    first, last = min(row["input_ids"] for row in rows), max(row["input_ids"] for row in rows)
    return min(common(first, last), *(own_from(row) for row in rows))


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix, in tokens."""
    unlike = (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(unlike, min(len(first), len(second)))


def own_from(row: Row) -> int:
    """The first position of a row that it cannot share: the token before its first label predicts it."""
    labelled = next((at for at, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"]))
    return max(0, labelled - 1)


def num_tokens(row: Row) -> int:
    """Count the computed tokens of a row: those up to the one that predicts its last label."""
    labels = row["labels"]
    return max(1, next((at for at in range(len(labels) - 1, 0, -1) if labels[at] != IGNORED), 1))
