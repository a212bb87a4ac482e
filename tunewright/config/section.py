"""The base class and field types of all sections."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import core_schema


@dataclass(frozen=True)
class LocalPath:
    """Marks a setting that may be a path, relative to the deployment file; `or_name` where it may be a name as well."""

    or_name: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(_possible, handler(source))


@dataclass(frozen=True)
class CommaSeparated:
    """Marks a text that holds several names: the command line takes them as a list in brackets as well."""


LONGEST_NAME = 255  # bytes of a file's or folder's, on every usual disk


def _possible(path: Any) -> Any:
    """Return a path, or several. Raises ValueError where no file can have one."""
    if isinstance(path, tuple):
        return tuple(map(_possible, path))
    if path is None or "://" in path:
        return path
    try:
        names = path.encode().split(b"/")
        Path(path).expanduser()
    except UnicodeEncodeError:
        raise ValueError(f"{path!a:.80}: holds half of a surrogate pair, which no path can") from None
    except RuntimeError:
        raise ValueError(f"{path:.80}: no user here is called so; ~/ is your own folder") from None
    if "\0" in path or max(map(len, names)) > LONGEST_NAME:
        raise ValueError(f"{path!a:.80}: has a NUL, or a name of more than {LONGEST_NAME} bytes, which no path can")
    return path


class Section(BaseModel):
    """Base of all sections: frozen, closed to unknown keys, strict about lossy types."""

    # What is wrong may be a secret, so pydantic's own message does not repeat it.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    def without(self, *names: str) -> Self:
        """The section with these settings at their defaults."""
        return self.model_copy(update={name: type(self).model_fields[name].default for name in names})
