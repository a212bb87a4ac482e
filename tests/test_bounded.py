"""Untrusted input is read in a child process: if that runs out of memory, hangs or crashes, the error is one line."""

import os
import re
import signal
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tunewright.machine import bounded
from tunewright.machine.bounded import Unreadable


@pytest.fixture(autouse=True)
def children_that_know_this_file(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(bounded, "_idle", deque())
    yield
    while bounded._idle:
        bounded._idle.pop().end()


def turned(value: Any) -> Any:
    return {"value": value, "secret": os.environ.get("TUNEWRIGHT_JUDGE_KEY"), "pid": os.getpid()}


def swallow() -> int:
    return len("a" * 3_000_000_000)


def spin() -> None:
    while True:
        pass


def dig() -> None:
    dig()


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def leave() -> None:
    os._exit(3)


def complain() -> None:
    raise KeyError("shape\nof nothing")


def chatter() -> str:
    print("no answer")
    return "an answer"


def backtrack() -> bool:
    return re.fullmatch("(a+)+", "a" * 40 + "!") is not None  # one call into C, that no signal handler of Python ends


def parts(number: int) -> Iterator[bytes]:
    for each in range(number):
        yield b"%d" % each
    swallow()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (swallow, "takes more than 200 MB of memory"),
        (spin, "takes more than 1 s of processor time"),
        (backtrack, "takes more than 1 s of processor time"),
        (dig, "is nested too deeply"),
        (crash, "crashes its reader (Segmentation fault)"),
        (leave, "crashes its reader (exit code 3)"),
    ],
)
def test_a_limit_that_is_met_is_named_in_one_line(function: Any, said: str) -> None:
    with pytest.raises(Unreadable) as raised:
        bounded.call(function, seconds=1, megabytes=200)
    assert str(raised.value) == said
    assert raised.value.is_limit


def test_an_error_of_the_function_is_one_line() -> None:
    with pytest.raises(Unreadable, match=r"^KeyError: 'shape\\nof nothing'$") as raised:
        bounded.call(complain)
    assert not raised.value.is_limit


def test_the_child_has_no_secrets_and_answers_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_JUDGE_KEY", "sk-secret")
    first = bounded.call(turned, ["a", {"b": "\ud800 é"}])
    assert (first["value"], first["secret"]) == (["a", {"b": "\ud800 é"}], None)
    assert bounded.call(turned, 1)["pid"] == first["pid"] != os.getpid()
    assert bounded.call(chatter) == "an answer"


def test_the_parts_of_a_stream_arrive_before_the_one_that_meets_a_limit() -> None:
    arriving = bounded.stream(parts, 3, megabytes=200)
    assert [next(arriving) for _ in range(3)] == [b"0", b"1", b"2"]
    with pytest.raises(Unreadable, match="200 MB of memory"):
        next(arriving)
