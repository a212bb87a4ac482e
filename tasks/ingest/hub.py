"""Data sets that are read through `datasets`: those of the hub (hub:org/name), and folders that save_to_disk wrote.

What identifies one is the commit that its branch or tag means when the run begins, and that commit is what is read.
No code of a data set is run (`datasets` has no such thing any more). Where HF_HUB_OFFLINE is set nothing is reached:
the copy that an earlier run left in the cache is read, if it is that of the revision asked for.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from tunewright.accepted import did_you_mean
from tunewright.errors import ConfigError, DataError
from tunewright.tasks.ingest.arrow import labelled
from tunewright.tasks.ingest.layouts import known_columns

FORM = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
BATCH_ROWS = 1_000
OF_SPLITS, OF_FILES = "dataset_dict.json", "state.json"
MAX_BYTES = 1_000_000  # of either
MAX_NAME = 255  # bytes of a name, of most file systems


def is_hub(path: str) -> bool:
    """Whether a source's path names a data set of the hub."""
    return path.startswith("hub:")


def commit(path: str, revision: str | None, setting: str) -> str:
    """The commit that `revision` means, or the main branch. Raises ConfigError where the data set cannot be had."""
    name, config, _ = _parts(path, setting)
    builder = _builder(name, config, revision, setting)
    if type(builder).__module__ == "datasets.packaged_modules.cache.cache":  # the newest copy, whatever the revision
        if not _offline():
            there = f"HF_HUB_OFFLINE=1 takes the copy in the cache, {builder.hash}"
            raise ConfigError(f"{setting}: the hub does not answer; {there}")
        if revision and not builder.hash.startswith(revision):
            there = f"the copy in the cache is {builder.hash}, not revision {revision}"
            raise ConfigError(f"{setting}: offline, and {there}")
    if not COMMIT.fullmatch(builder.hash or ""):
        raise ConfigError(f"{setting}: {builder.hash} is not a commit of 40 hex digits")
    return builder.hash


def batches(path: str, commit: str, columns: frozenset[str] | None) -> Iterator[pa.RecordBatch]:
    """The rows of a data set in batches, those of `columns` that it has; class labels by their names.

    Raises ConfigError where there is no such split, DataError where it has none of the columns.
    """
    from datasets import disable_progress_bars

    disable_progress_bars()
    name, config, split = _parts(path, path)
    builder = _builder(name, config, commit, path)
    if builder.hash != commit:
        raise ConfigError(f"{path}: the hub no longer has commit {commit}, and the cache has {builder.hash}")
    builder.download_and_prepare()
    splits: Any = builder.info.splits or {}
    if split not in splits:
        raise ConfigError(f"{path}: there is no split {split}; accepted: {', '.join(splits)}")
    rows: Any = builder.as_dataset(split=split)
    known = known_columns(path, rows.column_names, columns)
    labels = {name: rows.features[name].names for name in known if getattr(rows.features[name], "names", None)}
    for table in rows.select_columns(known).with_format("arrow").iter(batch_size=BATCH_ROWS):
        yield from (labelled(batch, labels) for batch in table.to_batches())


def _parts(path: str, setting: str) -> tuple[str, str | None, str]:
    form = FORM.fullmatch(path)
    if not form:
        raise ConfigError(f"{setting}: accepted: hub:org/name or hub:org/name/config:split")
    return form["name"], form["config"], form["split"] or "train"


def _builder(name: str, config: str | None, revision: str | None, setting: str) -> Any:
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetsError

    if Path(name).exists():  # `datasets` would read that
        raise ConfigError(
            f"{setting}: {Path(name).resolve()} has that name too; run elsewhere, or name its files without hub:"
        )
    try:
        return load_dataset_builder(name, config, revision=revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = " ".join(str(error).split())
        offline = " (offline: HF_HUB_OFFLINE is set, and it is not in the cache)" if _offline() else ""
        raise ConfigError(f"{setting}: cannot download it from the hub{offline}: {reason}") from error


def _offline() -> bool:
    from datasets.config import HF_HUB_OFFLINE

    return bool(HF_HUB_OFFLINE)


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
            f"{folder}: it is a selection of rows by their numbers, as datasets wrote before version 2; "
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
