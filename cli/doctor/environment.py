"""The machine and the packages, and what of the environment is unsafe or sends something home."""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from typing import Literal, NamedTuple

from packaging.requirements import Requirement

from tunewright import config, machine
from tunewright.config import NO_TELEMETRY
from tunewright.cost_model import devices, one_at_a_time
from tunewright.cost_model.devices import GB
from tunewright.errors import ConfigError
from tunewright.reports.pages import counted

ENOUGH_GB = 6  # `make demo` peaks at 3.5
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # the later goes before the earlier where torch reads both
PROJECT = "tunewright"
HEART = ("prefect", "mlflow", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "great-expectations")
ON = {"1", "true", "yes", "on"}
UNSAFE = {
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "models that MLflow loads may run their authors' code",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "anyone who can reach MLflow's server can start jobs on it",
    "HF_HUB_TRUST_REMOTE_CODE": "a model from the hub may run its own code",
    "TRUST_REMOTE_CODE": "a model may run its own code",
}
OPEN = ("0.0.0.0", "::")  # noqa: S104 what is looked for


class Finding(NamedTuple):
    """`failure` stops a run, `warning` can make one slow, unsafe or wrong later; both say how to fix it."""

    state: Literal["ok", "warning", "failure"]
    what: str
    found: str
    fix: str = ""


def of_hardware() -> Iterator[Finding]:
    """Check the memory, device and threads available to a run, within the limits of its container."""
    total, free = machine.memory_bytes() / GB, machine.available_bytes() / GB
    memory = f"{total:.1f} GB, {free:.1f} free"
    if total < ENOUGH_GB:
        yield Finding("warning", "memory", memory, f"the demo takes 4 GB; {ENOUGH_GB} GB and more are comfortable")
    elif free < total / 4:
        yield Finding(
            "warning", "memory", memory, "close other programs; tunewright plan estimates the memory of training"
        )
    else:
        yield Finding("ok", "memory", memory)
    yield _device()
    yield _locks()
    yield _threads()


def _threads() -> Finding:
    """In how many threads training computes, and evaluation, which goes by what the environment says."""
    cores = machine.num_cores()
    training = f"training uses {counted(cores, 'thread')}"
    set_to = [(name, int(text)) for name in THREADS if (text := os.environ.get(name, "")).isdecimal() and int(text)]
    if set_to and (number := set_to[-1][1]) != cores:
        name = set_to[-1][0]
        found = f"{training}, evaluation in {number}: {name}={number} on {counted(cores, 'core')}"
        slow = "more threads than cores are slower" if number > cores else "fewer threads than cores are slower"
        return Finding("warning", "threads", found, f"unset {name}; {slow}")
    if os.environ.get("OMP_WAIT_POLICY", "").upper() == "ACTIVE":
        return Finding(
            "warning", "threads", "OMP_WAIT_POLICY=ACTIVE", "unset OMP_WAIT_POLICY; spinning threads block others"
        )
    return Finding("ok", "threads", f"{training}, one per core; compute.threads changes this")


def _device() -> Finding:
    """The device at hand, as plan and training see it."""
    here = devices.machine()
    kind = "bfloat16" if here.device.has_bfloat16 else "float32 (bfloat16 is not faster)"
    if here.device.kind == "cuda":
        return Finding("ok", "device", f"{here.device.name}, {here.free_bytes / GB:.1f} GB free, {kind}")
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None and machine.first_gpu() is None:
        return Finding("warning", "device", "no GPU: CUDA_VISIBLE_DEVICES hides all", "unset CUDA_VISIBLE_DEVICES")
    return Finding("ok", "device", f"no GPU, training on the CPU, {kind}")


def _locks() -> Finding:
    """Whether the folder of the locks on devices is the user's own; one that is not there is made and taken away."""
    try:
        existed = config.device_locks().exists()
        folder = one_at_a_time.own_folder()
    except ConfigError as error:  # it ends with the advice
        found, _, fix = str(error).rpartition("; ")
        return Finding("failure", "device locks", found, fix)
    if not existed:
        with suppress(OSError):  # a run that has begun meanwhile
            folder.rmdir()
    return Finding("ok", "device locks", str(folder))


def of_software() -> Iterator[Finding]:
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
        found = f"optional: {', '.join(lacking)}" if lacking else ", ".join(each.name for each in of_it)
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


def of_safety() -> Iterator[Finding]:
    """The environment's part in it; what is not set there is set by this project as it is safe."""
    loud = {name: os.environ[name] for name, quiet in NO_TELEMETRY.items() if os.environ[name] != quiet}
    if loud:
        shown = ", ".join(f"{name}={value}" for name, value in loud.items())
        yield Finding("warning", "telemetry", f"turned on by the environment: {shown}", f"unset {' '.join(loud)}")
    else:
        yield Finding("ok", "telemetry", "off in Prefect, MLflow, Great Expectations, Hugging Face and Ray")
    unsafe = {name: why for name, why in UNSAFE.items() if os.environ.get(name, "").lower() in ON}
    for name, why in unsafe.items():
        yield Finding("warning", "safety", f"{name}={os.environ[name]}: {why}", f"unset {name}")
    if os.environ.get("PREFECT_SERVER_API_HOST") in OPEN and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        yield Finding(
            "warning",
            "safety",
            "PREFECT_SERVER_API_HOST opens Prefect's server to the network without a password",
            "set PREFECT_SERVER_API_AUTH_STRING, or unset PREFECT_SERVER_API_HOST",
        )
        unsafe["PREFECT_SERVER_API_HOST"] = ""
    if find_spec("kernels"):
        yield Finding(
            "warning",
            "safety",
            "the package kernels is installed: transformers downloads code with it",
            "pip uninstall kernels",
        )
    elif not unsafe:
        yield Finding("ok", "safety", "no pickles, no remote code, servers on loopback")
