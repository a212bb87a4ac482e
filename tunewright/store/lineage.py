"""A row's whole life, from the artifacts that are there: where it came from, what was done to it, which split it is on.

A record is known by its file and line, since equal records share a row_id (row_search.py finds it).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tunewright.artifacts import (
    ASSIGNMENTS_FILE,
    UNDESIRABLE,
    Artifact,
    CheckedRows,
    LabelErrors,
    Rehearsed,
    Rows,
    Splits,
    Tokens,
    UniqueRows,
)
from tunewright.artifacts.placement import NOT_PLACED
from tunewright.config import from_here
from tunewright.errors import ConfigError
from tunewright.reports.pages import located
from tunewright.store import data_history
from tunewright.store.data_history import DUPLICATE, QUARANTINED, Version
from tunewright.store.refusals import StoppedStage
from tunewright.store.row_search import FINDINGS, HELD_OUT, MOST_MATCHES, PLACE, QUARANTINE, Found, select

OUT_OF_DATA = ("refused", "held out", "quarantined", "removed")
NO_SPLIT = (*NOT_PLACED, DUPLICATE, QUARANTINED)  # why a row is in no split in a version's assignments
REMOVED = "removed.parquet"
LABEL_ERRORS = "label_errors.parquet"
MOST_RELATIVES = 5  # rows of the same cluster, or duplicates, that are named
MOST_FINDINGS = 20  # of check on one row


@dataclass(frozen=True)
class Made:
    """The artifacts of one data version, from the data stages that ran."""

    rows: Rows
    checked: CheckedRows | None = None
    unique: UniqueRows | None = None
    splits: Splits | None = None
    tokens: Tokens | None = None
    label_errors: LabelErrors | None = None
    rehearsed: Rehearsed | None = None
    stopped: StoppedStage | None = None  # by the stage after the last of these

    @property
    def all_rows(self) -> Rows:
        """The rows of ingest, and the general rows behind them, if any."""
        return self.rehearsed or self.rows

    def __iter__(self) -> Iterator[Artifact]:
        """The artifacts in the order of the stages."""
        of_data = (self.rows, self.rehearsed, self.checked, self.unique, self.splits)
        stages = (*of_data, self.tokens, self.label_errors)
        return iter([artifact for artifact in stages if artifact])


def refused(stopped: StoppedStage, record: Found) -> list[dict[str, Any]]:
    """The life of a record that ingest refused when it stopped; of any other none."""
    here = (pc.field("file") == record["file"]) & (pc.field("line") == record["line"])
    gone = _quarantined(stopped, here) if stopped.stage == "ingest" and not record["row_id"] else None
    return [{"stage": "ingest"} | gone | {"outcome": "refused"}] if gone else []


def life(made: Made, record: Found) -> list[dict[str, Any]]:
    """Return a record's history, one entry per stage, until it was quarantined or removed, or the stages end."""
    events: list[dict[str, Any]] = []
    for event in _events(made, record):
        events.append(event)
        if event["outcome"] in OUT_OF_DATA:
            break
    return events


def splits(row_id: str, name: str, past: Sequence[Version]) -> list[dict[str, Any]]:
    """Return the split of a row in each version and why; both are None where it was not there yet."""
    history: list[dict[str, Any]] = []
    for version in past:
        file = data_history.kept(name, version)
        entries = _splits(file, row_id) if file else []
        row = entries[0] if entries else None
        because = row["because"] if row else None
        split = row["side"] if row and because not in NO_SPLIT else None
        history.append({"version": version.number, "split": split, "because": because})
    return history


def first_refused(stopped: StoppedStage) -> list[Found]:
    """The first records of the table that a stage left when it stopped: QUARANTINE_SCHEMA or REMOVED_SCHEMA."""
    table = _refused_table(stopped)
    batch = next(table.iter_batches(batch_size=MOST_MATCHES), None) if table else None
    return batch.to_pylist() if batch else []


def num_refused(stopped: StoppedStage) -> int:
    """Count the records of that table."""
    table = _refused_table(stopped)
    return table.metadata.num_rows if table else 0


def stop_on_damage(stopped: StoppedStage, what: str) -> None:
    """Raises ConfigError where the table that a stage left when it stopped cannot be read; `what` is to be run then."""
    try:
        table = _refused_table(stopped)
        for _ in table.iter_batches() if table else ():
            pass
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{from_here(stopped.folder)}: the table there is damaged ({str(error).splitlines()[0]}); "
            f"run tunewright run {what} --until split, which writes it again or goes on"
        ) from error


def _refused_table(stopped: StoppedStage) -> pq.ParquetFile | None:
    tables = [path for path in stopped.paths if path.suffix == ".parquet" and path.is_file()]
    return pq.ParquetFile(tables[0]) if tables else None


def _events(made: Made, record: Found) -> Iterator[dict[str, Any]]:
    here = (pc.field("file") == record["file"]) & (pc.field("line") == record["line"])
    first = made.rehearsed if made.rehearsed and record["file"] not in made.rows.detected else made.rows
    yield {"stage": first.stage} | _ingested(first, here)
    if made.checked:
        yield {"stage": "check"} | (_quarantined(made.checked, here) or _passed(made.checked, here))
    if made.unique:
        yield {"stage": "dedupe"} | _deduped(made.unique, record, here)
    if made.splits:
        placed = _quarantined(made.splits, here) or _placed(made.splits, record, here)
        yield {"stage": "split"} | placed
        if made.tokens:
            split = Path(placed["in"]).name
            aside = UNDESIRABLE.format(Path(split).stem)
            if made.tokens.sum_undesirable and select(
                made.tokens.path(aside), pc.field("row_id") == record["row_id"], ["row_id"], 1
            ):
                split = aside
            yield {"stage": "render"} | (_quarantined(made.tokens, here) or _now(made.tokens, "rendered", split))
            if made.label_errors and (compared := _compared(made.label_errors, here)):
                yield {"stage": "label_errors"} | compared
    if made.stopped and (gone := _quarantined(made.stopped, here) or _removed(made.stopped, here)):
        yield {"stage": made.stopped.stage} | gone


def _now(artifact: Artifact | StoppedStage, outcome: str, name: str = "rows.parquet") -> dict[str, Any]:
    """Return a record's outcome, and the file that holds it since."""
    return {"outcome": outcome, "in": str(artifact.path(name))}


def _ingested(rows: Rows, here: pc.Expression) -> dict[str, Any]:
    if refused := _quarantined(rows, here):
        return refused | {"outcome": "refused"}
    if select(rows.path(HELD_OUT), here, ["line"], 1):
        return _now(rows, "held out", HELD_OUT)
    columns = ["source", "byte", "group", "time", "use_as", "repairs"]
    return _now(rows, "read") | select(rows.path("rows.parquet"), here, columns, 1)[0]


def _passed(checked: CheckedRows, here: pc.Expression) -> dict[str, Any]:
    file = checked.path(FINDINGS)  # an earlier release wrote none
    findings = select(file, here, ["finding", "detail"], MOST_FINDINGS) if file.is_file() else []
    return _now(checked, "passed") | {"findings": findings}


def _deduped(unique: UniqueRows, record: Found, here: pc.Expression) -> dict[str, Any]:
    if gone := _removed(unique, here):
        return gone
    import pyarrow.dataset as ds  # with pandas, which most commands have no use for

    removed = unique.path(REMOVED)
    repeats = (pc.field("partner_file") == record["file"]) & (pc.field("partner_line") == record["line"])
    return _now(unique, "kept") | {
        "num_duplicates": ds.dataset(removed).count_rows(filter=repeats),
        "duplicates": select(removed, repeats, [*PLACE, "reason", "similarity"], MOST_RELATIVES),
    }


def _removed(left: UniqueRows | StoppedStage, here: pc.Expression) -> dict[str, Any] | None:
    file = left.path(REMOVED)
    partner = ["partner_file", "partner_line", "partner_row_id"]
    gone = select(file, here, ["reason", "similarity", *partner], 1) if file.is_file() else []
    if not gone:
        return None
    named = {name.removeprefix("partner_"): gone[0].pop(name) for name in partner}
    return _now(left, "removed", REMOVED) | gone[0] | {"partner": named}


def _placed(splits: Splits, record: Found, here: pc.Expression) -> dict[str, Any]:
    standing = (
        row for row in _splits(splits.path(ASSIGNMENTS_FILE), record["row_id"]) if row["because"] not in NO_SPLIT
    )
    for row in standing:
        file = splits.path(f"{row['side']}.parquet")
        if found := select(file, here, ["cluster"], 1):
            number = found[0]["cluster"]
            cluster = pq.read_table(file, columns=PLACE, filters=pc.field("cluster") == number)
            return _now(splits, row["side"], file.name) | {
                "because": row["because"],
                "inherited_from": _firm(splits, cluster) if row["because"] == "inherited" else None,
                "cluster": number,
                "num_in_cluster": cluster.num_rows,
                "also_in_cluster": cluster.filter(~here).slice(0, MOST_RELATIVES).to_pylist(),
            }
    raise ValueError(
        f"{located(record['file'], record['line'])} is lost: split put it in no split and did not quarantine it"
    )


def _firm(splits: Splits, cluster: pa.Table) -> Found | None:
    """Return a row of the cluster that was in its split before or by its source, and that others followed into it."""
    firm = pc.field("because").isin(["kept", "given"]) & pc.field("row_id").isin(cluster["row_id"].unique())
    ids = select(splits.path(ASSIGNMENTS_FILE), firm, ["row_id"], 1)
    return cluster.filter(pc.field("row_id") == ids[0]["row_id"]).slice(0, 1).to_pylist()[0] if ids else None


def _quarantined(artifact: Artifact | StoppedStage, here: pc.Expression) -> dict[str, Any] | None:
    file = artifact.path(QUARANTINE)
    aside = select(file, here, ["reason", "detail"], 1) if file.is_file() else []
    return _now(artifact, "quarantined", file.name) | aside[0] if aside else None


def _compared(found: LabelErrors, here: pc.Expression) -> dict[str, Any] | None:
    """The answer to a training row by a model that was trained without it; None of a row of another split."""
    rows = select(found.path(LABEL_ERRORS), here, ["likely", "answer"], 1)
    if not rows:
        return None
    outcome = "likely label error" if rows[0].pop("likely") else "no label error"
    return _now(found, outcome, LABEL_ERRORS) | rows[0]


def _splits(file: Path, row_id: str) -> list[Found]:
    """Return a version's entries for the rows with these messages, those in a split first.

    There are several where dedupe keeps a row and the user-provided test row that it repeats.
    """
    import pyarrow.dataset as ds  # with pandas, which most commands have no use for

    table = ds.dataset(file).to_table(columns=["side", "because"], filter=pc.field("row_id") == row_id)
    return sorted(table.to_pylist(), key=lambda row: row["because"] in NO_SPLIT)
