"""Paths and data sets of another tool, as a deployment file names them."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

HUB = re.compile(r"[\w.-]+/[\w.-]+")
A_FILE = re.compile(r"^[./~]|[*?]|\.(jsonl?|ndjson|csv|tsv|parquet|arrow|txt)(\.(gz|zst))?$", re.I)
NOT_FOUND = "not found here: check the path"
OF_SAVE_TO_DISK = ("dataset_dict.json", "state.json")


@dataclass(frozen=True)
class Places:
    """Where relative paths of a configuration start, and where those of the deployment file do.

    The tools start them in the folder that they are called in, which nobody has written down: a path is looked for in
    the current folder first, and then beside the configuration.
    """

    here: Path
    configuration: Path
    output: Path

    def found(self, path: str, within: Path = Path()) -> Path | None:
        """The path of a file or folder that is there, or None."""
        try:
            starts = (self.here, self.configuration)
            there = [start / within / Path(path).expanduser() for start in starts]
            return next((each for each in there if each.exists() or _is_glob_of_some(each)), None)
        except (OSError, RuntimeError, ValueError):  # no file can have that path
            return None

    def named(self, path: str, within: Path = Path()) -> tuple[str, str]:
        """A path as the deployment file has it, and what to say where nothing is there."""
        if "://" in path:
            return path, ""
        found = self.found(path, within)
        if found and found.is_dir() and not any((found / name).exists() for name in OF_SAVE_TO_DISK):
            found /= "*"
        said = "" if found else NOT_FOUND
        if Path(path).is_absolute() or path.startswith("~"):
            return (f"{path.rstrip('/')}/*" if found and found.name == "*" and "*" not in path else path), said
        return os.path.relpath(found or self.here / within / path, self.output), said

    def base(self, name: str) -> tuple[str, str]:
        """A base model as the deployment file has it, and what to say where it is not there.

        A hub id stays one unless a folder of that name is there.
        """
        if "://" in name or name.startswith("package:"):
            return name, ""
        found, is_absolute = self.found(name), name.startswith("~") or Path(name).is_absolute()
        if found is None and not (is_absolute or name.startswith(".")):
            return name, ""
        said = "" if found else NOT_FOUND
        if is_absolute:
            return name, said
        path = os.path.relpath(found or self.here / name, self.output)
        return (path if path.startswith(".") or (found and "/" in path) else f"./{path}"), said

    def source(self, path: str, config: str = "", split: str = "") -> tuple[str, str]:
        """A data set as data.sources has it, and what to say of it; the first is empty where it cannot be read."""
        if not path.strip():
            return "", "the path is empty"
        if "://" in path or self.found(path) or A_FILE.search(path):
            return self.named(path)
        if not HUB.fullmatch(path):
            return "", "neither a file here nor a data set of the hub, whose name is owner/name"
        whole, _, part = split.partition("[")
        said = f"split {split} takes a part, here all of it is read; data.limit reads a sample" if part else ""
        return f"hub:{path}{f'/{config}' if config else ''}{f':{whole}' if whole else ''}", said


def _is_glob_of_some(path: Path) -> bool:
    return "*" in path.name and any(path.parent.glob(path.name))
