"""Names of flow runs that say what runs: the pipeline, what this run changes, and when it started."""

import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from prefect.context import FlowRunContext
from prefect.runtime import deployment
from pydantic import TypeAdapter

from tunewright.flows.origins import THIS_RUN, origins_of
from tunewright.flows.parameters import flat, written

CHANGES, LONGEST = 3, 30  # changed settings in a name, and characters of a value
FILLED_IN = re.compile(  # what Prefect's form fills in, with an animal or a dish: "Refined-Saola"
    "(?:Awesome|Rustic|Small|Gorgeous|Fantastic|Sleek|Intelligent|Unbranded|Refined|Licensed|Generic|Practical"
    "|Ergonomic|Handcrafted|Tasty|Handmade|Incredible)-(.+)"
)
OF_THIS_RUN = ("command line", THIS_RUN)


def run_name() -> str:
    """Return a name such as "demo learning_rate=0.0001 2026-11-27 14:05"; a name that a person typed is kept."""
    parameters = _context().parameters or {}
    return _typed() or _dated(deployment.name or parameters["registry"].name or "finetune", *_changes(parameters))


def comparison_name() -> str:
    """Return a name such as "compare demo 4 variants 2026-11-27 14:05"; a name that a person typed is kept."""
    parameters = _context().parameters or {}
    return _typed() or _dated(
        "compare", parameters["settings"].registry.name, f"{len(parameters['variants'])} variants"
    )


def _context() -> FlowRunContext:
    context = FlowRunContext.get()
    assert context
    return context


def _typed() -> str:
    """Return the run's name if a person chose it, else ""."""
    run = _context().flow_run
    return run.name if run and not is_random(run.name) else ""


def _dated(*words: str) -> str:
    return " ".join([*words, f"{datetime.now():%Y-%m-%d %H:%M}"])


def _changes(parameters: Mapping[str, Any]) -> list[str]:
    settings = flat(TypeAdapter(dict[str, Any]).dump_python(dict(parameters), mode="json"))
    origins = origins_of(settings)
    changed = [key for key in settings if origins.get(key, "").startswith(OF_THIS_RUN)]
    shown = [f"{key.rpartition('.')[2]}={written(settings[key])[:LONGEST]}" for key in changed[:CHANGES]]
    return [*shown, *([f"and {len(changed) - CHANGES} more"] if len(changed) > CHANGES else [])]


def is_random(name: str) -> bool:
    """Whether Prefect made the name up: its server "lurking-puffin", or its form "Refined-Saola"."""
    if found := FILLED_IN.fullmatch(name):
        return found[1][0].isupper()
    first, dash, second = name.partition("-")
    return bool(dash) and {first, second} <= _words()


@cache
def _words() -> frozenset[str]:
    from coolname.data import config  # the lists that prefect.utilities.names.generate_slug draws from

    return frozenset(word for part in config.values() for word in part.get("words", ()))
