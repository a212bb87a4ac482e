"""Every record is kept with an identity or refused with a reason, a file and a line, whatever the bytes."""

import hashlib
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.artifacts import QUARANTINE_SCHEMA, ROW_SCHEMA, Rows
from tasks.config import Data, Layout, Source
from tasks.errors import ConfigError, DataError, TunewrightError
from tasks.ingest import files as files_module
from tasks.ingest import ingest, row_id_of, source_files

GOOD = b'{"instruction": "Say hello", "output": "Hello"}'
MESSAGES = [{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "Hello"}]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


cached: Any = ingest.fn


def run(*names: str, **options: Any) -> Rows:
    """Ingests the files, without the cache around it and letting any share be refused."""
    data = Data(sources=tuple(Source(path=name) for name in names), **{"max_refused_share": 1, **options})
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    return cached.build(folder, data, source_files(data)).model_copy(update={"folder": folder})


def read(content: bytes, name: str = "a.jsonl", **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The kept rows and the refusals of one file."""
    Path(name).write_bytes(content)
    return tables(run(name, **options))


def tables(rows: Rows) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    kept, refused = pq.read_table(rows.path("rows.parquet")), pq.read_table(rows.path("quarantine.parquet"))
    assert kept.schema.equals(ROW_SCHEMA)
    assert refused.schema.equals(QUARANTINE_SCHEMA)
    assert (rows.num_rows, rows.num_quarantined) == (kept.num_rows, refused.num_rows)
    assert rows.num_read == rows.num_rows + rows.num_quarantined
    assert rows.reasons == Counter(sorted(refused["reason"].to_pylist()))
    assert list(rows.reasons) == sorted(rows.reasons)
    return kept.to_pylist(), refused.to_pylist()


def nested(depth: int) -> bytes:
    """A good record whose extra field nests so deep in all, brackets inside a string not counted."""
    return GOOD[:-1] + b', "text": "[[{\\"[", "more": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def turns(*pairs: tuple[Any, Any]) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]}).encode()


REFUSALS = [
    (b'{"instruction": "Gr\xfc\xdfe", "output": "x"}', "bad_encoding"),
    (b"\xed\xa0\x80", "bad_encoding"),
    (b'{"instruction": "a", "output": "b",}', "bad_json"),
    (b"{'instruction': 'a'}", "bad_json"),
    (GOOD + b" " + GOOD, "bad_json"),
    (b'{"instruction": "a\tb", "output": "c"}', "bad_json"),
    (GOOD[:-1] + b', "id": ' + b"9" * 5_000 + b"}", "bad_json"),
    (b'{"instruction": "a", "output": "b", "output": "c"}', "duplicate_key"),
    (GOOD[:-1] + b', "more": [{"x": 1, "x": 1}]}', "duplicate_key"),
    (GOOD[:-1] + b', "score": NaN}', "not_finite"),
    (GOOD[:-1] + b', "score": [-Infinity]}', "not_finite"),
    (b'{"instruction": "' + b"a" * 10_000 + b'", "output": "b"}', "too_long"),
    (nested(65), "too_deep"),
    (b'["instruction", "output"]', "not_an_object"),
    (b"null", "not_an_object"),
    (b"{}", "unknown_layout"),
    (b'{"question": "a", "answer": "b"}', "unknown_layout"),
    (b'{"\\ud800": "a"}', "unknown_layout"),
    (b'{"instruction": "a"}', "missing_field"),
    (b'{"completion": "a"}', "missing_field"),
    (b'{"messages": []}', "missing_field"),
    (b'{"messages": [{"role": "user"}]}', "missing_field"),
    (b'{"conversations": [{"role": "user", "content": "a"}]}', "missing_field"),
    (b'{"instruction": "a", "output": null}', "null_field"),
    (b'{"messages": null}', "null_field"),
    (turns(("user", "a"), ("assistant", None)), "null_field"),
    (b'{"instruction": "a", "output": 5}', "wrong_type"),
    (b'{"instruction": "a", "output": {"b": 1}}', "wrong_type"),
    (b'{"instruction": "a", "input": ["b"], "output": "c"}', "wrong_type"),
    (GOOD[:-1] + b', "source": 7}', "wrong_type"),
    (GOOD[:-1] + b', "group": false}', "wrong_type"),
    (b'{"messages": "hello"}', "wrong_type"),
    (b'{"messages": ["hello"]}', "wrong_type"),
    (turns(("user", [{"type": "text", "text": "a"}])), "wrong_type"),
    (turns(("user", "a"), ("tool", "b"), ("assistant", "c")), "unknown_role"),
    (turns(("human", "a"), ("gpt", "b")), "unknown_role"),
    (b'{"instruction": "a\\u0000", "output": "b"}', "nul_character"),
    (b"\0\0\0\0", "nul_character"),
    (b'{"instruction": "a \\ud83d b", "output": "c"}', "lone_surrogate"),
    (GOOD[:-1] + b', "group": "\\udc00"}', "lone_surrogate"),
]
OF_LINES = [  # an array has no blank elements, and ends with an element that does not close
    (b"", "blank_line"),
    (b" \t ", "blank_line"),
    (b'{"instruction": "a", "outp', "bad_json"),
    (b"[" * 9_000, "too_deep"),
]


@pytest.mark.parametrize(("line", "reason"), REFUSALS + OF_LINES)
def test_a_refused_line_is_quarantined_with_its_reason_and_its_number(line: bytes, reason: str) -> None:
    kept, refused = read(b"\n".join([GOOD, line, GOOD]) + b"\n", max_line_bytes=9_500)
    assert [row["line"] for row in kept] == [1, 3]
    (entry,) = refused
    assert (entry["file"], entry["line"], entry["reason"]) == ("a.jsonl", 2, reason)
    assert entry["detail"]
    assert "\n" not in entry["detail"]
    assert entry["text"] == line.rstrip(b"\r\n").decode("utf-8", "replace")[:500]


@pytest.mark.parametrize(("element", "reason"), REFUSALS)
def test_an_array_is_as_strict_as_lines(element: bytes, reason: str) -> None:
    kept, refused = read(b"[\n" + b",\n".join([GOOD, element, GOOD]) + b"\n]\n", "a.json", max_line_bytes=9_500)
    assert [row["line"] for row in kept] == [1, 3]
    assert [(entry["line"], entry["reason"]) for entry in refused] == [(2, reason)]


def test_nesting_is_refused_from_level_65_on_and_never_reaches_the_parser() -> None:
    assert len(read(nested(64))[0]) == 1
    endless = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    kept, refused = read(GOOD + b"\n" + endless, max_line_bytes=10_000_000)
    assert (len(kept), refused[0]["reason"]) == (1, "too_deep")
    assert read(b"[" + GOOD + b"," + endless + b"]", "a.json", max_line_bytes=10_000_000)[1][0]["reason"] == "too_deep"


def test_a_line_of_exactly_the_limit_is_kept_whatever_its_end() -> None:
    line = b'{"instruction": "a", "output": "' + b"b" * 966 + b'"}'
    assert len(line) == 1_000
    for end in (b"", b"\n", b"\r\n"):
        assert len(read(line + end, max_line_bytes=1_000)[0]) == 1
        assert read(GOOD + b"\n " + line + end, max_line_bytes=1_000)[1][0]["reason"] == "too_long"


def test_what_follows_a_line_that_is_too_long_keeps_its_number() -> None:
    kept, refused = read(b"\n".join([b"x" * 300_000, GOOD, b"y" * 5_000, GOOD]), max_line_bytes=1_000)
    assert [row["line"] for row in kept] == [2, 4]
    assert [entry["line"] for entry in refused] == [1, 3]


def test_the_last_line_end_is_no_blank_line_and_a_further_one_is() -> None:
    assert read(GOOD + b"\n")[1] == []
    assert [entry["line"] for entry in read(GOOD + b"\n\n")[1]] == [2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(name: str) -> None:
    lines = {
        "a.jsonl": [GOOD, GOOD],
        "a.json": [b"[" + GOOD + b",", GOOD + b"]"],
        "a.csv": [b"instruction,output", b"Say hello,Hello", b"Say hello,Hello"],
    }[name]
    plain = read(b"\n".join(lines) + b"\n", name)
    assert len(plain[0]) == 2
    assert read(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n", name) == plain


def test_all_layouts_and_formats_become_the_same_messages() -> None:
    alpaca = {"instruction": "Say hello", "input": "in French", "output": "Bonjour", "system": "Be brief."}
    expected = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Say hello\n\nin French"},
        {"role": "assistant", "content": "Bonjour"},
    ]
    system, user, assistant = expected
    records = [
        alpaca,
        {"prompt": user["content"], "completion": "Bonjour", "system": "Be brief."},
        {"prompt": [system, user], "completion": [assistant]},
        {"messages": expected, "prompt": "ignored", "prompt_id": 5},
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": user["content"]}, {"from": "gpt", "value": "Bonjour"}],
        },
        {"conversations": [{"from": turn["role"], "value": turn["content"]} for turn in expected]},
    ]
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, records)))
    Path("array.json").write_text(json.dumps(records, indent=1))
    Path("table.csv").write_text("instruction,input,output,system\nSay hello,in French,Bonjour,Be brief.\n")
    pq.write_table(pa.Table.from_pylist([alpaca]), "columns.parquet")
    pq.write_table(pa.Table.from_pylist([{"messages": expected}]), "structs.parquet")
    rows = run("lines.jsonl", "array.json", "table.csv", "columns.parquet", "structs.parquet", max_refused_share=0)
    kept, _ = tables(rows)
    assert len(kept) == 15
    canonical = json.dumps(expected, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    assert {json.dumps(row["messages"]) for row in kept} == {json.dumps(expected)}
    assert {row["row_id"] for row in kept} == {hashlib.sha256(canonical.encode()).hexdigest()}
    assert rows.detected == {
        "lines.jsonl": "jsonl, alpaca and messages and prompt_completion and sharegpt",
        "array.json": "json, alpaca and messages and prompt_completion and sharegpt",
        "table.csv": "csv, alpaca",
        "columns.parquet": "parquet, alpaca",
        "structs.parquet": "parquet, messages",
    }


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=1))
def test_a_row_id_is_the_digest_of_canonical_json(texts: list[str]) -> None:
    messages = [{"role": "user", "content": text} for text in texts]
    canonical = json.dumps(messages, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    assert row_id_of(messages) == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize("given", ["", "null"])
def test_an_empty_or_null_alpaca_input_adds_nothing_and_text_is_taken_verbatim(given: str) -> None:
    line = f'{{"instruction": " Say\\n hello ", "input": {given or chr(34) * 2}, "output": "\\tHello "}}'
    (row,) = read(line.encode())[0]
    assert [turn["content"] for turn in row["messages"]] == [" Say\n hello ", "\tHello "]


def test_a_record_may_name_its_source_and_group() -> None:
    lines = [GOOD[:-1] + b', "source": "crm", "group": "customer 7"}', GOOD, GOOD[:-1] + b', "group": ""}']
    Path("data").mkdir()
    kept, _ = read(b"\n".join(lines), "data/a.jsonl")
    assert [(row["source"], row["file"], row["group"]) for row in kept] == [
        ("crm", "data/a.jsonl", "customer 7"),
        ("a.jsonl", "data/a.jsonl", None),
        ("a.jsonl", "data/a.jsonl", None),
    ]


@pytest.mark.parametrize(("layout", "answer"), [("auto", "B"), ("prompt_completion", "B"), ("alpaca", "A")])
def test_a_layout_can_be_forced_and_auto_takes_the_first_that_is_whole(layout: Layout, answer: str) -> None:
    record = {"instruction": "a", "output": None if layout == "auto" else "A", "prompt": "b", "completion": "B"}
    Path("a.jsonl").write_text(json.dumps(record))
    data = Data(sources=(Source(path="a.jsonl", layout=layout),))
    kept, _ = tables(cached(data, source_files(data)))
    assert kept[0]["messages"][-1]["content"] == answer


def test_csv_rows_keep_their_first_line_and_bad_ones_are_refused() -> None:
    lines = [
        b"instruction,input,output",
        b'"one\r\ntwo, ""quoted""",,answer',
        b"too,few",
        b"one,two,too,many",
        b'"closed" and more,a,b',
        b"",
        b'a 5" screen,,kept',
        b"Gr\xfc\xdfe,,x",
        b"a\0b,,x",
        b'good,,""',
        b'"never closed,,x',
        b"hidden,,in the quote",
    ]
    kept, refused = read(b"\n".join(lines) + b"\n", "a.csv")
    assert [(row["line"], [turn["content"] for turn in row["messages"]]) for row in kept] == [
        (2, ['one\r\ntwo, "quoted"', "answer"]),
        (8, ['a 5" screen', "kept"]),
        (11, ["good", ""]),
    ]
    assert [(entry["line"], entry["reason"]) for entry in refused] == [
        (4, "bad_csv"),
        (5, "bad_csv"),
        (6, "bad_csv"),
        (7, "blank_line"),
        (9, "bad_encoding"),
        (10, "nul_character"),
        (12, "bad_csv"),
        (13, "bad_csv"),
    ]
    assert refused[0]["text"] == "too,few"


def test_a_long_csv_field_is_kept_up_to_the_limit() -> None:
    text = "word " * 40_000  # more than the csv module's own limit
    content = f"prompt,completion\n{text},b\na,b\n".encode()
    assert len(read(content, "a.csv")[0]) == 2
    kept, refused = read(content, "a.csv", max_line_bytes=100_000)
    assert [(row["line"], refused[0]["line"], refused[0]["reason"]) for row in kept] == [(3, 2, "too_long")]


def test_parquet_nulls_other_types_and_bad_text_are_refused_by_row() -> None:
    broken = pa.array([b"a", b"\xff", b"c", b"d", b"e" * 2_000]).view(pa.string())
    output = pa.array(["A", "B", None, "D", "E"])
    pq.write_table(pa.table({"instruction": broken, "output": output, "embedding": [[0.5]] * 5}), "a.parquet")
    kept, refused = tables(run("a.parquet", max_line_bytes=1_000))
    assert [(row["line"], row["messages"][1]["content"]) for row in kept] == [(1, "A"), (4, "D")]
    assert [(entry["line"], entry["reason"]) for entry in refused] == [
        (2, "bad_encoding"),
        (3, "null_field"),
        (5, "too_long"),
    ]
    mixed = {"messages": [None, MESSAGES], "prompt": ["a", None], "completion": ["b", None]}
    pq.write_table(pa.table(mixed), "mixed.parquet")
    assert len(tables(run("mixed.parquet"))[0]) == 2
    pq.write_table(pa.table({"question": ["a"]}), "unknown.parquet")
    with pytest.raises(DataError, match=r"no column is known of \['question'\]; accepted are completion, "):
        run("unknown.parquet")
    pq.write_table(pa.table({"prompt": [b"bytes", b"x"], "completion": ["b", "c"]}), "bytes.parquet")
    with pytest.raises(DataError, match="2 wrong_type"):
        run("bytes.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", GOOD, "a.json: not a JSON array; for one object a line set format to jsonl"),
        ("a.json", b"[" + GOOD + b",\n" + GOOD[:9], "a.json: record 2, which begins in line 1, has no end"),
        ("a.json", b"[" + GOOD + b"]\n[]", "a.json: the array ends in line 1, but more follows"),
        ("a.json", b"[]", "no record in a.json"),
        ("a.csv", b"prompt,completion\n", "no record in a.csv"),
        ("a.csv", b"prompt,completion,prompt\na,b,c\n", "a.csv: the header row has 'prompt' more than once"),
        ("a.csv", b"pr\xffompt,completion\na,b\n", "a.csv: line 1 is no header row"),
        ("a.csv", b'prompt,completion\n"' + b"a\n" * 2_000, "the quoted field that opens in line 2 does not close"),
        ("a.parquet", b"PAR1 and no more", "a.parquet: not a whole Parquet file"),
        ("a.jsonl", b"", "a.jsonl: the file is empty"),
        ("a.jsonl", b"\xef\xbb\xbf", "no record in a.jsonl"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "a.jsonl: .* Git LFS pointer"),
        ("a.csv", b"\n <!DOCTYPE html><html>", "a.csv: the file is an HTML page"),
        ("a.jsonl", "{}".encode("utf-16"), "a.jsonl: the file is UTF-16"),
        ("a.jsonl", b"\x1f\x8b\x08", "a.jsonl: the file is compressed"),
        ("a.jsonl", b"\n{}\n", "2 of 2 records refused, so no row is left: 1 blank_line, 1 unknown_layout; first: "),
    ],
)
def test_a_file_that_is_no_data_is_one_clear_line(name: str, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(content, name, max_line_bytes=1_000)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trian.jsonl", r"data.sources\[0\].path=trian.jsonl: no such file below .*; did you mean train.jsonl\?"),
        ("nowhere/a.jsonl", "there is no folder nowhere either"),
        ("*.csv", "no file matches"),
        ("folder", r"is a folder; accepted is a file or a glob such as folder/\*.jsonl"),
        ("notes.txt", "ends in '.txt'; accepted are .jsonl, .ndjson, .json, .csv, .parquet, or set format"),
    ],
)
def test_a_source_that_names_no_readable_file_is_a_config_error(path: str, message: str) -> None:
    Path("train.jsonl").write_bytes(GOOD)
    Path("notes.txt").write_bytes(GOOD)
    Path("folder").mkdir()
    with pytest.raises(ConfigError, match=message):
        source_files(Data(sources=(Source(path=path),)))


def test_a_file_without_permission_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    Path("a.jsonl").write_bytes(GOOD)
    monkeypatch.setattr(files_module, "digest_of", refuse)
    with pytest.raises(ConfigError, match=r"a.jsonl: cannot be read \(Permission denied\)"):
        source_files(Data(sources=(Source(path="a.jsonl"),)))


def test_sources_are_expanded_in_order_and_no_file_is_read_twice() -> None:
    for name in ("b.jsonl", "a.jsonl", "z.jsonl"):
        Path(name).write_bytes(GOOD)
    Path("c.jsonl").mkdir()
    first = Source(path="z.jsonl")
    found = source_files(Data(sources=(first, Source(path="[ab].*"))))
    assert [file.path for file in found] == ["z.jsonl", "a.jsonl", "b.jsonl"]
    with pytest.raises(ConfigError, match=r"sources\[1\].*z.jsonl is read by an earlier source already"):
        source_files(Data(sources=(first, Source(path="*.jsonl"))))


def test_the_key_follows_the_bytes_of_the_files_and_the_settings() -> None:
    data = Data(sources=(Source(path="a.jsonl"),))
    Path("a.jsonl").write_bytes(GOOD)
    files = source_files(data)
    assert cached(data, files).key == cached.key(data, source_files(data))
    Path("a.jsonl").write_bytes(GOOD + b"\n")
    changed = source_files(data)
    assert cached.because(data, changed) == ["files[0].sha256 changed"]
    assert cached.because(data.model_copy(update={"limit": 1}), files) == ["data.limit: null -> 1"]
    assert cached(data, changed).digest == cached(data, files).digest  # a line end is no other row


def test_a_file_that_changes_while_it_is_read_is_refused() -> None:
    data = Data(sources=(Source(path="a.jsonl"),))
    Path("a.jsonl").write_bytes(GOOD)
    files = source_files(data)
    Path("a.jsonl").write_bytes(GOOD + b"\n" + GOOD)
    with pytest.raises(DataError, match="the file changed while it was read"):
        ingest.fn(data, files)


def test_too_many_refused_records_stop_with_a_summary() -> None:
    content = b"\n".join([GOOD] * 7 + [b"{", b"[]", b"}"])
    assert len(read(content, max_refused_share=0.3)[0]) == 7
    message = (
        r"3 of 10 records refused, over data.max_refused_share=0.29: 2 bad_json, 1 not_an_object; "
        r"first: a.jsonl line 8: bad_json, Expecting property name .* at character 2"
    )
    with pytest.raises(DataError, match=message):
        read(content, max_refused_share=0.29)


def numbered(numbers: range) -> bytes:
    return b"\n".join(b'{"prompt": "%d", "completion": "x"}' % n if n % 5 else b"bad %d" % n for n in numbers)


def test_a_limit_takes_the_same_records_whatever_the_order_of_files_and_lines() -> None:
    Path("a.jsonl").write_bytes(numbered(range(300)))
    Path("b.jsonl").write_bytes(numbered(range(300, 500)))
    rows = run("a.jsonl", "b.jsonl", limit=100)
    kept, refused = tables(rows)
    assert rows.num_read == 100
    assert 8 <= len(refused) <= 35
    places = [(row["file"], row["line"]) for row in kept]
    assert places == sorted(places)
    Path("c.jsonl").write_bytes(numbered(range(499, -1, -1)))
    again, refused_again = tables(run("c.jsonl", limit=100))
    assert {row["row_id"] for row in again} == {row["row_id"] for row in kept}
    assert {entry["text"] for entry in refused_again} == {entry["text"] for entry in refused}
    assert run("c.jsonl", limit=10_000).num_read == 500


def test_equal_input_gives_equal_bytes() -> None:
    Path("a.jsonl").write_bytes(numbered(range(50)))
    data = Data(sources=(Source(path="a.jsonl"),), max_refused_share=0.5)
    other = data.model_copy(update={"max_refused_share": 0.6})
    first, second = cached(data, source_files(data)), cached(other, source_files(other))
    assert first.key != second.key
    assert first.digest == second.digest


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["instruction", "input", "output", "system", "prompt", "completion", "messages", "conversations", "source", "group"]
)
conversations = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "x"]), "content": st.text() | values}) | values
)
records = st.dictionaries(fields, values | conversations) | values
pieces = st.sampled_from([b"\n", b"\r\n", b'"', b",", b"[", b"]", b"{", b"}", b"\\", b"\0", b"\xff", GOOD, b"a,b\n"])
soup = st.lists(pieces | st.binary(max_size=6), max_size=30).map(b"".join)
lines = st.lists(records.map(lambda record: json.dumps(record).encode()), max_size=6)
quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def account(name: str, content: bytes) -> Rows | None:
    """What became of a file, its account checked; None where all of it was refused with an error of ours."""
    Path(name).write_bytes(content)
    try:
        rows = run(name)
    except TunewrightError as error:
        assert "\n" not in str(error)
        return None
    tables(rows)
    return rows


@quick
@given(lines=lines, end=st.sampled_from([b"\n", b"\r\n"]))
def test_the_account_adds_up_for_any_json(lines: list[bytes], end: bytes) -> None:
    rows = account("a.jsonl", end.join([*lines, GOOD]))
    assert rows
    assert rows.num_read == len(lines) + 1
    array = account("a.json", b"[" + b",".join([*lines, GOOD]) + b"]")
    assert array
    assert (array.num_read, array.reasons) == (rows.num_read, rows.reasons)


@quick
@given(content=soup)
def test_no_bytes_crash_a_reader_and_every_line_is_accounted_for(content: bytes) -> None:
    account("a.json", content)
    account("a.json", b"[" + content + b"]")
    account("a.csv", b"prompt,completion\na,b\n" + content)
    account("a.parquet", content)
    rows = account("a.jsonl", GOOD + b"\n" + content)
    assert rows
    assert rows.num_read == 1 + content.count(b"\n") + (not content.endswith(b"\n") and content != b"")


def test_batches_are_written_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.ingest.BATCH_ROWS", 7)
    kept, refused = read(b"\n".join([GOOD, b"{"] * 50))
    assert [row["line"] for row in kept] == list(range(1, 100, 2))
    assert [entry["line"] for entry in refused] == list(range(2, 101, 2))
