"""Layouts of the rows of a micro-batch in tensors.

Only labelled positions are scored: the head over the vocabulary is a large part of a small model's step. Labels are
those of the next token, so that a batch needs no shift. What stands behind a row's last prediction is left out.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch.nn.utils.rnn import pad_sequence

from tunewright.artifacts import IGNORED
from tunewright.modeling.micro_batching import Row, num_tokens, shared_prefix, side_by_side


class Batch(TypedDict):
    """The model's inputs, and the target of each position of its logits, or IGNORED."""

    inputs: dict[str, Any]
    labels: torch.Tensor


def padded(rows: Sequence[Row], pad_token_id: int) -> Batch:
    """Rows padded on the right: input_ids and attention_mask [rows, length], labels [rows, scored positions].

    Padding is masked by length, never by token id, since a pad token may well be the stop token that is trained.
    """
    sequences = [_sequence(row) for row in rows]
    ids = pad_sequence(sequences, batch_first=True, padding_value=pad_token_id)
    length = torch.tensor([len(sequence) for sequence in sequences])
    targets = pad_sequence([_targets(row) for row in rows], batch_first=True, padding_value=IGNORED)
    scored = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    mask = (torch.arange(ids.shape[1]) < length[:, None]).long()
    return {
        "inputs": {"input_ids": ids, "attention_mask": mask, "logits_to_keep": scored},
        "labels": targets[:, scored],
    }


class AttentionGroup(TypedDict):
    """Rows of a packed batch that attend side by side, and lie one after another in it.

    `row_tokens` [rows, longest] says where each row's tokens stand among those of the group, padded with its last;
    `token_rows` [tokens] where each token stands in that table, flattened; `visible` [longest, prefix + longest] what a
    row's tokens see.
    """

    row_tokens: torch.Tensor
    token_rows: torch.Tensor
    visible: torch.Tensor


def packed(rows: Sequence[Row], *, share: bool, a_group: int | None = None) -> Batch:
    """One sequence [prefix][row 1][row 2]...: input_ids and position_ids [1, tokens], labels [1, scored positions].

    With `share` the prefix is what all rows begin with, and otherwise empty. Positions go on from it in each row, so
    that it is exact for a causal model. The rows lie in `groups`, which our attention function reads, as
    tunewright/modeling/micro_batching.py makes them.
    """
    prefix = shared_prefix(rows) if share else 0
    groups = side_by_side(rows, prefix, a_group)
    ordered = [row for group in groups for row in group]
    ids = [_sequence(row) for row in ordered]
    positions = [torch.arange(prefix), *(torch.arange(prefix, len(row)) for row in ids)]
    labels = torch.cat([torch.full((prefix,), IGNORED), *(_targets(row)[prefix:] for row in ordered)])
    scored = (labels != IGNORED).nonzero().squeeze(1)
    return {
        "inputs": {
            "input_ids": torch.cat([ids[0][:prefix], *(row[prefix:] for row in ids)])[None],
            "position_ids": torch.cat(positions)[None],
            "groups": [_group(group, prefix) for group in groups],
            "logits_to_keep": scored,
        },
        "labels": labels[None, scored],
    }


def _group(rows: Sequence[Row], prefix: int) -> AttentionGroup:
    lengths = torch.tensor([num_tokens(row) - prefix for row in rows])
    starts = lengths.cumsum(0) - lengths
    longest = int(lengths.max())
    within = torch.arange(longest)
    return {
        "row_tokens": starts[:, None] + torch.minimum(within, lengths[:, None] - 1),
        "token_rows": (within < lengths[:, None]).flatten().nonzero().squeeze(1),
        "visible": torch.ones(longest, prefix + longest, dtype=torch.bool).tril(prefix),
    }


def flash(rows: Sequence[Row]) -> Batch:
    """One sequence [row 1][row 2]... with the rows' ends, as transformers' flash_attention_2 takes them.

    Positions begin anew in each row; they alone would isolate rows too, but cost a synchronization in every layer.
    """
    ids = [_sequence(row) for row in rows]
    lengths = torch.tensor([len(row) for row in ids])
    ends = torch.cat([torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int()])
    labels = torch.cat([_targets(row) for row in rows])
    scored = (labels != IGNORED).nonzero().squeeze(1)
    longest = int(lengths.max())
    return {
        "inputs": {
            "input_ids": torch.cat(ids)[None],
            "position_ids": torch.cat([torch.arange(int(length)) for length in lengths])[None],
            "cu_seq_lens_q": ends,
            "cu_seq_lens_k": ends,
            "max_length_q": longest,
            "max_length_k": longest,
            "logits_to_keep": scored,
        },
        "labels": labels[None, scored],
    }


def _sequence(row: Row) -> torch.Tensor:
    return torch.tensor(row["input_ids"][: num_tokens(row)])


def _targets(row: Row) -> torch.Tensor:
    """Return the target of each position: the next token if it is labelled."""
    return torch.tensor(row["labels"][1 : num_tokens(row) + 1])
