"""The commands that convert a text file to what is read: UTF-8, and commas in place of other separators."""

import shlex
from pathlib import Path

from tunewright.config import from_here
from tunewright.tasks.ingest.stores import is_url

DECOMPRESS = {"gz": "gzip -dc", "zst": "zstd -dc"}
MIXED = (
    'python -c "import codecs, fileinput, sys, unicodedata; '
    "read = lambda some: unicodedata.normalize('NFC', some.decode('{codec}')); "
    "codecs.register_error('other', lambda e: (read(e.object[e.start:{end}]), {end})); "
    "sys.stdout.buffer.writelines(line.decode('utf-8', 'other').encode() for line in fileinput.input(mode='rb'))\""
)


def conversion(path: str, encoding: str, compression: str = "") -> str:
    """The rest of a sentence about a file in another encoding; empty of one that is not on this disk."""
    return _command(path, f"iconv -f {encoding} -t UTF-8", compression, "; to convert it: ")


def mixed_conversion(path: str, codec: str, compression: str = "", *, is_wide: bool = False, given: str = "") -> str:
    """The same about a file of which some lines are in UTF-8, which stay, and others in a code page of Python's.

    One that `is_wide` has several bytes a character, of which the first may be all that is not UTF-8: it is that of the
    rest of the line. `given` is the condition on which the command helps.
    """
    said = (
        f"; other lines are in UTF-8, so iconv would spoil them; to convert only the bytes that are not UTF-8{given}: "
    )
    end = "len(e.object)" if is_wide else "e.end"
    return _command(path, MIXED.format(codec=codec, end=end), compression, said)


def _command(path: str, convert: str, compression: str, said: str) -> str:
    """`said` and the command that has `convert` write a new file beside an old one that may be compressed."""
    if is_url(path):
        return ""
    plain = Path(path)
    plain = plain.with_suffix("") if compression and plain.suffix.lower() in (".gz", ".zst") else plain
    old, new = here(path), here(str(plain.with_name(f"{plain.stem}-utf8{plain.suffix}")))
    read = f"{DECOMPRESS[compression]} {old} | {convert}" if compression else f"{convert} {old}"
    return f"{said}{read} > {new}"


def here(path: str) -> str:
    """A local path for a shell in the folder that the command was called in."""
    name = str(from_here(Path(path).absolute()))
    return shlex.quote(f"./{name}" if name.startswith("-") else name)
