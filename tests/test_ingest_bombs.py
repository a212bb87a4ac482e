"""A file of kilobytes that unpacks to gigabytes ends soon, in one line, and never fills the memory."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import GOOD, cached, run, tables

from tunewright.config import Data, Source
from tunewright.errors import DataError
from tunewright.machine import parquet
from tunewright.tasks.ingest import arrays, readers, source_files


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def dictionary(value: str, rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value]))


@pytest.mark.parametrize(("line", "reason"), [(b"{}\n", "unknown_layout"), (b"\n", "blank_line")])
def test_reading_stops_once_the_refused_share_cannot_be_kept(line: bytes, reason: str) -> None:
    Path("a.jsonl.gz").write_bytes(gzip.compress(line * 600_000))
    Path("b.jsonl").write_bytes(GOOD)
    data = Data(sources=(Source(path="a.jsonl.gz"), Source(path="b.jsonl")))
    with pytest.raises(
        DataError,
        match=rf"^50000 of the first 50000 records quarantined, already over .* of all: 50000 {reason}",
    ):
        cached.build(Path.cwd(), data, source_files(data))


def test_bad_records_at_the_beginning_stop_nothing_where_enough_can_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.tasks.ingest.MANY", 1)
    monkeypatch.setattr("tunewright.tasks.ingest.parts.TILE_LINES", 10)
    Path("a.jsonl").write_bytes(b"{}\n" * 20 + GOOD.join([b""] + [b"\n"] * 200))
    assert run("a.jsonl", max_refused_share=0.1).num_quarantined == 20


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv.gz", b"1,\n" * 40_000),
        ("a.jsonl.gz", GOOD + b"\n" + b"\n" * 40_000),
        ("a.json.gz", b"[1" + b",1" * 40_000),
    ],
)
def test_more_records_than_bytes_are_no_data(name: str, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "ALWAYS_PLAUSIBLE", 1_000)
    Path(name).write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=rf"^data\.sources\[0\]: {name}: it unpacks to over 1,\d+ records in \d+ bytes"):
        run(name)


def test_equal_rows_of_a_parquet_file_are_not_read_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "ALWAYS_PLAUSIBLE", 1_000)
    rows = {"prompt": ["same"] * 50_000, "completion": ["b"] * 50_000}
    pq.write_table(pa.table(rows), "a.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"^data\.sources\[0\]: a\.parquet: it unpacks to over"):
        run("a.parquet")


@pytest.mark.parametrize("store_schema", [True, False])
def test_a_parquet_file_of_bytes_with_long_rows_is_read_in_little_memory(
    store_schema: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MEGABYTES", 200)
    rows = {"prompt": dictionary("a" * 1_000_000, 500), "completion": ["b"] * 500}
    pq.write_table(pa.table(rows), "a.parquet", compression="zstd", store_schema=store_schema)
    assert Path("a.parquet").stat().st_size < 3_000
    sizes = [(batch.num_rows, batch.nbytes) for batch in parquet.batches("a.parquet", ["prompt", "completion"])]
    assert sum(number for number, _ in sizes) == 500
    assert max(size for _, size in sizes) <= parquet.BATCH_BYTES


def test_nested_dictionaries_are_read_as_what_they_stand_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_BYTES", 100)
    turn = pa.StructArray.from_arrays(
        [dictionary("user", 6), pa.array([f"{n}" for n in range(6)]).dictionary_encode()], ["role", "content"]
    )
    pq.write_table(pa.table({"messages": pa.ListArray.from_arrays([0, 2, 4, 6], turn)}), "a.parquet")
    read = [row for batch in parquet.batches("a.parquet", ["messages"]) for row in batch.to_pylist()]
    assert [[turn["content"] for turn in row["messages"]] for row in read] == [["0", "1"], ["2", "3"], ["4", "5"]]


def test_a_row_that_takes_more_than_the_limit_is_named_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MEGABYTES", 100)
    pq.write_table(pa.table({"prompt": ["a" * 150_000_000], "completion": ["b"]}), "a.parquet", compression="zstd")
    with pytest.raises(
        DataError, match=r"^data\.sources\[0\]: a\.parquet: reading it takes more than 100 MB of memory$"
    ):
        run("a.parquet")


def test_one_element_without_an_end_is_not_searched_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK", 10_000)
    Path("a.json.gz").write_bytes(gzip.compress(b"[" * 1_000_000))
    with pytest.raises(
        DataError, match=r"^data\.sources\[0\]: a\.json\.gz: record 1, which begins at byte 1, has no end in 50 times"
    ):
        run("a.json.gz", max_line_bytes=1_000)


def test_a_header_of_many_columns_is_looked_at_once() -> None:
    names = ",".join(f"c{number}" for number in range(400_000))
    Path("a.csv").write_text(f"prompt,completion,{names}\n")
    with pytest.raises(DataError, match=r"a\.csv: no record in it"):
        run("a.csv", max_line_bytes=10_000_000)
    Path("b.csv").write_text(",".join(["same"] * 400_000) + "\n")
    with pytest.raises(DataError, match="the header row has 'same' more than once"):
        run("b.csv", max_line_bytes=10_000_000)


def test_rows_of_parquet_are_those_of_jsonl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROWS", 7)
    records = [{"prompt": f"question {n} ü", "completion": f"{n}", "group": n % 3} for n in range(50)]
    pq.write_table(pa.Table.from_pylist(records), "a.parquet", row_group_size=20)
    Path("a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    kept = [tables(run(name))[0] for name in ("a.parquet", "a.jsonl")]
    assert [row["row_id"] for row in kept[0]] == [row["row_id"] for row in kept[1]]
