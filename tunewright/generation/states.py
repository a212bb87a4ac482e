"""Keys and values of the tokens that were read: kept for each row, and once for a beginning that rows share."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

from tunewright import compat
from tunewright.generation.rows import States

ROOM = 64  # tokens that a cache grows by
ATTENTION = "tunewright_shared"
SCORES = 2**25  # of a layer, that are held at once: 128 MiB in float32


class Growing(DynamicLayer):
    """A layer's keys and values with room behind them: transformers' own copies all of them for each further token."""

    room: tuple[torch.Tensor, ...] = ()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adds states [rows, heads, tokens, size] and returns all that there are."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held, added = self.get_seq_length(), (key_states, value_states)
        total = held + key_states.shape[2]
        states: Any = (self.keys, self.values)
        if not self.room or self.room[0].shape[2] < total:
            self.room = tuple(new.new_empty((*new.shape[:2], total + ROOM, new.shape[3])) for new in added)
            if held:
                self.room[0][:, :, :held], self.room[1][:, :, :held] = states
        self.room[0][:, :, held:total], self.room[1][:, :, held:total] = added
        self.keys, self.values = self.room[0][:, :, :total], self.room[1][:, :, :total]
        return self.keys, self.values

    def keep(self, rows: torch.Tensor, columns: torch.Tensor) -> None:
        """Keeps the rows [kept] and of each of them the columns [kept, columns]."""
        heads = torch.arange(self.room[0].shape[1], device=rows.device)[:, None]
        at = ((rows[:, None, None] * len(heads) + heads) * self.room[0].shape[2] + columns[:, None]).flatten()
        self.room = tuple(  # vectors as wholes: Tensor.gather takes ten times as long
            one.flatten(0, 2).index_select(0, at).view(len(rows), len(heads), -1, one.shape[3]) for one in self.room
        )
        self.keys, self.values = self.room


class CachedBatch:
    """The states of several rows as a cache of the model's, and which of its columns are whose.

    What all rows begin with is `shared`: it is there once, and no part of the cache.
    """

    def __init__(self, rows: Sequence[States], shared: States, *, device: torch.device) -> None:
        self.shared = shared
        lengths = [num_tokens(row) for row in rows]
        longest = max(lengths)
        column = torch.arange(longest, device=device)
        self.mask = column >= longest - torch.tensor(lengths, device=device)[:, None]  # [rows, columns]
        self.cache = Cache(layer_class_to_replicate=Growing)
        for at, layers in enumerate(zip(*rows, strict=True)):
            keys, values = zip(*layers, strict=True)
            self.cache.update(_padded(keys, longest), _padded(values, longest), at)

    def add(self, present: torch.Tensor) -> torch.Tensor:
        """Makes place for new columns [rows, columns]; the positions of the tokens there, where they are `present`."""
        self.mask = torch.cat([self.mask, present], dim=1)
        positions = self.mask.cumsum(1)[:, -present.shape[1] :] - 1
        return num_tokens(self.shared) + positions.clamp(min=0)

    def visible(self, num_columns: int) -> torch.Tensor:
        """[rows, 1, columns, all columns]: what the last columns see of their rows, themselves at least."""
        column = torch.arange(self.mask.shape[1], device=self.mask.device)
        last = column[-num_columns:, None]
        return ((self.mask[:, None] & (column < last)) | (column == last))[:, None]

    def keep(self, rows: Sequence[int]) -> None:
        """Keeps these rows, and of the columns none that is nobody's."""
        chosen = torch.tensor(rows, dtype=torch.long, device=self.mask.device)
        mask, order = self.mask[chosen].sort(dim=1, stable=True)  # what is not there comes first
        longest = int(mask.sum(1).max())
        self.mask, order = mask[:, -longest:], order[:, -longest:]
        for layer in self.layers:
            layer.keep(chosen, order)

    def is_sparse(self) -> bool:
        """Whether most of its columns are of drafts that were wrong."""
        return self.mask.shape[1] > 2 * int(self.mask.sum(1).max()) + ROOM

    def of(self, row: int, length: int) -> States:
        """A copy of the states of a row's first tokens, without those of what is shared."""
        at = self.mask[row].nonzero().squeeze(1)[:length]
        return [(layer.keys[row].index_select(1, at), layer.values[row].index_select(1, at)) for layer in self.layers]

    @property
    def layers(self) -> Sequence[Any]:
        """The layers of the cache, a Growing each."""
        return self.cache.layers


def num_tokens(states: States) -> int:
    """The tokens that these are the states of."""
    return states[0][0].shape[1] if states else 0


def behind(states: States, more: States, *, skip: int = 0) -> States:
    """States and those of the tokens after them, without the first `skip`."""
    if not states:
        return more
    return [
        (torch.cat([keys[:, skip:], after[0]], dim=1), torch.cat([values[:, skip:], after[1]], dim=1))
        for (keys, values), after in zip(states, more, strict=True)
    ]


def _padded(states: Sequence[torch.Tensor], length: int) -> torch.Tensor:
    """[rows, heads, tokens, size], padded on the left."""
    batch = states[0].new_zeros((len(states), states[0].shape[0], length, states[0].shape[2]))
    for row, one in zip(batch, states, strict=True):
        row[:, length - one.shape[1] :] = one
    return batch


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
    bias = torch.zeros_like(visible, dtype=value.dtype).masked_fill_(~visible, float("-inf")).repeat(1, 1, group, 1)
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

    All is computed in the type of the values: rotary embeddings leave queries and keys in float32 under autocast.
    """
    query, key = query.to(value.dtype), key.to(value.dtype)
    if query.device.type == "cpu":
        weighted, total = compat.attention_with_sums(query, key, value, bias)
        return weighted, total[..., None]
    scores = query @ key.transpose(2, 3)
    scores = scores if bias is None else scores + bias
    weights = scores.softmax(-1, dtype=torch.float32)
    total = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()  # as the largest weight says
    return weights.to(value.dtype) @ value, total
