"""ingest: files of conversations become rows with an identity; each record refused is kept with its place and reason.

The account adds up: records read = rows kept + records quarantined. A record is a line (JSONL), an element (JSON), a
row (CSV, Parquet, the hub); a blank line is a refused record, the end of the last line is none. With data.limit the
sample is drawn among all records, good and bad alike, so that the share refused is that of the files; the others are
not parsed. A user-provided validation or test set is read whole all the same.
"""

import difflib
import hashlib
import heapq
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.accepted import shown
from tunewright.artifacts import Rows
from tunewright.config import Data
from tunewright.errors import ConfigError, DataError
from tunewright.machine.cluster import EngineName
from tunewright.metrics import closed_set
from tunewright.reports.pages import counted, located
from tunewright.store.stage import stage
from tunewright.tasks.ingest.files import USER_PROVIDED, SourceFile, named, openable, place_of, source_files, unchanged
from tunewright.tasks.ingest.held_out import write_held_out
from tunewright.tasks.ingest.parsing import RefusedRecord
from tunewright.tasks.ingest.parts import LIBRARIES, columns_of, parts_of
from tunewright.tasks.ingest.readers import encoding_advice, is_utf_8, read, without_guess
from tunewright.tasks.ingest.rows import row_id_of
from tunewright.tasks.ingest.stores import num_bytes
from tunewright.tasks.ingest.tables import Tables, Tally

__all__ = ["Need", "SourceFile", "ingest", "row_id_of", "source_files"]

log = logging.getLogger("tunewright")

OUTSIZED = 5  # times as many rows as any other group has, from which a group may be a placeholder
OUTSIZED_ROWS = 20  # of it, at least
ENOUGH = 20  # records of a source in the sample of data.limit, to say of it that none can be used
MANY = 10_000  # refused records, from which on it may be seen early that they are too many
Need = Literal["time", "label"]  # of split.by=time, of split.stratify=label


def sample(data: Data, files: Iterable[SourceFile]) -> frozenset[tuple[str, int]] | None:
    """The (file, line) of data.limit records, those with the smallest digests of what stands there; None for all.

    `files` are those that are sampled. Neither the order of the files nor that of their lines matters.
    """
    if data.limit is None:
        return None
    records = (
        (hashlib.sha256(raw).digest(), file.path, line)
        for file in files
        for line, _, raw, _ in read(file, data.max_line_bytes, columns_of(file))
    )
    return frozenset((path, line) for _, path, line in heapq.nsmallest(data.limit, records))


def stop_early(data: Data, num_bytes: int, tally: Tally) -> None:
    """Raises DataError once data.max_refused_share cannot be kept: files have no more records than bytes.

    A small file that unpacks to nothing but bad records is not read to its end so.
    """
    num_refused = tally.reasons.total()
    if num_refused >= MANY and num_refused > data.max_refused_share * (tally.num_read + num_bytes):
        raise DataError(
            f"{num_refused} of the first {tally.num_read} records quarantined, already over "
            f"data.max_refused_share={data.max_refused_share} of all: {reasons(tally, ())}",
            see=("quarantine.parquet",),
        )


def find_columns(files: Sequence[SourceFile], tallies: dict[str, Tally], max_bytes: int) -> None:
    """Raises ConfigError where no record of a source has a column that its settings name."""
    for key, theirs, there in absent_columns(files, tallies, max_bytes):
        raise ConfigError(f"{key}: no record has {theirs}; {there}")


def absent_columns(
    files: Sequence[SourceFile], tallies: dict[str, Tally], max_bytes: int
) -> Iterator[tuple[str, str, str]]:
    """Each column that a source's settings name and none of its records has: the key, its name, and what there is."""
    for setting, of_source in by_setting(files).items():
        mapped = {ours for file in of_source for ours in tallies[file.path].mapped}
        for ours, theirs in of_source[0].columns.items():
            if ours not in mapped and any(tallies[file.path].num_read for file in of_source):
                there = sorted({name for file in of_source for name in _fields(file, max_bytes)})
                if theirs in there or not there:  # only the sample of data.limit has none, or no record can be read
                    continue
                close = difflib.get_close_matches(theirs, there, n=1)
                meant = f"did you mean {close[0]}? " if close else ""
                named = ", ".join(map(shown, there[:12]))
                header = " (the first line of a CSV file has the names)" if of_source[0].format == "csv" else ""
                yield f"{setting}.columns.{ours}", theirs, f"{meant}there are {named}{header}"


def by_setting(files: Iterable[SourceFile]) -> dict[str, list[SourceFile]]:
    """The files of each source, by the setting that names it: data.sources[0]."""
    sources: dict[str, list[SourceFile]] = {}
    for file in files:
        sources.setdefault(file.setting, []).append(file)
    return sources


def _fields(file: SourceFile, max_bytes: int) -> set[str]:
    names: set[str] = set()
    for _, _, _, parse in islice(read(file, max_bytes, None), 100):
        try:
            record = parse()
        except RefusedRecord:
            continue
        names.update(record if isinstance(record, dict) else ())
    return names


def judge(data: Data, files: Iterable[SourceFile], tally: Tally) -> None:
    """Raises DataError where nothing was kept or too much refused: how many for which reason, and the first of each."""
    num_refused = tally.reasons.total()
    if tally.num_read == 0:
        files = list(files)
        formats = {file.format for file in files}
        expected = "rows behind the header row" if formats == {"csv"} else "records"
        them = "it" if len(files) == 1 else "them"
        raise DataError(f"{_named(files)}: no record in {them}; accepted: one or more {expected}")
    over = num_refused / tally.num_read > data.max_refused_share
    if over or tally.num_rows == 0:
        why = f"over data.max_refused_share={data.max_refused_share}" if over else "so no row is left"
        message = f"{num_refused} of {tally.num_read} records quarantined, {why}: {reasons(tally, files)}"
        raise DataError(message, see=("quarantine.parquet",))


def stop_on_encoding(
    data: Data, files: Sequence[SourceFile], tallies: dict[str, Tally], *, is_sample: bool = False
) -> None:
    """Raise DataError where too many records of one file are not UTF-8, however many records the other files have.

    An encoding is that of a whole file. Where the tallies are of a sample, the records of its file are counted.
    """
    over = {}
    for file in files:
        tally, share = tallies[file.path], data.max_refused_share
        num_bad, num_read = tally.reasons["bad_encoding"], tally.num_read
        if is_sample and num_bad > share * num_read:
            are_bad = [not is_utf_8(raw) for _, _, raw, _ in read(file, data.max_line_bytes, columns_of(file))]
            num_bad, num_read = sum(are_bad), len(are_bad)
        if num_bad > share * num_read:
            over[file.path] = file, f"{num_bad} of {num_read} records are not UTF-8", tally
    if not over:
        return
    (file, said, tally), *others = over.values()
    also = f"; so it is with {', '.join(openable(other.path) for other, _, _ in others)}" if others else ""
    only = Tally(reasons=Counter(bad_encoding=tally.reasons["bad_encoding"]), firsts=tally.firsts)
    raise DataError(
        f"{place_of(file.setting, file.path)}: {said}, over data.max_refused_share={data.max_refused_share} of this "
        f"file{also}: {reasons(only, [file])}",
        see=("quarantine.parquet",),
    )


def stop_on_empty_split(files: Sequence[SourceFile], tallies: dict[str, Tally]) -> None:
    """Raise DataError where no row is left of a user-provided split; another would be drawn in its place."""
    for split in USER_PROVIDED:
        given = [file for file in files if file.use_as == split]
        if given and not any(tallies[file.path].num_rows for file in given):
            tally = Tally().add(*(tallies[file.path] for file in given))
            refused = f"{tally.num_read} of {tally.num_read} records quarantined: {reasons(tally, given)}"
            message = f"{_named(given)}: no row is left in the user-provided {split} set; "
            raise DataError(message + (refused if tally.num_read else "no record"), see=("quarantine.parquet",))


def stop_on_unusable_source(data: Data, files: Sequence[SourceFile], tallies: dict[str, Tally], least: int = 1) -> None:
    """Raise DataError where none of the records of a source, `least` or more, can be used, whatever the others have.

    Where data.max_refused_share allows all to be refused, a source may be lost, too.
    """
    for of_source in by_setting(files).values() if data.max_refused_share < 1 else ():
        tally = Tally().add(*(tallies[file.path] for file in of_source))
        if tally.num_read >= least and not tally.num_rows:
            raise DataError(
                f"{_named(of_source)}: no row is left of this source, {tally.num_read} of {tally.num_read} records "
                f"quarantined: {reasons(tally, of_source)}; correct it, or take the source out",
                see=("quarantine.parquet",),
            )


def unusable_files(files: Sequence[SourceFile], tallies: dict[str, Tally]) -> list[str]:
    """Warn of the files of which no record can be used, where that does not stop the run."""
    unusable = [file for file in files if tallies[file.path].num_read and not tallies[file.path].num_rows]
    return [
        f"{_named([file])}: no row is left of this file, {counted(tallies[file.path].num_read, 'record')} quarantined: "
        f"{reasons(tallies[file.path], [file])}"
        for file in unusable
    ]


def _named(files: Sequence[SourceFile]) -> str:
    """The settings that name these files, and the files: data.sources[0]: a.jsonl, b.jsonl"""
    settings = dict.fromkeys(file.setting for file in files if file.setting)
    return ": ".join(filter(None, (", ".join(settings), ", ".join(openable(file.path) for file in files))))


def stop_on_needs(file: Path, needs: Sequence[Need]) -> None:
    """Raises DataError where the rows of rows.parquet lack what later stages need, long before these begin."""
    if "label" in needs:
        closed_set.stop_if_open(*closed_set.count_answers(file))
    if "time" not in needs:
        return
    num_rows, num_undated, first = 0, 0, ""
    for batch in pq.ParquetFile(file).iter_batches(columns=["time", "use_as", "file", "line"]):
        # A row of a source with use_as needs no time.
        undated = np.flatnonzero(pc.and_(pc.is_null(batch["time"]), pc.is_null(batch["use_as"])))  # pyright: ignore[reportAttributeAccessIssue]
        if len(undated) and not first:
            place = batch.slice(int(undated[0]), 1).to_pylist()[0]
            first = f"{place['file']}:{place['line']}"
        num_rows, num_undated = num_rows + batch["use_as"].null_count, num_undated + len(undated)
    if num_undated:
        raise DataError(
            f"split.by=time: {num_undated} of {num_rows} rows have no time, the first is {first}; name the field that "
            "has it, as in data.sources[].columns: {time: created_at}, or set split.by=cluster"
        )


def without_group(file: Path, sources: Sequence[SourceFile]) -> list[str]:
    """Warn of the rows of rows.parquet that have no group where others of their source have one."""
    table = pq.read_table(file, columns=["file", "line", "group"])
    said = []
    for setting, files in by_setting(source for source in sources if source.use_as != "replay").items():
        rows = table.filter(pc.field("file").isin([source.path for source in files]))
        without = rows.filter(pc.field("group").is_null())
        if 0 < len(without) < len(rows):
            first = f"{without['file'][0]}:{without['line'][0]}"
            said.append(
                f"{setting}: {len(without):,} of {len(rows):,} rows have no group (their field "
                f"{shown(files[0].columns.get('group', 'group'))} is empty or missing), the first is {first}; they can "
                "be in another split than the rows that they belong to: fill the field in, or leave them out"
            )
    return said


def outsized_group(file: Path, sources: Sequence[SourceFile]) -> list[str]:
    """Warn of a group with far more rows than any other of its source, which may be a placeholder such as `unknown`."""
    table = pq.read_table(file, columns=["file", "line", "group"])
    said = []
    for setting, files in by_setting(source for source in sources if not source.use_as).items():
        rows = table.filter(pc.field("file").isin([source.path for source in files]))
        sizes = Counter(rows["group"].drop_null().to_pylist()).most_common(2)
        if len(sizes) < 2 or sizes[0][1] < max(OUTSIZED_ROWS, OUTSIZED * sizes[1][1]):
            continue
        (largest, number), (_, next_number) = sizes
        first = rows.filter(pc.field("group") == largest).slice(0, 1)
        said.append(
            f"{setting}: {number:,} of {len(rows):,} rows are one group, where no other group has more than "
            f"{next_number:,}, so all of them go to one split; the first is "
            f"{located(first['file'][0].as_py(), first['line'][0].as_py())}: if what is in its field "
            f"{shown(files[0].columns.get('group', 'group'))} stands for no group, such as unknown, leave it empty"
        )
    return said


def reasons(tally: Tally, files: Iterable[SourceFile]) -> str:
    """List the refused records by reason, with the first of each and the command that converts its file."""
    files = list(files)
    firsts = {reason: _placed(tally.firsts[reason], files) for reason in tally.reasons}
    counts, first = dict(tally.reasons.most_common()), tally.firsts.get("bad_encoding", "")
    if file := next((file for file in files if first.startswith(f"{file.path} line ")), None):
        advice = encoding_advice(file.path, file.format, file.compression, first)
        firsts["bad_encoding"] = f"{without_guess(firsts['bad_encoding'], advice)}{advice}"
        counts["bad_encoding"] = counts.pop("bad_encoding")  # last, since it may end in a command
    return "; ".join(f"{n} {reason}, first {firsts[reason]}" for reason, n in counts.items())


def _placed(first: str, files: Iterable[SourceFile]) -> str:
    """A place such as "a.jsonl line 3, why", with the path as it is opened where the command was called."""
    path = next((file.path for file in files if first.startswith(f"{file.path} line ")), "")
    return f"{openable(path)}{first.removeprefix(path)}" if path else first


def detected(file: SourceFile, tally: Tally) -> str:
    """Describe how a file was read: "jsonl.gz, alpaca", or "json, held out, messages"."""
    how = f"{file.format}.{file.compression}" if file.compression else file.format
    layouts = " and ".join(sorted(tally.layouts))
    return ", ".join(filter(None, (how, "held out" if file.held_out else "", layouts)))


@stage("{data.sources[0].path}", libraries=LIBRARIES, unkeyed=("engine",))
def ingest(
    folder: Path,
    data: Data,
    files: tuple[SourceFile, ...],
    needs: tuple[Need, ...] = (),
    engine: EngineName = "local",
) -> Rows:
    """The rows of `files`, which is what source_files(data) returned; they must have what later stages need of them."""
    sources = [file for file in files if not file.held_out]
    chosen = sample(data, [file for file in sources if not file.is_user_provided])
    size = sum(sys.maxsize if file.format == "hub" else num_bytes(file.path) for file in sources)
    tallies: dict[str, Tally] = {}
    with Tables(folder) as tables:
        for file in sources:
            tally = tallies[file.path] = Tally()
            with named(file.setting, file.path):
                if chosen is None or file.is_user_provided:
                    for part in parts_of(file, data.max_line_bytes, data.repair, engine):
                        tables.append(part.folder)
                        tally.add(part.tally)
                        stop_early(data, size, Tally().add(*tallies.values()))
                else:
                    records = read(file, data.max_line_bytes, columns_of(file))
                    with unchanged(file):
                        items = (item for item in records if (file.path, item[0]) in chosen)
                        tally.add(tables.fill(items, file, data.max_line_bytes, data.repair))
    held_out = write_held_out(folder, [file for file in files if file.held_out], data)
    find_columns(files, tallies | held_out, data.max_line_bytes)
    tally = Tally().add(*tallies.values())
    judge(data, sources, tally)
    stop_on_encoding(data, sources, tallies, is_sample=chosen is not None)
    if chosen is None:
        stop_on_empty_split(sources, tallies)
    stop_on_unusable_source(data, sources, tallies, least=1 if chosen is None else ENOUGH)
    stop_on_needs(folder / "rows.parquet", needs)
    warned = without_group(folder / "rows.parquet", sources) + outsized_group(folder / "rows.parquet", sources)
    warned += unusable_files(sources, tallies) if chosen is None else []
    for said in warned:
        log.warning("ingest: %s", said)
    return Rows(
        num_read=tally.num_read,
        num_rows=tally.num_rows,
        num_quarantined=tally.reasons.total(),
        reasons=dict(sorted(tally.reasons.items())),
        detected={file.path: detected(file, (tallies | held_out)[file.path]) for file in files},
        repaired=dict(sorted(tally.repaired.items())),
        num_held_out=sum(of_file.num_rows for of_file in held_out.values()),
        given={file.path: file.use_as for file in sources if file.use_as},
        globs={file.path: file.glob for file in sources if file.glob},
        warned=tuple(warned),
    )
