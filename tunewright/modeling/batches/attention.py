"""Attention of packed rows, with or without a shared prefix: a row sees the prefix and itself.

Rows of like length are laid out side by side, so that no row is compared with another: the work is that of padded rows
less the prefix, and only here is there any padding.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

from tunewright.modeling.batches.layouts import AttentionGroup

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
    groups: Sequence[AttentionGroup],
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of a packed batch: query [1, heads, tokens, size], key and value [1, kv heads, tokens, size].

    Returns [1, tokens, heads, size], as transformers' attention functions do. Raises NotImplementedError for scores
    that are capped (`softcap`) or share their sum with a sink (`s_aux`).
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("logit soft-capping and attention sinks are not supported")
    longest, total = groups[0]["visible"].shape[-2:]
    lengths = [total - longest, *(len(group["token_rows"]) for group in groups)]
    options: dict[str, Any] = {
        "scale": scaling or query.shape[-1] ** -0.5,
        "dropout_p": dropout if module.training else 0.0,
    }
    (first, *queries), (first_key, *keys), (first_value, *values) = (
        states[0].split(lengths, dim=1) for states in (query, key, value)
    )
    # On a CPU torch's fused attention loses where scores are few: it calls a bfloat16 product for each small block.
    scores = query.shape[1] * sum(len(group["row_tokens"]) * math.prod(group["visible"].shape[-2:]) for group in groups)
    is_small = query.device.type == "cpu" and query.dtype == torch.bfloat16 and scores <= SCORES
    attend = _attend if is_small else _fused
    attended = []
    if lengths[0]:
        enable_gqa = len(first) > len(first_key)
        attended.append(
            functional.scaled_dot_product_attention(
                first[None], first_key[None], first_value[None], is_causal=True, enable_gqa=enable_gqa, **options
            )[0]
        )
    for group, own, own_keys, own_values in zip(groups, queries, keys, values, strict=True):
        rows = attend(
            _side_by_side(own, group),
            _behind(first_key, own_keys, group),
            _behind(first_value, own_values, group),
            attn_mask=group["visible"],
            **options,
        )
        attended.append(_OneAfterAnother.apply(rows.transpose(0, 1), group["row_tokens"], group["token_rows"]))
    return torch.cat(attended, dim=1).transpose(0, 1)[None], None


AttentionInterface.register(ATTENTION, attention)


def _side_by_side(states: torch.Tensor, group: AttentionGroup) -> torch.Tensor:
    """[heads, tokens of the group, size] -> [rows, heads, longest, size]."""
    return _SideBySide.apply(states, group["row_tokens"], group["token_rows"]).transpose(0, 1)


def _behind(prefix: torch.Tensor, states: torch.Tensor, group: AttentionGroup) -> torch.Tensor:
    """The same of keys or values, behind those of the prefix: [rows, kv heads, prefix + longest, size]."""
    rows = _side_by_side(states, group)
    return torch.cat([prefix.expand(len(rows), -1, -1, -1), rows], dim=2)


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, attn_mask: torch.Tensor, **options: Any
) -> torch.Tensor:
    """scaled_dot_product_attention; the query heads of a key head are together."""
    groups = query.shape[1] // key.shape[1]
    # No prefix and no branch: what a mask would say, kernels know, and need half the time.
    if query.shape[2] == key.shape[2] and attn_mask.dim() == 2:
        options["is_causal"] = True
    else:
        options["attn_mask"] = attn_mask
        if groups > 1 and query.device.type not in GROUPING:
            # A GPU's fused kernels take a mask or fewer key heads; the one that takes both keeps all scores.
            key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
            groups = 1
    return functional.scaled_dot_product_attention(query, key, value, enable_gqa=groups > 1, **options)


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
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    bias = torch.zeros(attn_mask.shape, dtype=query.dtype, device=query.device).masked_fill_(~attn_mask, float("-inf"))
    # Of all rows alike, or of each row for each of its key heads.
    bias = bias.repeat(groups, 1) if bias.dim() == 2 else bias.repeat(1, kv_heads, groups, 1).flatten(0, 1)
    stacked = query.reshape(rows * kv_heads, groups * longest, size)
    scores = torch.baddbmm(bias, stacked, key.flatten(0, 1).transpose(1, 2), alpha=scale)
    weights = functional.dropout(scores.softmax(dim=-1), dropout_p)
    return torch.bmm(weights, value.flatten(0, 1)).view(rows, heads, longest, value.shape[3])


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
