"""How the rows of a micro batch lie in tensors.

Only labelled positions are scored: the head over the vocabulary is a large part of a small model's step. Labels are
those of the next token, so that a batch needs no shift. What stands behind a row's last prediction is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch.nn.utils.rnn import pad_sequence

from tasks.artifacts import IGNORED

Row = Mapping[str, Any]  # input_ids and labels of equal length, labels not shifted


class Batch(TypedDict):
    """What the model is called with, and what it has to predict at each position of its logits, or IGNORED."""

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


def packed(rows: Sequence[Row], *, share: bool) -> Batch:
    """One sequence [prefix][row 1][row 2]...: input_ids and position_ids [1, tokens], labels [1, scored positions].

    With `share` the prefix is what all rows begin with, and otherwise empty. Positions go on from it in each row, so
    that it is exact for a causal model. Our attention function reads the rest: `row_tokens` [rows, longest] says where
    each row's tokens stand in the sequence (padded with its last), `token_rows` [tokens - prefix] where each token
    stands in that table, flattened, and `visible` [longest, prefix + longest] what a row's tokens see.
    """
    prefix = shared_prefix(rows) if share else 0
    ids = [_sequence(row) for row in rows]
    lengths = torch.tensor([len(row) - prefix for row in ids])
    starts = prefix + lengths.cumsum(0) - lengths
    longest = int(lengths.max())
    within = torch.arange(longest)
    positions = [torch.arange(prefix), *(torch.arange(prefix, len(row)) for row in ids)]
    labels = torch.cat([torch.full((prefix,), IGNORED), *(_targets(row)[prefix:] for row in rows)])
    scored = (labels != IGNORED).nonzero().squeeze(1)
    return {
        "inputs": {
            "input_ids": torch.cat([ids[0][:prefix], *(row[prefix:] for row in ids)])[None],
            "position_ids": torch.cat(positions)[None],
            "row_tokens": starts[:, None] + torch.minimum(within, lengths[:, None] - 1),
            "token_rows": (within < lengths[:, None]).flatten().nonzero().squeeze(1),
            "visible": torch.ones(longest, prefix + longest, dtype=torch.bool).tril(prefix),
            "logits_to_keep": scored,
        },
        "labels": labels[None, scored],
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


def shared_prefix(rows: Sequence[Row]) -> int:
    """How many tokens all rows begin with, such that none of them has to predict a label of its own there."""
    first, last = min(row["input_ids"] for row in rows), max(row["input_ids"] for row in rows)
    return min(common(first, last), *(own_from(row) for row in rows))


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    unlike = (at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(unlike, min(len(first), len(second)))


def own_from(row: Row) -> int:
    """The first position of a row that it cannot share: the token before its first label predicts it."""
    labelled = next((at for at, label in enumerate(row["labels"]) if label != IGNORED), len(row["labels"]))
    return max(0, labelled - 1)


def num_tokens(row: Row) -> int:
    """How many tokens of a row are computed: those up to the one that predicts its last label."""
    labels = row["labels"]
    return max(1, next((at for at in range(len(labels) - 1, 0, -1) if labels[at] != IGNORED), 1))


def _sequence(row: Row) -> torch.Tensor:
    return torch.tensor(row["input_ids"][: num_tokens(row)])


def _targets(row: Row) -> torch.Tensor:
    """What each position has to predict: the next token where it is labelled."""
    return torch.tensor(row["labels"][1 : num_tokens(row) + 1])
