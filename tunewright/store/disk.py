"""Files that survive a power cut: written to the disk, and replaced in one step or added to by a record a line."""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tunewright.errors import ConfigError

R = TypeVar("R", bound=BaseModel)


def now() -> str:
    """The time in UTC as records have it; a later one sorts behind it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def sync(*paths: Path) -> None:
    """Wait until each file or folder is on the disk. Raises OSError where it does not fit."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest_of(file: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def free_folder(folder: Path) -> Path:
    """The folder to write, which is not there yet or empty. Raises ConfigError."""
    target = folder.expanduser().resolve()
    if target.is_dir() and not any(target.iterdir()):
        return target
    if target.exists() or target.is_symlink():
        what = "is not empty" if target.is_dir() else "is not a folder"
        raise ConfigError(f"{folder}: {what}; accepted: a folder that is not there yet, or is empty")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: {target.parent} cannot be made: {error.strerror}") from error
    return target


def replace(file: Path, text: str) -> None:
    """Write `text` to `file` in one step: after a kill it has the old text or the new one."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    sync(unfinished)
    unfinished.replace(file)


def read(file: Path, kind: type[R], otherwise: str) -> list[R]:
    """All records of a file, the oldest first; none where there is no file.

    Raises ConfigError where a line is none; `otherwise` says what it is not, and what to do.
    """
    try:
        lines = file.read_bytes().splitlines()  # of text it would part lines at U+2028 and others within a value
    except FileNotFoundError:
        return []
    records: list[R] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError:
            shown = json.dumps(line[:60].decode(errors="replace"))
            raise ConfigError(f"{file} line {number}: {shown} {otherwise}") from None
    return records


def append(file: Path, record: BaseModel) -> None:
    """Adds a record in one write, so that a kill leaves a whole line or none."""
    line = f"{record.model_dump_json(exclude_none=True)}\n".encode()
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
