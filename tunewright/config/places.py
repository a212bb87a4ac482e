"""Which folder a relative path of a setting starts from: that of the deployment file, wherever a command is called.

A command works in the folder of its file, and so does a worker's run, whose deployment begins there. What the
environment names by a relative path, and what is shown, stays relative to the folder that the command was called in.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from contextvars import ContextVar
from pathlib import Path

from tunewright.config.environment import home

_CALLED_IN: ContextVar[Path | None] = ContextVar("called_in", default=None)


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Works in the folder of a deployment file. Modules that lie there can be imported, after all others."""
    os.environ["TUNEWRIGHT_HOME"] = str(home())
    if paths := os.environ.get("PYTHONPATH"):
        os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(path).absolute()) for path in paths.split(os.pathsep))
    token, added = _CALLED_IN.set(called_in()), str(folder.absolute())
    sys.path.append(added)
    try:
        with chdir(folder):
            yield
    finally:
        sys.path.remove(added)
        _CALLED_IN.reset(token)


def called_in() -> Path:
    """The folder that the command was called in, or the current one where no command was."""
    return _CALLED_IN.get() or Path.cwd()


def from_here(path: Path) -> Path:
    """A path as a person calls it: relative to the folder that the command was called in where it lies below it."""
    return path.relative_to(called_in()) if path.is_relative_to(called_in()) else path


def is_local(path: str) -> bool:
    """Whether a path is relative, and no URL, hub id (hub:) or file of a package (package:)."""
    return not (":" in path.partition("/")[0] or path.startswith(("/", "~")))


def from_folder(path: str, folder: Path, *, or_name: bool = False) -> str:
    """A relative path of the command line as a deployment file in `folder` would name it.

    What may be a name as well, such as a hub id, is a path only where something is there or it begins with a dot.
    """
    is_name = or_name and not path.startswith(".") and not (called_in() / path).exists()
    if not is_local(path) or is_name or folder.resolve() == called_in().resolve():
        return path
    return os.path.relpath(called_in().resolve() / path, folder.resolve())


def or_meant(path: str) -> str:
    """Return the hint for a missing path that exists relative to the folder that the command was called in, or ""."""
    if not is_local(path) or called_in() == Path.cwd() or not any(called_in().glob(path)):
        return ""
    return f"; paths are relative to the deployment file: did you mean {from_folder(path, Path.cwd())}?"
