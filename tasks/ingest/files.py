"""Which files the sources mean, and what identifies their content: what each run looks at before ingest's key is known.

It runs outside the cached stage, so a file that changed is noticed, and its result is plain data that becomes part of
the key. Nothing is parsed and, where a store says enough about an object, nothing is downloaded.
"""

import difflib
import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, product
from pathlib import Path, PurePosixPath
from typing import Literal, get_args
from urllib.parse import urlsplit

from pydantic import BaseModel

from tunewright.accepted import did_you_mean
from tunewright.config import Data, Layout, RecordFiles, Source, Use, as_called, or_meant, outside
from tunewright.errors import ConfigError, DataError
from tunewright.machine import globs
from tunewright.store.caching import digest_of
from tunewright.tasks.ingest import hub, stores
from tunewright.tasks.ingest.hub import is_saved, saved_files
from tunewright.tasks.ingest.layouts import MAPPABLE
from tunewright.tasks.ingest.opening import Compression, compression_of

FileFormat = Literal["jsonl", "json", "csv", "parquet", "arrow", "text", "hub"]

NAMED: tuple[FileFormat, ...] = ("json", "csv", "parquet", "arrow")  # by the ending of the same name
FORMATS: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    **{f".{name}": name for name in NAMED},
    ".tsv": "csv",
}
HELD_OUT_FORMATS: dict[str, FileFormat] = {**FORMATS, ".txt": "text"}
USER_PROVIDED: tuple[Use, ...] = ("validation", "test")
ASKED = ("instruction", "prompt", "input")  # fields of ours
ANSWERED = ("output", "completion", "chosen", "rejected", "answers")
SIMILAR = 0.75  # of two names without their endings, from where one may be a misspelling of the other

MOST_LOOKED_AT = 10_000  # files of a level of folders, for a hint


Identify = Callable[[str], tuple[Compression, str]]


def identify(path: str) -> tuple[Compression, str]:
    """Return a file's compression and its identity, which changes with its content; a local file is read for it."""
    return compression_of(path), _digest(path)


class SourceFile(BaseModel, frozen=True):
    """One file or data set to read: where it is, how it is read, and what is in it."""

    path: str
    digest: str  # the sha256 of a file, what a store says of an object, the commit of a hub data set
    format: FileFormat
    compression: Compression = ""
    layout: Layout = "auto"
    columns: dict[str, str] = {}
    use_as: Use | None = None
    setting: str = ""  # the source that names it, such as data.sources[0]
    glob: str = ""  # of that source, where it names several
    held_out: bool = False

    @property
    def is_user_provided(self) -> bool:
        """Whether its rows are a whole validation or test set, of which neither split nor data.limit draws some."""
        return self.use_as in USER_PROVIDED


def source_files(data: Data, identify: Identify = identify) -> tuple[SourceFile, ...]:
    """The files of `data.sources`, then those of `data.held_out`, in their order, globs sorted.

    Replay files are the last sources: where a row of one repeats another row, it is the later one, and goes. Who knows
    files already gives an `identify` that does not read them again.

    Raises ConfigError where a source names nothing readable of a known format, something that an earlier source named
    or columns that there are not; DataError where a file is empty or holds something else than data.
    """
    found: dict[str, SourceFile] = {}
    for held_out, sources in ((False, data.sources), (True, data.held_out)):
        for position, source in sorted(enumerate(sources), key=lambda each: _use_as(each[1]) == "replay"):
            setting = f"data.{'held_out' if held_out else 'sources'}[{position}]"
            _fits(source, setting, held_out)
            for file in _files(source, setting, held_out, identify):
                place = file.path if is_remote(file.path) else str(Path(file.path).resolve())
                if place in found:
                    raise ConfigError(
                        f"{setting}.path={source.path}: {file.path} is already read by {found[place].setting}; "
                        "list each file once"
                    )
                found[place] = file
    return tuple(found.values())


def files_of(source: RecordFiles, setting: str, identify: Identify = identify) -> tuple[SourceFile, ...]:
    """The files that one source names, also texts of one question a line; `setting` is what errors call it.

    Raises as source_files does.
    """
    _fits(source, setting, held_out=True)
    return tuple(_files(source, setting, True, identify))


@contextmanager
def named(setting: str, path: str) -> Iterator[None]:
    """Begin a DataError about a file with the key that names it, and with its path as a person there would open it."""
    try:
        yield
    except DataError as error:
        said = str(error)
        if not setting or not said.startswith(path):
            raise
        error.args = (f"{place_of(setting, path)}{said.removeprefix(path)}",)
        raise


def place_of(setting: str, path: str) -> str:
    """The key that names a file, and the file: data.sources[0]: data/a.jsonl"""
    return f"{setting}: {openable(path)}"


def openable(path: str) -> str:
    """A path for a message, of a local file as it is opened in the folder that the command was called in."""
    return path if is_remote(path) else str(as_called(path))


@contextmanager
def unchanged(file: SourceFile) -> Iterator[None]:
    """Raises DataError where a file changed while it was read: then its digest does not stand for what was read."""
    yield
    if file.format != "hub" and _digest(file.path) != file.digest:
        raise DataError(f"{file.path}: the file changed while it was read; run again when it is complete")


def stamp(path: str) -> str | None:
    """Return a stamp that is certain to change with the file, without reading it; None if only the content can tell."""
    if stores.is_url(path):
        return stores.stamp(path)
    found = Path(path).stat()
    return f"{found.st_size} bytes, {found.st_mtime_ns}, inode {found.st_ino}"


def is_remote(path: str) -> bool:
    """Whether a file is an object in a store or a hub data set, not a local file."""
    return stores.is_url(path) or hub.is_hub(path)


def _digest(path: str) -> str:
    return stores.identity(path) if stores.is_url(path) else digest_of(Path(path))


def _use_as(source: RecordFiles) -> Use | None:
    return source.use_as if isinstance(source, Source) else None


def _fits(source: RecordFiles, setting: str, held_out: bool) -> None:
    for ours in source.columns:
        if ours not in MAPPABLE:
            theirs = source.columns[ours]
            meant = did_you_mean(ours, MAPPABLE)
            if theirs in MAPPABLE:  # the wrong way round
                meant = f"did you mean {{{theirs}: {ours}}}? {meant}"
            raise ConfigError(f"{setting}.columns: {ours} is not a known field; {meant}")
    for asked, answer in product(ASKED, ANSWERED):
        if source.columns.get(asked, 1) == source.columns.get(answer, 2):
            raise ConfigError(
                f"{setting}.columns: {asked} and {answer} are both {source.columns[asked]}, so each answer would "
                "stand in its prompt; accepted: a field for each"
            )
    if source.columns.get("chosen", 1) == source.columns.get("rejected", 2):
        both = f"{setting}.columns: chosen and rejected are both {source.columns['chosen']}"
        raise ConfigError(f"{both}, so no answer would be better; accepted: a field for each")
    if source.revision and not hub.is_hub(source.path):
        raise ConfigError(f"{setting}.revision={source.revision}: only a hub data set (hub:org/name) has revisions")
    saved = is_saved(Path(source.path).expanduser())
    if saved and source.format not in ("auto", "arrow"):
        raise ConfigError(f"{setting}.format={source.format}: a saved datasets folder is read as arrow; leave it out")
    if source.split and not saved:
        is_use = isinstance(source, Source) and source.split in get_args(Use)
        meant = f"; did you mean use_as: {source.split}?" if is_use else ""
        meant = "; write hub:org/name:split" if hub.is_hub(source.path) else meant
        raise ConfigError(
            f"{setting}.split={source.split}: only a folder that save_to_disk of datasets wrote has splits{meant}"
        )
    if held_out and (use_as := _use_as(source)):
        raise ConfigError(f"{setting}.use_as={use_as}: a held-out file is in no split; leave it out")


def _files(source: RecordFiles, setting: str, held_out: bool, identify: Identify) -> Iterator[SourceFile]:
    where = f"{setting}.path={source.path}"
    outside.check_path(f"{setting}.path", source.path)
    how = {"layout": source.layout, "columns": source.columns, "use_as": _use_as(source)}
    names_several = glob.has_magic(source.path) or is_saved(Path(source.path).expanduser())
    how |= {"setting": setting, "held_out": held_out, "glob": source.path if names_several else ""}
    if hub.is_hub(source.path):
        if source.format != "auto":
            raise ConfigError(f"{setting}.format={source.format}: a hub data set has no format setting; leave it out")
        commit = hub.commit(source.path, source.revision, where)
        yield SourceFile(path=source.path, digest=commit, format="hub", **how)
        return
    remote = stores.is_url(source.path)
    with named(setting, str(Path(source.path).expanduser())):
        paths = stores.matches(source.path, where) if remote else _local(source, setting, where)
    for path in paths:
        outside.check_path(f"{setting}.path", path)  # a glob may match a link that leads elsewhere
        resolved = _format(path, source, HELD_OUT_FORMATS if held_out else FORMATS, where)
        with named(setting, path), stores.explained(where) if remote else _readable(where):
            compression, digest = identify(path)
        if compression and resolved in ("parquet", "arrow"):
            raise DataError(
                f"{place_of(setting, path)}: the file is compressed, but {resolved.title()} compresses its columns "
                "itself: decompress the file"
            )
        yield SourceFile(path=path, digest=digest, format=resolved, compression=compression, **how)


@contextmanager
def _readable(where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); accepted: a readable file") from error


def _format(path: str, source: RecordFiles, formats: dict[str, FileFormat], where: str) -> FileFormat:
    if source.format != "auto":
        return source.format
    name = PurePosixPath(urlsplit(path).path if stores.is_url(path) else path)
    suffix = name.with_suffix("").suffix if name.suffix.lower() in (".gz", ".zst") else name.suffix
    if suffix.lower() not in formats:
        accepted, which = ", ".join(formats), "" if path == source.path else f"{path} "  # one of a glob
        raise ConfigError(
            f"{where}: {which}ends in {suffix!r}; accepted: {accepted}, also with .gz or .zst, or set format"
        )
    return formats[suffix.lower()]


def _local(source: RecordFiles, setting: str, where: str) -> list[str]:
    """The files that a path means; of a folder that `datasets` saved those in it."""
    path = Path(source.path).expanduser()
    if is_saved(path):
        return saved_files(path, source.split, setting)
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        raise ConfigError(
            f"{where}: is a folder; accepted: a file or a glob such as {path / '*.jsonl'}, or a folder that "
            "save_to_disk of datasets wrote"
        )
    if not glob.has_magic(source.path):
        raise ConfigError(f"{where}: no such file{or_meant(source.path) or _looked(path)}")
    try:
        with _readable(where):
            matches = globs.matches(str(path))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    saved = [match for match in matches if is_saved(Path(match))]
    files = [file for match in saved for file in saved_files(Path(match), None, setting)]
    files += [match for match in matches if Path(match).is_file() and match not in files]
    if not files:
        raise ConfigError(f"{where}: no file matches{or_meant(source.path) or _looked(path)}")
    return files


def _looked(path: Path) -> str:
    """Return where was looked, and what was most likely meant: a file of a similar name, or one of those there."""
    folder = next(parent for parent in path.parents if not glob.has_magic(str(parent))).absolute()
    if not folder.is_dir():
        return f": there is no folder {folder}"
    with _readable(str(folder)):
        names = sorted(other.name for other in folder.iterdir() if other.is_file() and _is_data(other))
    similar = [
        name for name in names if difflib.SequenceMatcher(None, _stem(name), _stem(path.name)).ratio() >= SIMILAR
    ]
    if similar and not glob.has_magic(str(path)):
        close = difflib.get_close_matches(path.name, similar, n=1, cutoff=0)
        return f" in {folder}; did you mean {path.with_name(close[0])}?"
    if not names:
        names = _below(folder)
        if path.name in (inside := {Path(name).name: name for name in reversed(names)}):
            return f" in {folder}; did you mean {path.parent / inside[path.name]}?"
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f" in {folder}, whose data files are {', '.join(names[:3])}{more}"
        if names
        else f" in {folder}, which has no data files"
    )


def _below(folder: Path) -> list[str]:
    """The data files in the folders of a folder and in theirs, nearest first, without hidden folders."""
    found: list[str] = []
    for pattern in ("*/*", "*/*/*"):
        others = islice(folder.glob(pattern), MOST_LOOKED_AT)
        names = (other.relative_to(folder) for other in others if other.is_file() and _is_data(other))
        found += sorted(str(name) for name in names if not any(part.startswith(".") for part in name.parts))
    return found


def _is_data(file: Path) -> bool:
    return any(suffix.lower() in HELD_OUT_FORMATS for suffix in file.suffixes[-2:])


def _stem(name: str) -> str:
    return name.partition(".")[0].lower()
