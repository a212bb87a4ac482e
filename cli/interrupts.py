"""Ctrl-C at any moment of a command is one line and exit code 130, and SIGTERM is one and 143, also during imports.

An import that is interrupted can print a traceback, turn the interrupt into an error of another name, or swallow it. So
a command ends at once on such a signal as long as it does nothing but import, and raises KeyboardInterrupt when it has
begun its work; before it starts processes, it asks whether one came (`raise_if_came`).
"""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

RESUMED = ("run", "compare")  # commands whose next call resumes what was interrupted
GOES_ON = "the next run resumes from the last finished stage or checkpoint"
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_kept: list[str] = []  # what an interrupted command has, and how to go on
_done: list[int] = []  # once a command has all that it was called for: its exit code, when all of that is printed
_blocks: list[int] = []  # of each `raised` block that is open: the last signal that came in it, or 0


def number_of(error: KeyboardInterrupt) -> int:
    """The signal that raised it."""
    return next(iter(error.args), signal.SIGINT)


def said(number: int) -> str:
    """The line for a command that Ctrl-C or SIGTERM ended, with how to go on where its next call resumes."""
    is_resumed = next((each for each in sys.argv[1:] if not each.startswith("-")), "") in RESUMED
    following = "".join(f"; {each}" for each in (*([GOES_ON] if is_resumed else []), *_kept))
    if number == signal.SIGTERM:
        return "ended by SIGTERM" + ", not finished" * bool(following) + following
    return f"interrupted{following}"


def keep(sentence: str) -> None:
    """Have the line for a command that is ended say this too: what it has done, and how to go on."""
    _kept[:] = [sentence]


def end_at_once() -> None:
    """Has Ctrl-C end the process at once, unless whoever started it chose another answer to it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def at_once() -> Iterator[None]:
    """Ends the process at once where a signal comes that would raise, for a block that imports and has nothing to end.

    Those are the signals of a `raised` block, and Ctrl-C. So no library can swallow it, and no import turn it into
    another error. Behind the block stands what stood before. What the block imports stays, and looking through it for
    garbage is a sixth of its time, so that this is left out.
    """
    raises = [each for each in SIGNALS if _raises(signal.getsignal(each))]
    if threading.current_thread() is not threading.main_thread():  # which alone can set handlers
        raises = []
    before = {each: signal.signal(each, _end) for each in raises}
    gc.disable()
    try:
        if before:
            raise_if_came()
        yield
    finally:
        gc.freeze()
        gc.enable()
        for each, handler in before.items():
            signal.signal(each, handler)


def leave(code: int) -> None:
    """Has Ctrl-C end the process with this exit code from now on, as all is done and only libraries are left to end."""
    _done[:] = [code]


def _end(number: int, *_: object) -> None:
    if _done:
        sys.stdout.flush()
        os._exit(_done[0])
    line, code = said(number), 128 + number
    os.write(2, f"error: {line}\n".encode())
    if "--json" in sys.argv:
        os.write(1, f'{{"error": "{line}", "exit_code": {code}}}\n'.encode())
    os._exit(code)


class _Raise:
    """The handler of a `raised` block."""

    def __init__(self, block: int) -> None:
        self.block = block

    def __call__(self, number: int, *_: object) -> None:
        _blocks[self.block] = number
        raise KeyboardInterrupt(number)


def _raises(handler: object) -> bool:
    return handler is signal.default_int_handler or isinstance(handler, _Raise)


def raise_if_came() -> None:
    """Raise KeyboardInterrupt where a signal came in an open `raised` block, whoever swallowed it."""
    if number := max(_blocks, default=0):
        raise KeyboardInterrupt(number)


@contextmanager
def raised(*, by: Sequence[signal.Signals] = ()) -> Iterator[None]:
    """Raises KeyboardInterrupt where Ctrl-C or SIGTERM comes in the block, also if a library makes another error of it.

    The error has the signal's number. Where Ctrl-C is ignored, as by a shell of what it starts with `&`, it stays so;
    the signals `by`, if there are any, are the only ones, and never ignored.
    """
    before = {each: signal.getsignal(each) for each in by or SIGNALS}
    if not by and not (before[signal.SIGINT] is _end or _raises(before[signal.SIGINT])):
        del before[signal.SIGINT]
    block = len(_blocks)
    _blocks.append(0)
    unraisable = sys.unraisablehook
    for each in before:
        signal.signal(each, _Raise(block))
    sys.unraisablehook = lambda what: None if _blocks[block] else unraisable(what)
    try:
        yield
    except BaseException as error:
        if _blocks[block] and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(_blocks[block]) from error
        raise
    finally:
        sys.unraisablehook = unraisable
        for each, handler in before.items():
            signal.signal(each, handler)
        _blocks.pop()
