"""metrics.jsonl, the trainer's log: a line for each step and one for each evaluation of the validation rows."""

import json
import os
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"
ALIVE = "alive"  # written while the trainer writes nothing else: what it does meanwhile, in words, or nothing

Line = dict[str, Any]


def read(file: Path) -> list[Line]:
    """The lines up to the first that was not written whole, as a power cut may leave zeros; empty without a file."""
    found: list[Line] = []
    if not file.exists():
        return found
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            line = json.loads(text)
        except ValueError:
            break
        if not text.endswith("\n") or not isinstance(line, dict) or "step" not in line:
            break
        found.append(line)
    return found


class GrowingLog:
    """The log of a training that goes on; a trainer that resumes replaces the file by a shorter one."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._inode, self._offset = -1, 0

    def new(self) -> tuple[list[Line], bool]:
        """The lines that became whole since the last call, and whether they are all, as the file is another one."""
        try:
            file = self.file.open("rb")
        except FileNotFoundError:
            return [], False
        with file:
            found = os.fstat(file.fileno())
            is_another = found.st_ino != self._inode or found.st_size < self._offset
            if is_another:
                self._inode, self._offset = found.st_ino, 0
            file.seek(self._offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()], is_another
