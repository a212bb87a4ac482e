"""Memory, processors and the device that trains."""

import os
from collections.abc import Iterator

from tunewright import machine
from tunewright.cli.doctor.finding import Finding
from tunewright.cost_model import devices
from tunewright.cost_model.devices import GB
from tunewright.reports.figures import counted

ENOUGH_GB = 6  # `make demo` peaks at 3.5
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # the later goes before the earlier where torch reads both


def findings() -> Iterator[Finding]:
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
