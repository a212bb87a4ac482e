"""Python and the packages, held against what this project declares."""

import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

from tunewright.cli.doctor.finding import Finding

PROJECT = "tunewright"
HEART = ("prefect", "mlflow", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "great-expectations")


def findings() -> Iterator[Finding]:
    """Python's version, the packages that are missing or too old, and the extras that are there."""
    needed = metadata.metadata(PROJECT)["Requires-Python"] or ""
    has = platform.python_version()
    is_enough = Requirement(f"python{needed}").specifier.contains(has)
    yield (
        Finding("ok", "python", f"{has} at {sys.executable}")
        if is_enough
        else Finding("failure", "python", f"{has}; {needed} is needed", "make setup PYTHON=python3.11")
    )
    declared = [Requirement(line) for line in metadata.requires(PROJECT) or []]
    extras = metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    wrong = [said for each in declared if _holds(each) and (said := _wrong(each))]
    if wrong:
        yield Finding("failure", "packages", "; ".join(wrong), "make setup, or pip install -U with these versions")
    else:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in HEART)
        yield Finding("ok", "packages", versions)
    for extra in extras:
        of_it = [each for each in declared if _holds(each, extra) and not _holds(each)]
        lacking = [said for each in of_it if (said := _wrong(each))]
        found = f"not installed: {', '.join(lacking)}" if lacking else ", ".join(each.name for each in of_it)
        yield Finding("ok", f"extra {extra}", found)


def _holds(requirement: Requirement, extra: str = "") -> bool:
    """Return whether the requirement applies on this platform, with the given extra or with none."""
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _wrong(requirement: Requirement) -> str:
    """Describe the fault of the installed package, or return "" if its version satisfies the requirement."""
    try:
        has = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is missing"
    is_enough = requirement.specifier.contains(has, prereleases=True)
    return "" if is_enough else f"{requirement.name} {has} is not {requirement.specifier}"
