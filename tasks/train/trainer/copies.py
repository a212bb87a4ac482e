"""Files of a training on several machines: the first one keeps them, and the others have copies.

Each function is called by all ranks, and does nothing where one machine trains alone. The first rank of a machine reads
and writes for it.
"""

import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from tunewright import config
from tunewright.store.cache_key import hash_of
from tunewright.store.disk import digest_of
from tunewright.tasks.train.trainer import ranks

PIECE = 2**26  # bytes that are sent at once

Digests = dict[str, str]  # the sha256 of each file, by its path in the folder


def here(folder: Path, pattern: str = "*") -> Path:
    """The place of the first machine's `folder` on this machine, or of a copy of its files by a glob pattern.

    Where the same files lie at the same place, none is copied. A copy is kept for later trainings.
    """
    if ranks.machines() == 1:
        return folder
    folder, wanted = ranks.from_first(lambda: (folder, _digests(folder, pattern)))
    place, unfinished = folder, Path()
    is_first = ranks.own() == 0
    if ranks.leads() and not is_first and _digests(folder, pattern) != wanted:
        place = config.home() / "work" / "join" / hash_of(wanted)[:20]
        if _digests(place, "*") == wanted:
            (place / min(wanted)).touch()  # it is not stale
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(dir=place.parent))
    _copy_from_first(wanted if unfinished.name else (), folder if is_first else unfinished)
    if unfinished.name:
        if _digests(unfinished, "*") != wanted:
            raise OSError(f"the copy of {folder} is not as it was sent")
        shutil.rmtree(place, ignore_errors=True)
        unfinished.rename(place)
    return Path(ranks.gathered([str(place)])[ranks.own() - ranks.local()])


def on_each(folder: Path, name: str = "") -> None:
    """Has the files of the first machine's `folder`, or one of them, in that of each other machine."""
    if ranks.machines() == 1:
        return
    names = ranks.from_first(lambda: [name] if name else sorted(_files(folder)))
    _copy_from_first(names if ranks.leads() and ranks.own() else (), folder)


def at_first(folder: Path) -> None:
    """Moves the files of each other machine's `folder` to that of the first."""
    if ranks.machines() == 1:
        return
    offers = ranks.leads() and ranks.own() > 0
    offered = ranks.gathered([sorted(_files(folder)) if offers else []])
    for rank, names in enumerate(offered):
        for name in names:
            if ranks.own() in (0, rank):
                _move(folder / name, source=rank, target=0)
    if offers:
        shutil.rmtree(folder)
    ranks.wait()


def _copy_from_first(names: Collection[str], folder: Path) -> None:
    """Copies the files of these names, which each rank asks for, from the first machine's folder to a rank's own."""
    for rank, wanted in enumerate(ranks.gathered([sorted(names)])):
        for name in wanted:
            if ranks.own() in (0, rank):
                _move(folder / name, source=0, target=rank)
    ranks.wait()


def _move(file: Path, *, source: int, target: int) -> None:
    import torch
    from torch import distributed

    if ranks.own() == source:
        distributed.send(torch.tensor(file.stat().st_size), target)
        with file.open("rb") as read:
            while piece := read.read(PIECE):
                distributed.send(torch.frombuffer(bytearray(piece), dtype=torch.uint8), target)
        return
    left = torch.tensor(0)
    distributed.recv(left, source)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as written:
        for start in range(0, int(left), PIECE):
            piece = torch.empty(min(PIECE, int(left) - start), dtype=torch.uint8)
            distributed.recv(piece, source)
            written.write(piece.numpy().data)


def _digests(folder: Path, pattern: str) -> Digests:
    return {name: digest_of(folder / name) for name in sorted(_files(folder, pattern))}


def _files(folder: Path, pattern: str = "*") -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(pattern) if path.is_file()]
