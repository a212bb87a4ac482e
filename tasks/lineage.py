"""A row's whole life, from the artifacts that are there: where it came from, what was done to it, which side it is on.

A record is known by its file and line, since equal records share a row_id. Files are read row group by row group, and
wide columns only where a narrow one matches, so that a row among a million is found in a second.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tasks.artifacts import SIDES_FILE, Artifact, CheckedRows, Rows, Splits, Tokens, UniqueRows
from tasks.caching import MANIFEST
from tasks.split.sides import SET_ASIDE as SET_ASIDE_BY_SPLIT
from tasks.split.writing import GONE
from tasks.stopped import Stopped
from tasks.versions import Version

SET_ASIDE = ("refused", "held out", "quarantined", "removed")
NO_SIDE = (*(because.name.lower() for because in SET_ASIDE_BY_SPLIT), GONE)  # in sides.parquet; others have one
HELD_OUT, REMOVED = "held_out.parquet", "removed.parquet"
MOST_MATCHES = 10
MOST_RELATIVES = 5  # rows of the same cluster, or duplicates, that are named
SHOWN_CHARS = 300
PLACE = ["file", "line", "row_id"]
OF_TEXT = {"quarantine.parquet": [*PLACE, "text"], HELD_OUT: ["file", "line", "text"]}  # records that are no rows
NO_ROW = {"row_id": None}

Found = dict[str, Any]  # the columns of one row


@dataclass(frozen=True)
class Made:
    """What the data stages made of one version of the data, as far as they ran."""

    rows: Rows
    checked: CheckedRows | None = None
    unique: UniqueRows | None = None
    splits: Splits | None = None
    tokens: Tokens | None = None
    stopped: Stopped | None = None  # by the stage after the last of these

    def __iter__(self) -> Iterator[Artifact]:
        """The artifacts in the order of the stages."""
        stages = (self.rows, self.checked, self.unique, self.splits, self.tokens)
        return iter([artifact for artifact in stages if artifact])


def manifest(artifact: Artifact) -> dict[str, Any]:
    """What was written beside an artifact when it was made (tasks/caching.py)."""
    return json.loads(artifact.path(MANIFEST).read_text(encoding="utf-8"))


def by_id(rows: Rows, beginning: str) -> list[Found]:
    """The records whose row_id begins so, at most one more than MOST_MATCHES."""
    row_id = ds.field("row_id")
    where = (row_id >= beginning) & (row_id < f"{beginning}g")  # after every hex digit
    return _select(rows.path("rows.parquet"), where, [*PLACE, "messages"], MOST_MATCHES + 1)


def by_line(rows: Rows, file: str, line: int) -> list[Found]:
    """The records on a line of a file, those too that were refused or held out.

    The file's name may leave out the folders around it. Of a CSV file it is the record that the line is part of, with
    that line as `asked_line` where it is not its first.
    """
    named = [name for name in rows.detected if name == file or name.endswith(f"/{file}")] or [file]
    found: list[Found] = []
    for name in named:
        found += _at(rows, name, line) or (_around(rows, name, line) if _is_csv(rows, name) else [])
    return found[: MOST_MATCHES + 1]


def by_text(rows: Rows, words: Sequence[str]) -> list[Found]:
    """The records that contain all words, in any case and order, those too that were refused or held out.

    There are more where it returns more than MOST_MATCHES.
    """
    found: list[Found] = []
    for batch in _batches(rows.path("rows.parquet"), [*PLACE, "messages"]):
        messages = batch["messages"]
        turns, row_of = messages.flatten().field("content"), pc.call_function("list_parent_indices", [messages])
        hits = np.ones(len(batch), dtype=bool)
        for word in words:
            hits &= np.bincount(np.asarray(row_of)[_contains(turns, word)], minlength=len(batch)) > 0
        found += batch.filter(pa.array(hits)).slice(0, MOST_MATCHES + 1).to_pylist()
        if len(found) > MOST_MATCHES:
            return found
    for name, columns in OF_TEXT.items():
        for batch in _batches(rows.path(name), columns):
            hits = np.logical_and.reduce([_contains(batch["text"], word) for word in words])
            found += [NO_ROW | each for each in batch.filter(pa.array(hits)).slice(0, MOST_MATCHES + 1).to_pylist()]
    return found


def life(made: Made, record: Found) -> list[dict[str, Any]]:
    """What happened to a record, one entry a stage, until it was set aside or the stages that ran end."""
    events: list[dict[str, Any]] = []
    for event in _events(made, record):
        events.append(event)
        if event["outcome"] in SET_ASIDE:
            break
    return events


def sides(row_id: str, past: Sequence[Version]) -> list[dict[str, Any]]:
    """The side of a row in each version and why; without a side it is why not, or None where it was not there yet."""
    told: list[dict[str, Any]] = []
    for version in past:
        file = version.splits.folder / SIDES_FILE
        row = _side(file, row_id) if file.is_file() else None
        because = row["because"] if row else None
        side = row["side"] if row and because not in NO_SIDE else None
        told.append({"version": version.number, "side": side, "because": because})
    return told


def first_refused(stopped: Stopped) -> list[Found]:
    """The first records of the table that a stage left when it stopped: QUARANTINE_SCHEMA or REMOVED_SCHEMA."""
    tables = [path for path in stopped.paths if path.suffix == ".parquet" and path.is_file()]
    batch = next(pq.ParquetFile(tables[0]).iter_batches(batch_size=MOST_MATCHES), None) if tables else None
    return batch.to_pylist() if batch else []


def excerpt(record: Found) -> str:
    """The beginning of what a record says."""
    turns = record.get("messages")
    text = "\n".join(f"{turn['role']}: {turn['content']}" for turn in turns) if turns else record.get("text") or ""
    return text if len(text) <= SHOWN_CHARS else f"{text[: SHOWN_CHARS - 1]}…"


def _events(made: Made, record: Found) -> Iterator[dict[str, Any]]:
    here = (ds.field("file") == record["file"]) & (ds.field("line") == record["line"])
    yield {"stage": "ingest"} | _ingested(made.rows, here)
    if made.checked:
        yield {"stage": "check"} | (_quarantined(made.checked, here) or _now(made.checked, "passed"))
    if made.unique:
        yield {"stage": "dedupe"} | _deduped(made.unique, record, here)
    if made.splits:
        placed = _quarantined(made.splits, here) or _placed(made.splits, record, here)
        yield {"stage": "split"} | placed
        if made.tokens:
            side = Path(placed["in"]).name
            yield {"stage": "render"} | (_quarantined(made.tokens, here) or _now(made.tokens, "rendered", side))
    if made.stopped and (gone := _quarantined(made.stopped, here) or _removed(made.stopped, here)):
        yield {"stage": made.stopped.stage} | gone


def _now(artifact: Artifact | Stopped, outcome: str, name: str = "rows.parquet") -> dict[str, Any]:
    """What became of a record, and the file in which it stands since."""
    return {"outcome": outcome, "in": str(artifact.path(name))}


def _ingested(rows: Rows, here: ds.Expression) -> dict[str, Any]:
    if refused := _quarantined(rows, here):
        return refused | {"outcome": "refused"}
    if _select(rows.path(HELD_OUT), here, ["line"], 1):
        return _now(rows, "held out", HELD_OUT)
    columns = ["source", "byte", "group", "time", "side", "repairs"]
    return _now(rows, "read") | _select(rows.path("rows.parquet"), here, columns, 1)[0]


def _deduped(unique: UniqueRows, record: Found, here: ds.Expression) -> dict[str, Any]:
    if gone := _removed(unique, here):
        return gone
    removed = unique.path(REMOVED)
    repeats = (ds.field("partner_file") == record["file"]) & (ds.field("partner_line") == record["line"])
    return _now(unique, "kept") | {
        "num_duplicates": _count(removed, repeats),
        "duplicates": _select(removed, repeats, [*PLACE, "reason", "similarity"], MOST_RELATIVES),
    }


def _removed(left: UniqueRows | Stopped, here: ds.Expression) -> dict[str, Any] | None:
    file = left.path(REMOVED)
    partner = ["partner_file", "partner_line", "partner_row_id"]
    gone = _select(file, here, ["reason", "similarity", *partner], 1) if file.is_file() else []
    if not gone:
        return None
    named = {name.removeprefix("partner_"): gone[0].pop(name) for name in partner}
    return _now(left, "removed", REMOVED) | gone[0] | {"partner": named}


def _placed(splits: Splits, record: Found, here: ds.Expression) -> dict[str, Any]:
    row = _side(splits.path(SIDES_FILE), record["row_id"])
    if row is None or row["because"] in NO_SIDE:
        raise ValueError(f"{record['file']} line {record['line']} is lost: split has it neither on a side nor aside")
    file = splits.path(f"{row['side']}.parquet")
    number = _select(file, here, ["cluster"], 1)[0]["cluster"]
    cluster = pq.read_table(file, columns=PLACE, filters=ds.field("cluster") == number)
    return _now(splits, row["side"], file.name) | {
        "because": row["because"],
        "inherited_from": _firm(splits, cluster) if row["because"] == "inherited" else None,
        "cluster": number,
        "num_in_cluster": cluster.num_rows,
        "also_in_cluster": cluster.filter(~here).slice(0, MOST_RELATIVES).to_pylist(),
    }


def _firm(splits: Splits, cluster: pa.Table) -> Found | None:
    """A row of a cluster that was on its side before this version, or is by its source: what an heir inherits from."""
    firm = ds.field("because").isin(["kept", "given"]) & ds.field("row_id").isin(cluster["row_id"].unique())
    ids = _select(splits.path(SIDES_FILE), firm, ["row_id"], 1)
    return cluster.filter(ds.field("row_id") == ids[0]["row_id"]).slice(0, 1).to_pylist()[0] if ids else None


def _quarantined(artifact: Artifact | Stopped, here: ds.Expression) -> dict[str, Any] | None:
    file = artifact.path("quarantine.parquet")
    aside = _select(file, here, ["reason", "detail"], 1) if file.is_file() else []
    return _now(artifact, "quarantined", file.name) | aside[0] if aside else None


def _at(rows: Rows, file: str, line: int) -> list[Found]:
    """The record that begins in a line."""
    here = (ds.field("file") == file) & (ds.field("line") == line)
    kept = _select(rows.path("rows.parquet"), here, [*PLACE, "messages"], 1)
    others = (found for name, columns in OF_TEXT.items() for found in _select(rows.path(name), here, columns, 1))
    return kept or [NO_ROW | found for found in others]


def _around(rows: Rows, file: str, line: int) -> list[Found]:
    """The record of a CSV file that a line is part of: the last one that begins before it.

    Where no record is known to begin behind it, only as many lines belong to it as its texts have.
    """
    begins = np.concatenate([_lines(rows.path(name), file) for name in ("rows.parquet", *OF_TEXT)])
    before, is_last = begins[begins < line], not (begins > line).any()
    found = _at(rows, file, int(before.max())) if len(before) else []
    is_sample = manifest(rows)["ingredients"].get("data.limit") is not None  # then records between two are not known
    if is_last or is_sample:
        found = [each for each in found if line - each["line"] <= _num_breaks(each)]
    return [each | {"asked_line": line} for each in found]


def _num_breaks(record: Found) -> int:
    texts = [turn["content"] for turn in record.get("messages") or ()] or [record.get("text") or ""]
    return sum(text.count("\n") for text in texts)


def _lines(file: Path, of: str) -> np.ndarray:
    """The lines in which the records of a file begin."""
    return ds.dataset(file).to_table(columns=["line"], filter=ds.field("file") == of)["line"].to_numpy()


def _is_csv(rows: Rows, file: str) -> bool:
    return rows.detected.get(file, "").startswith("csv")


def _side(file: Path, row_id: str) -> Found | None:
    found = _select(file, ds.field("row_id") == row_id, ["side", "because"], 1)
    return found[0] if found else None


def _count(file: Path, where: ds.Expression) -> int:
    return ds.dataset(file).count_rows(filter=where)


def _select(file: Path, where: ds.Expression, columns: list[str], most: int) -> list[Found]:
    """The first rows of a Parquet file that satisfy a condition; other columns are read only where a row does."""
    found: list[Found] = []
    for fragment in ds.dataset(file).get_fragments():
        for group in fragment.split_by_row_group(where):
            if len(found) < most and group.count_rows(filter=where):
                found += group.to_table(columns=columns, filter=where).slice(0, most - len(found)).to_pylist()
    return found


def _batches(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    return pq.ParquetFile(file).iter_batches(batch_size=20_000, columns=columns)


def _contains(texts: pa.Array, text: str) -> np.ndarray:
    options = pc.MatchSubstringOptions(text, ignore_case=True)
    return np.asarray(pc.call_function("match_substring", [texts], options).fill_null(False), dtype=bool)
