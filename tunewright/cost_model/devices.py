"""Devices for training: the one at hand, found without importing torch, or a card by its name."""

import difflib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import NamedTuple

from tunewright.errors import ConfigError
from tunewright.machine import available_bytes, first_gpu, memory_bytes, shown_gpus
from tunewright.modeling.compute import Device, cpu_has_bfloat16

GB = 1_000_000_000
GIB = 1024**3


class Card(NamedTuple):
    """A card as its vendor's data sheet has it."""

    name: str
    memory_gib: int
    has_bfloat16: bool
    teraflops: float  # peak of dense bfloat16 with float32 accumulation; of float32 where there is no bfloat16


# NVIDIA's data sheets and architecture white papers; GeForce cards accumulate in float32 at half their float16 rate.
CARDS = {
    "v100": Card("Tesla V100 16 GB", 16, False, 15.7),
    "v100-32gb": Card("Tesla V100 32 GB", 32, False, 15.7),
    "t4": Card("Tesla T4", 16, False, 8.1),
    "rtx-3060": Card("GeForce RTX 3060", 12, True, 25),
    "rtx-3090": Card("GeForce RTX 3090", 24, True, 71),
    "a10g": Card("A10G", 24, True, 70),
    "a100-40gb": Card("A100 40 GB", 40, True, 312),
    "a100-80gb": Card("A100 80 GB", 80, True, 312),
    "l4": Card("L4", 24, True, 121),
    "l40s": Card("L40S", 48, True, 362),
    "rtx-4060": Card("GeForce RTX 4060", 8, True, 30),
    "rtx-4060-ti-16gb": Card("GeForce RTX 4060 Ti 16 GB", 16, True, 44),
    "rtx-4070": Card("GeForce RTX 4070", 12, True, 58),
    "rtx-4080": Card("GeForce RTX 4080", 16, True, 97),
    "rtx-4090": Card("GeForce RTX 4090", 24, True, 165),
    "rtx-5060-ti-16gb": Card("GeForce RTX 5060 Ti 16 GB", 16, True, 47),
    "rtx-5070": Card("GeForce RTX 5070", 12, True, 62),
    "rtx-5070-ti": Card("GeForce RTX 5070 Ti", 16, True, 88),
    "rtx-5080": Card("GeForce RTX 5080", 16, True, 113),
    "rtx-5090": Card("GeForce RTX 5090", 32, True, 210),
    "h100": Card("H100 80 GB", 80, True, 989),
    "h200": Card("H200 141 GB", 141, True, 989),
    "b200": Card("B200 180 GB", 180, True, 2250),
}
HERE = ("", "here")
ASK = (
    "import torch; gpu = torch.cuda.get_device_properties(0); free, total = torch.cuda.mem_get_info(0); "
    "print(gpu.name, total >> 20, free >> 20, f'{gpu.major}.{gpu.minor}', sep=',')"
)


class Machine(NamedTuple):
    """A device with the memory that is free on it; `teraflops` is 0 where its peak is not known."""

    device: Device
    free_bytes: int
    teraflops: float
    is_here: bool


def machine(name: str = "") -> Machine:
    """The device at hand, `cpu` for this machine's processors, or a card by its name.

    Raises ConfigError for a name that is not known, with the nearest that is.
    """
    if name in HERE:
        return _gpu_here() or _cpu_here()
    if name == "cpu":
        return _cpu_here()
    wanted = name.lower().replace("_", "-").replace(" ", "-")
    if wanted not in CARDS:
        near = [card for card in CARDS if card.startswith(wanted)] or difflib.get_close_matches(wanted, CARDS, 1, 0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"--device {name}: unknown device; {hint}accepted: cpu, {', '.join(CARDS)}")
    card = CARDS[wanted]
    memory = card.memory_gib * GIB
    # Not all memory of a card is a program's: with its driver's part and the desktop's, say 97% of it.
    device = _gpu(card.name, memory, has_bfloat16=card.has_bfloat16)
    return Machine(device, int(0.97 * memory), card.teraflops, is_here=False)


def gpus_here() -> dict[str, str]:
    """The UUID of each GPU that this process may use -> its name in CUDA_VISIBLE_DEVICES; empty without a driver."""
    told = _told_by_driver()
    shown = shown_gpus(len(told)) if told else []
    return {next((uuid for at, uuid, *_ in told if at == name or uuid.startswith(name)), name): name for name in shown}


def _cpu_here() -> Machine:
    device = Device(has_bfloat16=cpu_has_bfloat16(), memory_bytes=memory_bytes())
    return Machine(device, available_bytes(), 0.0, is_here=True)


def _gpu_here() -> Machine | None:
    """The GPU that training takes, as its driver tells it, or None; torch would take seconds to be asked."""
    wanted, gpus = first_gpu(), _told_by_driver()
    if wanted is None or not gpus:
        return None
    found = [told for told in gpus if told[0] == wanted or told[1].startswith(wanted)]
    is_listed = bool(found)
    if not is_listed:  # the driver does not list it, such as an instance of a divided one
        found = [["", "", *told] for told in _lines_of([sys.executable, "-c", ASK], 4, seconds=120)]
    if not found:
        return None
    name, total, free, capability = found[0][2:]
    memory = _bytes(total) or memory_bytes()  # "[N/A]" where the GPU has no memory but the host's
    available = _bytes(free) or available_bytes()
    device = _gpu(name, memory, has_bfloat16=float(capability) >= 8, count=len(shown_gpus(len(gpus))))
    # The driver's name has one of ours in it, or several, of which the longest counts.
    flat = name.lower().replace(" ", "-")
    known = [key for key in CARDS if key.removesuffix("-80gb").removesuffix("-40gb") in flat] if is_listed else []
    return Machine(device, available, CARDS[max(known, key=len)].teraflops if known else 0.0, is_here=True)


def _told_by_driver() -> list[list[str]]:
    """List each GPU's index, UUID, name, total and free MiB, and compute capability; empty if no driver answers."""
    query = "--query-gpu=index,uuid,name,memory.total,memory.free,compute_cap"
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    return _lines_of(command, 6, seconds=10) if shutil.which(command[0]) else []


def _lines_of(command: Sequence[str], num_parts: int, *, seconds: float) -> list[list[str]]:
    """Run a program and return its lines that have `num_parts` parts, the last of them a number; [] if it fails."""
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [[part.strip() for part in line.split(",")] for line in told.stdout.splitlines()]
    return [] if told.returncode else [line for line in lines if len(line) == num_parts and _is_number(line[-1])]


def _bytes(mib: str) -> int:
    return int(float(mib) * 1024**2) if _is_number(mib) else 0


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()


def _gpu(name: str, memory: int, *, has_bfloat16: bool, count: int | None = None) -> Device:
    """GPUs with the packages that are installed here; FlashAttention runs on those that have bfloat16."""
    return Device(
        kind="cuda",
        name=name,
        has_bfloat16=has_bfloat16,
        memory_bytes=memory,
        has_flash_attention=has_bfloat16 and find_spec("flash_attn") is not None,
        has_liger=find_spec("liger_kernel") is not None,
        count=count,
    )
