"""Unchanged parts are not parsed again, and rows assembled from parts equal those read at once."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from ingested import GOOD, cached, run, tables, texts

from tunewright.artifacts import Rows
from tunewright.config import Data, Source
from tunewright.tasks.ingest import parsing, source_files
from tunewright.tasks.ingest import readers as readers_module
from tunewright.tasks.ingest.parts import Tile, ingest_part, tiles
from tunewright.tasks.ingest.readers import Line


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tunewright.tasks.ingest.parts.TILE_LINES", 10)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The records that were parsed since the test last cleared it."""
    seen: list[bytes] = []

    def line(raw: bytes, ended: bool) -> Any:
        seen.append(raw)
        return parsing.parse_line(raw, ended)

    def element(raw: bytes) -> Any:
        seen.append(raw)
        return parsing.parse_json(raw)

    monkeypatch.setattr(readers_module, "parse_line", line)
    monkeypatch.setattr(readers_module, "parse_json", element)
    return seen


def records(numbers: range) -> bytes:
    return b"".join(b'{"prompt": "%d", "completion": "x"}\n' % n for n in numbers)


def ingested(*names: str, **options: Any) -> Rows:
    """Ingests with the cache."""
    data = Data(sources=tuple(Source(path=name) for name in names), **{"max_refused_share": 1, **options})
    return cached(data, source_files(data))


def prompts(rows: Rows) -> list[str]:
    return [texts(row)[0] for row in tables(rows)[0]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_of_a_file_that_grew_only_the_last_tile_and_what_follows_is_parsed(name: str, parsed: list[bytes]) -> None:
    def write(content: bytes) -> None:
        Path(name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)

    write(records(range(95)))
    ingested(name)
    assert len(parsed) == 95
    parsed.clear()
    write(records(range(98)))
    rows = ingested(name)
    assert parsed == records(range(90, 98)).splitlines()
    assert prompts(rows) == [str(n) for n in range(98)]
    assert [row["line"] for row in tables(rows)[0]] == list(range(1, 99))


def test_a_last_line_without_its_end_may_get_one_or_go_on() -> None:
    first = records(range(25)) + b'{"prompt": "25", "completion": "x'
    for more in (b"", b'"}', b'"}\n', b'yz"}\n' + records(range(26, 40))):
        Path("a.jsonl").write_bytes(first + more)
        rows = ingested("a.jsonl")
        at_once = run("a.jsonl")
        assert tables(rows) == tables(at_once)
        assert rows.reasons == ({} if more else {"truncated": 1})
    assert texts(tables(rows)[0][25]) == ["25", "xyz"]


def test_a_file_that_did_not_change_is_not_parsed_beside_one_that_did(parsed: list[bytes]) -> None:
    Path("a.jsonl").write_bytes(records(range(15)))
    Path("b.json").write_text(json.dumps([{"prompt": "b", "completion": "x"}]))
    Path("c.jsonl").write_bytes(records(range(3)))
    ingested("a.jsonl", "b.json")
    parsed.clear()
    rows = ingested("a.jsonl", "b.json", "c.jsonl")
    assert parsed == records(range(3)).splitlines()
    assert prompts(rows) == [*map(str, range(15)), "b", "0", "1", "2"]
    assert rows.detected == {
        "a.jsonl": "jsonl, prompt_completion",
        "b.json": "json, prompt_completion",
        "c.jsonl": "jsonl, prompt_completion",
    }


def test_a_change_in_the_middle_is_seen(parsed: list[bytes]) -> None:
    Path("a.jsonl").write_bytes(records(range(50)))
    ingested("a.jsonl")
    parsed.clear()
    Path("a.jsonl").write_bytes(records(range(50)).replace(b'"25"', b'"no"'))
    rows = ingested("a.jsonl")
    assert parsed == records(range(20, 30)).replace(b'"25"', b'"no"').splitlines()
    assert prompts(rows)[25] == "no"


def test_a_record_that_moved_has_its_new_place() -> None:
    Path("a.jsonl").write_bytes(records(range(30)))
    ingested("a.jsonl")
    Path("a.jsonl").write_bytes(b"\n" + records(range(30)))
    kept, refused = tables(ingested("a.jsonl"))
    assert [(row["line"], row["byte"]) for row in kept[:2]] == [(2, 1), (3, 36)]
    assert [(entry["line"], entry["byte"]) for entry in refused] == [(1, 0)]


def test_a_setting_that_shapes_rows_parses_again_and_one_that_does_not_does_not(parsed: list[bytes]) -> None:
    Path("a.jsonl").write_bytes(records(range(12)) + b"{}\n")
    ingested("a.jsonl")
    parsed.clear()
    ingested("a.jsonl", max_refused_share=0.5)
    assert parsed == []
    ingested("a.jsonl", repair=("nfc",))
    assert len(parsed) == 13


def test_the_parts_give_the_same_bytes_whether_found_or_made() -> None:
    Path("a.jsonl").write_bytes(records(range(35)) + b"{\n")
    first = ingested("a.jsonl")
    assert ingested("a.jsonl", max_refused_share=0.9).digest == first.digest  # of the same parts
    assert run("a.jsonl").num_rows == 35


def test_a_part_that_was_deleted_or_altered_is_made_again(home: Path) -> None:
    Path("a.jsonl").write_bytes(records(range(35)))
    whole = ingested("a.jsonl")
    for number, part in enumerate(sorted((home / "artifacts" / "ingest_part").glob("*/rows.parquet"))):
        part.unlink() if number % 2 else part.write_bytes(b"altered")
    assert ingested("a.jsonl", max_refused_share=0.9).digest == whole.digest


def test_a_line_over_the_limit_counts_with_its_whole_length() -> None:
    for length in (5_000, 6_000):
        Path("a.jsonl").write_bytes(b"x" * length + b"\n" + GOOD + b"\n")
        kept, _ = tables(ingested("a.jsonl", max_line_bytes=1_000))
        assert kept[0]["byte"] == length + 1


def test_the_length_of_a_long_line_is_no_part_of_the_next_one() -> None:
    cut = b"x" * 102
    tiles_of = [
        [Line(1, 0, cut, 1_200), Line(2, 1_200, b"3\n", 2)],
        [Line(1, 0, cut, 12_003), Line(2, 12_003, b"\n", 1)],
    ]
    assert len({Tile.of(run).sha256 for run in tiles_of}) == 2


def test_masking_and_the_hub_count_in_the_key_of_what_they_shape() -> None:
    assert set(ingest_part.libraries) == set(cached.libraries) >= {"datasets", "detect-secrets", "phonenumbers"}


def test_tiles_end_by_bytes_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.tasks.ingest.parts.TILE_BYTES", 100)
    Path("a.jsonl").write_bytes(records(range(10, 20)))
    (file,) = source_files(Data(sources=(Source(path="a.jsonl"),)))
    cut = list(tiles(file, 1_000))
    assert [(tile.first_line, tile.byte, len(tile.lines)) for tile in cut] == [
        (1, 0, 3),
        (4, 108, 3),
        (7, 216, 3),
        (10, 324, 1),
    ]
