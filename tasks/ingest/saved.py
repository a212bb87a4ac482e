"""Folders that `datasets` wrote with save_to_disk: a data set, or several splits of one (DatasetDict)."""

import json
from pathlib import Path
from typing import Any

from tunewright.accepted import did_you_mean
from tunewright.errors import ConfigError, DataError

OF_SPLITS, OF_FILES = "dataset_dict.json", "state.json"
MAX_BYTES = 1_000_000  # of either
MAX_NAME = 255  # bytes of a name, of most file systems


def is_saved(folder: Path) -> bool:
    """Whether save_to_disk wrote a folder."""
    return folder.is_dir() and any((folder / name).is_file() for name in (OF_SPLITS, OF_FILES))


def saved_files(folder: Path, split: str | None, setting: str) -> list[str]:
    """The Arrow files of a saved data set, in their order; of several splits those of `split`, or of the only one.

    `setting` is the source, such as data.sources[0]. Raises ConfigError where it does not say which split is meant, and
    DataError where the folder is not whole.
    """
    if (folder / OF_SPLITS).is_file():
        splits = _texts(folder / OF_SPLITS, _json(folder / OF_SPLITS).get("splits"))
        split = splits[0] if split is None and len(splits) == 1 else split
        if split is None:
            raise ConfigError(f"{setting}.split: {folder} has the splits {', '.join(splits)}; choose one")
        if split not in splits:
            there = ", ".join(splits)
            raise ConfigError(f"{setting}.split={split}: {folder} has {there}; {did_you_mean(split, splits)}")
        folder = folder / split
    elif split:
        raise ConfigError(f"{setting}.split={split}: {folder} is one data set, without splits; leave it out")
    state = _json(folder / OF_FILES)
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder}: bad_arrow, it is a selection of rows by their numbers, as datasets wrote before version 2; "
            "load it and save it again"
        )
    entries = state.get("_data_files")
    listed = entries if isinstance(entries, list) else ()
    given = [each.get("filename") if isinstance(each, dict) else None for each in listed]
    names = _texts(folder / OF_FILES, given)
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise DataError(f"{folder / missing[0]}: there is no such file, which {OF_FILES} beside it names")
    return [str(folder / name) for name in names]


def _json(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(MAX_BYTES))
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file, so the folder is not a whole saved data set") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{file}: not what save_to_disk of datasets writes; save the data set again")
    return found


def _texts(file: Path, names: Any) -> list[str]:
    for name in names if isinstance(names, list) and names else [None]:
        is_name = isinstance(name, str) and name.isprintable() and Path(name).name == name
        if not is_name or len(str(name).encode()) > MAX_NAME:
            raise DataError(f"{file}: not what save_to_disk of datasets writes; save the data set again")
    return names
