"""Files that survive a power cut: written to the disk, and replaced in one step."""

import os
from pathlib import Path


def sync(*paths: Path) -> None:
    """Wait until each file or folder is on the disk. Raises OSError where it does not fit."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def replace(file: Path, text: str) -> None:
    """Write `text` to `file` in one step: after a kill it has the old text or the new one."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    sync(unfinished)
    unfinished.replace(file)
