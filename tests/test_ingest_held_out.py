"""Evaluation files become texts, whatever their records look like, and a hole in them is never passed over."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import GOOD, cached, run

from tunewright.artifacts import HELD_OUT_SCHEMA
from tunewright.config import Data, Source
from tunewright.errors import ConfigError, DataError
from tunewright.tasks.ingest import source_files


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("train.jsonl").write_bytes(GOOD)


def held_out(*sources: Source | str, **options: Any) -> list[str]:
    """The texts of evaluation files."""
    named = tuple(Source(path=source) if isinstance(source, str) else source for source in sources)
    rows = run("train.jsonl", held_out=named, **options)
    table = pq.read_table(rows.path("held_out.parquet"))
    assert table.schema.equals(HELD_OUT_SCHEMA)
    assert rows.num_held_out == table.num_rows
    assert (rows.num_read, rows.num_rows) == (1, 1)  # they are no rows
    return table["text"].to_pylist()


def test_all_texts_of_a_record_of_any_shape_count() -> None:
    records = [
        {"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "id": 7, "answer": None},
        "bare",
        ["d", {"e": "f"}],
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "g"}]}]},
    ]
    Path("a.jsonl").write_text("\n\n".join(map(json.dumps, records)) + "\n")
    Path("b.json").write_text(json.dumps(records))
    Path("c.txt").write_text("one text a line\n\n  and {another} \n")
    Path("d.csv").write_text("question,answer\na,b\n")
    pq.write_table(pa.Table.from_pylist([{"question": "a", "score": 1.5, "options": ["b"]}]), "e.parquet")
    texts = ["a\nb\nc\nA\nB", "bare", "d\nf", "g"]
    assert held_out("a.jsonl") == texts
    assert held_out("b.json") == texts
    assert held_out("c.txt", "d.csv") == ["one text a line", "  and {another} ", "a\nb"]
    assert held_out("e.parquet") == ["a\nb"]


def test_the_place_of_a_text_is_kept_and_the_file_is_shown_as_held_out() -> None:
    Path("c.txt").write_text("\na\nb\n")
    rows = run("train.jsonl", held_out=(Source(path="c.txt"),))
    entries = pq.read_table(rows.path("held_out.parquet")).to_pylist()
    assert [(entry["file"], entry["line"]) for entry in entries] == [("c.txt", 2), ("c.txt", 3)]
    assert rows.detected == {"train.jsonl": "jsonl, alpaca", "c.txt": "text, held out"}


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a\nb"}]


@pytest.mark.parametrize(
    ("record", "question", "other", "answer"),
    [
        ({"instruction": "q\nr", "input": "s", "output": "a\nb", "source": "x"}, "q\nr\n\ns", "x", "a\nb"),
        ({"id": "x", "prompt": "q", "completion": "a\n\nb\n"}, "q", "x", "a\n\nb\n"),
        ({"prompt": "q\nr", "canonical_solution": "x\ny"}, "q\nr", "x\ny", ""),  # none of ours, so neither
        ({"messages": [{"role": "system", "content": "s"}, *TURNS], "system": None}, "s\nq", "", "a\nb"),
        ({"messages": [*TURNS, {"role": "user", "content": "r"}]}, "q\na\nb\nr", "", ""),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "q", "", "a"),
        ({"question": "q\nr", "choices": ["s", "t"], "answer": "a\nb", "split": "x"}, "q\nr\ns\nt\nx", "", "a\nb"),
        ({"context": "q\nr", "answers": {"text": ["a", "b"]}}, "q\nr", "", "a\nb"),
        ({"text": "q\nr", "label": 3}, "q\nr", "", ""),
    ],
)
def test_question_and_answer_of_a_record_are_known_where_its_fields_tell(
    record: dict[str, Any], question: str, other: str, answer: str
) -> None:
    Path("a.jsonl").write_text(json.dumps(record))
    assert held_out("a.jsonl") == ["\n".join(filter(None, (question, other, answer)))]
    assert lines("a.jsonl") == [(len(question.splitlines()), len(answer.splitlines()))]


def test_of_other_records_the_question_is_not_known() -> None:
    tool = {"messages": [{"role": "tool", "content": "q"}]}
    Path("a.jsonl").write_text("\n".join(map(json.dumps, ["q\na", ["q", "a"], {"first": "q", "second": "a"}, tool])))
    assert lines("a.jsonl") == [(None, 0)] * 4


def test_named_columns_say_what_is_asked() -> None:
    Path("a.jsonl").write_text(json.dumps({"q": "a\nb", "gold": "c\nd", "output": "e"}))
    assert lines(Source(path="a.jsonl", columns={"prompt": "q"})) == [(2, 0)]
    assert lines(Source(path="a.jsonl", columns={"prompt": "q", "completion": "gold"})) == [(2, 2)]
    assert lines(Source(path="a.jsonl", layout="alpaca", columns={"instruction": "q"})) == [(2, 1)]


def lines(source: Source | str) -> list[tuple[int | None, int]]:
    """Return the numbers of question lines and answer lines of each record."""
    rows = run("train.jsonl", held_out=(Source(path=source) if isinstance(source, str) else source,))
    records = pq.read_table(rows.path("held_out.parquet")).to_pylist()
    return [(record["asked"], record["answered"]) for record in records]


def test_the_layouts_of_an_evaluation_file_are_told() -> None:
    Path("a.jsonl").write_text("\n".join(map(json.dumps, [{"messages": TURNS}, {"prompt": "q", "completion": "a"}])))
    detected = run("train.jsonl", held_out=(Source(path="a.jsonl"),)).detected
    assert detected["a.jsonl"] == "jsonl, held out, messages and prompt_completion"


def test_a_layout_or_columns_narrow_what_counts() -> None:
    Path("a.jsonl").write_text('{"q": "a", "a": "b", "note": "c", "instruction": "d", "output": "e"}\n')
    assert held_out(Source(path="a.jsonl", columns={"prompt": "q"})) == ["a"]
    assert held_out(Source(path="a.jsonl", layout="alpaca")) == ["d\ne"]
    assert held_out(Source(path="a.jsonl", layout="alpaca", columns={"output": "note"})) == ["d\nc"]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_layout_finds_its_own_fields_beside_columns_that_are_mapped(name: str) -> None:
    record = {"question": "a", "output": "b", "note": "c"}
    Path("a.jsonl").write_text(json.dumps(record))
    pq.write_table(pa.Table.from_pylist([record]), "a.parquet")
    assert held_out(Source(path=name, layout="alpaca", columns={"instruction": "question"})) == ["a\nb"]


def test_texts_are_repaired_as_rows_are_and_a_limit_leaves_none_out() -> None:
    Path("c.txt").write_text("cafÃ©\n" * 5)
    assert held_out("c.txt", repair=("mojibake",), limit=1) == ["café"] * 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'"a"\n{"b": \n', "a.jsonl line 2: bad_json"),
        ("a.jsonl", b'"a"\n"b', "a.jsonl line 2: truncated"),
        ("a.txt", b"a\nGr\xfc\xdfe\n", "a.txt line 2: bad_encoding, .* looks like Latin-1"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n', "a.jsonl line 2: lone_surrogate"),
        ("a.jsonl", b'{"text": "a"}\n{"number": 1}\n', "a.jsonl line 2: a held-out record .*; it has number"),
        ("a.json", b'["a", NaN]', "a.json record 2: not_finite"),
        ("a.csv", b"a,b\n1,2\n3\n", "a.csv line 3: bad_csv"),
        ("a.txt", b"a\n" + b"b" * 2_000, "a.txt line 2: too_long"),
    ],
)
def test_a_record_that_cannot_be_read_stops_the_run(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        held_out(name, max_line_bytes=1_000)
    assert "\n" not in str(caught.value)


def test_settings_that_fit_no_evaluation_file_are_config_errors() -> None:
    Path("a.jsonl").write_text('{"question": "a", "id": "b"}\n')
    with pytest.raises(ConfigError, match=r"held_out\[0\].use_as=test: a held-out file is in no split"):
        held_out(Source(path="a.jsonl", use_as="test"))
    with pytest.raises(
        ConfigError, match=r"held_out\[0\].columns.output: no record has qestion; did you mean question\?"
    ):
        held_out(Source(path="a.jsonl", columns={"prompt": "id", "output": "qestion"}))
    with pytest.raises(ConfigError, match=r"held_out\[0\].path=\*.txt: no file matches"):
        held_out("*.txt")


def test_a_change_of_an_evaluation_file_is_a_miss() -> None:
    data = Data(sources=(Source(path="train.jsonl"),), held_out=(Source(path="a.txt"),))
    Path("a.txt").write_text("a")
    before = source_files(data)
    made = cached(data, before)
    Path("a.txt").write_text("b")
    assert cached.key(data, source_files(data)) != cached.key(data, before) == made.key
