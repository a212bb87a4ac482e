"""`tunewright compare`: which variants are asked for, and what they came to in a terminal."""

import shlex
from collections.abc import Sequence
from itertools import product
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.deployment_file import Pipeline, override
from tasks.comparison import Comparison, row
from tasks.config import Settings
from tasks.errors import ConfigError
from tasks.stopped import from_here

SECTIONS = ("method", "training", "compute")
MOST_VARIANTS = 64


def variants(pipeline: Pipeline, varied: Sequence[str], seeds: int) -> dict[str, Settings]:
    """The settings of every combination of the values, by its assignments: "method.rank=8 training.epochs=2".

    Raises ConfigError where they could not be compared on the same validation rows, or one of them is refused.
    """
    if not varied:
        raise ConfigError("--vary: missing; accepted: section.field=value,value, such as method.rank=8,16")
    choices = [_choices(pipeline, each) for each in varied]
    if len({_key(each) for each in varied}) < len(varied):
        raise ConfigError(f"--vary: a setting stands twice in {', '.join(map(_key, varied))}; list its values in one")
    combinations = [*product(*choices)]
    if len(combinations) > MOST_VARIANTS:
        raise ConfigError(f"--vary: {len(combinations)} variants; accepted: at most {MOST_VARIANTS}")
    if seeds > 1 and any(_key(each) == "training.seed" for each in varied):
        raise ConfigError("--vary training.seed: --seeds trains each variant from more than one; give one of them")
    found: dict[str, Settings] = {}
    for assignments in combinations:
        settings = override(pipeline, assignments, "--vary").settings
        name = " ".join(assignments)
        if twin := next((other for other, known in found.items() if known == settings), None):
            raise ConfigError(f"--vary: {twin} and {name} are the same settings; leave one out")
        found[name] = settings
    return found


def _key(varied: str) -> str:
    return varied.partition("=")[0]


def _split(text: str) -> list[str]:
    """The parts between commas, but for those within lists and mappings."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _choices(pipeline: Pipeline, varied: str) -> list[str]:
    """The assignments of one setting, one a value."""
    key, equals, text = varied.partition("=")
    values = _split(text)
    if not equals or len(values) < 2 or not all(values):
        raise ConfigError(f"--vary {varied}: accepted: section.field=value,value with two values or more")
    measure = pipeline.settings.training.best_by
    if key == "training.best_by":
        raise ConfigError(f"--vary {key}: it is what the variants are ranked by; --set {key}=... changes it for all")
    if key == "model.base" and measure == "loss":
        raise ConfigError(
            "--vary model.base: a token is not the same for two bases, so their losses do not compare; "
            "--set training.best_by=exact_match, or another metric, ranks them by their answers"
        )
    if key != "model.base" and key.partition(".")[0] not in SECTIONS:
        raise ConfigError(
            f"--vary {key}: variants are compared on the same validation rows; accepted: model.base, and settings of "
            f"{', '.join(SECTIONS)}"
        )
    return [f"{key}={value}" for value in values]


def show(console: Console, found: Comparison, what: str) -> None:
    """The variants in their order, which is the best, where to look and what to run next; `what` is the file."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("variant", overflow="fold")
    for head in row(found.ranked[0]):
        table.add_column(head, justify="right")
    for each in found.ranked:
        style = "dim" if each.state != "finished" else "bold green" if each is found.ranked[0] else ""
        table.add_row(Text(each.variant), *map(Text, row(each).values()), style=style)
    console.print()
    console.print(table)
    console.print(Text(f"\n{found.sentence}\n"), soft_wrap=True)
    for trial in (trial for each in found.ranked for trial in each.trials if trial.state == "failed"):
        console.print(Text(f"{trial.variant}, seed {trial.seed}: {trial.said}", "yellow"), soft_wrap=True)
    for name, place in (("comparison", from_here(found.folder / "report.html")), ("MLflow", found.link)):
        console.print(Text.assemble((f"{name:<20}", "bold"), str(place)), soft_wrap=True)
    best = found.ranked[0]
    if best.state == "finished":
        console.print(Text("next", "bold"))
        console.print(Text(f"  tunewright run {what} {_set(best.variant)}"), soft_wrap=True)


def _set(variant: str) -> str:
    """The variant for the command line of a run, whose training is then found in the cache."""
    return shlex.join(text for assignment in variant.split(" ") for text in ("--set", assignment))


def as_json(found: Comparison) -> dict[str, Any]:
    """What `--json` prints."""
    return found.model_dump(mode="json", exclude={"key"})
