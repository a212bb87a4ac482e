"""What `tunewright plan` tells: which stages would run, and what training would take on this machine or a named one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flows.calls import Step
from flows.finetune import plan
from tasks.artifacts import Artifact, Base, Rows, Tokens
from tasks.budget import Estimate, Ground, calibration, devices, estimate, remedies, shapes, shortage, work
from tasks.budget.timing import Rate, rate_of
from tasks.config import STAGES, Method, Settings, Stage
from tasks.errors import ConfigError

KINDS = ("lora", "qlora", "full", "spectrum")


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The budget of the method that is set, and of the others with their defaults, on one machine."""

    machine: devices.Machine
    source: work.Source
    chosen: Estimate
    others: Sequence[Estimate]
    warning: str


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The stages, and the costs of training, or why they are not known."""

    steps: Sequence[Step]
    costs: Costs | None
    unknown: str = ""


def look_up(
    settings: Settings, until: Stage, refresh: Sequence[Stage], device: str = "", *, calibrate: bool = False
) -> Planned:
    """What a run would do and take. Nothing is run but, if asked for, a few steps of training to time them.

    Raises ConfigError for a device that is not known, and for settings that cannot be on it.
    """
    machine = devices.machine(device)
    steps = plan(settings, until, refresh)
    if STAGES.index(until) < STAGES.index("train"):
        return Planned(steps=steps, costs=None)
    made = {step.stage: step.record or step.last for step in steps}
    try:
        ground = _ground(settings, made)
    except ValueError as error:  # files that the arithmetic does not know
        return Planned(steps=steps, costs=None, unknown=f"what training takes cannot be said: {error}")
    if ground is None:
        unknown = "what training takes is known once the base is here: tunewright run FILE --until base"
        return Planned(steps=steps, costs=None, unknown=unknown)
    rates = _Rates(settings, made, ground, machine)
    if calibrate:
        rates.calibrate()
    return Planned(steps=steps, costs=_costs(settings, ground, machine, rates))


def _ground(settings: Settings, made: dict[str, Artifact | None]) -> Ground | None:
    """The base and the rows: as render made them, or as ingest read them, or as long as they may be."""
    base, tokens, rows = made.get("base"), made.get("render"), made.get("ingest")
    if isinstance(base, Base):
        shape, config = shapes.shape_in(base.weights), shapes.config_in(base.weights)
    else:
        shape = shapes.shape_at(settings.model.base, settings.model.revision)
        if shape is None:
            return None
        config = shape.config
    if isinstance(tokens, Tokens):
        number, sample = work.rows_of_render(tokens.path("train.parquet"))
        return Ground(shape, config, "render", number, tokens.num_validation, sample, tokens.longest)
    longest, split = settings.model.max_length, settings.split
    if isinstance(rows, Rows) and rows.num_rows:
        share = 1 - split.validation - split.test
        number, sample = work.rows_of_ingest(rows.path("rows.parquet"), share)
        num_validation = int(rows.num_rows * split.validation)
        longest = max(len(row["input_ids"]) for row in sample)
        return Ground(shape, config, "ingest", max(1, number), num_validation, sample, longest)
    batch = settings.training.batch
    return Ground(shape, config, "settings", batch, 0, work.rows_assumed(longest, batch), longest)


class _Rates:
    """How fast each method is on the machine, by what is best known."""

    def __init__(
        self, settings: Settings, made: dict[str, Artifact | None], ground: Ground, machine: devices.Machine
    ) -> None:
        self.settings, self.ground, self.machine = settings, ground, machine
        base, tokens = made.get("base"), made.get("render")
        self.base = base if isinstance(base, Base) else None
        self.tokens = tokens if isinstance(tokens, Tokens) else None

    def calibrate(self) -> None:
        """Times a few steps of what is planned."""
        if not self.machine.is_here:
            raise ConfigError(f"--calibrate: {self.machine.device.name} is not here; leave --device out")
        if self.base is None or self.tokens is None:
            raise ConfigError("--calibrate needs rows and weights: tunewright run FILE --until render makes them")
        s = self.settings
        calibration.calibrate(self.base, self.tokens, self.ground, s.method, s.training, s.compute, self.machine)

    def of(self, method: Method) -> Rate | None:
        """A measured rate, or an estimate from the card's peak; None without either, or without rows to time."""
        if self.ground.source == "settings":
            return None
        found = None
        if self.machine.is_here and self.base:
            found = calibration.measured(
                self.base,
                self.tokens,
                self.ground,
                method,
                self.settings.training,
                self.settings.compute,
                self.machine,
            )
        return found or rate_of(self.machine.teraflops)


def _costs(settings: Settings, ground: Ground, machine: devices.Machine, rates: _Rates) -> Costs:
    training, compute = settings.training, settings.compute
    chosen = estimate(ground, settings.method, training, compute, machine, rates.of(settings.method))
    others = []
    for kind in KINDS:
        if kind == settings.method.kind:
            continue
        try:
            others.append(estimate(ground, Method(kind=kind), training, compute, machine, rates.of(Method(kind=kind))))
        except ConfigError:  # what compute asks for cannot be with this method
            continue
    changes = [] if chosen.fits else remedies(ground, settings.method, training, compute, machine)
    return Costs(
        machine=machine,
        source=ground.source,
        chosen=chosen,
        others=others,
        warning=shortage(chosen, changes),
    )


def as_json(planned: Planned) -> dict[str, Any]:
    """The costs as `--json` shows them: bytes, seconds and counts."""
    if planned.costs is None:
        return {"training": None} | ({"unknown": planned.unknown} if planned.unknown else {})
    costs = planned.costs
    device = costs.machine.device.model_dump() | {"free_bytes": costs.machine.free_bytes}
    methods = [one_as_json(one) for one in (costs.chosen, *costs.others)]
    return {"training": {"device": device, "rows": costs.source, "methods": methods, "warning": costs.warning}}


def one_as_json(one: Estimate) -> dict[str, Any]:
    """A method's budget."""
    return {
        "method": one.method.kind,
        "trained_parameters": one.num_learning,
        "parameters": one.num_parameters,
        "micro_batch": one.micro_batch,
        "memory_bytes": one.memory.parts | {"peak": one.peak, "evaluation": one.evaluation},
        "fits": one.fits,
        "disk_bytes": one.disk,
        "longest_row": one.work.longest,
        "rows": one.work.num_rows,
        "tokens_an_epoch": round(one.work.num_rows * one.work.row_tokens),
        "computed_tokens_an_epoch": round(one.work.num_rows * one.work.computed_tokens),
        "steps": one.num_steps,
        "seconds": [round(second, 4) for second in one.seconds] if one.seconds else None,
        "seconds_from": one.rate_source,
        "computed_with": one.chosen.model_dump(),
        "notes": one.notes,
    }
