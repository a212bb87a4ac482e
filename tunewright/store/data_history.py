"""Where the accepted versions of a pipeline's data are kept: a line each in `<home>/versions/<name>.jsonl`.

What makes a version, and what follows from it, is said in data_versions.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from tunewright import config
from tunewright.store import disk, jsonl


class StageOutput(BaseModel, frozen=True):
    """One stage's artifact of a data version: its key and digest."""

    stage: str
    key: str
    digest: str

    @property
    def folder(self) -> Path:
        """The artifact's folder in this home."""
        return config.home() / "artifacts" / self.stage / self.key


class Replaced(BaseModel, frozen=True):
    """An earlier acceptance of the same data under other settings, from a line of the history."""

    accepted: str  # UTC
    run: str
    moved: int | None  # rows that were on another side than those that replaced it have; None where it was gone
    known: int  # rows with a side in both, of which `moved` are some
    splits: str = ""  # digest of the sides


class Version(BaseModel, frozen=True):
    """One line: one accepted version of the data."""

    number: int  # within its history, from 1
    seed: int
    by: Literal["cluster", "time"]
    accepted: str  # UTC
    run: str  # the name of the flow run; empty for a call outside a flow
    parent: str  # digest of the rows of the version before; empty for the first
    rows: StageOutput
    checked: StageOutput
    unique: StageOutput
    splits: StageOutput
    counts: dict[str, int]  # read, rows, checked, unique, train, validation, test
    added: int | None  # records that the version before does not have; None where that one's rows are gone
    removed: int | None  # records of the version before that this one does not have
    replaced: tuple[Replaced, ...] = ()  # the oldest first
    assignments: str = ""  # their digest (assignments.py); empty in a line that was written before they were kept

    def is_back(self, position: int) -> bool:
        """Whether what replaced `replaced[position]` are the sides that it was first accepted with."""
        sides = [*(once.splits for once in self.replaced), self.splits.digest]
        return position > 0 and sides[position + 1] == sides[0]


def history(name: str, seed: int, by: str) -> list[Version]:
    """The versions of one history, the oldest first."""
    return [version for version in read(file_of(name)) if (version.seed, version.by) == (seed, by)]


def file_of(name: str) -> Path:
    """The file with all versions of a pipeline's data."""
    return config.home() / "versions" / f"{name}.jsonl"


def read(file: Path) -> list[Version]:
    """All versions in a file. Raises ConfigError where a line is none."""
    return jsonl.read(
        file, Version, "is not a data version; fix the line, or delete the file: the next run starts a new history"
    )


def write(file: Path, versions: Sequence[Version]) -> None:
    """Replaces the file in one step: after a kill it has all the old lines or all the new ones."""
    disk.replace(file, "".join(f"{version.model_dump_json()}\n" for version in versions))
