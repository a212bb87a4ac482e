"""Layouts of the rows of a micro-batch in tensors.

Only labelled positions are scored: the head over the vocabulary is a large part of a small model's step. Labels are
those of the next token, so that a batch needs no shift. What stands behind a row's last prediction is left out.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import torch
from torch.nn.utils.rnn import pad_sequence

from tunewright.artifacts import IGNORED
from tunewright.modeling.micro_batching import Row, num_tokens, shared_prefix, side_by_side


class Batch(TypedDict):
    """The model's inputs, the target of each position of its logits, or IGNORED, and the answer that it belongs to.

    Answers are numbered by their rows; the two of row i that branches are 2i and 2i + 1, and no row is plain then.
    """

    inputs: dict[str, Any]
    labels: torch.Tensor
    answers: torch.Tensor  # as large as labels


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
        "answers": torch.arange(len(rows))[:, None].expand(-1, len(scored)),
    }


class AttentionGroup(TypedDict):
    """Rows of a packed batch that attend side by side, and lie one after another in it.

    `row_tokens` [rows, longest] says where each row's tokens stand among those of the group, padded with its last;
    `token_rows` [tokens] where each token stands in that table, flattened; `visible` [longest, prefix + longest] what a
    row's tokens see, and with rows that branch [rows, 1, longest, prefix + longest].
    """

    row_tokens: torch.Tensor
    token_rows: torch.Tensor
    visible: torch.Tensor


def packed(rows: Sequence[Row], *, share: bool, a_group: int | None = None) -> Batch:
    """One sequence [prefix][row 1][row 2]...: input_ids and position_ids [1, tokens], labels [1, scored positions].

    With `share` the prefix is what all rows begin with, and otherwise empty. Positions go on from it in each row, so
    that it is exact for a causal model. The rows lie in `groups`, which our attention function reads, as
    tunewright/modeling/micro_batching.py makes them. In a row that branches, both answers follow the prompt, whose last
    token predicts the first of each; they have the same positions, and the second does not see the first.
    """
    prefix = shared_prefix(rows) if share else 0
    groups = side_by_side(rows, prefix, a_group)
    order = sorted(range(len(rows)), key=lambda at: num_tokens(rows[at]))  # as they lie in the groups
    ordered = [rows[at] for at in order]
    ids = [_sequence(row) for row in ordered]
    positions = [torch.arange(prefix), *(_positions(row)[prefix:] for row in ordered)]
    scored, labels, answers = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
    start = 0  # of the row's own tokens, behind which it goes on as if it had the prefix before them
    for number, row in zip(order, ordered, strict=True):
        for at, target, answer in _predictions(row, number):
            scored.append(at + start)
            labels.append(target)
            answers.append(torch.full_like(target, answer))
        start += num_tokens(row) - prefix
    return {
        "inputs": {
            "input_ids": torch.cat([ids[0][:prefix], *(row[prefix:] for row in ids)])[None],
            "position_ids": torch.cat(positions)[None],
            "groups": [_group(group, prefix) for group in groups],
            "logits_to_keep": torch.cat(scored),
        },
        "labels": torch.cat(labels)[None],
        "answers": torch.cat(answers)[None],
    }


def _positions(row: Row) -> torch.Tensor:
    """The position of each token; those of a second answer begin again behind the prompt."""
    whole = torch.arange(num_tokens(row))
    if "second" in row:
        whole[row["second"] :] -= row["second"] - row["prompt_length"]
    return whole


def _predictions(row: Row, number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """The positions that are scored, the token that each should predict, and the number of the answer."""
    if "second" not in row:
        targets = _targets(row)
        scored = (targets != IGNORED).nonzero().squeeze(1)
        yield scored, targets[scored], number
        return
    prompt, second, ids = row["prompt_length"], row["second"], torch.tensor(row["input_ids"])
    yield torch.arange(prompt - 1, second), torch.cat([ids[prompt:second], torch.tensor([row["last"]])]), 2 * number
    in_second = torch.arange(second, num_tokens(row))
    yield torch.cat([torch.tensor([prompt - 1]), in_second]), ids[second : num_tokens(row) + 1], 2 * number + 1


def _group(rows: Sequence[Row], prefix: int) -> AttentionGroup:
    lengths = torch.tensor([num_tokens(row) - prefix for row in rows])
    starts = lengths.cumsum(0) - lengths
    longest = int(lengths.max())
    within = torch.arange(longest)
    visible = torch.ones(longest, prefix + longest, dtype=torch.bool).tril(prefix)
    if any("second" in row for row in rows):
        visible = visible.repeat(len(rows), 1, 1, 1)
        for row, sees in zip(rows, visible, strict=True):
            sees[:, row["second"] - prefix :, row["prompt_length"] : row["second"]] = False
    return {
        "row_tokens": starts[:, None] + torch.minimum(within, lengths[:, None] - 1),
        "token_rows": (within < lengths[:, None]).flatten().nonzero().squeeze(1),
        "visible": visible,
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
        "answers": torch.repeat_interleave(torch.arange(len(rows)), lengths)[None, scored],
    }


def _sequence(row: Row) -> torch.Tensor:
    return torch.tensor(row["input_ids"][: num_tokens(row)])


def _targets(row: Row) -> torch.Tensor:
    """Return the target of each position: the next token if it is labelled."""
    return torch.tensor(row["labels"][1 : num_tokens(row) + 1])
