"""The files that a stage leaves when it refuses its data, in `<home>/stopped/<stage>/<key>/`; they are no artifact.

They are the files that the error names (DataError.see) and stopped.json. They are replaced if the stage stops on the
same inputs again, and removed once it no longer stops.
"""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tunewright import config
from tunewright.errors import DataError
from tunewright.store.disk import now

STOPPED = "stopped.json"


class StoppedStage(BaseModel, frozen=True):
    """A stage that refused its data."""

    stage: str
    key: str
    message: str  # why
    when: str  # UTC
    run: str  # the name of the flow run
    files: tuple[str, ...]  # the most telling one first
    ingredients: dict[str, Any]  # of its key, as in a manifest

    @property
    def folder(self) -> Path:
        """The paths of the files."""
        return _place(self.stage, self.key)

    def path(self, name: str) -> Path:
        """The file `name` of it."""
        return self.folder / name

    @property
    def paths(self) -> list[Path]:
        """The files."""
        return [self.path(name) for name in self.files]

    @property
    def said(self) -> str:
        """Why, and where to look, as the error of the run said it."""
        return f"{self.message}; see {config.from_here(self.paths[0])}" if self.files else self.message


def keep(unfinished: Path, stage: str, key: str, error: DataError, run: str, ingredients: dict[str, Any]) -> None:
    """Keeps of a stage's unfinished folder what the error names, and adds to the error's line where that lies now."""
    files = tuple(name for name in error.see if (unfinished / name).is_file())
    when = now()
    stopped = StoppedStage(
        stage=stage, key=key, message=str(error), when=when, run=run, files=files, ingredients=ingredients
    )
    with contextlib.suppress(OSError):  # a full disk must not hide why the stage stopped
        discard(stage, key)
        stopped.folder.mkdir(parents=True)
        for name in files:
            (unfinished / name).rename(stopped.folder / name)
        said = stopped.model_dump(exclude={"stage", "key"})
        (stopped.folder / STOPPED).write_text(json.dumps(said, indent=1, ensure_ascii=False), encoding="utf-8")
        error.args = (stopped.said,)


def find(stage: str, key: str) -> StoppedStage | None:
    """Return the record a stage left when it stopped on the inputs of this key, or None."""
    try:
        said = json.loads((_place(stage, key) / STOPPED).read_text(encoding="utf-8"))
        return StoppedStage.model_validate(said | {"stage": stage, "key": key})
    except (FileNotFoundError, ValueError, TypeError):  # killed while it was written: as if it were not there
        return None


def of_stage(stage: str) -> list[StoppedStage]:
    """Return all records a stage left when it stopped."""
    left = (find(stage, folder.name) for folder in (config.home() / "stopped" / stage).glob("*/"))
    return [stopped for stopped in left if stopped]


def discard(stage: str, key: str) -> None:
    """Deletes it."""
    shutil.rmtree(_place(stage, key), ignore_errors=True)


def _place(stage: str, key: str) -> Path:
    return config.home() / "stopped" / stage / key
