"""One method's budget on one machine, and the settings that would make it fit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel, ConfigDict

from tasks import speed
from tasks.artifacts import Base, Tokens
from tasks.budget import work
from tasks.budget.devices import Machine, machine
from tasks.budget.learning import learning
from tasks.budget.memory import Load, Memory, disk_bytes, evaluation_bytes, memory
from tasks.budget.shapes import Config, Shape, config_in, shape_in
from tasks.budget.timing import FORWARD_SHARE, Rate, flops, seconds
from tasks.budget.work import Row, Work
from tasks.config import Compute, Method, Training
from tasks.errors import ConfigError
from tasks.speed import Chosen

FREE_SHARE = 0.85  # of the free memory that a prediction may fill, since it is right within 15%


@dataclass(frozen=True)
class Ground:
    """What a budget stands on: the base, and rows as they will train."""

    shape: Shape
    config: Config
    source: work.Source
    num_rows: int  # that train
    num_validation: int
    rows: Sequence[Row]  # some of those that train
    longest: int  # tokens of the longest row of all


class Estimate(BaseModel):
    """What one method takes, in bytes and seconds. It is the most: an early stop takes less time."""

    model_config = ConfigDict(frozen=True)

    method: Method
    chosen: Chosen
    num_learning: int
    num_parameters: int
    micro_batch: int
    memory: Memory
    peak: int
    evaluation: int  # bytes that evaluation and serving load afterwards, before the first row
    free: int
    disk: int
    work: Work
    num_steps: int
    flops: float
    seconds: tuple[float, float] | None  # the fewest and the most; equal where the rate was measured
    rate_source: str = ""
    notes: tuple[str, ...] = ()  # what of it would surprise, in words

    @property
    def fits(self) -> bool:
        """Whether the peak leaves what a prediction may be wrong by."""
        return self.peak <= FREE_SHARE * self.free


def estimate(
    ground: Ground, method: Method, training: Training, compute: Compute, machine: Machine, rate: Rate | None = None
) -> Estimate:
    """What training by a method takes on a machine. Raises ConfigError where the settings cannot be."""
    shape = ground.shape
    chosen = speed.choose(ground.config, method, training, compute, ground.longest, machine.device)
    drawn = work.steps(ground.rows, min(training.batch, ground.num_rows))
    size = _micro_batch(shape, method, chosen, training, compute, drawn, machine)
    cut = [work.loads(step, chosen.layout, size, compute.max_tokens) for step in drawn]
    most = _most(shape, method, chosen, cut, machine)
    num_steps = training.max_steps or math.ceil(training.epochs * math.ceil(ground.num_rows / training.batch))
    a_step = sum(flops(shape, method, chosen, loads) for loads in cut) / len(cut)
    validated = FORWARD_SHARE[method.kind] * ground.num_validation / min(training.batch, ground.num_rows)
    total = a_step * (num_steps + validated * _num_evaluations(ground, training, num_steps))
    evaluation = evaluation_bytes(shape, method, machine.device.kind)
    return Estimate(
        method=method,
        chosen=chosen,
        num_learning=learning(shape, method).num_learning,
        num_parameters=shape.num_parameters,
        micro_batch=size,
        memory=most,
        peak=most.peak,
        evaluation=evaluation,
        free=machine.free_bytes,
        disk=disk_bytes(shape, method, chosen),
        work=work.summed(ground.source, ground.num_rows, drawn, cut),
        num_steps=num_steps,
        flops=total,
        seconds=seconds(total, num_steps * shape.num_layers * sum(map(len, cut)) / len(cut), rate) if rate else None,
        rate_source=rate.source if rate else "",
        notes=tuple(_notes(shape, method, most.peak, evaluation, machine)),
    )


def _notes(shape: Shape, method: Method, peak: int, evaluation: int, machine: Machine) -> Iterator[str]:
    if shape.num_expert and method.kind != "full":
        packed = ", nor are they packed" if method.kind == "qlora" else ""
        yield (
            f"the base is a mixture of experts: their {shape.num_expert:,} weights do not learn by "
            f"{method.kind}{packed}; the linear modules beside them do"
        )
    if evaluation > peak:
        precision = "bfloat16" if machine.device.kind == "cuda" else "float32"
        free = "" if evaluation <= machine.free_bytes else f", and {machine.free_bytes / 1e9:.1f} GB are free"
        yield (
            f"evaluation and serving load the whole base in {precision}, which takes more than training does: at least "
            f"{evaluation / 1e9:.1f} GB{free}"
        )


def flops_a_row(ground: Ground, method: Method, training: Training, compute: Compute, machine: Machine) -> float:
    """Operations of a training step for one row, in the mean."""
    once = training.model_copy(update={"max_steps": 1, "evaluate_every": None})
    return estimate(replace(ground, num_validation=0), method, once, compute, machine).flops / min(
        training.batch, ground.num_rows
    )


def _num_evaluations(ground: Ground, training: Training, num_steps: int) -> int:
    """How often the validation rows are looked at, as tasks/trainer/fit.py has it."""
    an_epoch = math.ceil(ground.num_rows / training.batch)
    return math.ceil(num_steps / min(training.evaluate_every or math.ceil(an_epoch / 2), num_steps))


def _micro_batch(
    shape: Shape,
    method: Method,
    chosen: Chosen,
    training: Training,
    compute: Compute,
    drawn: Sequence[Sequence[Row]],
    machine: Machine,
) -> int:
    if training.micro_batch == "auto":
        return largest_micro_batch(shape, method, chosen, compute, drawn, machine) or 1
    return training.micro_batch or training.batch


def largest_micro_batch(
    shape: Shape,
    method: Method,
    chosen: Chosen,
    compute: Compute,
    drawn: Sequence[Sequence[Row]],
    machine: Machine,
) -> int:
    """The most rows on the device at once whose peak the free memory holds; 0 where it does not even hold one."""

    def fits(size: int) -> bool:
        cut = [work.loads(step, chosen.layout, size, compute.max_tokens) for step in drawn]
        return _most(shape, method, chosen, cut, machine).peak <= FREE_SHARE * machine.free_bytes

    low, high = 0, max(map(len, drawn))  # low fits, and what is over high does not
    if fits(high):
        return high
    while low < high - 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _most(shape: Shape, method: Method, chosen: Chosen, cut: Sequence[Sequence[Load]], machine: Machine) -> Memory:
    """The memory of the micro batch that takes most: one with the most tokens, labels or attention."""
    loads = [load for step in cut for load in step]
    sizes = (lambda load: load.tokens, lambda load: load.scored, lambda load: load.rows * load.longest)
    largest = {max(loads, key=size) for size in sizes}
    return max((memory(shape, method, chosen, load, machine.device.kind) for load in largest), key=lambda m: m.peak)


def remedies(ground: Ground, method: Method, training: Training, compute: Compute, machine: Machine) -> list[str]:
    """The changes of a setting or two that would make it fit, the least first; each as --set takes it."""
    one = {"micro_batch": "auto"}
    quantized = Method(kind="qlora") if method.kind != "lora" else method.model_copy(update={"kind": "qlora"})
    tried: list[tuple[Method, dict[str, str], dict[str, bool]]] = [
        (method, one, {}),
        (method, {}, {"checkpointing": True}),
        (method, one, {"checkpointing": True}),
        (Method(kind="lora"), one, {"checkpointing": True}),
        (quantized, one, {}),
        (quantized, one, {"checkpointing": True}),
    ]
    found = []
    for other, training_change, compute_change in tried:
        try:
            would = estimate(
                ground,
                other,
                training.model_copy(update=training_change),
                compute.model_copy(update=compute_change),
                machine,
            )
        except ConfigError:
            continue
        if would.fits:
            changes = [f"method.kind={other.kind}"] if other.kind != method.kind else []
            changes += [f"training.micro_batch={would.micro_batch}"] if training_change else []
            changes += ["compute.checkpointing=true"] if compute_change else []
            found.append(" ".join(changes))
    return list(dict.fromkeys(found))[:3]


def shortage(would: Estimate, others: Sequence[str]) -> str:
    """Empty where it fits; otherwise one line that says what is short and which settings would fit."""
    if would.fits:
        return ""
    verdict = "will not fit" if would.peak > would.free else "may not fit"
    need = f"training {verdict}: about {would.peak / 1e9:.1f} GB at its peak, and {would.free / 1e9:.1f} GB are free"
    return f"{need}; what would fit: {', or '.join(others)}" if others else f"{need}; no setting known here would fit"


def ground_of(base: Base, tokens: Tokens) -> Ground:
    """A base and render's rows, to reckon with."""
    number, rows = work.rows_of_render(tokens.path("train.parquet"))
    return Ground(
        shape=shape_in(base.weights),
        config=config_in(base.weights),
        source="render",
        num_rows=number,
        num_validation=tokens.num_validation,
        rows=rows,
        longest=tokens.longest,
    )


def before_training(
    base: Base, tokens: Tokens, method: Method, training: Training, compute: Compute
) -> tuple[int, str]:
    """The rows on this machine's device at once that training begins with, and a warning where they may not fit.

    A base that cannot be reckoned with trains as it is set.
    """
    try:
        ground, here = ground_of(base, tokens), machine()
    except ValueError:  # what its files say is not known here
        return training.micro_batch if isinstance(training.micro_batch, int) else training.batch, ""
    would = estimate(ground, method, training, compute, here)
    changes = [] if would.fits else remedies(ground, method, training, compute, here)
    return would.micro_batch, shortage(would, changes)
