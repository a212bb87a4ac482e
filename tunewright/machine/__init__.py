"""The processors, memory and GPU available to this process, within the limits of its container's control group.

Processors and memory beyond those limits are the host's: too many threads are throttled and run slower than few, and a
process that takes more memory is killed. Both versions of control groups are read (kernel documentation,
admin-guide/cgroup-v2 and cgroup-v1/memory); the limits of the groups above ours hold as well.
"""

import ctypes
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import psutil

MOUNT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
VMSTAT = Path("/proc/vmstat")
HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that show no GPU
PR_SET_PDEATHSIG = 1
FREED_AT_ONCE = 20  # large parts that are let go before the system gets their memory
_ONLY: ContextVar[tuple[str, ...]] = ContextVar("only", default=())
T = TypeVar("T")


def num_cores() -> int:
    """The number of threads to compute in: physical cores, of those that we may run on, for the time we are given."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1
    cores = min(psutil.cpu_count(logical=False) or affinity, affinity)
    return max(1, min([cores, *(int(share) for share in _shares())]))


def memory_bytes() -> int:
    """The main memory that all our processes may take together."""
    return min([psutil.virtual_memory().total, *(limit for _, limit in _limits())])


def available_bytes() -> int:
    """Return the memory that is free, or holds only pages of files that can be read again."""
    free = [psutil.virtual_memory().available]
    for folder, limit in _limits():
        used = int(_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes") or "0")
        counted = _fields(folder / "memory.stat")
        cached = counted.get("total_inactive_file", counted.get("inactive_file", 0))
        free.append(max(0, limit - used + cached))
    return min(free)


def oom_kills() -> int:
    """Count our processes that the kernel killed for lack of memory; of the whole machine where no group counts.

    A larger number than before says why a process died by SIGKILL.
    """
    for folder in _groups("memory"):
        for name in ("memory.events", "memory.oom_control"):
            if (counted := _fields(folder / name).get("oom_kill")) is not None:
                return counted
    return _fields(VMSTAT).get("oom_kill", 0)


def busy_in_words() -> str:
    """Say that others use the processors, where these are too few for all; empty otherwise."""
    load, num = os.getloadavg()[0], os.cpu_count() or 1
    return f"; the machine is busy: {load:.1f} processes want its {num} processors" if load > num + 1 else ""


def first_gpu() -> str | None:
    """Return the first GPU to compute on, an index or the beginning of a UUID; None where all are hidden."""
    return next(iter(first_gpus(1)), None)


def first_gpus(number: int) -> list[str]:
    """The first GPUs to compute on, so many or all: those of `only_gpus`, and outside of its block all shown ones."""
    return [*(_ONLY.get() or shown_gpus(number))[:number]]


def shown_gpus(total: int) -> list[str]:
    """The GPUs of CUDA_VISIBLE_DEVICES, as an index or the beginning of a UUID; where it is not set, 0 to total - 1."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = map(str, range(total)) if shown is None else (name.strip() for name in shown.split(","))
    return list(itertools.takewhile(lambda name: name not in HIDDEN, names))


@contextmanager
def only_gpus(names: Sequence[str]) -> Iterator[None]:
    """Has `first_gpus` return these alone in the block, as `shown_gpus` names them; no names change nothing."""
    token = _ONLY.set((*names,))
    try:
        yield
    finally:
        _ONLY.reset(token)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of our control group and of those above it, the innermost first."""
    if not OWN.exists():
        return
    for line in OWN.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = MOUNT / controller if controllers else MOUNT
        own = top / path.strip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _shares() -> Iterator[float]:
    """The processors whose time a group may take."""
    for folder in _groups("cpu"):
        quota, period = (_text(folder / "cpu.max").split() or ["", ""])[:2]
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():  # neither "max" nor -1
            yield int(quota) / int(period)


def _limits() -> Iterator[tuple[Path, int]]:
    """Each group that bounds our memory, and its bound in bytes; version 1 has a huge number for none."""
    for folder in _groups("memory"):
        limit = _text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes")
        if limit.isdecimal():
            yield folder, int(limit)


def _fields(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    pairs = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _text(file: Path) -> str:
    """Read a file of the kernel's; "" if it does not exist or is not readable for us."""
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that a process and its children took so far; 0 where it has ended."""
    try:
        process = psutil.Process(pid)
        taken = [each.cpu_times() for each in (process, *process.children())]
    except psutil.Error:
        return 0.0
    return sum(times.user + times.system for times in taken)


def end_with_parent(by: signal.Signals) -> None:
    """Asks the kernel for this signal when the parent dies, however it dies; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)


def importing_project(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that imports this project, which need not be installed: its folder comes first."""
    root = str(Path(__file__).parents[2])
    return {**environment, "PYTHONPATH": os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))}


def on_all_cores(function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
    """As list(map(function, *arguments)), as many at once as there are cores: each has memory to itself."""
    with ThreadPoolExecutor(num_cores()) as pool:
        found = list(pool.map(function, *arguments))
    release_memory()
    return found


def on_each(made: list[Any], function: Callable[[Any], T]) -> list[T]:
    """As on_all_cores, for what memory has no room for twice: each is taken out of the list before its result is made.

    Afterwards the list is empty.
    """

    def on_next(place: int) -> T:
        each, made[place] = made[place], None
        result = function(each)
        del each
        if place % FREED_AT_ONCE == 0:
            release_memory()
        return result

    found = on_all_cores(on_next, range(len(made)))
    made.clear()
    return found


def release_memory() -> None:
    """The system gets the memory that was freed; else Arrow keeps it for threads, and glibc's heap in holes."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # other C libraries have none
        libc.malloc_trim(0)
