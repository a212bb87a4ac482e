"""Greedy decoding of questions whose reference answer is known: the answers of plain decoding, in far fewer steps.

As long as a model's likeliest next token is the reference's, its greedy answer is the reference. So one pass over the
prompt and the reference verifies all of the answer that agrees, and gives the reference's likelihood; only what follows
the first difference is generated token by token. What all prompts begin with is computed once.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicLayer

SCORED = 2**26  # logits that are held at once: 256 MiB in float32
ROOM = 64  # tokens that a cache grows by

States = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values of each layer for one row, [heads, tokens, size]


@dataclass
class Answer:
    """A question, as the tokens of its prompt and of its reference with the stop token, and its answer so far."""

    prompt: list[int]
    reference: list[int]
    tokens: list[int] = field(default_factory=list)  # without the stop token
    stopped: bool = False  # by a stop token of its own
    nll: float = 0.0  # negative log-likelihood of the reference, summed over its tokens, in nats
    states: States = field(default_factory=list)  # of all tokens but the last, while the answer goes on


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

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices`."""
        super().batch_select_indices(indices)
        self.room = ()


class Greedy:
    """Answers by `model` until a token of `stops` or `max_new_tokens` tokens, `batch` rows at once."""

    def __init__(self, model: Any, *, stops: Collection[int], max_new_tokens: int, batch: int) -> None:
        self.model = model
        self.stops = frozenset(stops)
        self.max_new_tokens = max_new_tokens
        self.batch = batch
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of a PEFT model
        # transformers 5.24 renamed it; an earlier one ignores the new name, a later one warns of the old.
        self.cache_argument = "cache" if "cache" in signature(inner.forward).parameters else "past_key_values"

    @torch.inference_mode()
    def answer(self, rows: Sequence[Answer], *, generate: bool = True) -> None:
        """Fills in tokens, stopped and nll; nll is not finite where the model's likelihoods are not.

        Without `generate`, an answer that differs from its reference ends there.
        """
        longest_first = sorted(rows, key=lambda row: -len(row.prompt) - len(row.reference))
        with torch.device(self.model.device):
            shared = self._read_shared(rows)
            going: list[Answer] = []
            for start in range(0, len(rows), self.batch):
                going += self._verify(longest_first[start : start + self.batch], shared)
                if not generate:
                    _cut(going)
                if len(going) >= self.batch:  # full batches: a step costs about the same for one row as for many
                    self._generate(going[: self.batch])
                    del going[: self.batch]
            if going:
                self._generate(going)

    def _read_shared(self, rows: Sequence[Answer]) -> States:
        """The states of what all prompts begin with; the last token of a prompt predicts, so it is not shared."""
        first, last = min(row.prompt for row in rows), max(row.prompt for row in rows)
        shortest = min(len(row.prompt) for row in rows) - 1
        shared = first[: next((at for at in range(shortest) if first[at] != last[at]), shortest)]
        cache = Cache(layer_class_to_replicate=Growing)
        if shared:
            self._logits(torch.tensor([shared]), torch.ones(1, len(shared), dtype=torch.long), cache, 1)
        return _states(cache, 0, len(shared))

    def _verify(self, rows: Sequence[Answer], shared: States) -> list[Answer]:
        """Reads prompts and references, ends the answers that end there, and returns the rows that go on."""
        prefix = shared[0][0].shape[1] if shared else 0
        cache = _cache([shared] * len(rows))
        ids = pad_sequence([torch.tensor((row.prompt + row.reference)[prefix:]) for row in rows], batch_first=True)
        column = torch.arange(ids.shape[1])
        asked = torch.tensor([len(row.prompt) - prefix for row in rows])[:, None]
        ends = asked + torch.tensor([len(row.reference) for row in rows])[:, None]
        present = functional.pad((column < ends).long(), (prefix, 0), value=1)
        predicts = (column >= asked - 1) & (column < ends - 1)  # the columns before the reference's tokens
        likeliest, nll = torch.zeros_like(ids), torch.zeros(ids.shape)
        width = max(1, SCORED // (len(rows) * self.model.config.get_text_config().vocab_size))
        for piece in column.split(width):
            scored = piece[predicts[:, piece].any(0)]
            mask = present[:, : prefix + int(piece[-1]) + 1]
            logits = self._logits(ids[:, piece], mask, cache, scored - piece[0]).float()
            likeliest[:, scored] = logits.argmax(-1)
            nll[:, scored] = logits.logsumexp(-1) - logits.gather(-1, ids[:, scored + 1, None]).squeeze(-1)
        going = []
        for at, row in enumerate(rows):
            said = likeliest[at][predicts[at]].tolist()
            row.nll = nll[at][predicts[at]].sum(dtype=torch.float64).item()
            differs = (i for i, (a, b) in enumerate(zip(said, row.reference, strict=True)) if a != b)
            agreed = min(next(differs, len(said) - 1), self.max_new_tokens - 1)
            row.tokens = said[: agreed + 1]
            if self._goes_on(row):
                row.states = _states(cache, at, len(row.prompt) + agreed)
                going.append(row)
        return going

    def _generate(self, rows: Sequence[Answer]) -> None:
        """Takes answers that go on to their end; a row that has ended leaves the batch."""
        length = torch.tensor([row.states[0][0].shape[1] for row in rows])
        mask = (torch.arange(-int(length.max()), 0) >= -length[:, None]).long()
        cache = _cache([row.states for row in rows])
        while rows:
            mask = functional.pad(mask, (0, 1), value=1)
            logits = self._logits(torch.tensor([row.tokens[-1:] for row in rows]), mask, cache, 1)
            for row, token in zip(rows, logits[:, -1].argmax(-1).tolist(), strict=True):
                row.tokens.append(token)
            going = [at for at, row in enumerate(rows) if self._goes_on(row)]
            if len(going) < len(rows):
                rows, mask = [rows[at] for at in going], mask[going]
                cache.batch_select_indices(torch.tensor(going, dtype=torch.long))

    def _goes_on(self, row: Answer) -> bool:
        """Ends the answer if it has to end after its last token; whether it goes on."""
        row.stopped = row.tokens[-1] in self.stops
        if row.stopped:
            row.tokens.pop()
        if row.stopped or len(row.tokens) >= self.max_new_tokens:
            row.states = []
            return False
        return True

    def _logits(self, ids: torch.Tensor, mask: torch.Tensor, cache: Cache, keep: int | torch.Tensor) -> torch.Tensor:
        """Reads ids [rows, columns] behind the cache; the logits [rows, kept, vocabulary] of the columns in `keep`."""
        positions = (mask.cumsum(1) - 1)[:, -ids.shape[1] :]
        options = {self.cache_argument: cache, "use_cache": True, "logits_to_keep": keep}
        return self.model(input_ids=ids, attention_mask=mask, position_ids=positions, **options).logits


def _cut(rows: list[Answer]) -> None:
    """Leaves the answers as they are."""
    for row in rows:
        row.states = []
    rows.clear()


def _states(cache: Any, row: int, num_tokens: int) -> States:
    """A copy of one row's states of its first tokens."""
    pairs = ((layer.keys, layer.values) for layer in cache.layers)
    return [(keys[row, :, :num_tokens].clone(), values[row, :, :num_tokens].clone()) for keys, values in pairs]


def _cache(rows: Sequence[States]) -> Cache:
    """The states of several rows as one batch, padded on the left."""
    longest = max((layer[0].shape[1] for row in rows for layer in row[:1]), default=0)

    def batch(states: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([functional.pad(one, (0, 0, longest - one.shape[1], 0)) for one in states])

    cache = Cache(layer_class_to_replicate=Growing)
    for at, layers in enumerate(zip(*rows, strict=True)):
        keys, values = zip(*layers, strict=True)
        cache.update(batch(keys), batch(values), at)
    return cache
