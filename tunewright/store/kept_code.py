"""Keeps what code_hashes.py has read of a module beside the module's bytecode, for the next process.

Like bytecode it is another's where Python, the module or the code that reads it is another one, and where nothing can
be written there it is read anew each time.
"""

import hashlib
import importlib.util
import json
import os
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

SUFFIX = ".parts.json"


def key(*about: str) -> str:
    """A hash of all that what is kept depends on: `about`, and how it is read."""
    hashed = hashlib.sha256(_reader())
    for each in about:
        hashed.update(hashlib.sha256(each.encode()).digest())
    return hashed.hexdigest()


def load(module: Path, key: str) -> dict[str, Any] | None:
    """Return what was kept of a module under this key, or None."""
    with suppress(OSError, ValueError, TypeError, KeyError, NotImplementedError):
        kept = json.loads(_place(module).read_text(encoding="utf-8"))
        if kept["key"] == key:
            return kept
    return None


def save(module: Path, key: str, made: dict[str, Any]) -> None:
    """Keeps it under this key; where Python is to write no bytecode, or cannot, nothing is kept."""
    if sys.dont_write_bytecode:
        return
    with suppress(OSError, NotImplementedError):
        place = _place(module)
        place.parent.mkdir(exist_ok=True)
        descriptor, unfinished = tempfile.mkstemp(dir=place.parent)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 a descriptor
            json.dump({"key": key} | made, file)
        os.chmod(unfinished, module.stat().st_mode & 0o666)  # noqa: PTH101 as bytecode is
        os.replace(unfinished, place)  # noqa: PTH105


def _place(module: Path) -> Path:
    return Path(importlib.util.cache_from_source(str(module))).with_suffix(SUFFIX)


@cache
def _reader() -> bytes:
    """The code that reads modules."""
    return b"".join(Path(__file__).with_name(name).read_bytes() for name in ("code_hashes.py", "kept_code.py"))
