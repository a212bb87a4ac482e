"""Arrow files and saved data sets are read like Parquet: strictly, row by row, and within bounds of memory."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, disable_progress_bars
from ingested import MESSAGES, run, tables

from tunewright.config import Data, Source
from tunewright.errors import ConfigError, DataError
from tunewright.tasks.ingest import arrow, watching

RECORDS = [{"instruction": f"Say hello {n}", "output": "Hello"} for n in range(5)]
TABLE = pa.Table.from_pylist(RECORDS)

Write = Callable[[str, pa.Table], None]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    disable_progress_bars()


def as_stream(name: str, table: pa.Table, **options: Any) -> None:
    with pa.ipc.new_stream(name, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)


def as_file(name: str, table: pa.Table, **options: Any) -> None:
    with pa.ipc.new_file(name, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=2)


def as_zstd(name: str, table: pa.Table) -> None:
    as_stream(name, table, compression="zstd")


def as_feather(name: str, table: pa.Table) -> None:
    feather.write_feather(table, name, compression="lz4")


@pytest.mark.parametrize("write", [as_stream, as_file, as_zstd, as_feather])
def test_streams_and_files_become_the_rows_that_they_hold(write: Write) -> None:
    write("a.arrow", TABLE.append_column("label", pa.array(list("ababa")).dictionary_encode()))
    rows = run("a.arrow")
    kept, _ = tables(rows)
    assert [(row["file"], row["line"]) for row in kept] == [("a.arrow", n) for n in range(1, 6)]
    assert [row["messages"][0]["content"] for row in kept] == [record["instruction"] for record in RECORDS]
    assert rows.detected == {"a.arrow": "arrow, alpaca"}


def test_a_row_that_cannot_be_read_is_refused_alone() -> None:
    texts = [b"Hello", b"caf\xe9", None, b"Hello"]
    output = pa.array(texts, pa.binary()).view(pa.string())
    as_stream("a.arrow", pa.table({"instruction": [f"Say {n}" for n in range(4)], "output": output}))
    kept, refused = tables(run("a.arrow"))
    assert [row["line"] for row in kept] == [1, 4]
    assert [(row["line"], row["reason"]) for row in refused] == [(2, "bad_encoding"), (3, "null_field")]


@pytest.mark.parametrize("write", [as_stream, as_file])
def test_a_file_that_is_cut_off_anywhere_is_refused(write: Write) -> None:
    write("a.arrow", TABLE)
    whole = Path("a.arrow").read_bytes()
    end = whole.rindex(arrow.CONTINUES + bytes(4))
    for size in range(1, end + 8, 23):
        Path("a.arrow").write_bytes(whole[:size])
        with pytest.raises(DataError, match="not a whole Arrow file"):
            list(arrow.batches("a.arrow", None))


def test_a_byte_changed_in_a_file_never_ends_the_process() -> None:
    as_file("whole.arrow", TABLE)
    whole = Path("whole.arrow").read_bytes()
    for position in range(0, len(whole), 3):
        flipped = bytearray(whole)
        flipped[position] ^= 0xFF
        Path("a.arrow").write_bytes(flipped)
        try:
            run("a.arrow")
        except DataError:
            continue


def test_what_would_take_more_memory_than_a_batch_may_is_not_unpacked() -> None:
    as_zstd("a.arrow", pa.table({"instruction": ["a" * 1_000], "output": ["b" * 1_000]}))
    content = Path("a.arrow").read_bytes()
    assert content.count(struct.pack("<q", 1_000)) >= 2
    Path("a.arrow").write_bytes(content.replace(struct.pack("<q", 1_000), struct.pack("<q", 1 << 40)))
    with pytest.raises(DataError, match=r"the record batch at byte \d+ takes 2,199,023,255,\d+ bytes"):
        list(arrow.batches("a.arrow", None))


def test_an_archive_around_a_file_is_refused_as_around_parquet() -> None:
    as_stream("a.arrow", TABLE)
    with pa.output_stream("b.arrow.gz", compression="gzip") as packed:
        packed.write(Path("a.arrow").read_bytes())
    with pytest.raises(DataError, match=r"b.arrow.gz: the file is compressed, but Arrow compresses its columns itself"):
        run("b.arrow.gz")


def saved(folder: str, records: list[dict[str, str]]) -> Dataset:
    data = Dataset.from_list(records)
    data.save_to_disk(folder, num_shards=min(2, len(records)))
    return data


def test_a_saved_data_set_is_its_files_and_a_glob_may_name_several() -> None:
    saved("sets/a", RECORDS[:3])
    saved("sets/b", RECORDS[3:])
    one, _ = tables(run("sets/a"))
    assert [(Path(row["file"]).name, row["line"]) for row in one] == [
        ("data-00000-of-00002.arrow", 1),
        ("data-00000-of-00002.arrow", 2),
        ("data-00001-of-00002.arrow", 1),
    ]
    rows = run("sets/*")
    assert rows.num_rows == 5
    assert set(rows.globs.values()) == {"sets/*"}


def test_of_several_splits_the_one_that_is_named_is_read() -> None:
    data = Dataset.from_list(RECORDS)
    DatasetDict({"train": data, "test": data.select([0])}).save_to_disk("both")
    DatasetDict({"train": data}).save_to_disk("one")
    assert run(Source(path="both", split="test")).num_rows == 1
    assert run("one").num_rows == 5
    with pytest.raises(ConfigError, match=r"data.sources\[0\].split: both has the splits train, test"):
        run("both")
    with pytest.raises(ConfigError, match=r"split=tset: both has train, test; did you mean test"):
        run(Source(path="both", split="tset"))
    saved("plain", RECORDS)
    with pytest.raises(ConfigError, match="plain is one data set, without splits"):
        run(Source(path="plain", split="train"))
    as_stream("a.arrow", TABLE)
    with pytest.raises(ConfigError, match="only a folder that save_to_disk of datasets wrote has splits"):
        run(Source(path="a.arrow", split="train"))


def test_class_labels_are_the_names_of_their_classes() -> None:
    features = Features({"prompt": Value("string"), "completion": ClassLabel(names=["refund", "order"])})
    Dataset.from_dict({"prompt": ["a", "b", "c"], "completion": [1, 0, -1]}, features=features).save_to_disk("labels")
    kept, refused = tables(run("labels"))
    assert [row["messages"][1]["content"] for row in kept] == ["order", "refund"]
    assert [row["reason"] for row in refused] == ["null_field"]


def test_conversations_are_read_from_a_saved_data_set() -> None:
    Dataset.from_list([{"messages": MESSAGES}]).save_to_disk("chats")
    kept, _ = tables(run("chats"))
    assert kept[0]["messages"] == MESSAGES


def test_a_folder_that_is_not_whole_is_refused() -> None:
    saved("a", RECORDS)
    Path("a/data-00001-of-00002.arrow").rename("elsewhere.arrow")
    with pytest.raises(DataError, match=r"data-00001-of-00002.arrow: there is no such file, which state.json"):
        run("a")
    names = ("../elsewhere.arrow", "a\n\ud800", "ä" * 128)  # the last has more bytes than a name of a file may have
    for files in (*([{"filename": name}] for name in names), True, 3, "data.arrow"):
        Path("a/state.json").write_text(json.dumps({"_data_files": files}))
        with pytest.raises(DataError, match=r"state.json: not what save_to_disk of datasets writes"):
            run("a")
    Path("b").mkdir()
    with pytest.raises(ConfigError, match=r"is a folder; accepted: .* a folder that save_to_disk of datasets wrote"):
        run("b")


def test_a_watch_notices_a_data_set_that_was_saved_again() -> None:
    saved("a", RECORDS)
    data = Data(sources=(Source(path="a"),))
    watching.keep_read("demo", watching.source_files(data))
    assert not watching.look("demo", data).changes
    shutil.rmtree("a")
    saved("a", [*RECORDS, {"instruction": "Say hello again", "output": "Hello"}])
    assert len(watching.look("demo", data).changes) == 2
