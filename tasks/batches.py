"""Batches of tokenized rows, and the loss on their answers; both layouts give the same loss and gradients.

shared: what all rows of a batch begin with is computed once. One sequence holds [prefix][row 1][row 2]...; a row
attends to the prefix and to itself, and its positions go on from the prefix's. That is exact for a causal model.
plain: rows padded on the right to the longest.

Only labelled positions are scored: the head over the vocabulary is a large part of a small model's step.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface

from tasks.artifacts import IGNORED

ATTENTION = "tunewright_shared_prefix"

Row = Mapping[str, Sequence[int]]  # input_ids and labels of equal length, labels not shifted


def plain_batch(rows: Sequence[Row], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Rows padded on the right: input_ids and attention_mask [rows, length], labels [rows, scored positions].

    Labels are those of the next token. Padding is masked by length, never by token id, since a pad token may well be
    the stop token that is trained.
    """
    ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True, padding_value=pad_token_id)
    length = torch.tensor([len(row["input_ids"]) for row in rows])
    targets = pad_sequence([_targets(row) for row in rows], batch_first=True, padding_value=IGNORED)
    scored = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < length[:, None]).long(),
        "logits_to_keep": scored,
        "labels": targets[:, scored],
    }


def shared_batch(rows: Sequence[Row]) -> dict[str, torch.Tensor]:
    """One sequence [prefix][row 1][row 2]...: input_ids and position_ids [1, tokens], labels [1, scored positions].

    `row_tokens` [rows, longest] says where each row's tokens stand in the sequence (padded with the row's last), and
    `token_rows` [tokens - prefix] where each token stands in that table, flattened: attention reads both.
    """
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    targets = [_targets(row) for row in rows]
    prefix = shared_prefix(rows)
    lengths = torch.tensor([len(row) - prefix for row in ids])
    starts = prefix + lengths.cumsum(0) - lengths
    within = torch.arange(int(lengths.max()))
    present = within < lengths[:, None]
    labels = torch.cat([torch.full((prefix,), IGNORED), *(row[prefix:] for row in targets)])
    scored = (labels != IGNORED).nonzero().squeeze(1)
    positions = [torch.arange(prefix), *(torch.arange(prefix, len(row)) for row in ids)]
    return {
        "input_ids": torch.cat([ids[0][:prefix], *(row[prefix:] for row in ids)])[None],
        "position_ids": torch.cat(positions)[None],
        "row_tokens": starts[:, None] + torch.minimum(within, lengths[:, None] - 1),
        "token_rows": present.flatten().nonzero().squeeze(1),
        "logits_to_keep": scored,
        "labels": labels[None, scored],
    }


def shared_prefix(rows: Sequence[Row]) -> int:
    """How many tokens all rows begin with, such that none of them has to predict a label of its own there."""
    ids = [list(row["input_ids"]) for row in rows]
    first, last = min(ids), max(ids)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    unlabelled = min(next((i for i, label in enumerate(row["labels"]) if label != IGNORED), common) for row in rows)
    # The token before the first label predicts it, and belongs to its row.
    return max(0, min(common, unlabelled - 1, min(map(len, ids)) - 1))


def _targets(row: Row) -> torch.Tensor:
    """What each position has to predict: the next token where it is labelled."""
    return torch.tensor([*row["labels"][1:], IGNORED])


def answer_loss(
    model: Any, batch: dict[str, torch.Tensor], num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """The mean cross-entropy over the batch's labels, or their sum over `num_items`: a scalar in nats per token."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits.float()
    labels = batch["labels"].to(logits.device)
    total = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (labels.ne(IGNORED).sum() if num_items is None else num_items)


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_tokens: torch.Tensor,
    token_rows: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a shared batch: query [1, heads, tokens, size], key and value [1, kv heads, tokens, size].

    Returns [1, tokens, heads, size], as transformers' attention functions do. The rows are laid out side by side, so
    that no row is compared with another: the work is that of the plain batch less the prefix.
    """
    prefix = query.shape[2] - len(token_rows)
    num_rows, longest = row_tokens.shape
    groups = query.shape[1] // key.shape[1]
    options: dict[str, Any] = {
        "scale": scaling,
        "dropout_p": dropout if module.training else 0.0,
        "enable_gqa": groups > 1,
    }

    def side_by_side(states: torch.Tensor) -> torch.Tensor:  # [1, heads, tokens, size] -> [rows, heads, longest, size]
        return states[0][:, row_tokens].transpose(0, 1)

    def behind_prefix(states: torch.Tensor) -> torch.Tensor:
        shared = states[:, :, :prefix].expand(num_rows, -1, -1, -1)
        return torch.cat([shared, side_by_side(states)], dim=2)

    visible = torch.ones(longest, prefix + longest, dtype=torch.bool, device=query.device).tril(prefix)
    rows = functional.scaled_dot_product_attention(
        side_by_side(query), behind_prefix(key), behind_prefix(value), attn_mask=visible, **options
    )
    packed = rows.transpose(1, 2).flatten(0, 1)[token_rows][None]
    if not prefix:
        return packed, None
    first, first_key, first_value = (states[:, :, :prefix] for states in (query, key, value))
    shared = functional.scaled_dot_product_attention(first, first_key, first_value, is_causal=True, **options)
    return torch.cat([shared.transpose(1, 2), packed], dim=1), None


AttentionInterface.register(ATTENTION, attention)


def can_share(model: Any, longest: int) -> str:
    """Empty if shared batches are exact for this model; otherwise the reason why they are not."""
    config = model.config.get_text_config()
    if not getattr(model, "_supports_attention_backend", False):
        return f"{type(model).__name__} does not take an attention function"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and longest > window:
        return f"its attention slides over {window} tokens and a row has {longest}"
    if getattr(config, "attn_logit_softcapping", None):
        return "its attention caps its logits"
    if any("sinks" in name for name, _ in model.named_parameters()):
        return "its attention has sinks"
    return ""
