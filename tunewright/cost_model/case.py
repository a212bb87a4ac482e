"""The case of an estimate: a base and rows, the settings, and a machine; and the layout of its steps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from tunewright.artifacts import IGNORED, UNDESIRABLE, Base, Tokens
from tunewright.config import Compute, Grpo, Method, Preference, Settings, Training
from tunewright.cost_model import work
from tunewright.cost_model.devices import Machine
from tunewright.cost_model.memory import Load, Memory, memory
from tunewright.cost_model.shapes import Config, ModelShape, config_in, shape_in
from tunewright.cost_model.timing import flops
from tunewright.cost_model.work import Row
from tunewright.modeling import compute, micro_batching
from tunewright.modeling.compute import Chosen, DdpMemory

FREE_SHARE = 0.85  # of the free memory that a prediction may fill, since it is right within 15%


@dataclass(frozen=True)
class Ground:
    """The base and the training rows of an estimate."""

    shape: ModelShape
    config: Config
    source: work.Source
    num_rows: int  # that train
    num_validation: int
    rows: Sequence[Row]  # some of those that train
    longest: int  # tokens of the longest row of all
    num_tokens: int | None = None  # of all rows that train, where they were counted
    pairs: Sequence[Row] = ()  # some of the preference pairs that train, each with both answers
    num_pairs: int = 0
    num_validation_pairs: int = 0
    labelled: tuple[int, int] = (0, 0)  # training and validation answers that are desirable or undesirable
    undesirable: Sequence[Row] = ()  # some of the rows whose answer is undesirable
    num_undesirable: int = 0
    num_replay: int = 0  # general rows among those that train

    def trains_on(self, preference: Preference) -> bool:
        """Whether there are rows for it."""
        return self.labelled[0] > 0 if preference.learns_labels else preference.method != "none" and bool(self.pairs)

    def of_preference(self, preference: Preference) -> "Ground":
        """The base and the rows that it trains on, of which there has to be one.

        A labelled answer counts as a pair with the mismatched one, which is computed beside it.
        """
        if preference.learns_labels:
            rows, numbers = work.mismatched(self._labelled_rows()), self.labelled
        else:
            rows, numbers = self.pairs, (self.num_pairs, self.num_validation_pairs)
        longest = max(len(row["input_ids"]) for row in rows)
        return Ground(self.shape, self.config, self.source, *numbers, rows, longest)

    def _labelled_rows(self) -> list[Row]:
        """Desirable and undesirable rows of those that are known, as many of each as there are of it among all."""
        if not self.undesirable:
            return [*self.rows]
        known = min(len(self.rows) / self.num_rows, len(self.undesirable) / self.num_undesirable)
        numbers = (math.ceil(known * number) for number in (self.num_rows, self.num_undesirable))
        return [
            row for rows, number in zip((self.rows, self.undesirable), numbers, strict=True) for row in rows[:number]
        ]

    def of_answers(self, grpo: Grpo) -> "Ground":
        """The base and the answers that are drawn to each prompt, all as long as they may be."""
        rows = [_answered(row, grpo.max_new_tokens) for row in self.rows]
        longest = max(len(row["input_ids"]) for row in rows)
        numbers = self.num_rows * grpo.group, self.num_validation
        return Ground(self.shape, self.config, self.source, *numbers, rows, longest)

    @property
    def row_tokens(self) -> float:
        """Tokens of a training row, in the mean: of all of them, or of those that are known."""
        if self.num_tokens is not None:
            return self.num_tokens / self.num_rows
        return sum(len(row["input_ids"]) for row in self.rows) / len(self.rows)


def ground_of(base: Base, tokens: Tokens) -> Ground:
    """A base and render's rows, to estimate from."""
    return ground_of_render(shape_in(base.weights), config_in(base.weights), tokens)


def ground_of_render(shape: ModelShape, config: Config, tokens: Tokens) -> Ground:
    """A base's shape and render's rows, to estimate from."""
    file = tokens.path("train.parquet")
    number, rows = work.rows_of_render(file)
    return Ground(
        shape=shape,
        config=config,
        source="render",
        num_rows=number,
        num_validation=tokens.num_validation,
        rows=rows,
        longest=tokens.longest,
        num_tokens=work.tokens_of_render(file),
        pairs=work.pairs_of_render(file) if tokens.num_pairs else (),
        num_pairs=tokens.num_pairs,
        num_validation_pairs=tokens.num_validation_pairs,
        labelled=tokens.num_labelled,
        undesirable=work.rows_of_render(tokens.path(UNDESIRABLE.format("train")))[1] if tokens.num_undesirable else (),
        num_undesirable=tokens.num_undesirable,
        num_replay=tokens.num_replay,
    )


@dataclass(frozen=True)
class BudgetCase:
    """A training to estimate: the base and rows, the settings, and the machine."""

    ground: Ground
    method: Method
    training: Training
    compute: Compute
    machine: Machine
    reads_reference: bool = False  # whether all rows are read once before the first step
    grpo: Grpo | None = None  # of a training on rewards, whose rows are the answers that it draws

    @cached_property
    def chosen(self) -> Chosen:
        """Return how it is computed. Raises ConfigError where the settings cannot be."""
        device, longest = self.machine.device, self.ground.longest
        return compute.choose(self.ground.config, self.method, self.training, self.compute, longest, device, self.ddp)

    @cached_property
    def ddp(self) -> DdpMemory | None:
        """The memory by which compute.strategy=auto decides; None where there is nothing to decide."""
        if self.compute.num_ranks == 1 or self.compute.strategy != "auto":
            return None
        by_ddp = replace(self, compute=self.compute.model_copy(update={"strategy": "ddp", "offload": False}))
        peak = by_ddp.most(by_ddp.cut(by_ddp.micro_batch)).peak
        return DdpMemory(peak=peak, room=int(FREE_SHARE * self.free_bytes))

    @property
    def batch(self) -> int:
        """Rows of a step; there may be fewer than are asked for."""
        return min(self.training.batch, self.num_rows)

    @property
    def num_rows(self) -> int:
        """The rows that train, of which training.share takes a part; all answers to a prompt are in it."""
        group = self.grpo.group if self.grpo else 1
        return group * math.ceil(self.training.share * (self.ground.num_rows // group))

    @cached_property
    def drawn(self) -> list[list[Row]]:
        """The rows of some steps; all answers to a prompt are in one."""
        group = self.grpo.group if self.grpo else 1
        steps = work.steps(self.ground.rows, max(1, self.batch // group))
        return [[row for row in step for _ in range(group)] for step in steps]

    @property
    def free_bytes(self) -> int:
        """The memory that is free for each device; processes of a CPU share theirs."""
        sharing = self.compute.devices if self.machine.device.kind == "cpu" else 1
        return self.machine.free_bytes // sharing

    def cut(self, micro_batch: int) -> list[list[Load]]:
        """These steps in micro-batches of at most so many rows."""
        layout, device = self.chosen.layout, self.machine.device.kind
        a_group = micro_batching.group_cost(device, compiled=self.chosen.compile)
        rest = (layout, micro_batch, self.compute.max_tokens, a_group, self.compute.num_ranks)
        return [work.loads(step, *rest, anchors=self.training.anchor > 0) for step in self.drawn]

    def most(self, cut: Sequence[Sequence[Load]]) -> Memory:
        """The memory of the micro-batch that takes most: one with the most tokens, labels or attention."""
        loads = [load for step in cut for load in step]
        sizes = (lambda load: load.tokens, lambda load: load.scored + load.anchored, lambda load: load.seen)
        largest = {max(loads, key=size) for size in sizes}
        shape, kind = self.ground.shape, self.machine.device.kind
        return max((memory(shape, self.method, self.chosen, load, kind) for load in largest), key=lambda m: m.peak)

    def flops_a_step(self, cut: Sequence[Sequence[Load]]) -> float:
        """Operations of a step, in the mean."""
        return sum(flops(self.ground.shape, self.method, self.chosen, loads) for loads in cut) / len(cut)

    @property
    def flops_a_row(self) -> float:
        """Operations of a step for one row, in the mean."""
        return self.flops_a_step(self.cut(self.micro_batch)) / self.batch

    @property
    def micro_batch(self) -> int:
        """The rows on the device at once."""
        if self.training.micro_batch == "auto":
            return self._largest_micro_batch() or 1
        share = math.ceil(self.training.batch / self.compute.num_ranks)
        return min(self.training.micro_batch or share, share)

    def _largest_micro_batch(self) -> int:
        """The most rows on the device at once whose peak the free memory holds; 0 where it does not even hold one."""

        def fits(size: int) -> bool:
            return self.most(self.cut(size)).peak <= FREE_SHARE * self.free_bytes

        low, high = 0, math.ceil(self.batch / self.compute.num_ranks)  # low fits, and what is over high does not
        if fits(high):
            return high
        while low < high - 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low


def _answered(row: Row, length: int) -> Row:
    """A row with an answer of so many tokens in place of its last one."""
    labels, end = row["labels"], micro_batching.num_tokens(row) + 1
    begin = next((at for at in range(end, 0, -1) if labels[at - 1] == IGNORED), 0)
    answer = [0] * length
    return {"input_ids": [*row["input_ids"][:begin], *answer], "labels": [IGNORED] * begin + answer}


def on_rewards(case: BudgetCase, grpo: Grpo) -> BudgetCase:
    """The training on rewards, of which an answer is a row."""
    training = grpo.schedule(case.training)
    epochs, batch = training.epochs * grpo.iterations, training.batch * grpo.group
    training = training.model_copy(update={"epochs": epochs, "batch": batch})
    return replace(case, ground=case.ground.of_answers(grpo), training=training, grpo=grpo)


def trainings(case: BudgetCase, settings: Settings) -> list[tuple[str, BudgetCase]]:
    """The trainings of a run in their order, each with the section of its settings; `case` is the one on answers."""
    preference = settings.preference
    found = [("training", case)] if settings.trains_on_answers else []
    if case.ground.trains_on(preference):
        ground, training = case.ground.of_preference(preference), preference.schedule(case.training)
        on_pairs = replace(case, ground=ground, training=training, reads_reference=preference.needs_reference)
        found.append(("preference", on_pairs))
    if settings.grpo.rewards:
        found.append(("grpo", on_rewards(case, settings.grpo)))
    return found or [("training", case)]
