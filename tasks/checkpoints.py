"""Checkpoints that can be trusted: each gets a manifest, written last, and a run resumes from the newest valid one.

transformers would resume from a truncated, altered or incomplete checkpoint without a word, to other weights.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

MANIFEST = "manifest.json"
PREFIX = "checkpoint-"


def _digests(checkpoint: Path) -> dict[str, str]:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != MANIFEST)
    digests = {}
    for path in files:
        with path.open("rb") as opened:
            digests[str(path.relative_to(checkpoint))] = hashlib.file_digest(opened, "sha256").hexdigest()
            os.fsync(opened.fileno())
    return digests


def seal(checkpoint: Path) -> None:
    """Writes the manifest of a checkpoint that is now complete on disk."""
    unfinished = checkpoint / f".{MANIFEST}"
    unfinished.write_text(json.dumps(_digests(checkpoint)), encoding="utf-8")
    unfinished.rename(checkpoint / MANIFEST)


def is_valid(checkpoint: Path) -> bool:
    """Whether every file of the checkpoint is there as it was when it was sealed."""
    try:
        expected = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return expected == _digests(checkpoint)


def newest_valid(folder: Path) -> Path | None:
    """The valid checkpoint with the most steps, or None. Invalid ones are removed, so that nothing picks them up."""
    found = sorted(folder.glob(f"{PREFIX}*"), key=steps, reverse=True)
    for checkpoint in found:
        if is_valid(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def steps(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint's name gives, -1 for a name that is not a checkpoint's."""
    number = checkpoint.name.removeprefix(PREFIX)
    return int(number) if number.isdigit() else -1
