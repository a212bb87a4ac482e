"""The commands that convert a text file to what is read: UTF-8, and commas in place of other separators."""

import shlex
from pathlib import Path

from tunewright.config import from_here
from tunewright.tasks.ingest.stores import is_url

UNPACK = {"gz": "gzip -dc", "zst": "zstd -dc"}


def conversion(path: str, encoding: str, packing: str = "") -> str:
    """The rest of a sentence about a file in another encoding; empty of one that is not on this disk."""
    if is_url(path):
        return ""
    plain = Path(path)
    plain = plain.with_suffix("") if packing and plain.suffix.lower() in (".gz", ".zst") else plain
    old, new = here(path), here(str(plain.with_name(f"{plain.stem}-utf8{plain.suffix}")))
    iconv = f"iconv -f {encoding} -t UTF-8"
    command = f"{UNPACK[packing]} {old} | {iconv} > {new}" if packing else f"{iconv} {old} > {new}"
    return f"; to convert it: {command}"


def here(path: str) -> str:
    """A local path for a shell in the folder that the command was called in."""
    name = str(from_here(Path(path).absolute()))
    return shlex.quote(f"./{name}" if name.startswith("-") else name)
