"""One method's budget on one machine, and the settings that would make it fit."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import BaseModel

from tunewright.artifacts import Base, Tokens
from tunewright.config import Compute, Grpo, Method, Preference, Training
from tunewright.cost_model import work
from tunewright.cost_model.case import FREE_SHARE, BudgetCase, ground_of, on_rewards
from tunewright.cost_model.devices import machine
from tunewright.cost_model.learning import learning
from tunewright.cost_model.memory import Memory, disk_bytes, evaluation_bytes
from tunewright.cost_model.money import Price
from tunewright.cost_model.timing import FORWARD_SHARE, Rate, seconds
from tunewright.cost_model.work import EpochWork
from tunewright.errors import ConfigError
from tunewright.modeling.compute import Chosen, DdpMemory


class Estimate(BaseModel, frozen=True):
    """Upper bound on the cost of one method, in bytes and seconds: early stopping takes less time."""

    method: Method
    chosen: Chosen
    num_learning: int
    num_parameters: int  # all, an adapter's too, as a run counts them
    micro_batch: int
    memory: Memory
    peak: int
    evaluation: int  # bytes that evaluation and serving load afterwards, before the first row
    free: int
    disk: int
    work: EpochWork
    num_steps: int
    flops: float
    seconds: tuple[float, float] | None  # the fewest and the most; equal where the rate was measured
    rate_source: str = ""
    notes: tuple[str, ...] = ()  # what of it would surprise, in words

    @property
    def fits(self) -> bool:
        """Whether the peak leaves what a prediction may be wrong by."""
        return self.peak <= FREE_SHARE * self.free

    def cost(self, price: Price) -> tuple[float, float] | None:
        """The least and the most that the training costs; None where its time is unknown."""
        if self.seconds is None:
            return None
        low, high = self.seconds
        return price.of(low, self.chosen.devices), price.of(high, self.chosen.devices)


def estimate(case: BudgetCase, rate: Rate | None = None) -> Estimate:
    """Estimate the cost of a training. Raises ConfigError for settings that are impossible."""
    ground, method, shape, chosen = case.ground, case.method, case.ground.shape, case.chosen
    size, learns = case.micro_batch, learning(shape, method)
    cut = case.cut(size)
    most = case.most(cut)
    steps_an_epoch = math.ceil(case.num_rows / case.training.batch)
    num_steps = case.training.max_steps or math.ceil(case.training.epochs * steps_an_epoch)
    every = case.training.evaluate_every or math.ceil(steps_an_epoch / 2)  # as tasks/train/trainer/fit.py has it
    validated = FORWARD_SHARE[method.kind] * ground.num_validation / case.batch
    total = case.flops_a_step(cut) * (num_steps + validated * math.ceil(num_steps / min(every, num_steps)))
    read = ground.num_replay if case.training.anchor else 0  # once, before the first step
    if case.reads_reference:
        read = case.num_rows + ground.num_validation
    total += FORWARD_SHARE[method.kind] * read / case.batch * case.flops_a_step(cut)
    passes = sum(map(len, cut)) / len(cut) / chosen.devices
    if case.grpo:  # each answer is drawn token by token, all of a micro-batch at a time, and learned from
        total += FORWARD_SHARE[method.kind] * case.flops_a_step(cut) * num_steps / case.grpo.iterations
        passes += passes * case.grpo.max_new_tokens / case.grpo.iterations
    evaluation = evaluation_bytes(shape, method, case.machine.device)
    return Estimate(
        method=method,
        chosen=chosen,
        num_learning=learns.num_learning,
        num_parameters=learns.num_parameters(shape),
        micro_batch=size,
        memory=most,
        peak=most.peak,
        evaluation=evaluation,
        free=case.free_bytes,
        disk=disk_bytes(shape, method, chosen),
        work=work.summed(
            case.drawn,
            cut,
            source=ground.source,
            num_rows=case.num_rows,
            row_tokens=ground.row_tokens,
            longest=ground.longest,
        ),
        num_steps=num_steps,
        flops=total,
        seconds=seconds(total, num_steps * shape.num_layers * passes, rate) if rate else None,
        rate_source=rate.source if rate else "",
        notes=tuple(_notes(case, most.peak, evaluation)),
    )


def _notes(case: BudgetCase, peak: int, evaluation: int) -> Iterator[str]:
    shape, method, machine = case.ground.shape, case.method, case.machine
    if shape.num_expert and method.kind != "full":
        quantized = " or quantize" if method.kind == "qlora" else ""
        yield (
            f"the base is a mixture of experts: {method.kind} does not train{quantized} its {shape.num_expert:,} "
            "expert weights, only the other linear modules"
        )
    every, steps = case.training.evaluate_every, case.training.max_steps
    if every and steps and every > steps:
        yield (
            f"training.evaluate_every={every} is more than training.max_steps={steps}: the validation rows are "
            "evaluated once, at the end, without early stopping"
        )
    if evaluation > peak:
        precision = "bfloat16" if machine.device.has_bfloat16 else "float32"
        free = "" if evaluation <= machine.free_bytes else f"; {machine.free_bytes / 1e9:.1f} GB are free"
        yield (
            f"evaluation and serving load the whole base in {precision}, which takes more memory than training: at "
            f"least {evaluation / 1e9:.1f} GB{free}"
        )


def remedies(case: BudgetCase) -> list[str]:
    """The changes of a few settings that would make it fit, the least first; each as --set takes it.

    Those with DeepSpeed are among them where it is yet to be installed.
    """
    method, one = case.method, {"micro_batch": "auto"}
    quantized = Method(kind="qlora") if method.kind != "lora" else method.model_copy(update={"kind": "qlora"})
    again = {"checkpointing": True}
    moved = {"strategy": "zero3", "offload": True}
    over_devices: list[tuple[Method, dict[str, str], dict[str, Any]]] = [
        (method, {}, {"strategy": "fsdp"}),
        (method, {}, moved),
        (method, one, moved | again),
    ]
    tried: list[tuple[Method, dict[str, str], dict[str, Any]]] = [
        (method, one, {}),
        (method, {}, again),
        (method, one, again),
        *(over_devices if case.compute.num_ranks > 1 else ()),
        (Method(kind="lora"), one, again),
        (quantized, one, {}),
        (quantized, one, again),
    ]
    machine = case.machine._replace(device=case.machine.device.model_copy(update={"has_deepspeed": True}))
    found = []
    for other, training_change, compute_change in tried:
        training = case.training.model_copy(update=training_change)
        compute = case.compute.model_copy(update=compute_change)
        try:
            would = estimate(replace(case, method=other, training=training, compute=compute, machine=machine))
        except ConfigError:
            continue
        if would.fits:
            changes = [f"method.kind={other.kind}"] if other.kind != method.kind else []
            changes += [f"training.micro_batch={would.micro_batch}"] * (would.micro_batch != case.micro_batch)
            changes += [f"compute.{name}={str(value).lower()}" for name, value in compute_change.items()]
            found.append(" ".join(changes))
    return list(dict.fromkeys(found))[:3]


def shortage(would: Estimate, others: Sequence[str]) -> str:
    """Empty where it fits; otherwise one line that says what is short and which settings would fit."""
    if would.fits:
        return ""
    verdict = "will not fit" if would.peak > would.free else "may not fit"
    need = f"training {verdict}: about {would.peak / 1e9:.1f} GB at peak, {would.free / 1e9:.1f} GB free"
    need += "" if would.peak > would.free else ", and the estimate may be 15 % too low"
    return f"{need}; settings that fit: {', or '.join(others)}" if others else f"{need}; no known settings fit"


class BeforeTraining(NamedTuple):
    """How a training begins on this machine."""

    micro_batch: int  # rows on the device at once
    ddp: DdpMemory | None = None  # by which compute.strategy=auto decides
    shortage: str = ""  # a warning where it may not fit


def before_training(
    base: Base,
    tokens: Tokens,
    method: Method,
    training: Training,
    compute: Compute,
    *,
    preference: Preference | None = None,
    grpo: Grpo | None = None,
) -> BeforeTraining:
    """Estimate the training on this machine.

    With `preference` they are its pairs or labelled answers, with `grpo` the answers that are drawn. A base that cannot
    be reckoned with trains as it is set.
    """
    try:
        ground = ground_of(base, tokens)
        ground = ground.of_preference(preference) if preference else ground
        case = BudgetCase(ground, method, training, compute, machine())
        case = on_rewards(case, grpo) if grpo else case
    except ValueError:  # what its files say is not known here
        most = training.batch * (grpo.group if grpo else 1)
        return BeforeTraining(training.micro_batch if isinstance(training.micro_batch, int) else most)
    would = estimate(case)
    changes = [] if would.fits else remedies(case)
    return BeforeTraining(would.micro_batch, case.ddp, shortage(would, changes))
