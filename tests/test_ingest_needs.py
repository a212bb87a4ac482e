"""Fields that split needs are checked as soon as the rows have been read, not when they are split."""

import json
from pathlib import Path
from typing import Any

import pytest
from ingested import cached

from tunewright.config import Data, Source, Split
from tunewright.errors import DataError
from tunewright.flows.inputs import needs
from tunewright.tasks.ingest import source_files


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(records: list[dict[str, Any]], settings: Split, *golden: dict[str, Any]) -> int:
    """How many rows there are, or the error."""
    Path("a.jsonl").write_text("\n".join(map(json.dumps, records)))
    sources = [Source(path="a.jsonl", columns={"time": "created"} if "created" in records[0] else {})]
    if golden:
        Path("b.jsonl").write_text("\n".join(map(json.dumps, golden)))
        sources.append(Source(path="b.jsonl", use_as="test"))
    data, folder = Data(sources=tuple(sources)), Path("rows")
    folder.mkdir(exist_ok=True)
    return cached.build(folder, data, source_files(data), needs(settings)).num_rows


def record(number: int, answer: str, **more: str) -> dict[str, Any]:
    return {"prompt": f"question {number}", "completion": answer, **more}


def test_by_time_a_row_without_time_stops_with_its_place_and_how_to_name_the_field() -> None:
    timed = [record(number, "yes", created="2024-05-01") for number in range(20)]
    said = r"split.by=time: 1 of 21 rows have no time, the first is a.jsonl:21; .*time: created_at"
    with pytest.raises(DataError, match=said):
        read([*timed, record(20, "yes")], Split(by="time"))
    assert read(timed, Split(by="time"), record(99, "given")) == 21  # a given split needs none
    assert read([*timed, record(20, "yes")], Split()) == 21


def test_free_answers_are_no_labels_but_labels_are_however_they_are_written() -> None:
    said = r"split.stratify=label: 40 rows have 9 different last answers, so these are not labels; accepted: at most 8"
    with pytest.raises(DataError, match=said):
        read([record(number, f"answer {number % 9}") for number in range(40)], Split(stratify="label"))
    labels = [record(number, f"Answer  {number % 8}" if number % 3 else f"answer {number % 8}") for number in range(40)]
    assert read(labels, Split(stratify="label")) == 40
    assert read([record(number, str(number)) for number in range(40)], Split()) == 40


def test_by_time_labels_are_not_looked_at() -> None:
    rows = [record(number, str(number), created="2024-05-01") for number in range(20)]
    assert read(rows, Split(by="time", stratify="label")) == 20
