"""Whether a stranger's tokenizer.json can be read at all, found in a bounded process before this one reads it.

Such a file can crash the interpreter, and a list of tokens can take twenty times its size here.
"""

import functools
from pathlib import Path

from tunewright.machine import bounded
from tunewright.machine.bounded import Unreadable

MEGABYTES = 400  # for the child that reads it; the largest known, of 34 MB, takes 160, and 700 in this process


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
        bounded.call(read, file, megabytes=MEGABYTES)
    except Unreadable as error:
        limits = f"{bounded.SECONDS:.0f} s of processor time and {MEGABYTES} MB of memory"
        return f"{file} cannot be read within {limits} ({error})" if error.is_limit else ""
    return ""


def read(file: str) -> None:
    """Reads it; for the bounded process."""
    import os

    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # each thread reserves memory
    from tokenizers import Tokenizer

    Tokenizer.from_file(file)
