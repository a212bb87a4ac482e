"""Reads what is not trusted in a child process with a limit on its memory and its processor time.

A chat template, a header or a regular expression of a stranger can take all memory there is, never end, or crash the
interpreter. Here that ends the child, and whoever called gets Unreadable, one line with the limit that was met:

    shape = bounded.call(read_header, str(file))

The function is a plain one that can be imported by name. Its arguments and its result travel as JSON, so that not even
a child that was taken over can send code back. A child waits for the next call, and ends with its parent. The memory
limit holds on Linux alone.
"""

import atexit
import contextlib
import importlib
import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from inspect import isgenerator
from pathlib import Path
from typing import IO, Any

from tunewright.errors import TunewrightError
from tunewright.machine import importing_project

SECONDS = 10.0  # of processor time, for one call, or for one part of a stream
MEGABYTES = 500  # that a call may take on top of what the child has when it begins
PATIENCE = 20  # a child that waits for something is ended after so many times the processor time that it may take
LENGTH = struct.Struct("<Q")
INHERITED = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "TMPDIR", "VIRTUAL_ENV")
NOT_A_CLOCK = {"ARROW_DEFAULT_MEMORY_POOL": "system"}  # pools reserve gigabytes of addresses, which the limit counts


class Unreadable(TunewrightError, ValueError):
    """The function raised an error, or met a limit: `is_limit`. The message is one line without the file's name."""

    def __init__(self, message: str, *, is_limit: bool = False) -> None:
        super().__init__(message)
        self.is_limit = is_limit


def call(function: Callable[..., Any], *arguments: Any, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Any:
    """Return what the function returns for these arguments, as JSON has it: tuples become lists.

    Raises Unreadable where it raises any error, takes more than `seconds` of processor time or `megabytes` of memory.
    """
    (reply,) = stream(function, *arguments, seconds=seconds, megabytes=megabytes)
    return json.loads(reply)


def stream(
    function: Callable[..., Iterator[bytes]], *arguments: Any, seconds: float = SECONDS, megabytes: int = MEGABYTES
) -> Iterator[bytes]:
    """Yield the parts that a generator function yields, each within the limits. Raises Unreadable, as `call` does."""
    try:
        child = _idle.pop()
    except IndexError:
        child = _Child()
    try:
        yield from child.replies(function, arguments, seconds, megabytes)
    except Unreadable as error:
        if error.is_limit:
            child.end()
        else:
            _idle.append(child)
        raise
    except BaseException:
        child.end()
        raise
    _idle.append(child)


class _Child:
    """A process that runs one function at a time."""

    def __init__(self) -> None:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}  # and no secrets
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tunewright.machine.bounded"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=importing_project(environment) | NOT_A_CLOCK,
            start_new_session=True,
        )

    def replies(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float, megabytes: int
    ) -> Iterator[bytes]:
        """The parts of the answer. Raises Unreadable."""
        assert self.process.stdin and self.process.stdout
        request = [function.__module__, function.__qualname__, arguments, seconds, megabytes]
        try:
            _send(self.process.stdin, b"", json.dumps(request).encode())
            while True:
                deadline = threading.Timer(seconds * PATIENCE, self.process.kill)
                deadline.start()
                try:
                    kind, part = _received(self.process.stdout)
                finally:
                    deadline.cancel()
                if kind == b"end":
                    return
                if kind == b"err":
                    reason, said = json.loads(part)
                    raise _refusal(reason, said, megabytes)
                yield part
        except (EOFError, BrokenPipeError) as error:
            raise _death(-self.process.wait(), seconds) from error

    def end(self) -> None:
        """Ends the process, whatever it is doing."""
        self.process.kill()
        with contextlib.suppress(BrokenPipeError), self.process:  # closes its pipes and waits for it
            pass


def _refusal(kind: str, message: str, megabytes: int) -> Unreadable:
    if kind == "MemoryError":
        return Unreadable(f"takes more than {megabytes} MB of memory", is_limit=True)
    if kind == "RecursionError":
        return Unreadable("is nested too deeply", is_limit=True)
    return Unreadable(message if kind == "ValueError" else f"{kind}: {message}" if message else kind)


def _death(by: int, seconds: float) -> Unreadable:
    if by == signal.SIGXCPU:
        return Unreadable(f"takes more than {math.ceil(seconds - 0.5)} s of processor time", is_limit=True)
    if by == signal.SIGKILL:
        return Unreadable(f"takes more memory than there is, or more than {seconds * PATIENCE:g} s", is_limit=True)
    return Unreadable(f"crashes its reader ({signal.strsignal(by) if by > 0 else f'exit code {-by}'})", is_limit=True)


_idle: deque[_Child] = deque()
os.register_at_fork(after_in_child=_idle.clear)  # a fork has pipes of its parent's child


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


def _send(pipe: IO[bytes], kind: bytes, part: bytes) -> None:
    pipe.write(kind + LENGTH.pack(len(part)))
    pipe.write(part)
    pipe.flush()


def _received(pipe: IO[bytes], size_of_kind: int = 3) -> tuple[bytes, bytes]:
    head = pipe.read(size_of_kind + LENGTH.size)
    if len(head) < size_of_kind + LENGTH.size:
        raise EOFError
    part = pipe.read(LENGTH.unpack(head[size_of_kind:])[0])
    return head[:size_of_kind], part


def serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    """Run the child's loop until its parent ends: one function after the other, each within its limits."""
    while True:
        try:
            request = _received(requests, 0)[1]
        except EOFError:
            return
        module, name, arguments, seconds, megabytes = json.loads(request)
        try:
            function = getattr(importlib.import_module(module), name)
            _limit(seconds, megabytes)
            result: Any = function(*arguments)
            parts: Any = result if isgenerator(result) else [json.dumps(result).encode()]
            for part in parts:
                _send(replies, b"val", part)
                _limit(seconds, megabytes)
        except Exception as error:  # of whatever kind, as what is read is not trusted
            _set(resource.RLIMIT_AS, None)  # room to say what went wrong
            kind = next((each for each in (MemoryError, RecursionError) if isinstance(error, each)), type(error))
            _send(replies, b"err", json.dumps([kind.__name__, " ".join(str(error).split())[:200]]).encode())
        else:
            _send(replies, b"end", b"")


def _limit(seconds: float, megabytes: int) -> None:
    """Sets the limits anew: so much from now on."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
        _set(resource.RLIMIT_AS, now + megabytes * 1_000_000)


def _set(limit: int, value: int | None) -> None:
    """Sets a limit, as far as the one allows that came with the process; None takes it away as far."""
    highest = resource.getrlimit(limit)[1]
    value = highest if value is None else value if highest == resource.RLIM_INFINITY else min(value, highest)
    resource.setrlimit(limit, (value, highest))


if __name__ == "__main__":
    _set(resource.RLIMIT_CORE, 0)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    serve(sys.stdin.buffer, answers)
