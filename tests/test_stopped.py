"""A stage that stops leaves what it refused to be looked at, with nothing secret in it; of check: test_check_stops."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tunewright.artifacts import QUARANTINE_SCHEMA, REMOVED_SCHEMA, CheckedRows
from tunewright.config import Data, Dedupe, Source
from tunewright.errors import DataError
from tunewright.tasks.dedupe import dedupe
from tunewright.tasks.ingest import ingest, source_files

KEY = "AKIA" + "Q7RT2MWZ9XKB4VN6"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stop(stage: Any, *arguments: Any) -> tuple[str, list[dict[str, Any]]]:
    """The line that a stage stops with, and the table that it says to look at."""
    with pytest.raises(DataError) as caught:
        stage.fn(*arguments)
    said, _, place = str(caught.value).partition("; see ")
    file = Path(place) if stage is ingest else Path(place).with_name("removed.parquet")
    table = pq.read_table(file)
    assert table.schema.equals(QUARANTINE_SCHEMA if stage is ingest else REMOVED_SCHEMA)
    assert [path.name for path in file.parent.glob("*.parquet")] == [file.name]
    assert KEY not in Path(place).read_text(errors="replace")
    return said, table.to_pylist()


@pytest.mark.parametrize(("share", "why"), [(0.1, "over data.max_refused_share=0.1"), (1, "so no row is left")])
def test_what_ingest_refused_can_be_looked_at_when_it_stops(share: float, why: str) -> None:
    good = json.dumps({"instruction": "Say hello", "output": "Hello"})
    Path("a.jsonl").write_text("\n".join(["{", f'{{"instruction": "{KEY}"}}', *([good] if share < 1 else [])]) + "\n")
    data = Data(sources=(Source(path="a.jsonl"),), max_refused_share=share)
    said, refused = stop(ingest, data, source_files(data))
    assert why in said
    assert [(each["line"], each["reason"]) for each in refused] == [(1, "bad_json"), (2, "missing_field")]
    assert KEY not in said + str(refused)


def test_what_dedupe_would_remove_can_be_looked_at_when_it_stops(tmp_path: Path, write_rows: Any) -> None:
    folder = tmp_path / "rows"
    write_rows(folder / "rows.parquet", [(f"Is {KEY} it?", "yes"), (f"Is {KEY} it?", "yes"), ("Hi", "Hello")])
    rows = CheckedRows(folder=folder, digest="a", num_rows=3, num_quarantined=0, reasons={}, findings={})
    said, removed = stop(dedupe, rows, Dedupe(max_removed_share=0.1))
    assert "1 of 3 rows repeat an earlier one" in said
    assert [(each["line"], each["reason"], each["partner_line"]) for each in removed] == [(2, "exact_duplicate", 1)]
    assert KEY not in str(removed)
