"""The local paths that a glob matches. Its ** follows links to folders, which must not lead round in a circle."""

import contextlib
import glob
from pathlib import Path

ANY_DEPTH = "**"


def matches(pattern: str) -> list[str]:
    """Return the paths that match, sorted. Raises ValueError where ** would follow a link without end."""
    parts = Path(pattern).parts
    if ANY_DEPTH in parts:
        around = str(Path(*parts[: parts.index(ANY_DEPTH)]))
        for folder in _found(around):
            if link := _link_back(folder):
                raise ValueError(
                    f"{link} is a link to a folder that it lies in, which {ANY_DEPTH} would follow without end; remove "
                    f"the link, or name the folders without {ANY_DEPTH}"
                )
    return _found(pattern)


def _found(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 Path.glob takes no absolute pattern


def _link_back(top: str) -> str | None:
    """Return a folder below `top` that is one of the folders around it as well."""
    seen: set[tuple[int, int]] = set()
    left = [(Path(top), frozenset[tuple[int, int]]())]
    while left:
        path, around = left.pop()
        with contextlib.suppress(OSError):  # what cannot be read is not matched either
            found = path.stat()
            folder = (found.st_dev, found.st_ino)
            if folder in around:
                return str(path)
            if folder in seen:
                continue
            seen.add(folder)
            inner = [each for each in path.iterdir() if not each.name.startswith(".") and each.is_dir()]
            left += [(each, around | {folder}) for each in inner]
    return None
