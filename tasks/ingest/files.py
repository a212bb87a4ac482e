"""Which files the sources mean, and the digest of what is in them: what each run looks at before ingest's key is known.

It runs outside the cached stage, so a file that changed is noticed, and its result is plain data that becomes part of
the key.
"""

import difflib
import glob
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.caching import digest_of
from tasks.config import Data, Layout, Source
from tasks.errors import ConfigError, DataError

FORMATS: dict[str, Literal["jsonl", "json", "csv", "parquet"]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}

BOM = b"\xef\xbb\xbf"

HTML = "an HTML page, not data: a download was answered with a web page"
NOT_DATA = (
    (b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the data: fetch them with git lfs pull"),
    (b"<!doctype html", HTML),
    (b"<html", HTML),
    (b"\x1f\x8b", "compressed: unpack it with gunzip first"),
    (b"\xff\xfe", "UTF-16: save it as UTF-8"),
    (b"\xfe\xff", "UTF-16: save it as UTF-8"),
)


class SourceFile(BaseModel):
    """One file to read: where it is as the settings say it, how it is read, and what is in it."""

    model_config = ConfigDict(frozen=True)

    path: str
    format: Literal["jsonl", "json", "csv", "parquet"]
    layout: Layout
    sha256: str


def source_files(data: Data) -> tuple[SourceFile, ...]:
    """The files of `data.sources` in their order, globs sorted, each with its digest.

    Raises ConfigError where a source names no readable file of a known format or a file that an earlier source named,
    DataError where a file is empty or holds something else than data.
    """
    found: dict[Path, SourceFile] = {}
    for position, source in enumerate(data.sources):
        setting = f"data.sources[{position}].path={source.path}"
        try:
            for path in _matches(source.path, setting):
                if path.resolve() in found:
                    raise ConfigError(f"{setting}: {path} is read by an earlier source already; name each file once")
                found[path.resolve()] = _identify(path, source, setting)
        except OSError as error:
            raise ConfigError(f"{setting}: cannot be read ({error.strerror}); accepted is a readable file") from error
    return tuple(found.values())


def _matches(pattern: str, setting: str) -> list[Path]:
    path = Path(pattern).expanduser()
    here = "" if path.is_absolute() else f" below {Path.cwd()}"
    if path.is_file():
        return [path]
    if path.is_dir():
        raise ConfigError(f"{setting}: is a folder; accepted is a file or a glob such as {path / '*.jsonl'}")
    if not glob.has_magic(pattern):
        raise ConfigError(f"{setting}: no such file{here}; {_alternatives(path)}")
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 Path.glob takes no absolute pattern
    files = [match for match in map(Path, matches) if match.is_file()]
    if not files:
        raise ConfigError(f"{setting}: no file matches{here}; accepted is a glob that matches a file")
    return files


def _alternatives(path: Path) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {path.parent} either"
    names = [other.name for other in path.parent.iterdir() if other.suffix in FORMATS]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"did you mean {path.with_name(close[0])}?" if close else "accepted is a file or a glob"


def _identify(path: Path, source: Source, setting: str) -> SourceFile:
    resolved = FORMATS.get(path.suffix.lower()) if source.format == "auto" else source.format
    if resolved is None:
        accepted = ", ".join(FORMATS)
        raise ConfigError(f"{setting}: {path} ends in {path.suffix!r}; accepted are {accepted}, or set format")
    with path.open("rb") as opened:
        head = opened.read(512)
    if not head:
        raise DataError(f"{path}: the file is empty; accepted is a file with at least one record")
    start = head.removeprefix(BOM).lstrip().lower()
    for beginning, meaning in NOT_DATA:
        if start.startswith(beginning):
            raise DataError(f"{path}: the file is {meaning}")
    return SourceFile(path=str(path), format=resolved, layout=source.layout, sha256=digest_of(path))
