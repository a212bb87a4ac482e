"""Whether a stranger's tokenizer.json can be read at all, found in a bounded process before this one reads it.

Such a file can crash the interpreter, a list of tokens can take twenty times its size here, and replacements in a row
can make a text longer without end.
"""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.machine import bounded
from tunewright.machine.bounded import Unreadable

MEGABYTES = 400  # for the child that reads it; the largest known, of 34 MB, takes 160, and 700 in this process
MOST_GROWTH = 100  # times that replacements may make a text longer; of the tokenizers known at most 3


def refused(file: Path) -> str:
    """Why a tokenizer.json is not read here, with the limit that it meets; empty where it meets none, or is not there.

    Of a file that is merely wrong says more who loads it.
    """
    if not file.is_file():
        return ""
    status = file.stat()
    return _refused(str(file.absolute()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(100)
def _refused(file: str, *_: int) -> str:
    """The same, once for each state of the file."""
    try:
        return bounded.call(read, file, megabytes=MEGABYTES)
    except Unreadable as error:
        limits = f"{bounded.SECONDS:.0f} s of processor time and {MEGABYTES} MB of memory"
        return f"{file} cannot be read within {limits} ({error})" if error.is_limit else ""


def read(file: str) -> str:
    """Reads it, and returns how it makes texts too long; for the bounded process."""
    import os

    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # each thread reserves memory
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    for name, part in (("normalizer", tokenizer.normalizer), ("decoder", tokenizer.decoder)):
        found = growth(json.loads(part.__getstate__())) if part else 1.0
        if found > MOST_GROWTH:
            times = f"{found:,.0f} times" if found < 1e9 else f"over {1e9:,.0f} times"
            return f"{file}: its {name} makes a text {times} as long; accepted: at most {MOST_GROWTH} times"
    return ""


def growth(part: dict[str, Any]) -> float:
    """How many times as long the replacements of a normalizer or decoder, one after another, can make a text."""
    found = 1.0
    for replacement in _replacements(part):
        pattern, content = replacement["pattern"], replacement["content"]
        # What a regular expression matches can be of any length, also of none between two characters.
        times = len(content) / max(1, len(pattern["String"])) if "String" in pattern else len(content) + 1.0
        found = min(found * max(1.0, times), 1e300)
    return found


def _replacements(part: Any) -> Iterator[dict[str, Any]]:
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and part.get("type") == "Replace":
        yield part
    for each in inner:
        yield from _replacements(each)
