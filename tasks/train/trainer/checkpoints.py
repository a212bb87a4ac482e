"""Checkpoints that can be trusted: each gets a manifest, written last, and a run resumes from the newest valid one.

transformers would resume from a truncated, altered or incomplete checkpoint without a word, to other weights; and where
the checkpoint of the best step is gone, it would take the last step's weights for the best.
"""

import shutil
from pathlib import Path

from pydantic import BaseModel, ValidationError

from tunewright.accepted import printable
from tunewright.config import Compute
from tunewright.store import disk
from tunewright.store.manifest import digest_of

MANIFEST = "manifest.json"
UNFINISHED = f"it was not finished when the training was stopped (it has no {MANIFEST})"
PREFIX = "checkpoint-"
SHARDED = "pytorch_model_fsdp"  # begins the name of a folder in a checkpoint of FSDP, by accelerate


class Seal(BaseModel, frozen=True):
    """The manifest of a checkpoint."""

    best_step: int | None
    files: dict[str, list[str]]  # name -> the sha256 of the file, and that of the file that replaces it


def at(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint after `step` steps, in the folder of all."""
    return folder / f"{PREFIX}{step}"


def steps(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint's name gives, -1 for a name that is not a checkpoint's."""
    number = checkpoint.name.removeprefix(PREFIX)
    return int(number) if number.isdigit() else -1


def seal(checkpoint: Path, best_step: int | None = None) -> None:
    """Writes the manifest of a checkpoint that is now complete on disk; `best_step` is the best up to it."""
    _write_manifest(checkpoint, best_step, {name: [digest] for name, digest in _digests(checkpoint).items()})


def replace(checkpoint: Path, name: str, new: Path, best_step: int | None = None) -> None:
    """Moves `new` to the file `name` of a sealed checkpoint; a kill at any moment leaves the checkpoint valid.

    The manifest has both digests from before the move on.
    """
    manifest = _manifest(checkpoint)
    assert manifest
    files = manifest.files
    _write_manifest(checkpoint, best_step, files | {name: [*files[name], _digest(new)]})
    new.rename(checkpoint / name)


def fault(checkpoint: Path) -> str:
    """Describe the fault of a checkpoint or of its best step's; "" if every file is as it was sealed."""
    if not (checkpoint / MANIFEST).exists():
        return UNFINISHED
    if own := _fault(checkpoint):
        return own
    best = _best(checkpoint)
    if best in (None, checkpoint) or not (theirs := _fault(best)):
        return ""
    return f"{best.name}, the best step: {theirs}"


def _fault(checkpoint: Path) -> str:
    manifest = _manifest(checkpoint)
    if manifest is None:
        return f"{MANIFEST} {'was altered' if (checkpoint / MANIFEST).exists() else 'is missing'}"
    files, found = manifest.files, _digests(checkpoint)
    for name in sorted(files.keys() | found.keys()):
        if name not in found:
            return f"{printable(name)} is missing"
        if name not in files:
            return f"{printable(name)} was added"
        if found[name] not in files[name]:  # nor is it what replaced it since
            return f"{printable(name)} was altered"
    return ""


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The checkpoint with the most steps that is valid as well as that of its best step, or None; and the faults.

    The faults are of those with more steps: a line each, and these are removed, so that nothing picks them up.
    """
    skipped: list[str] = []
    for checkpoint in newest_first(folder):
        found = fault(checkpoint)
        if not found:
            return checkpoint, skipped
        skipped.append(f"{checkpoint.name} is skipped: {found}")
        shutil.rmtree(checkpoint)
    return None, skipped


def resumable(compute: Compute, checkpoint: Path) -> Compute:
    """The settings by which the checkpoint is read: the automatic strategy is that which wrote it.

    Another process on the device, or another machine, may change what fits there.
    """
    if compute.strategy != "auto" or compute.num_ranks == 1:
        return compute
    strategy = "fsdp" if any(checkpoint.glob(f"{SHARDED}*")) else "ddp"
    return compute.model_copy(update={"strategy": strategy})


def newest_sealed(folder: Path) -> int:
    """The steps of the newest checkpoint with a manifest, valid or not; 0 where there is none."""
    return max((steps(manifest.parent) for manifest in folder.glob(f"{PREFIX}*/{MANIFEST}")), default=0)


def prune(checkpoint: Path) -> None:
    """Removes the checkpoints that this sealed one makes needless.

    Besides it stay the sealed one before, to go on from where this one is damaged, and those of both best steps.
    """
    before = [
        other for other in newest_first(checkpoint.parent) if steps(other) < steps(checkpoint) and _manifest(other)
    ]
    kept = [checkpoint, *before[:1]]
    kept += [best for each in kept if (best := _best(each))]
    for other in newest_first(checkpoint.parent):
        if other not in kept:
            shutil.rmtree(other)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, sealed or not."""
    return sorted(folder.glob(f"{PREFIX}*"), key=steps, reverse=True)


def _best(checkpoint: Path) -> Path | None:
    manifest = _manifest(checkpoint)
    return None if manifest is None or manifest.best_step is None else at(checkpoint.parent, manifest.best_step)


def _write_manifest(checkpoint: Path, best_step: int | None, files: dict[str, list[str]]) -> None:
    unfinished = checkpoint / f".{MANIFEST}"
    unfinished.write_text(Seal(best_step=best_step, files=files).model_dump_json(), encoding="utf-8")
    disk.sync(unfinished)
    unfinished.rename(checkpoint / MANIFEST)
    disk.sync(checkpoint, checkpoint.parent)  # before older ones are removed


def _manifest(checkpoint: Path) -> Seal | None:
    """The manifest, or None where there is none, or it is not as it was written."""
    try:
        return Seal.model_validate_json((checkpoint / MANIFEST).read_bytes())
    except (OSError, ValidationError):
        return None


def _digests(checkpoint: Path) -> dict[str, str]:
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name.strip(".") != MANIFEST)
    return {str(path.relative_to(checkpoint)): _digest(path) for path in files}


def _digest(file: Path) -> str:
    """The sha256 of a file, which is on the disk then."""
    disk.sync(file)
    return digest_of(file)
