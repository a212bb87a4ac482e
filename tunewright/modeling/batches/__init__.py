"""Batches of tokenized rows in several layouts, and the loss on their answers: the same loss and gradients in each.

padded: rows padded on the right to the longest. packed: rows one after another in one sequence, where each sees itself
alone; those of like length attend side by side. shared: packed, and what all of them begin with is there once. flash:
packed, for FlashAttention.

The rows of an optimizer step are cut into micro batches; however they are cut and laid out, the update is the same.
"""

from tunewright.modeling.batches.attention import ATTENTION
from tunewright.modeling.batches.collating import Collator
from tunewright.modeling.batches.layouts import AttentionGroup, Batch, flash, packed, padded
from tunewright.modeling.batches.loss import answer_loss, num_labels

__all__ = ["ATTENTION", "AttentionGroup", "Batch", "Collator", "answer_loss", "flash", "num_labels", "packed", "padded"]
