"""The definition of a target of benchmarks/fuzz.py, and its helpers: an empty home, and the check of an error."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

from hypothesis.strategies import SearchStrategy

from tunewright.store.manifest import File, Manifest


class Target(NamedTuple):
    """The strategy that draws inputs, and the function that takes them."""

    inputs: SearchStrategy[bytes]
    run: Callable[[bytes], str]
    libraries: tuple[str, ...] = ()  # that reading imports, whose memory is not the input's


@contextmanager
def home() -> Iterator[Path]:
    """An empty home and working folder for one input."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        with patch.dict("os.environ", TUNEWRIGHT_HOME=str(folder)):
            yield folder
    finally:
        shutil.rmtree(folder)


def manifest_of(
    record: Mapping[str, Any], record_type: str, files: dict[str, File], ingredients: dict[str, Any]
) -> Manifest:
    """The manifest of an artifact that a run made, with the stage and the key that its record says."""
    return Manifest(
        stage=record["stage"],
        key=record["key"],
        files=files,
        record=dict(record),
        record_type=record_type,
        ingredients=ingredients,
        made="2026-01-01T00:00:00Z",
        made_by="a run",
        seconds=1.5,
    )


def refusal(error: Exception) -> str:
    """The message of an error of ours, which is one line that can be printed."""
    message = str(error)
    assert message, "an error without a message"
    assert len(message.splitlines()) == 1, f"a message of several lines: {message!r}"
    assert message.isascii() or message.encode("utf-8", "ignore").decode() == message, f"no text: {message!r}"
    return message
