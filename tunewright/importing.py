"""Modules of the team's: what a setting names is imported, or said in one line why it cannot be."""

import importlib
from types import ModuleType


def imported(module: str, accepted: str) -> ModuleType:
    """The module. Raises ValueError with what to say after the setting; `accepted` is how it names something."""
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:  # what a module of the team's does when it is imported is its own
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if not missing or not f"{module}.".startswith(f"{missing}."):
            raise ValueError(f" cannot be imported: {one_line(error)}") from error
        place = "beside the deployment file or in a folder on PYTHONPATH"
        raise ValueError(f": there is no module {missing}; accepted: {accepted} {place}") from error


def one_line(error: BaseException) -> str:
    """An error's type and message on one line of at most 200 characters."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return said if len(said) <= 200 else f"{said[:199]}…"
