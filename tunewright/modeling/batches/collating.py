"""The rows of an optimizer step as micro batches."""

from collections.abc import Sequence
from typing import Any

from tunewright.modeling.batches.layouts import Batch, flash, packed, padded
from tunewright.modeling.micro_batching import GROUP, Layout, Row, cut


class Collator:
    """Makes {"micro_batches": [Batch, ...]} of a step's rows: at most `micro_batch` rows and `max_tokens` tokens each.

    A row alone may have more tokens. Tokens are those that are computed: with padding, and a shared prefix once.
    `a_group` is what packed rows are grouped by (tunewright/modeling/micro_batching.py).
    """

    def __init__(
        self,
        layout: Layout,
        pad_token_id: int,
        micro_batch: int,
        max_tokens: int | None = None,
        a_group: int | None = GROUP["cpu"],
    ) -> None:
        self.layout: Layout = layout
        self.pad_token_id, self.micro_batch, self.max_tokens = pad_token_id, micro_batch, max_tokens
        self.a_group = a_group

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The step's batch, of rows as they were drawn."""
        cuts = cut(rows, self.layout, self.micro_batch, self.max_tokens)
        return {"micro_batches": [self.lay(micro_batch) for micro_batch in cuts]}

    def lay(self, rows: Sequence[Row]) -> Batch:
        """One micro batch of the rows."""
        if self.layout == "padded":
            return padded(rows, self.pad_token_id)
        if self.layout == "flash":
            return flash(rows)
        return packed(rows, share=self.layout == "shared", a_group=self.a_group)
