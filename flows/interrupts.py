"""Ctrl-C at any moment of a command is one line and exit code 130, also while its libraries are imported.

An import that is interrupted can print a traceback, or turn the interrupt into an error of another name. So a command
ends at once on Ctrl-C as long as it does nothing but import, and raises KeyboardInterrupt when it has begun its work.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SAID = "interrupted; the next run resumes from here"
CODE = 128 + signal.SIGINT
AS_JSON = f'{{"error": "{SAID}", "exit_code": {CODE}}}\n'


def end_at_once() -> None:
    """Has Ctrl-C end the process at once, unless whoever started it chose another answer to it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextmanager
def importing() -> Iterator[None]:
    """In the block Ctrl-C ends the process at once; behind it stands what stood before, for whoever imports this."""
    before = signal.getsignal(signal.SIGINT)
    end_at_once()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(*_: object) -> None:
    os.write(2, f"error: {SAID}\n".encode())
    if "--json" in sys.argv:
        os.write(1, AS_JSON.encode())
    os._exit(CODE)


@contextmanager
def raised(*, by: Sequence[signal.Signals] = ()) -> Iterator[None]:
    """Raises KeyboardInterrupt where Ctrl-C comes in the block, also where a library made another error of it.

    Where Ctrl-C is ignored, as by a shell of what it starts with `&`, it stays so; the signals `by` are never ignored.
    """
    before = {each: signal.getsignal(each) for each in by or [signal.SIGINT]}
    if not by and before[signal.SIGINT] not in (_end, signal.default_int_handler):
        yield
        return
    came = False

    def interrupt(*_: object) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    unraisable = sys.unraisablehook
    for each in before:
        signal.signal(each, interrupt)
    sys.unraisablehook = lambda what: None if came else unraisable(what)
    try:
        yield
    except BaseException as error:
        if came and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = unraisable
        for each, handler in before.items():
            signal.signal(each, handler)
