"""The rows of an optimizer step as micro batches."""

from collections.abc import Sequence
from typing import Any, Literal

from tasks.batches.layouts import Batch, Row, common, flash, num_tokens, own_from, packed, padded

Layout = Literal["shared", "packed", "flash", "padded"]


class Collator:
    """Makes {"micro_batches": [Batch, ...]} of a step's rows: at most `micro_batch` rows and `max_tokens` tokens each.

    A row alone may have more tokens. Tokens are those that are computed: with padding, and a shared prefix once.
    """

    def __init__(self, layout: Layout, pad_token_id: int, micro_batch: int, max_tokens: int | None = None) -> None:
        self.layout: Layout = layout
        self.pad_token_id, self.micro_batch, self.max_tokens = pad_token_id, micro_batch, max_tokens

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The step's batch, of rows as they were drawn."""
        groups = cut(rows, self.layout, self.micro_batch, self.max_tokens)
        return {"micro_batches": [self.lay(group) for group in groups]}

    def lay(self, rows: Sequence[Row]) -> Batch:
        """One micro batch of the rows."""
        if self.layout == "padded":
            return padded(rows, self.pad_token_id)
        if self.layout == "flash":
            return flash(rows)
        return packed(rows, share=self.layout == "shared")


def cut(rows: Sequence[Row], layout: Layout, micro_batch: int, max_tokens: int | None) -> list[list[Row]]:
    """The rows in groups: those that begin alike, or are of like length, are together; the order of equals is kept."""
    if len(rows) <= micro_batch and max_tokens is None:
        return [list(rows)]
    key = (lambda row: row["input_ids"]) if layout == "shared" else num_tokens
    groups: list[list[Row]] = []
    group = _Group(layout)
    for row in sorted(rows, key=key):
        tokens = group.tokens_with(row)
        if len(group.rows) == micro_batch or (max_tokens and group.rows and tokens > max_tokens):
            group = _Group(layout)
        if not group.rows:
            groups.append(group.rows)
        group.add(row)
    return groups


class _Group:
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
