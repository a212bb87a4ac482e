"""Attention of packed rows, with or without a shared prefix: a row sees the prefix and itself.

The rows are laid out side by side, so that no row is compared with another: the work is that of padded rows less the
prefix, and only here is there any padding.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

ATTENTION = "tunewright_packed"
GROUPING = ("cpu",)  # devices whose fused attention takes a mask and fewer key heads than query heads at once
SCORES = 2**23  # of a layer, that may be kept for backward: 16 MiB


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    row_tokens: torch.Tensor,
    token_rows: torch.Tensor,
    visible: torch.Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed batch: query [1, heads, tokens, size], key and value [1, kv heads, tokens, size].

    Returns [1, tokens, heads, size], as transformers' attention functions do.
    """
    longest = row_tokens.shape[1]
    prefix = visible.shape[1] - longest
    own = row_tokens - prefix
    options: dict[str, Any] = {
        "scale": scaling or query.shape[-1] ** -0.5,
        "dropout_p": dropout if module.training else 0.0,
    }

    def side_by_side(states: torch.Tensor) -> torch.Tensor:  # -> [rows, heads, longest, size]
        return _SideBySide.apply(states[0, :, prefix:], own, token_rows).transpose(0, 1)

    def behind_prefix(states: torch.Tensor) -> torch.Tensor:
        shared = states[:, :, :prefix].expand(len(row_tokens), -1, -1, -1)
        return torch.cat([shared, side_by_side(states)], dim=2)

    attend = _attend if _is_small(query, visible, len(row_tokens)) else _masked
    rows = attend(side_by_side(query), behind_prefix(key), behind_prefix(value), attn_mask=visible, **options)
    packed = _OneAfterAnother.apply(rows.transpose(0, 1), own, token_rows).transpose(0, 1)[None]
    if not prefix:
        return packed, None
    first, first_key, first_value = (states[:, :, :prefix] for states in (query, key, value))
    shared = functional.scaled_dot_product_attention(
        first, first_key, first_value, is_causal=True, enable_gqa=query.shape[1] > key.shape[1], **options
    )
    return torch.cat([shared.transpose(1, 2), packed], dim=1), None


AttentionInterface.register(ATTENTION, attention)


def _is_small(query: torch.Tensor, visible: torch.Tensor, num_rows: int) -> bool:
    """Whether torch's fused attention loses: on a CPU it calls a bfloat16 product for each small block."""
    on_cpu = query.device.type == "cpu" and query.dtype == torch.bfloat16
    return on_cpu and num_rows * query.shape[1] * visible.numel() <= SCORES


def _masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, attn_mask: torch.Tensor, **options: Any
) -> torch.Tensor:
    """scaled_dot_product_attention with a mask; the query heads of a key head are together."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.device.type not in GROUPING:
        # A GPU's fused kernels take a mask or fewer key heads, not both; the one that takes both keeps all scores.
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        groups = 1
    return functional.scaled_dot_product_attention(
        query, key, value, attn_mask=attn_mask, enable_gqa=groups > 1, **options
    )


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    attn_mask: torch.Tensor,
    scale: float,
    dropout_p: float,
) -> torch.Tensor:
    """scaled_dot_product_attention as two batched products; the query heads of a key head are one matrix."""
    rows, heads, longest, size = query.shape
    kv_heads, total = key.shape[1:3]
    groups = heads // kv_heads
    bias = torch.zeros(longest, total, dtype=query.dtype, device=query.device).masked_fill_(~attn_mask, float("-inf"))
    stacked = query.reshape(rows * kv_heads, groups * longest, size)
    scores = torch.baddbmm(bias.repeat(groups, 1), stacked, key.flatten(0, 1).transpose(1, 2), alpha=scale)
    weights = functional.dropout(scores.softmax(dim=-1), dropout_p)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, heads, longest, size)


class _SideBySide(torch.autograd.Function):
    """[heads, tokens, size] -> [heads, rows, longest, size]. What pads a row is seen by none and has no gradient."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, row_tokens: torch.Tensor, token_rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(token_rows)
        return states.index_select(1, row_tokens.flatten()).unflatten(1, row_tokens.shape)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (token_rows,) = ctx.saved_tensors
        return outer[0].flatten(1, 2).index_select(1, token_rows), None, None


class _OneAfterAnother(torch.autograd.Function):
    """[heads, rows, longest, size] -> [heads, tokens, size], without what pads."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, row_tokens: torch.Tensor, token_rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(row_tokens, token_rows)
        return rows.flatten(1, 2).index_select(1, token_rows)

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        row_tokens, token_rows = ctx.saved_tensors
        heads, _, size = outer[0].shape
        gradient = outer[0].new_zeros(heads, row_tokens.numel(), size)
        gradient.index_copy_(1, token_rows, outer[0])
        return gradient.unflatten(1, row_tokens.shape), None, None
