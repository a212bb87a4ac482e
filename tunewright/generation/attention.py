"""Attention of rows to a beginning that all of them share, whose keys and values are there once, and to themselves."""

from typing import Any

import torch
from transformers import AttentionInterface

from tunewright import compat
from tunewright.generation.rows import States

ATTENTION = "tunewright_shared"
SCORES = 2**25  # of a layer, that are held at once: 128 MiB in float32


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    shared: States,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query [rows, heads, columns, size] to its row's key and value [rows, kv heads, all columns, size].

    `attention_mask` [rows, 1, columns, all columns] is True for what a column sees of its row, itself at least. It sees
    all of `shared`. Returns [rows, columns, heads, size], as transformers' attention functions do. Raises
    NotImplementedError for scores that are capped (`softcap`) or share their sum with a sink (`s_aux`).
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("logit soft-capping and attention sinks are not supported")
    prefix = shared[module.layer_idx] if shared else ()
    query = query * (scaling or query.shape[-1] ** -0.5)
    seen = key.shape[2] + sum(keys.shape[1] for keys in prefix[:1])
    width = max(1, SCORES // (query.shape[0] * query.shape[1] * seen))
    parts = zip(query.split(width, dim=2), attention_mask.split(width, dim=2), strict=True)
    return torch.cat([_attend(part, key, value, visible, prefix) for part, visible in parts], dim=1), None


AttentionInterface.register(ATTENTION, attention)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    visible: torch.Tensor,
    prefix: tuple[torch.Tensor, ...],
) -> torch.Tensor:
    """The same of some columns: softmax over each part, then the parts by their shares of the whole."""
    (rows, heads, columns, size), kv_heads = query.shape, key.shape[1]
    group = heads // kv_heads
    query = query.reshape(rows, kv_heads, group * columns, size)  # the query heads of a kv head, one after the other
    bias = torch.zeros_like(visible, dtype=query.dtype).masked_fill_(~visible, float("-inf")).repeat(1, 1, group, 1)
    own, own_sum = _softmax(query, key, value, bias)
    if prefix:
        stacked = query.transpose(0, 1).flatten(1, 2)[None]  # [1, kv heads, rows x query heads of it x columns, size]
        before, before_sum = _softmax(stacked, prefix[0][None], prefix[1][None], None)
        before, before_sum = (one[0].unflatten(1, (rows, -1)).transpose(0, 1) for one in (before, before_sum))
        share = (before_sum - own_sum).sigmoid().to(own.dtype)
        own = own + (before - own) * share
    return own.reshape(rows, heads, columns, size).transpose(1, 2)


def _softmax(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The values [a, heads, queries, size] weighted by the softmax of the scores, and the logarithm of the sum of the
    exponentials of the scores [a, heads, queries, 1].
    """
    if query.device.type == "cpu":
        weighted, total = compat.attention_with_sums(query, key, value, bias)
        return weighted, total[..., None]
    scores = query @ key.transpose(2, 3)
    scores = scores if bias is None else scores + bias
    weights = scores.softmax(-1, dtype=torch.float32)
    total = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()  # as the largest weight says
    return weights.to(value.dtype) @ value, total
