"""`tunewright compare`: which variants are asked for, and what they came to in a terminal."""

import shlex
from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text

from tunewright.cli.deployment_file import Pipeline, override
from tunewright.cli.settings import listed
from tunewright.cli.terminal import opened_by, show_next
from tunewright.cli.visible import plain_table
from tunewright.comparison import VariantComparison, notes, rows
from tunewright.comparison.ranking import recommended
from tunewright.config import Settings, from_here
from tunewright.errors import ConfigError
from tunewright.registry.address import tracking_uri

SECTIONS = ("method", "training", "preference", "grpo", "compute")
MOST_VARIANTS = 64


class Variant(NamedTuple):
    """A combination of values, as `run` would be given it."""

    assignments: tuple[str, ...]
    settings: Settings


def variants(pipeline: Pipeline, varied: Sequence[str]) -> dict[str, Variant]:
    """Every combination of the values, by what tells it from the others: "rank=8 learning_rate=1e-4".

    Raises ConfigError where they could not be compared on the same validation rows, or one of them is refused.
    """
    if not varied:
        raise ConfigError("--vary: missing; accepted: section.field=value,value, such as method.rank=8,16")
    keys = [each.partition("=")[0] for each in varied]
    for key in keys:
        try:
            listed(key)
        except ConfigError as error:
            raise ConfigError(f"--vary {error}") from None
    if len({*keys}) < len(keys):
        raise ConfigError(f"--vary: a setting appears twice in {', '.join(keys)}; list its values in one")
    if "training.seed" in keys:
        raise ConfigError(
            f"--vary {varied[keys.index('training.seed')]}: a seed makes no variant; leave it out: --seeds N trains "
            "each variant with N seeds, the first of which is training.seed"
        )
    values = [_values(pipeline, key, each) for key, each in zip(keys, varied, strict=True)]
    if (number := prod(map(len, values))) > MOST_VARIANTS:
        raise ConfigError(f"--vary: {number} variants; accepted: at most {MOST_VARIANTS}")
    short = [key.rpartition(".")[2] for key in keys]
    names = short if len({*short}) == len(short) else keys
    found: dict[str, Variant] = {}
    for combination in product(*values):
        name = " ".join(f"{key}={value}" for key, value in zip(names, combination, strict=True))
        assignments = tuple(f"{key}={value}" for key, value in zip(keys, combination, strict=True))
        settings = override(pipeline, assignments, "--vary").settings
        if prompt := settings.method.prompt:
            raise ConfigError(
                f"method.kind={prompt} trains nothing, and variants are compared by their trainings; accepted: "
                "tunewright run with each, which compares them on the test rows"
            )
        if twin := next((other for other, known in found.items() if known.settings == settings), None):
            raise ConfigError(f"--vary: {twin} and {name} are the same settings; leave one out")
        found[name] = Variant(assignments, settings)
    if len({_measured_by(each.settings) for each in found.values()}) > 1:
        key = next(key for key in ("grpo.rewards", "preference.method", "training.best_by", *keys) if key in keys)
        raise ConfigError(
            f"--vary {key}: the variants would be compared by different measures of the validation rows; accepted: "
            "variants that all end with a training on references, on pairs or on labelled answers "
            "(preference.method), or on the same rewards"
        )
    return found


def _measured_by(settings: Settings) -> tuple[str, bool, tuple[tuple[str, float], ...]]:
    """The measure of the validation rows of a variant, whether it is of labels, and its reward functions."""
    return settings.ranked_by, settings.preference.learns_labels, tuple(sorted(settings.grpo.rewards.items()))


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


def _values(pipeline: Pipeline, key: str, varied: str) -> list[str]:
    """The values of one setting. Raises ConfigError where it cannot be varied."""
    values = _split(varied.partition("=")[2])
    if len(values) < 2 or not all(values):
        raise ConfigError(f"--vary {varied}: accepted: section.field=value,value with two values or more")
    measure = pipeline.settings.ranked_by
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
    return values


def show(console: Console, found: VariantComparison, asked: dict[str, Variant], what: str) -> None:
    """The variants in their order, which is the best, where to look and what to run next; `what` is the file."""
    table = plain_table("variant")
    table_rows = rows(found.ranked)
    for head in table_rows[0]:
        table.add_column(head, justify="right")
    for each, row in zip(found.ranked, table_rows, strict=True):
        style = "dim" if each.state != "finished" else "bold green" if each is found.ranked[0] else ""
        table.add_row(Text(each.variant), *map(Text, row.values()), style=style)
    console.print()
    console.print(table)
    if said := notes(found.ranked):
        console.print(Text(said, "dim"), soft_wrap=True)
    console.print(Text(f"\n{found.sentence}\n"), soft_wrap=True)
    for trial in (trial for each in found.ranked for trial in each.trials if trial.state == "failed"):
        console.print(Text(f"{trial.variant}, seed {trial.seed}: {trial.said}", "yellow"), soft_wrap=True)
    best = recommended(found.ranked)
    variant = asked[best.variant]
    link = opened_by(found.link, tracking_uri(variant.settings.registry))
    for name, place in (("comparison", from_here(found.folder / "report.html")), ("in MLflow", link)):
        console.print(Text.assemble((f"{name:<20}", "bold"), str(place)), soft_wrap=True)
    changes = shlex.join(text for each in variant.assignments for text in ("--set", each))
    varies_rows = any(each.startswith("training.share=") for each in variant.assignments)
    is_part = varies_rows and variant.settings.training.share < 1
    run = f"tunewright run {what} {changes}          # evaluates it on the test rows, and decides"
    following = [run] if best.state == "finished" and not is_part else []
    show_next(console, following)


def as_json(found: VariantComparison) -> dict[str, Any]:
    """Return the output of `--json`."""
    return found.model_dump(mode="json", exclude={"key"})
