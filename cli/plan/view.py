"""Print the result of `tunewright plan` in a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunewright.cli.plan import Costs, Planned
from tunewright.cli.terminal import COLOURS
from tunewright.cli.visible import plain_table
from tunewright.cost_model import Estimate
from tunewright.cost_model.money import span
from tunewright.reports.progress import duration, share

MOST_CAUSES = 6
SHOWN_BYTES = 5_000_000  # a smaller part would read 0.00 GB


def show_plan(console: Console, planned: Planned) -> None:
    """Which tasks would run and why, then what training would take."""
    table = plain_table("stage", "", "because")
    for step in planned.steps:
        rest = len(step.because) - MOST_CAUSES
        said = [step.note, *step.because[:MOST_CAUSES], f"and {rest} more" if rest > 0 else ""]
        table.add_row(step.name, Text(step.state, COLOURS[step.state]), Text("\n".join(filter(None, said))))
    console.print(table)
    console.print()
    _show_number(console, planned)
    if planned.costs:
        _show_costs(console, planned.costs)
    elif planned.unknown:
        console.print(planned.unknown, style="dim", soft_wrap=True)
    for note in planned.notes:
        console.print("  ".join(_labelled(note)), soft_wrap=True)


def show_last_word(console: Console, planned: Planned) -> None:
    """Sum up how many tasks would run, and what there is too little memory for."""
    _show_number(console, planned)
    if planned.costs and planned.costs.warning:
        _show_shortage(console, planned.costs)


def _show_number(console: Console, planned: Planned) -> None:
    runs = sum(step.state == "run" for step in planned.steps)
    said = f"{runs} of {len(planned.steps)} tasks would run" if runs else "Nothing would run: all is cached"
    if any(step.last and step.because[:1] and step.because[0].startswith("runs after") for step in planned.steps):
        said += "; one that runs after another is cached if the output of that one stays the same"
    console.print(said, soft_wrap=True)


def _show_costs(console: Console, costs: Costs) -> None:
    one, device = costs.chosen, costs.machine.device
    where = "this machine" if costs.machine.is_here else "not this machine"
    console.print(Text(f"\ntraining with {one.method.kind} on {device.name} ({where})", "bold"))
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="dim")
    facts.add_column(overflow="fold")
    for name, said in _facts(costs):
        facts.add_row(name, said)
    console.print(facts)
    console.print()
    console.print(_methods(costs))
    if costs.warning:
        console.print()
        _show_shortage(console, costs)


def _show_shortage(console: Console, costs: Costs) -> None:
    console.print(costs.warning, style="yellow", soft_wrap=True)


def _facts(costs: Costs) -> list[tuple[str, str]]:
    one = costs.chosen
    trained = share(one.num_learning, one.num_parameters)
    sizes = one.memory.parts | {"allocator cache": one.memory.holes}
    parts = ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.items() if size >= SHOWN_BYTES)
    is_more = sum(sizes.values()) > one.peak + SHOWN_BYTES
    of_each = " on each device" if one.chosen.devices > 1 else ""
    of = "parts, of which not all are in memory at the same time" if is_more else "parts"
    return [
        ("trainable", f"{one.num_learning:,} of {one.num_parameters:,} parameters ({trained})"),
        (
            "memory",
            f"{_most(costs)}{_bytes(one.peak)} at peak{of_each}, {_bytes(one.free)} free; {of}: {parts}",
        ),
        *_rows(costs),
        *((section, _later(section, one, costs.unit)) for section, one in costs.later.items()),
        ("compute", _compute(one)),
        ("disk", f"{_bytes(one.disk)} during training"),
        *map(_labelled, (*costs.notes, *one.notes)),
    ]


def _labelled(note: str) -> tuple[str, str]:
    """The label of a note, and what it says."""
    said = note.removeprefix("warning: ")
    return ("note" if said == note else "warning"), said


def _most(costs: Costs) -> str:
    return "at most " if costs.is_most else ""


def _rows(costs: Costs) -> list[tuple[str, str]]:
    one, work = costs.chosen, costs.chosen.work
    at_once = f"micro-batches of {one.micro_batch}"
    if costs.is_most:
        said = f"not read yet: at most model.max_length={work.longest} tokens each; {at_once}"
        return [("rows", said)]
    tokens, computed = work.row_tokens * work.num_rows, work.computed_tokens * work.num_rows
    said = f"{work.num_rows:,} with {'' if work.source == 'render' else 'about '}{tokens:,.0f} tokens"
    said += f", about {computed:,.0f} after sharing the common prefix" if computed < 0.99 * tokens else ""
    said += f"; estimated {costs.rows_from}" if costs.rows_from else ""
    cost = costs.cost(one)
    paid = [("cost", f"training: about {span(*cost)}, at {costs.price.said}")] if cost and costs.price else []
    return [("rows", said), ("steps", f"{one.num_steps:,}, {at_once}"), ("time", _time(one)), *paid]


def _later(section: str, one: Estimate, unit: str) -> str:
    of = "drawn answers an epoch" if section == "grpo" else unit
    number = f"{'' if one.work.source == 'render' else 'about '}{one.work.num_rows:,} {of}"
    said = f"then {one.num_steps:,} steps on {number}, micro-batches of {one.micro_batch}; "
    said += f"{_bytes(one.peak)} at peak{'' if one.fits else ', which may not fit'}"
    return f"{said}; about {_duration(one.seconds)}" if one.seconds else said


def _compute(one: Estimate) -> str:
    chosen = one.chosen
    parts = [
        chosen.precision,
        "shared prefix" if chosen.layout == "shared" else f"{chosen.layout} rows",
        chosen.attention,
        chosen.optimizer,
    ]
    if chosen.devices > 1:
        by = f"DeepSpeed ZeRO {chosen.zero}" if chosen.zero else "FSDP" if chosen.sharded else "DDP"
        parts.append(f"{chosen.devices} devices ({by}{', offload' if chosen.offload else ''})")
    switches = ("checkpointing", "liger", "compile")
    return ", ".join([*parts, *(name for name in switches if getattr(chosen, name))])


def _methods(costs: Costs) -> Table:
    table = Table("method", box=None, pad_edge=False, header_style="bold")
    priced = ["cost"] if costs.price else []
    for column in ("trainable", "share", "memory", "time", *priced, "disk"):
        table.add_column(column, justify="right")
    table.add_column("")
    for one in (costs.chosen, *costs.others):
        short = "tight" if one.peak <= one.free else "may not fit" if costs.is_most else "does not fit"
        fits = Text("fits", "green") if one.fits else Text(short, "yellow")
        table.add_row(
            one.method.kind,
            f"{one.num_learning:,}",
            share(one.num_learning, one.num_parameters),
            f"{_most(costs)}{_bytes(one.peak)}",
            _duration(one.seconds) if one.seconds else "?",
            *((span(*cost) if (cost := costs.cost(one)) else "?") for _ in priced),
            _bytes(one.disk),
            fits,
        )
    return table


def _time(one: Estimate) -> str:
    if one.seconds is None:
        first = "" if one.work.source == "render" else " once the rows are rendered (tunewright run ... --until render)"
        return f"unknown: --calibrate times a few steps on this machine{first}"
    return (
        f"training steps and evaluations, without loading, saving and answering the test rows: "
        f"about {_duration(one.seconds)}, based on {one.rate_source}"
    )


def _duration(seconds: tuple[float, float]) -> str:
    low, high = map(duration, seconds)
    return low if low == high else f"{low} to {high}"


def _bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size < 10e9 else f"{size / 1e9:.0f} GB"
