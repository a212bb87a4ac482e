"""One training or evaluation at a time on a device, of whatever deployment, worker, terminal or home it is.

Two that share a GPU run out of memory, and two that share processors are slower than one after the other. A run takes
GPUs that are free, of all that it may use. Where too few are, it waits in a queue: higher operation.priority first,
then first come, first served. Each one who waits has a ticket in the folder with the devices that it may take, and
those are not given to who comes after; else a run would take the device again between its stages, and one that needs
four GPUs would wait for ever. Locks are the kernel's, on files of the user's, so they are free when their holder dies,
however it dies; what the file says is for who waits. The folder is TUNEWRIGHT_LOCKS, or under /tmp, where another user
may have made it first and would hold every lock in it: only one that is this user's and closed to others is taken.
"""

import logging
import os
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

from prefect.runtime import flow_run

from tunewright import config, machine
from tunewright.cost_model.devices import gpus_here
from tunewright.errors import ConfigError
from tunewright.store import locks
from tunewright.store.caching import count_waiting
from tunewright.store.locks import try_lock

log = logging.getLogger("tunewright")

LOOK_SECONDS = 0.5
PAUSED_SECONDS = 10.0  # without a look, after which one who waits does not keep others waiting
QUEUE, TICKET = "queue", ".ticket"
CPU = "cpu"
MAX_SHOWN = 200  # characters of who holds it
_PRIORITY: ContextVar[int] = ContextVar("priority", default=0)
_DEVICES: ContextVar[int] = ContextVar("devices", default=1)
_LAST: list[str] = []  # the devices that this process held last: a GPU keeps some of its memory


class Ahead(NamedTuple):
    """Those before one who waits: how many want a device of its own, and what they may take."""

    number: int
    claimed: Collection[str]


@contextmanager
def of_run(*, priority: int = 0, devices: int = 1) -> Iterator[None]:
    """Give the run in the block its priority in the queue, and the number of devices for its answers."""
    tokens = _PRIORITY.set(priority), _DEVICES.set(devices)
    try:
        yield
    finally:
        _PRIORITY.reset(tokens[0])
        _DEVICES.reset(tokens[1])


def devices_of_run() -> int:
    """The number of devices that the run spreads its answers over."""
    return _DEVICES.get()


@contextmanager
def on_devices(number: int = 1) -> Iterator[None]:
    """Holds so many free GPUs of this machine in the block, which `machine.first_gpus` returns there; or the CPU.

    A CPU is one device, for all. Where fewer GPUs are shown, it holds these.
    """
    holder = f'run "{flow_run.name}"' if flow_run.name else "another command of tunewright"
    gpus = gpus_here()
    with held([*gpus] or [CPU], holder, number) as mine, machine.only_gpus([gpus[each] for each in mine if gpus]):
        yield


@contextmanager
def held(devices: Sequence[str], holder: str, number: int = 1) -> Iterator[tuple[str, ...]]:
    """Holds so many of the devices for the block, each known by a GPU's UUID or as "cpu", and yields which.

    Waits for them and says for whom. `holder` is who others are told of, such as the run by its name. The artifact that
    is made does not count the waiting.
    """
    folder = own_folder()
    started = time.monotonic()
    with ExitStack() as block:
        with _queued(folder, devices) as ahead:
            mine = _wait(folder, devices, min(number, len(devices)), ahead, block)
        count_waiting(time.monotonic() - started)
        _LAST[:] = mine
        for lock in mine.values():
            lock.truncate(0)
            lock.write(f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')} by {holder} (process {os.getpid()})")
            lock.flush()
        try:
            yield (*mine,)
        finally:
            for lock in mine.values():
                lock.truncate(0)  # before it is free: what stands there is of who holds it


def own_folder() -> Path:
    """The folder of the locks, closed to others.

    Raises ConfigError where it is another user's, or no folder, or cannot be created, written or locked.
    """
    folder = config.device_locks()
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700, parents=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ConfigError(
                f"{folder}: belongs to user {found.st_uid} or is not a folder, so its locks could block every run; "
                "remove it, or set TUNEWRIGHT_LOCKS to a folder of your own"
            )
        folder.chmod(0o700)
        with tempfile.TemporaryFile(dir=folder) as probe:
            try_lock(probe)
    except OSError as error:
        raise ConfigError(
            f"{folder}: cannot be created or written for the locks on devices: {error.strerror}; set TUNEWRIGHT_LOCKS "
            "to a folder of your own"
        ) from error
    return folder


@contextmanager
def _queued(folder: Path, devices: Sequence[str]) -> Iterator[Callable[[], Ahead]]:
    """A place in the queue for some of the devices; yields what tells who is before it."""
    place = f"{config.HIGHEST_PRIORITY - _PRIORITY.get():03}.{time.monotonic_ns():020}-{uuid.uuid4().hex[:8]}"
    own = folder / f"{QUEUE}.{place}{TICKET}"
    with locks.presence(own, " ".join(devices), modified=time.monotonic()):  # counted before its first look, too
        yield partial(_ahead, own, {*devices})


def _ahead(own: Path, devices: set[str]) -> Ahead:
    """Those with an earlier ticket whose processes live and look; tickets that killed ones left are removed."""
    now = time.monotonic()  # of the machine, so that all who wait have it and nobody sets it back
    os.utime(own, (now, now))
    number, claimed = 0, set[str]()
    for other in sorted(own.parent.glob(f"{QUEUE}.*{TICKET}")):
        if other >= own:
            break
        with suppress(FileNotFoundError):  # it had its turn meanwhile
            if locks.is_left(other):
                other.unlink()
            elif 0 <= time.monotonic() - other.stat().st_mtime < PAUSED_SECONDS:
                wanted = {*other.read_text(encoding="utf-8").split()}
                number += not wanted.isdisjoint(devices)
                claimed |= wanted
    return Ahead(number, claimed)


def _wait(
    folder: Path, devices: Sequence[str], number: int, ahead: Callable[[], Ahead], block: ExitStack
) -> dict[str, IO[str]]:
    """Lock so many of the devices until `block` ends; those that this process held last are tried first."""
    said = set[str]()
    while True:
        before = ahead()
        free = sorted((each for each in devices if each not in before.claimed), key=lambda each: each not in _LAST)
        if mine := _taken(folder, free, number, block):
            break
        in_use = {each: text for each in devices if (text := _holder(folder, each))}
        if in_use and said.isdisjoint(in_use.values()):
            said = {*in_use.values()}
            log.info("  waiting for %s%s", _said(devices, number, in_use), _queue(before.number))
        time.sleep(LOOK_SECONDS)
    if said:
        log.info("  the device is free" if number == 1 else "  the devices are free")
    return mine


def _taken(folder: Path, devices: Sequence[str], number: int, block: ExitStack) -> dict[str, IO[str]]:
    """The locked files of so many of the devices, until `block` ends; none where fewer are free."""
    with ExitStack() as opened:
        mine: dict[str, IO[str]] = {}
        for device in devices:
            descriptor = os.open(folder / f"{device}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            file = opened.enter_context(os.fdopen(descriptor, "r+", encoding="utf-8"))
            if try_lock(file):
                mine[device] = file
            if len(mine) == number:
                block.enter_context(opened.pop_all())
                return mine
    return {}


def _holder(folder: Path, device: str) -> str:
    """Since when a device is in use and by whom, as its holder wrote it; empty where nobody did."""
    try:
        text = (folder / f"{device}.lock").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "".join(filter(str.isprintable, text))[:MAX_SHOWN].removeprefix(time.strftime("%Y-%m-%d "))


def _said(devices: Sequence[str], number: int, in_use: dict[str, str]) -> str:
    if len(devices) > 1:
        each_in_use = "; ".join(f"{device} in use since {text}" for device, text in in_use.items())
        return f"{number} of {len(devices)} GPUs: {each_in_use}"
    ((device, text),) = in_use.items()
    return f"the {'CPU' if device == CPU else f'GPU {device}'}: in use since {text}"


def _queue(number: int) -> str:
    return f"; {number} {'other waits' if number == 1 else 'others wait'} before this one" if number else ""
