"""A record becomes a row with an identity, and what it says about itself is taken, mapped or refused, never lost."""

import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingested import GOOD, MESSAGES, cached, read, run, tables, texts, turns

from tunewright.config import Data, Layout, Source
from tunewright.errors import ConfigError, DataError
from tunewright.tasks.ingest import ingest, row_id_of, source_files
from tunewright.tasks.ingest.rows import repaired, utc_text


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def one(record: dict[str, Any], **options: Any) -> dict[str, Any]:
    """The row of one record, or its refusal."""
    kept, refused = read(GOOD + b"\n" + json.dumps(record).encode(), **options)
    return (kept[1:] + refused)[0]


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
        {"messages": expected, "extra": [1, 2]},
        {"messages": [user, assistant], "system": "Be brief."},
        {"prompt": user["content"], "completion": "Bonjour", "system": "Be brief."},
        {"prompt": [system, user], "completion": [assistant], "prompt_id": 5},
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
    assert len(kept) == 17
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


@pytest.mark.parametrize("given", ["", None])
def test_an_empty_or_null_alpaca_input_adds_nothing_and_text_is_taken_verbatim(given: str | None) -> None:
    assert texts(one({"instruction": " Say\n hello ", "input": given, "output": "\tHello "})) == [
        " Say\n hello ",
        "\tHello ",
    ]


def test_earlier_turns_of_an_alpaca_record_are_read_and_a_text_of_that_name_is_not() -> None:
    record = {"instruction": "And in German?", "output": "Hallo", "system": "Be brief."}
    history = [["Say hello", "Hello"], ["In French?", "Bonjour"]]
    found = one(record | {"history": history})["messages"]
    assert [message["role"] for message in found] == ["system", *["user", "assistant"] * 3]
    assert [message["content"] for message in found][1:5] == ["Say hello", "Hello", "In French?", "Bonjour"]
    for nothing in ([], None, "a patient's history"):
        assert texts(one(record | {"history": nothing})) == ["Be brief.", "And in German?", "Hallo"]


def test_a_developer_message_is_the_system_message_and_is_joined_to_one_beside_it() -> None:
    asked = [("user", "Say hello"), ("assistant", "Hello")]
    for opening, expected in (
        ([("developer", "Be brief.")], "Be brief."),
        ([("system", "You help."), ("developer", "Be brief.")], "You help.\n\nBe brief."),
        ([("developer", "Be brief."), ("system", "You help.")], "Be brief.\n\nYou help."),
    ):
        assert one(turns(*opening, *asked))["messages"] == [{"role": "system", "content": expected}, *MESSAGES]
    (first, *_) = one(turns(("developer", "Be brief."), *asked, system="You help."))["messages"]
    assert first == {"role": "system", "content": "You help.\n\nBe brief."}
    later = one(turns(*asked, ("developer", "Be brief."), *asked))["messages"]
    assert [message["role"] for message in later] == ["user", "assistant", "system", "user", "assistant"]


def test_two_system_messages_are_left_for_check_to_refuse() -> None:
    twice = one(turns(("system", "One."), ("system", "Two."), ("user", "Say hello"), ("assistant", "Hello")))
    assert [message["content"] for message in twice["messages"]][:2] == ["One.", "Two."]


def test_a_record_may_name_its_source_group_and_time() -> None:
    Path("data").mkdir()
    records = [
        {"source": "crm", "group": "customer 7", "time": "2024-05-01"},
        {"group": "", "time": None},
        {"group": 7},
    ]
    lines = [json.dumps({"prompt": "a", "completion": "b", **record}) for record in records]
    kept, _ = read("\n".join(lines).encode(), "data/a.jsonl")
    assert [(row["source"], row["file"], row["group"], row["time"]) for row in kept] == [
        ("crm", "data/a.jsonl", "customer 7", "2024-05-01T00:00:00.000000Z"),
        ("a.jsonl", "data/a.jsonl", None, None),
        ("a.jsonl", "data/a.jsonl", "7", None),
    ]


@pytest.mark.parametrize("without", [{}, {"session": ""}, {"session": None}, {"session": " "}])
def test_rows_without_a_group_are_warned_of_where_others_of_their_source_have_one(without: dict[str, Any]) -> None:
    pairs = [{"prompt": f"question {number}", "completion": "b"} for number in range(6)]
    with_group = [pair | {"session": f"{number // 2}"} for number, pair in enumerate(pairs)]
    for name, records in {
        "a1.jsonl": with_group[:3],
        "a2.jsonl": [pair | without for pair in pairs[3:5]],
        "b.jsonl": pairs[5:],
    }.items():
        Path(name).write_text("".join(json.dumps(record) + "\n" for record in records))
    columns = {"prompt": "prompt", "completion": "completion", "group": "session"}
    of_a, of_b = Source(path="a?.jsonl", columns=columns), Source(path="b.jsonl")
    assert run(of_a, of_b).warned == (
        'data.sources[0]: 2 of 5 rows have no group (their field "session" is empty or missing), the first is '
        "a2.jsonl:1; they can be in another split than the rows that they belong to: fill the field in, or leave them "
        "out",
    )
    assert not run(of_b).warned
    assert not run(of_a.model_copy(update={"path": "a1.jsonl"}), of_b).warned


@pytest.mark.parametrize("placeholder", ["unknown", "ohne Kunde", "0"])
def test_a_group_with_far_more_rows_than_any_other_is_warned_of(placeholder: str) -> None:
    def write(placeholders: int) -> None:
        groups = [placeholder] * placeholders + [f"customer {number // 4}" for number in range(40)]
        records = [
            {"prompt": f"question {at}", "completion": "b", "customer": group} for at, group in enumerate(groups)
        ]
        Path("a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    source = Source(path="a.jsonl", columns={"prompt": "prompt", "completion": "completion", "group": "customer"})
    write(20)
    assert run(source).warned == (
        "data.sources[0]: 20 of 60 rows are one group, where no other group has more than 4, so all of them go to one "
        'split; the first is a.jsonl line 1: if what is in its field "customer" stands for no group, such as unknown, '
        "leave it empty",
    )
    Path("b.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    assert not run(source.model_copy(update={"use_as": "test"}), "b.jsonl").warned
    write(19)
    assert not run(source).warned


def test_all_rows_of_a_source_are_on_its_split() -> None:
    Path("a.jsonl").write_bytes(GOOD)
    Path("b.jsonl").write_bytes(GOOD)
    kept, _ = tables(run(Source(path="a.jsonl", use_as="test"), "b.jsonl"))
    assert [row["use_as"] for row in kept] == ["test", None]


def test_a_given_test_split_of_which_no_row_is_left_stops_since_another_would_be_drawn() -> None:
    Path("a.jsonl").write_bytes(b"not json\n")
    Path("b.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError) as caught:
        run(Source(path="a.jsonl", use_as="test"), "b.jsonl")
    said = (
        "data.sources[0]: a.jsonl: no row is left in the user-provided test set; 1 of 1 records quarantined: "
        "1 bad_json, first a.jsonl "
    )
    assert str(caught.value).startswith(f"{said}line 1, ")
    assert run("a.jsonl", Source(path="b.jsonl", use_as="test")).num_rows == 1


def test_a_source_of_which_no_record_can_be_used_stops_however_many_the_others_have() -> None:
    Path("a.jsonl").write_bytes(b"\n".join([GOOD] * 99))
    Path("b.jsonl").write_text('{"mensajes": []}\n' * 2)
    with pytest.raises(DataError) as caught:
        run("a.jsonl", "b.jsonl", max_refused_share=0.1)
    assert str(caught.value).startswith(
        "data.sources[1]: b.jsonl: no row is left of this source, 2 of 2 records quarantined: 2 unknown_layout, first "
        "b.jsonl line 1, the fields are 'mensajes';"
    )
    assert str(caught.value).endswith("; correct it, or take the source out")
    (said,) = run("a.jsonl", "b.jsonl").warned
    assert said.startswith(
        "data.sources[1]: b.jsonl: no row is left of this file, 2 records quarantined: 2 unknown_lay"
    )
    (said,) = run("*.jsonl", max_refused_share=0.1).warned
    assert said.startswith(
        "data.sources[0]: b.jsonl: no row is left of this file, 2 records quarantined: 2 unknown_lay"
    )
    assert run("a.jsonl", "b.jsonl", limit=50, max_refused_share=0.1).num_rows, (
        "too few of it are in the sample to tell"
    )
    Path("a.jsonl").write_text("".join(f'{{"prompt": "{n}", "completion": "b"}}\n' for n in range(99)))
    Path("b.jsonl").write_text("".join(f'{{"mensajes": [{n}]}}\n' for n in range(50)))
    with pytest.raises(DataError, match=r"no row is left of this source, (\d+) of \1 records quarantined"):
        run("a.jsonl", "b.jsonl", limit=90, max_refused_share=0.6)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("2024-05-01", "2024-05-01T00:00:00.000000Z"),
        ("20240501", "2024-05-01T00:00:00.000000Z"),
        ("2024-05-01 10:00", "2024-05-01T10:00:00.000000Z"),
        ("2024-05-01T10:00:00.5+02:00", "2024-05-01T08:00:00.500000Z"),
        (1_714_557_600, "2024-05-01T10:00:00.000000Z"),
        ("1714557600", "2024-05-01T10:00:00.000000Z"),
        (1_714_557_600_500, "2024-05-01T10:00:00.500000Z"),
        ("1714557600500", "2024-05-01T10:00:00.500000Z"),
        (datetime(2024, 5, 1, 10, tzinfo=UTC), "2024-05-01T10:00:00.000000Z"),
        (datetime(2024, 5, 1, 10), "2024-05-01T10:00:00.000000Z"),
        (datetime(2024, 5, 1).date(), "2024-05-01T00:00:00.000000Z"),
    ],
)
def test_a_time_becomes_utc_in_one_form(given: Any, text: str) -> None:
    assert utc_text(given) == text


@pytest.mark.parametrize("given", ["", "yesterday", "12:30", True, [], 1e300, float("nan"), "9" * 400, 10**400])
def test_what_is_no_time_is_an_error(given: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        utc_text(given)


@pytest.mark.parametrize(
    "digits", ["2024", "202405", "20240501103000", "1714557600000000", "-1714557600", "0", "4102444800"]
)
def test_a_number_is_a_time_only_where_it_can_be_one_of_this_age(digits: str) -> None:
    for number in (digits, int(digits)):
        with pytest.raises(ValueError, match="a number, but not of 1973 to 2100"):
            utc_text(number)


@given(st.lists(st.datetimes(timezones=st.just(UTC)), min_size=2, max_size=2))
def test_the_order_of_time_texts_is_that_of_times(times: list[datetime]) -> None:
    assert sorted(map(utc_text, times)) == [utc_text(time) for time in sorted(times)]


@pytest.mark.parametrize(("layout", "answer"), [("auto", "B"), ("prompt_completion", "B"), ("alpaca", "A")])
def test_a_layout_can_be_forced_and_auto_takes_the_first_that_is_whole(layout: Layout, answer: str) -> None:
    record = {"instruction": "a", "output": None if layout == "auto" else "A", "prompt": "b", "completion": "B"}
    Path("a.jsonl").write_text(json.dumps(record))
    kept, _ = tables(run(Source(path="a.jsonl", layout=layout)))
    assert texts(kept[0])[-1] == answer


def test_columns_of_any_name_stand_for_ours() -> None:
    record = {
        "question": "a",
        "answer": "b",
        "customer": 7,
        "at": 1714557600,
        "instruction": "not this",
        "source": "crm",
    }
    columns = {"instruction": "question", "output": "answer", "group": "customer", "time": "at"}
    Path("a.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({"question": "a", "output": "b"}))
    pq.write_table(pa.Table.from_pylist([record]), "a.parquet")
    Path("a.csv").write_text("question,answer,customer,at\na,b,7,1714557600\n")
    sources = [Source(path=f"a.{ending}", columns=columns) for ending in ("jsonl", "parquet", "csv")]
    kept, refused = tables(run(*sources))
    assert [texts(row) for row in kept] == [["a", "b"]] * 3
    assert {(row["group"], row["time"]) for row in kept} == {("7", "2024-05-01T10:00:00.000000Z")}
    assert [row["source"] for row in kept] == ["crm", "crm", "a.csv"]
    assert [entry["reason"] for entry in refused] == ["missing_field"]  # its output is no answer


def test_a_column_that_no_record_has_is_a_config_error_with_the_nearest() -> None:
    Path("a1.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    Path("a2.jsonl").write_text('{"question": "a", "answer": "b", "who": "x"}\n')
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), "a.parquet")
    columns = {"instruction": "question", "output": "answer"}
    assert run(Source(path="a?.jsonl", columns=columns | {"group": "who"})).num_rows == 2
    for name in ("a?.jsonl", "a.parquet"):
        with pytest.raises(
            ConfigError, match=r"sources\[0\].columns.output: no record has anser; did you mean answer\? there are"
        ):
            run(Source(path=name, columns=columns | {"output": "anser"}))


@pytest.mark.parametrize(
    "columns", [{"prompt": "q", "completion": "q"}, {"instruction": "a", "input": "q", "output": "q"}]
)
def test_a_column_that_is_prompt_and_answer_at_once_is_refused(columns: dict[str, str]) -> None:
    Path("a.jsonl").write_text('{"q": "a", "a": "b"}\n')
    asked, answer = list(columns)[-2:]
    with pytest.raises(
        ConfigError, match=rf"data.sources\[0\].columns: {asked} and {answer} are both q, so each answer would stand in"
    ):
        run(Source(path="a.jsonl", columns=columns))
    both_in_one = {"instruction": "a", "output": "q", "group": "a"}
    assert run(Source(path="a.jsonl", columns=both_in_one)).num_rows == 1


def test_a_table_with_two_columns_of_one_name_is_refused() -> None:
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 3, ["prompt", "completion", "prompt"]), "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: there are two columns 'prompt'; accepted: each name once"):
        run(Source(path="a.parquet"))


def test_a_sample_need_not_have_every_column() -> None:
    records = [{"q": str(n), "a": "b"} for n in range(50)] + [{"q": "", "a": "", "g": ""}]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, records)))
    columns = {"prompt": "q", "completion": "a", "group": "g"}
    assert run(Source(path="a.jsonl", columns=columns), limit=1).num_rows == 1


def test_texts_in_parts_are_joined_as_templates_join_them() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    row = one(turns(("user", parts), ("assistant", [{"type": "text", "text": "c"}])))
    assert texts(row) == ["a b", "c"]


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"refusal": "No."}, "refusal"),
        ({"audio": {"id": "1"}}, "audio"),
        ({"weight": 0.5}, "weight is 0.5; accepted: 0, 1"),
        ({"weight": False}, "weight is False"),
        (
            {"content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            "content[0] is of type 'image_url'; accepted",
        ),
        ({"train": False}, "train is False"),
    ],
)
def test_what_a_row_cannot_hold_is_refused_not_dropped(more: dict[str, Any], where: str) -> None:
    record = turns(("user", "a"))
    entry = one({"messages": [*record["messages"], {"role": "assistant", "content": "b", **more}]})
    assert (entry["reason"], entry["detail"].startswith(f"messages[1].{where}")) == ("unsupported_field", True)


def test_fields_that_say_nothing_cost_nothing() -> None:
    quiet = {"tool_calls": None, "function_call": {}, "weight": 1, "train": True, "refusal": None, "name": "ann"}
    record = turns(("user", "a"), tools=[], functions=None)
    row = one(record | {"messages": [*record["messages"], {"role": "assistant", "content": "b", **quiet}]})
    assert texts(row) == ["a", "b"]


def test_repairs_are_made_only_where_asked_for_and_are_counted() -> None:
    mojibake, decomposed = "cafÃ© â€œhiâ€\x9d", "Cafe\u0301"
    records = [{"prompt": mojibake, "completion": decomposed}, {"prompt": mojibake, "completion": "ﬁne &amp; “dandy”"}]
    content = "\n".join(json.dumps(record) for record in records).encode()
    kept, _ = read(content)
    assert [row["repairs"] for row in kept] == [None, None]
    assert texts(kept[0]) == [mojibake, decomposed]
    Path("a.jsonl").write_bytes(content)
    rows = run("a.jsonl", repair=("nfc", "mojibake"))
    better, _ = tables(rows)
    assert [texts(row) for row in better] == [["café “hi”", "Café"], ["café “hi”", "ﬁne &amp; “dandy”"]]
    assert [row["repairs"] for row in better] == ["mojibake, nfc", "mojibake"]
    assert rows.repaired == {"mojibake": 2, "nfc": 1}
    assert better[0]["row_id"] == row_id_of(better[0]["messages"]) != kept[0]["row_id"]


@given(st.text())
def test_a_repair_says_whether_it_changed_something(text: str) -> None:
    better, made = repaired(text, ("mojibake", "nfc"))
    assert (better != text) or not made
    assert repaired(text, ()) == (text, [])


def test_a_long_csv_field_is_kept_up_to_the_limit() -> None:
    text = "word " * 40_000  # more than the csv module's own limit
    content = f"prompt,completion\n{text},b\na,b\n".encode()
    assert len(read(content, "a.csv")[0]) == 2
    kept, refused = read(content, "a.csv", max_line_bytes=100_000)
    assert [(row["line"], refused[0]["line"], refused[0]["reason"]) for row in kept] == [(3, 2, "too_long")]
    with pytest.raises(DataError, match="the quoted field that opens in line 2 does not close within"):
        read(b'prompt,completion\n"' + b"a\n" * 2_000, "a.csv", max_line_bytes=1_000)


def test_parquet_nulls_other_types_and_bad_text_are_refused_by_row() -> None:
    broken = pa.array([b"a", b"\xff", b"c", b"d", b"e" * 2_000]).view(pa.string())
    output = pa.array(["A", "B", None, "D", "E"])
    pq.write_table(pa.table({"instruction": broken, "output": output, "embedding": [[0.5]] * 5}), "a.parquet")
    kept, refused = tables(run("a.parquet", max_line_bytes=1_000))
    assert [(row["line"], row["byte"], texts(row)[1]) for row in kept] == [(1, None, "A"), (4, None, "D")]
    assert [(entry["line"], entry["reason"]) for entry in refused] == [
        (2, "bad_encoding"),
        (3, "null_field"),
        (5, "too_long"),
    ]
    mixed = {"messages": [None, MESSAGES], "prompt": ["a", None], "completion": ["b", None]}
    pq.write_table(pa.table(mixed), "mixed.parquet")
    assert len(tables(run("mixed.parquet"))[0]) == 2
    pq.write_table(pa.table({"question": ["a"]}), "unknown.parquet")
    with pytest.raises(DataError, match=r"no known column in \['question'\]; accepted: answers, "):
        run("unknown.parquet")
    pq.write_table(pa.table({"prompt": [b"bytes", b"x"], "completion": ["b", "c"]}), "bytes.parquet")
    with pytest.raises(DataError, match="2 wrong_type"):
        run("bytes.parquet")
    late = pa.array([2**62, 0], pa.timestamp("us"))
    pq.write_table(pa.table({"prompt": ["a", "b"], "completion": ["b", "c"], "time": late}), "late.parquet")
    kept, refused = tables(run("late.parquet"))
    assert ([row["time"] for row in kept], len(refused)) == (["1970-01-01T00:00:00.000000Z"], 1)


@pytest.mark.parametrize(
    ("name", "content"), [("a.json", b"[]"), ("a.csv", b"prompt,completion\n"), ("a.jsonl", b"\xef\xbb\xbf")]
)
def test_no_record_at_all_is_an_error(name: str, content: bytes) -> None:
    what = "rows behind the header row" if name == "a.csv" else "records"
    with pytest.raises(DataError, match=f"{name}: no record in it; accepted: one or more {what}"):
        read(content, name)


def test_the_key_follows_the_bytes_of_the_files_and_the_settings() -> None:
    data = Data(sources=(Source(path="a.jsonl"),))
    Path("a.jsonl").write_bytes(GOOD)
    files = source_files(data)
    assert cached(data, files).key == cached.key(data, source_files(data))
    Path("a.jsonl").write_bytes(GOOD + b"\n")
    changed = source_files(data)
    assert (
        cached.key(data, changed) != cached.key(data, files) != cached.key(data.model_copy(update={"limit": 1}), files)
    )
    assert cached(data, changed).digest == cached(data, files).digest  # a line end is no other row


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_file_that_changes_while_it_is_read_is_refused(name: str, limit: int | None) -> None:
    data = Data(sources=(Source(path=name),), limit=limit)
    Path(name).write_bytes(b"[" * (name == "a.json") + GOOD + b"]" * (name == "a.json"))
    files = source_files(data)
    Path(name).write_bytes(b"[" * (name == "a.json") + GOOD + b" ]" * (name == "a.json") + b"\n")
    with pytest.raises(DataError, match="the file changed while it was read"):
        ingest.fn(data, files)


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


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_limit_leaves_a_user_provided_split_whole(split: Literal["validation", "test"]) -> None:
    Path("a.jsonl").write_bytes(numbered(range(300)))
    Path("own.jsonl").write_bytes(numbered(range(300, 360)))
    kept, refused = tables(run("a.jsonl", Source(path="own.jsonl", use_as=split), limit=10))
    read = Counter(Path(row["file"]).name for row in [*kept, *refused])
    assert read == {"a.jsonl": 10, "own.jsonl": 60}
    assert {row["use_as"] for row in kept if row["file"].endswith("own.jsonl")} == {split}


def test_equal_input_gives_equal_bytes() -> None:
    Path("a.jsonl").write_bytes(numbered(range(50)))
    data = Data(sources=(Source(path="a.jsonl"),), max_refused_share=0.5)
    other = data.model_copy(update={"max_refused_share": 0.6})
    first, second = cached(data, source_files(data)), cached(other, source_files(other))
    assert first.key != second.key
    assert first.digest == second.digest


def test_batches_are_written_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunewright.tasks.ingest.tables.BATCH_ROWS", 7)
    kept, refused = read(b"\n".join([GOOD, b"{"] * 50))
    assert [row["line"] for row in kept] == list(range(1, 100, 2))
    assert [entry["line"] for entry in refused] == list(range(2, 101, 2))
