"""Look up for `tunewright plan` the stages that would run, and estimate training on this machine or a named device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow.parquet as pq
from pydantic import ValidationError

from tunewright.artifacts import Artifact, Base, Splits, Tokens, no_replay
from tunewright.cli.deployment_file import Pipeline
from tunewright.cli.plan import gate
from tunewright.cli.plan.sample import Sampled, base_here, sampled
from tunewright.config import METHODS, STAGES, Compute, Data, Method, Operation, Settings, Training
from tunewright.cost_model import (
    BudgetCase,
    Estimate,
    Ground,
    devices,
    estimate,
    ground_of_render,
    remedies,
    shapes,
    shortage,
    trainings,
    work,
)
from tunewright.cost_model.money import Price, price_of, without_price
from tunewright.cost_model.timing import Rate, rate_of
from tunewright.errors import ConfigError, DataError
from tunewright.flows.budget import refusal
from tunewright.flows.calls import MADE_NOW, TRAININGS, Step
from tunewright.flows.finetune import GIVEN_GENERAL, plan
from tunewright.flows.inputs import Inputs, inputs, looked_at
from tunewright.flows.outcome import few_test_rows, too_few_test_rows
from tunewright.modeling import models
from tunewright.modeling.compute import ZERO, Device
from tunewright.reports.pages import counted, percent
from tunewright.serving import context_length
from tunewright.store import data_versions
from tunewright.tasks.ingest.files import SourceFile, is_remote
from tunewright.tasks.ingest.sampling import Sample, first_rows
from tunewright.tasks.label_errors import require_clusters
from tunewright.tasks.prefer import without_rows
from tunewright.tasks.rehearse import room
from tunewright.tasks.split.proof import LEAST_VISIBLE, visible_difference
from tunewright.tasks.train import calibration

UNTRAINED = "nothing is trained: with method.kind={} the candidate is the base with a prompt"
CLUSTERS = "near-duplicates count as one row, so this gain may be larger after split"


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The budget of the method that is set, and of the others beside it, on one machine."""

    machine: devices.Machine
    chosen: Estimate
    others: Sequence[Estimate]
    later: Mapping[str, Estimate]  # of the trainings that follow the chosen one, by the sections of their settings
    warning: str
    notes: Sequence[str]
    rows_from: str = ""  # where rows are estimated, from what
    price: Price | None = None  # of an hour of the device
    unit: str = "pairs"  # what preference training takes its steps on

    def cost(self, one: Estimate) -> tuple[float, float] | None:
        """The least and the most that a training costs; None where its time or the price is unknown."""
        return one.cost(self.price) if self.price else None

    @property
    def is_most(self) -> bool:
        """Whether this is the most that the settings allow, as the rows are not known yet."""
        return self.chosen.work.source == "settings"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The stages, and the costs of training, or why they are not known."""

    steps: Sequence[Step]
    costs: Costs | None
    unknown: str = ""
    notes: Sequence[str] = ()  # where there are no costs to have them


def look_up(pipeline: Pipeline, what: str, device: str = "", *, calibrate: bool = False) -> Planned:
    """Return the stages that a run would execute and its cost; nothing runs but, with `calibrate`, a few timed steps.

    `what` is the file and its changes, for the commands in messages. Raises ConfigError for an unknown device or for
    settings that it cannot run, and DataError if a stage has already refused these data.
    """
    settings = pipeline.settings
    machine, notes = _with_packages(devices.machine(device), settings.compute)
    with looked_at(settings):
        steps = plan(settings, pipeline.until, pipeline.refresh)
        read = inputs(settings)
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"base": read.base_here})})
    first_run = next((step for step in steps if step.state == "run"), None)
    if first_run and first_run.stopped:  # it has refused these very data before
        raise DataError(first_run.stopped.said)
    unanswered = _look_up_base(settings, steps)
    made = {step.stage: step.record if step.state == "cached" else None for step in steps}
    first = None if made["ingest"] else _first_rows(read, settings.data, what)
    if STAGES.index(pipeline.until) < STAGES.index("label_errors"):  # the first that trains
        return Planned(steps=steps, costs=None, notes=[*first.warned] if first else [])
    notes += first.warned if first else ()
    notes += gate.misfits(settings, read, made, first) + _without_price(settings.operation, machine.device, steps)
    base = next(step.record or step.last for step in steps if step.stage == "base")
    is_here = isinstance(base, Base) and base.weights.is_dir()  # the store may know it by another machine's folder
    made["base"] = base if is_here else None
    try:
        ground, sample = _ground(settings, made, first)
    except ValueError as error:  # files that the arithmetic does not know
        if settings.trains:
            return Planned(steps=steps, costs=None, unknown=f"training cannot be estimated: {error}", notes=notes)
        ground, sample = None, None
    if ground is None and settings.trains:
        said = unanswered or f"model.base={settings.model.base}: not yet downloaded from the hub"
        unknown = f"{said}; training can be estimated once it is downloaded: tunewright run {what} --until base"
        return Planned(steps=steps, costs=None, unknown=unknown, notes=notes)
    if sample and sample.is_refused:
        raise DataError(sample.too_long)
    if sample and sample.is_too_long:
        unknown = f"training cannot be estimated: {sample.too_long}"
        return Planned(steps=steps, costs=None, unknown=unknown, notes=notes)
    if ground is None or not settings.trains:
        notes += [*_overridden(settings), *_of_rows(settings, made, sample, read.files)]
        return Planned(steps=steps, costs=None, unknown=UNTRAINED.format(settings.method.kind), notes=notes)
    case = BudgetCase(ground, settings.method, settings.sft, settings.compute, machine)
    reads, longest = context_length(ground.config.fields), settings.model.max_length
    if reads is not None and reads < longest:
        notes.append(
            f"the base's context is {reads} tokens, less than model.max_length={longest}; longer rows do not fit"
        )
    rates = _Rates(case, made)
    if calibrate:
        notes += rates.calibrate(what)
    notes += [sample.too_long] if sample and sample.too_long else []
    notes += _overridden(settings)
    notes += _label_errors(settings, steps, made) + _general(settings, made, ground)
    notes += _nothing_preferred(settings, ground, sample)
    notes += _of_rows(settings, made, sample, read.files)
    trains = any(step.stage in TRAININGS and step.state == "run" for step in steps)
    costs = _costs(case, rates, settings, notes, sample.said if sample else "", trains=trains)
    if costs.warning and any(step.stage == "train" and MADE_NOW in step.because for step in steps):
        beside = "while the other run trains, it holds part of the memory; beside it, "
        costs = replace(costs, warning=f"{beside}{costs.warning}")
    return Planned(steps=steps, costs=costs)


def _of_rows(
    settings: Settings, made: dict[str, Artifact | None], sample: Sampled | None, files: Sequence[SourceFile]
) -> list[str]:
    """Return the notes on the rows. Raises DataError where the run is certain to stop."""
    notes = _too_many_repeats(settings, made, sample) + _few_test_rows(settings, made, sample, files)
    return notes + _sent_out(settings, made, sample)


def _look_up_base(settings: Settings, steps: Sequence[Step]) -> str:
    """Raises ConfigError, as the run would, where the base is neither here nor on the hub.

    Returns the same sentence where the hub cannot be asked, and otherwise nothing.
    """
    if any(step.stage == "base" and step.state == "run" for step in steps):
        try:
            models.look_up(settings.model.base, settings.model.revision)
        except models.Unanswered as error:
            return str(error)
    return ""


def _with_packages(machine: devices.Machine, compute: Compute) -> tuple[devices.Machine, list[str]]:
    """A machine that is not here has the packages that compute asks for, and a note says so."""
    if machine.is_here:
        return machine, []
    there = {"liger-kernel": bool(compute.liger), "flash-attn": compute.attention == "flash_attention_2"}
    there["deepspeed"] = compute.strategy in ZERO
    device = machine.device.model_copy(
        update={
            "has_deepspeed": True,
            "has_liger": machine.device.has_liger or there["liger-kernel"],
            "has_flash_attention": machine.device.has_flash_attention
            or (there["flash-attn"] and machine.device.has_bfloat16),
        }
    )
    notes = [f"assumes that {package} is installed there" for package, is_asked in there.items() if is_asked]
    return machine._replace(device=device), notes


def _first_rows(read: Inputs, data: Data, what: str) -> Sample | None:
    """The first rows of the sources. Raises what first_rows raises, with the command that keeps the files it names."""
    try:
        return first_rows(read.files, data, read.needs)
    except DataError as error:
        if not error.see:
            raise
        keeps = f"to see each record in {error.see[0]}: tunewright run {what} --until ingest"
        raise DataError(f"{error}; {keeps}") from error


def _ground(
    settings: Settings, made: dict[str, Artifact | None], first: Sample | None
) -> tuple[Ground | None, Sampled | None]:
    """The base, and the rows: as render made them, some of earlier ones, or as long as they may be."""
    base, tokens = made["base"], made.get("render")
    if isinstance(base, Base):
        shape, config = shapes.shape_in(base.weights), shapes.config_in(base.weights)
    else:
        shape = shapes.shape_at(settings.model.base, settings.model.revision)
        if shape is None:
            return None, None
        config = shapes.config_at(settings.model.base, settings.model.revision)
    if isinstance(tokens, Tokens):
        return ground_of_render(shape, config, tokens), None
    of = made.get("split") or made.get("rehearse") or made["ingest"]
    if found := sampled(settings, base_here(settings, base), of, first):
        rows = [row for row in found.rows if not row.get("undesirable")] or [*found.rows]
        pairs = work.pairs_of(rows)
        if not rows:
            raise ValueError("none of the rows is to be trained on")
        longest, read = max(len(row["input_ids"]) for row in rows), len(found.rows)

        def share(number: int) -> tuple[int, int]:
            return round(number * found.num_rows / read), round(number * found.num_validation / read)

        ground = Ground(shape, config, found.source, *share(len(rows)), rows, longest)
        num_pairs, num_validation_pairs = share(len(pairs))
        more = {"num_pairs": num_pairs, "num_validation_pairs": num_validation_pairs}
        tested = found._replace(num_test=round(found.num_test * len(rows) / read))  # an undesirable row is not asked
        unwanted = [row for row in found.rows if row.get("undesirable")]
        more |= {"undesirable": unwanted, "num_undesirable": share(len(unwanted))[0]}
        more["num_replay"] = round(settings.split.replay * ground.num_rows)  # at most
        return replace(ground, pairs=pairs, **more, labelled=share(read + len(pairs))), tested
    batch, longest = settings.training.batch, settings.model.max_length
    rows = [work.stand_in(longest, number) for number in range(batch)]  # what nothing is known of could be
    return Ground(shape, config, "settings", batch, 0, rows, longest), None


def _overridden(settings: Settings) -> list[str]:
    """Return a note for what somebody set and no training uses: epochs beside max_steps, and all of an SFT left out."""
    sections = {"training": settings.training, "preference": settings.preference, "grpo": settings.grpo}
    notes = list[str]()
    if not settings.trains_on_answers:
        training, last = sections.pop("training"), "grpo" if settings.grpo.rewards else "preference"
        prompt = settings.method.prompt
        why = f"nothing is trained (method.kind={prompt})" if prompt else f"there is no SFT ({last}.after_sft)"
        of_sft = ("learning_rate", "epochs", "max_steps")  # the others are those of the training after it as well
        names = of_sft if settings.trains else tuple(Training.model_fields)
        usual = Training()
        if unused := [f"training.{name}" for name in names if getattr(training, name) != getattr(usual, name)]:
            notes.append(f"not used, as {why}: {', '.join(unused)}")
    return notes + [
        f"{name}.epochs={section.epochs:g} is not used: {name}.max_steps={section.max_steps} overrides it"
        for name, section in sections.items()
        if section.max_steps is not None and section.epochs != type(section).model_fields["epochs"].default
    ]


def _without_price(operation: Operation, device: Device, steps: Sequence[Step]) -> list[str]:
    """Say what follows where operation.prices has no price of the device: with a budget, each run is refused."""
    if not operation.prices or price_of(device, operation.prices):
        return []
    if (said := refusal(operation, device)) and any(step.stage in TRAININGS for step in steps):
        return [f"warning: each run on this device will be refused: {said}"]
    return [f"{without_price(device)}, so no cost is shown"]


def _label_errors(settings: Settings, steps: Sequence[Step], made: Mapping[str, Artifact | None]) -> list[str]:
    """Say what the search for label errors takes, which is not in the estimate of the training.

    Raises ConfigError where the training rows that split drew are too few clusters for it.
    """
    folds = settings.checks.label_error_folds
    if not folds or not any(step.stage == "label_errors" and step.state == "run" for step in steps):
        return []
    if isinstance(splits := made.get("split"), Splits):
        rows = pq.read_table(splits.path("train.parquet"), columns=["cluster"], filters=no_replay())
        require_clusters(len(rows["cluster"].unique()), folds)
    training, share = settings.training, (folds - 1) / folds
    of_each = "as many steps as the training" if training.max_steps else f"{percent(share)} of the training's steps"
    more = f"{folds} more trainings, each with {of_each}, and an answer to each training row"
    return [f"checks.label_error_folds={folds}: {more}, which the estimate leaves out"]


def _general(settings: Settings, made: dict[str, Artifact | None], ground: Ground) -> list[str]:
    """Say what training.keep_general does, as far as the estimate of the training does not have it."""
    if settings.training.keep_general != "auto":
        return []
    if not settings.rehearses:
        return [GIVEN_GENERAL]
    if made.get("rehearse") or made.get("split"):
        return []
    most = room(ground.num_rows, settings.split.replay)
    of = f"{counted(most, 'more training row')}, of the answers that the base ends"
    return [f"training.keep_general=auto: at most {of}; the estimate leaves them out"]


def _nothing_preferred(settings: Settings, ground: Ground, sample: Sampled | None) -> list[str]:
    """Warn where preference training has no row to learn from. Raises ConfigError where the run is certain to stop."""
    preference = settings.preference
    has_rows = ground.pairs or (preference.learns_labels and ground.undesirable)
    if preference.method == "none" or ground.source == "settings" or has_rows:
        return []
    if sample is None or (sample.is_all and not settings.data.limit):
        raise ConfigError(without_rows(preference, "training"))
    return [f"warning: of the rows that were looked at: {without_rows(preference, 'training')}"]


def _too_many_repeats(settings: Settings, made: dict[str, Artifact | None], sample: Sampled | None) -> list[str]:
    """Warn of more exact duplicates than dedupe accepts. Raises DataError where dedupe is certain to stop."""
    most = settings.dedupe.max_removed_share
    if made.get("dedupe") or sample is None or sample.repeated <= most:
        return []
    is_certain = sample.is_all and not settings.data.limit
    said = (
        f"about {sample.repeated:.0%} of the rows repeat an earlier one, more than dedupe.max_removed_share={most:g} "
        f"accepts: the run {'will' if is_certain else 'may'} stop at dedupe; remove the duplicates, or raise it"
    )
    if is_certain:
        raise DataError(said)
    return [f"warning: {said}"]


def _few_test_rows(
    settings: Settings, made: dict[str, Artifact | None], sample: Sampled | None, files: Sequence[SourceFile]
) -> list[str]:
    """Return the run's warning about few test rows, for those that split drew or for the number that it will draw.

    Raises DataError where split is certain to stop, as no row is left for validation or test.
    """
    splits = made.get("split")
    if isinstance(splits, Splits):
        tokens = made.get("render")
        said = too_few_test_rows(splits, tokens=tokens if isinstance(tokens, Tokens) else None)
        return [said] if said else []
    has_others = any(file.format == "hub" or is_remote(file.path) for file in files if not file.held_out)
    if sample is None or (sample.source == "sample" and has_others):
        return []
    if empty := next((name for name in ("validation", "test") if not getattr(sample, f"num_{name}")), ""):
        said = "so few rows leave no {0} row: the run {1} stop at split; add rows, or raise split.{0}"
        split, name = settings.split, settings.registry.name
        keeps_splits = split.sticky and data_versions.history(name, split.seed, split.by)
        if keeps_splits:
            said = "rows keep the split that they had, so few rows may leave no {0} row: the run {1} stop at split"
        is_certain = sample.is_all and not settings.data.limit
        if (is_certain or settings.data.limit in (1, 2)) and not keeps_splits:
            raise DataError(said.format(empty, "will"))
        return [f"warning: {said.format(empty, 'may')}"]
    groups = round(sample.independent * sample.num_test)
    least = visible_difference(max(1, groups))
    if least <= LEAST_VISIBLE:
        return []
    of_groups = f" (about {counted(groups, 'group')}, each of which counts once)" if groups < sample.num_test else ""
    rows = f"about {counted(sample.num_test, 'test row')}{of_groups}"
    return [few_test_rows(rows, least, f"; {CLUSTERS}")]


def _sent_out(settings: Settings, made: dict[str, Artifact | None], sample: Sampled | None) -> list[str]:
    """Return which rows go to which API."""
    splits = made.get("split")
    number = splits.num_test if isinstance(splits, Splits) else sample.num_test if sample else 0
    rows = (
        f"{'' if isinstance(splits, Splits) else 'about '}{counted(number, 'test row')}" if number else "the test rows"
    )
    return [
        f"up to {rows} are sent to {each.contender} at {each.url}, with training rows as examples"
        for each in settings.evaluation.api_models
    ]


class _Rates:
    """Return the speed of each method on the machine, from the best source known."""

    def __init__(self, case: BudgetCase, made: dict[str, Artifact | None]) -> None:
        self.case = case
        base, tokens = made.get("base"), made.get("render")
        self.base = base if isinstance(base, Base) else None
        self.tokens = tokens if isinstance(tokens, Tokens) else None

    def calibrate(self, what: str) -> list[str]:
        """Times a few steps of what is planned; returns a note where an earlier run has measured more than these."""
        machine = self.case.machine
        if not machine.is_here:
            raise ConfigError(f"--calibrate: {machine.device.name} is not in this machine; leave --device out")
        if self.base is None or self.tokens is None:
            first = f"tunewright run {what} --until render && tunewright plan {what} --calibrate"
            raise ConfigError(
                f"--calibrate: needs the base and the rendered rows, which do not exist yet; run: {first}"
            )
        if calibration.rate_of_runs(self.base, self.tokens, self.case):
            return ["--calibrate is not needed: an earlier run of this method on these rows has measured the speed"]
        calibration.calibrate(self.base, self.tokens, self.case)
        return []

    def of(self, method: Method) -> Rate | None:
        """A measured rate, or an estimate from the card's peak; None without either, or without rows to time."""
        if self.case.ground.source == "settings":
            return None
        machine, found = self.case.machine, None
        if machine.is_here and self.base:
            found = calibration.measured(self.base, self.tokens, replace(self.case, method=method))
        return found or rate_of(machine.teraflops, self.case.compute.num_ranks)


def _costs(
    case: BudgetCase,
    rates: _Rates,
    settings: Settings,
    notes: Sequence[str],
    rows_from: str,
    *,
    trains: bool,
) -> Costs:
    operation = settings.operation
    (_, case), *later = trainings(case, settings)
    chosen = estimate(case, rates.of(case.method))
    others = []
    for kind in METHODS:
        if kind == case.method.kind:
            continue
        # With the adapter that is set where both kinds have one, and otherwise with its defaults.
        shared = case.method.model_dump(exclude={"bits"}) if {kind, case.method.kind} <= {"lora", "qlora"} else {}
        try:
            other = Method.model_validate(shared | {"kind": kind})
            others.append(estimate(replace(case, method=other), rates.of(other)))
        except (ConfigError, ValidationError):  # what compute or the method asks for cannot be with this kind
            continue
    source, warning = case.ground.source, shortage(chosen, [] if chosen.fits else remedies(case))
    if warning and source == "settings":
        warning = f"if rows were as long as model.max_length={case.ground.longest} allows: {warning}"
    costs = Costs(
        machine=case.machine,
        chosen=chosen,
        others=others,
        warning=warning,
        notes=notes,
        rows_from=rows_from,
        unit="labelled answers" if settings.preference.learns_labels else "pairs",
        price=price_of(case.machine.device, operation.prices),
        later={section: estimate(each, rates.of(each.method)) for section, each in later},
    )
    most = [cost[1] for one in (chosen, *costs.later.values()) if (cost := costs.cost(one))]
    if trains and operation.budget is not None and sum(most) > operation.budget:
        said = f"the training may cost more than operation.budget={operation.budget:g}: the run asks for approval first"
        return replace(costs, notes=[*notes, said])
    return costs


def as_json(planned: Planned) -> dict[str, Any]:
    """The costs as `--json` shows them: bytes, seconds and counts; or why they are unknown."""
    if planned.costs is None:
        said = {"unknown": planned.unknown, "notes": list(planned.notes)}
        return {name: value for name, value in said.items() if value}
    costs = planned.costs
    device = costs.machine.device.model_dump() | {"free_bytes": costs.machine.free_bytes}
    methods = [one_as_json(one) | _money_as_json(costs, one) for one in (costs.chosen, *costs.others)]
    price = {"price": {"device": costs.price.device, "hour": costs.price.hour}} if costs.price else {}
    estimated = {
        "device": device,
        **price,
        "rows": costs.chosen.work.source,
        "rows_from": costs.rows_from,
        "at_most": costs.is_most,
        "methods": methods,
        **{section: one_as_json(one) | _money_as_json(costs, one) for section, one in costs.later.items()},
    }
    return {"training": estimated | {"warning": costs.warning, "notes": list(costs.notes)}}


def _money_as_json(costs: Costs, one: Estimate) -> dict[str, list[float]]:
    cost = costs.cost(one)
    return {"cost": [round(each, 6) for each in cost]} if cost else {}


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
