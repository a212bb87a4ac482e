"""The passes through the model: of what is shared, of prompts with their references, and of what follows."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import pyarrow as pa
import torch

from tunewright import compat
from tunewright.generation import plain
from tunewright.generation.drafts import Draft, Drafts
from tunewright.generation.rows import Answer, PrefixGroup, States, agreed, batches, grouped
from tunewright.generation.states import ATTENTION, CachedBatch, behind, num_tokens
from tunewright.modeling import architecture
from tunewright.modeling.architecture import Architecture, Decoding

log = logging.getLogger("tunewright")

AT_ONCE = 1_000  # rows of a table whose tokens are in memory
READ = 2**13  # tokens that are read at once
SCORED = 2**26  # logits that are held at once: 256 MiB in float32
HELD = 2**29  # bytes of the states of a batch, on a CPU; on a GPU out of memory halves the batch
FEW = 16  # rows that wait to be taken on together, whatever their states take


class Greedy:
    """Answers by `model` until a token of `stops` or `max_new_tokens` tokens, `batch` rows at once."""

    def __init__(
        self, model: Any, *, stops: Collection[int], max_new_tokens: int, batch: int, way: Decoding | None = None
    ) -> None:
        self.model = model
        # Which of the ways is right for the model; None finds out (tunewright/modeling/architecture).
        self.known = Architecture(decoding=way, pads_left=True) if way else None
        self.shares = False
        self.num_whole = 0  # answers of the rows at hand
        self.on_progress: Callable[[int], None] = lambda _: None
        self.stops = frozenset(stops)
        self.max_new_tokens = max_new_tokens
        self.batch = batch
        self.drafts = Drafts()
        self.common: States = []  # what all rows begin with, and the states of none of them have
        # transformers 5.24 renamed it; an earlier one ignores the new name, a later one warns of the old.
        self.cache_argument = "cache" if "cache" in plain.parameters(model) else "past_key_values"
        # What a pass costs besides its tokens, in tokens.
        self.overhead = 64 if model.device.type == "cpu" else 256

    def answer(
        self, rows: Sequence[Answer], *, generate: bool = True, on_progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Fills in tokens, stopped and nll; nll is not finite where the model's likelihoods are not.

        After each pass through the model, `on_progress` is called with the number of answers that are whole.
        Without `generate`, an answer that differs from its reference ends there. Where the device's memory does not
        suffice, half as many rows are answered at once.
        """
        asked = self.batch
        self.on_progress = on_progress
        while True:
            try:
                with compat.without_gradients(self.model):
                    return self._answer(rows, generate=generate)
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.batch //= 2
                log.warning("out of memory: retrying with %d rows at a time instead of %d", self.batch, asked)

    def answer_table(
        self, table: pa.Table, tell: Callable[[int], None]
    ) -> Iterator[tuple[list[dict[str, Any]], list[Answer]]]:
        """Answer the rows of a table (TOKEN_SCHEMA) and yield them with their answers, AT_ONCE rows at a time.

        `tell` is called with the number of rows that are answered.
        """
        for start in range(0, len(table), AT_ONCE):
            rows = table.slice(start, AT_ONCE).to_pylist()
            answers = [Answer.of(row["input_ids"], row["labels"], row["prompt_length"]) for row in rows]
            self.answer(answers, on_progress=lambda number, before=start: tell(before + number))
            yield rows, answers

    def _answer(self, rows: Sequence[Answer], *, generate: bool) -> None:
        self.num_whole = 0
        longest = max(len(row.prompt) + max(len(row.reference), self.max_new_tokens) for row in rows)
        found = self.known or architecture.of(self.model.config, longest)
        self.shares = found.decoding == "shared" and compat.attention_of(self.model) == "sdpa"
        if found.decoding == "library":
            with torch.device(self.model.device):
                self._answer_by_library(rows, generate=generate, pads=found.pads_left)
        else:  # without torch.device: it acts in Python on each of the model's operations
            with compat.attending_by(self.model, ATTENTION if self.shares else ""):
                self._answer_drafted(rows, generate=generate)

    def _answer_by_library(self, rows: Sequence[Answer], *, generate: bool, pads: bool) -> None:
        plain.answer(
            self.model,
            rows,
            stops=self.stops,
            max_new_tokens=self.max_new_tokens,
            batch=self.batch,
            generate=generate,
            pads=pads,
            on_progress=self.on_progress,
        )

    def _answer_drafted(self, rows: Sequence[Answer], *, generate: bool) -> None:
        for row in rows:
            row.states = []
        group = grouped(rows)
        shared = self._read(_any(group).prompt[: group.length], [])
        self.common = shared if self.shares else []
        going: list[Answer] = []
        for verified in self._walk(group, shared):
            if not generate:  # the answers stay as they are
                for row in verified:
                    row.states = []
                continue
            going += verified
            while self._is_full(going):  # a pass costs about the same for one row as for many
                most = min(self.batch, len(going))
                going = self._generate(going[:most], most // 2) + going[most:]
        if going:
            self._generate(going, 0)

    def _is_full(self, going: Sequence[Answer]) -> bool:
        """Whether so many rows go on that they are taken on now: a batch, or on a CPU as many as HELD has room for."""
        if len(going) < FEW or len(going) >= self.batch or self.model.device.type != "cpu":
            return len(going) >= self.batch
        return sum(one.nbytes for row in going for layer in row.states for one in layer) > HELD

    def _walk(self, group: PrefixGroup, shared: States) -> Iterator[list[Answer]]:
        """Verifies the rows of a group, whose prompts begin with what is shared; yields those that go on."""
        cut = {"prefix": group.length if self.shares else 0, "overhead": self.overhead}
        for rows in batches(group.rows, self.batch, most_tokens=self._most_tokens(shared), **cut):
            yield self._verify(rows, shared)
        for inner in group.inner:
            yield from self._walk(inner, self._read(_any(inner).prompt[group.length : inner.length], shared))

    def _most_tokens(self, shared: States) -> int | None:
        """The tokens whose states may be held at once; None where that is left to the device to say."""
        if self.model.device.type != "cpu" or not shared:
            return None
        return HELD // (sum(one.nbytes for layer in shared for one in layer) // num_tokens(shared))

    def _batch(self, num_rows: int, shared: States) -> CachedBatch:
        """Rows that begin with what is shared, and have read nothing else."""
        own, common = ([], shared) if self.shares else (shared, [])
        return CachedBatch([own] * num_rows, common, device=self.model.device)

    def _read(self, tokens: list[int], shared: States) -> States:
        """The states of what is shared and of the tokens after it."""
        if not tokens:
            return shared
        batch, ids = self._batch(1, shared), self._tensor([tokens])
        self._logits(ids, torch.ones_like(ids, dtype=torch.bool), batch, 1)
        read = batch.of(0, batch.mask.shape[1])
        return behind(shared, read) if self.shares else read

    def _verify(self, rows: Sequence[Answer], shared: States) -> list[Answer]:
        """Reads prompts and references, ends the answers that end there, and returns the rows that go on."""
        prefix = num_tokens(shared)
        batch = self._batch(len(rows), shared)
        whole = self._padded([(row.prompt + row.reference)[prefix:] for row in rows])
        ids, following = whole[:, :-1], whole[:, 1:]
        column = torch.arange(ids.shape[1], device=ids.device)
        first = self._tensor([len(row.prompt) - prefix for row in rows])[:, None] - 1  # that predicts the reference
        ends = self._tensor([row.num_read - prefix for row in rows])[:, None]
        predicts = (column >= first) & (column < ends)
        likeliest, nll = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.float32)
        for piece in self._pieces(len(rows), int(first.min()), ids.shape[1]):
            scored = piece[predicts[:, piece].any(0)]
            logits = self._logits(ids[:, piece], (column < ends)[:, piece], batch, scored - piece[0]).float()
            likeliest[:, scored] = self._next(logits, rows, scored - first)
            nll[:, scored] = logits.logsumexp(-1) - logits.gather(-1, following[:, scored, None]).squeeze(-1)
        going = []
        for at, row in enumerate(rows):
            row.tokens, row.nll = [], nll[at][predicts[at]].sum(dtype=torch.float64).item()
            said = agreed(row.reference, likeliest[at][predicts[at]].tolist())
            self.drafts.remember(row, row.reference)
            if self._goes_on(row, said):
                read = batch.of(at, len(row.prompt) + len(row.tokens) - 1 - num_tokens(batch.shared))
                row.states = behind(batch.shared, read, skip=num_tokens(self.common))
                going.append(row)
        self.on_progress(self.num_whole)
        return going

    def _generate(self, rows: Sequence[Answer], fewest: int) -> list[Answer]:
        """Takes answers on until no more than `fewest` still go on, and returns these."""
        batch = CachedBatch([row.states for row in rows], self.common, device=self.model.device)
        for row in rows:
            row.states = []  # they are in the batch
        while len(rows) > fewest:
            drafts = self._drafts(rows)
            asked = [row.tokens[-1:] + draft.tokens for row, draft in zip(rows, drafts, strict=True)]
            ids = self._padded(asked)
            column = torch.arange(ids.shape[1], device=ids.device)
            present = column < self._tensor([len(tokens) for tokens in asked])[:, None]
            places = self._tensor([len(row.tokens) for row in rows])[:, None] + column
            likeliest = self._next(self._logits(ids, present, batch, ids.shape[1]), rows, places).tolist()
            said = [agreed(draft.tokens, tokens) for draft, tokens in zip(drafts, likeliest, strict=True)]
            batch.mask[:, -len(column) :] = column < self._tensor([len(tokens) for tokens in said])[:, None]
            for draft, tokens in zip(drafts, said, strict=True):
                self.drafts.tried(draft, len(draft.tokens), len(tokens) - 1)
            going = [at for at, row in enumerate(rows) if self._goes_on(row, said[at])]
            if going and (len(going) < len(rows) or batch.is_sparse()):
                batch.keep(going)
            rows = [rows[at] for at in going]
            self.on_progress(self.num_whole)
        for at, row in enumerate(rows):
            row.states = batch.of(at, batch.mask.shape[1])
        return [*rows]

    def _next(self, logits: torch.Tensor, rows: Sequence[Answer], places: torch.Tensor) -> torch.Tensor:
        """The tokens [rows, columns] that follow by logits [rows, columns, vocabulary].

        `places` [rows, columns] are the places of these tokens in the rows' answers; below 0 it is none of them.
        """
        return logits.argmax(-1)

    def _drafts(self, rows: Sequence[Answer]) -> list[Draft]:
        """Return each row's draft, cut to the width with the best expected gain for its cost."""
        drafts = [self.drafts.draft(row) for row in rows]
        chances = [self.drafts.chance(draft) for draft in drafts]
        widths = range(min(self._width(len(rows)) - 1, max(len(draft.tokens) for draft in drafts)) + 1)
        promised, best, width = float(len(rows)), 0.0, 0
        for some in widths:
            if some:
                promised += sum(c**some for c, d in zip(chances, drafts, strict=True) if len(d.tokens) >= some)
            gain = promised / (self.overhead + len(rows) * (some + 1))
            best, width = max((best, width), (gain, some))
        left = [self.max_new_tokens - len(row.tokens) - 1 for row in rows]
        return [Draft(draft.tokens[: min(width, most)], draft.kind) for draft, most in zip(drafts, left, strict=True)]

    def _goes_on(self, row: Answer, said: Sequence[int]) -> bool:
        """Adds what was said up to where the answer has to end; whether it goes on."""
        if row.add(said, self.stops, self.max_new_tokens):
            return True
        self.num_whole += 1
        self.drafts.remember(row, row.tokens + [token for token in said[-1:] if row.stopped])
        return False

    def _pieces(self, num_rows: int, first: int, num_columns: int) -> Iterator[torch.Tensor]:
        """The columns in pieces that are read at once, of which those from `first` on are scored."""
        begin = 0
        while begin < num_columns:
            end = min(num_columns, begin + max(1, READ // num_rows))
            if end > first:
                end = min(end, max(begin, first) + self._width(num_rows))
            yield torch.arange(begin, end, device=self.model.device)
            begin = end

    def _tensor(self, numbers: Sequence[Any]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.model.device)

    def _padded(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """The tokens of rows [rows, columns], with 0 behind the shorter ones."""
        width = max(map(len, rows))
        return self._tensor([[*row, *[0] * (width - len(row))] for row in rows])

    def _width(self, num_rows: int) -> int:
        """The columns whose logits are held at once."""
        return max(1, SCORED // (num_rows * self.model.config.get_text_config().vocab_size))

    def _logits(
        self, ids: torch.Tensor, present: torch.Tensor, batch: CachedBatch, keep: int | torch.Tensor
    ) -> torch.Tensor:
        """Reads ids [rows, columns] where they are `present`; the logits [rows, kept, vocabulary] of columns `keep`."""
        options: dict[str, Any] = {self.cache_argument: batch.cache, "use_cache": True, "logits_to_keep": keep}
        options["position_ids"] = batch.add(present)
        if self.shares:
            options |= {"attention_mask": batch.visible(ids.shape[1]), "shared": batch.shared}
        else:
            options["attention_mask"] = batch.mask.long()
        return self.model(input_ids=ids, **options).logits


def _any(group: PrefixGroup) -> Answer:
    """A row of the group."""
    return group.rows[0] if group.rows else _any(group.inner[0])
