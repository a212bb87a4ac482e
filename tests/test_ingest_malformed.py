"""Whatever is wrong with a record, it has a reason, a file, a line and a byte, and costs no other record."""

import gzip
import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ingested import GOOD, read, run, tables, texts

from tunewright import config
from tunewright.artifacts import Rows
from tunewright.config import RecordFiles, Source
from tunewright.errors import DataError, TunewrightError
from tunewright.tasks.ingest import readers
from tunewright.tasks.ingest.layouts import FIELDS
from tunewright.tasks.ingest.opening import BOM, TO_JAPANESE

CORPUS = Path(__file__).parent / "malformed"

# file -> lines kept, and (line, byte, reason) of each record refused
RECORDS: dict[str, tuple[list[int], list[tuple[int, int, str]]]] = {
    "bad_encoding.jsonl": ([1, 4], [(2, 48, "bad_encoding"), (3, 88, "bad_encoding")]),
    "bad_json.jsonl": (
        [1, 8],
        [(line, byte, "bad_json") for line, byte in ((2, 48), (3, 84), (4, 121), (5, 159), (6, 255), (7, 270))],
    ),
    "bad_time.jsonl": ([1, 5], [(2, 48, "bad_time"), (3, 117, "bad_time"), (4, 180, "bad_time")]),
    "blank_lines.jsonl": ([1, 5], [(2, 48, "blank_line"), (3, 49, "blank_line"), (4, 53, "blank_line")]),
    "byte_order_mark.jsonl": ([1, 3], [(2, 51, "bad_json")]),
    "duplicate_key.jsonl": ([1, 4], [(2, 48, "duplicate_key"), (3, 99, "duplicate_key")]),
    "elements.json": (
        [1, 6, 8],
        [
            (2, 51, "bad_json"),
            (3, 89, "bad_json"),
            (4, 125, "not_an_object"),
            (5, 128, "bad_json"),
            (7, 174, "not_finite"),
        ],
    ),
    "joined_byte_order_mark.jsonl": ([1, 2, 3], []),
    "latin_1.jsonl": ([1, 3], [(2, 48, "bad_encoding")]),
    "lone_surrogate.jsonl": ([1, 4], [(2, 48, "lone_surrogate"), (3, 93, "lone_surrogate")]),
    "missing_field.jsonl": (
        [1, 6],
        [(2, 48, "missing_field"), (3, 69, "missing_field"), (4, 89, "missing_field"), (5, 106, "missing_field")],
    ),
    "not_finite.jsonl": ([1, 4], [(2, 48, "not_finite"), (3, 110, "not_finite")]),
    "nul.jsonl": ([1, 5], [(2, 48, "nul_character"), (3, 53, "nul_character"), (4, 95, "nul_character")]),
    "null_field.jsonl": ([1, 5], [(2, 48, "null_field"), (3, 85, "null_field"), (4, 104, "null_field")]),
    "rows.csv": (
        [2, 8, 11, 13],
        [
            (4, 56, "bad_csv"),
            (5, 64, "bad_csv"),
            (6, 81, "bad_csv"),
            (7, 103, "blank_line"),
            (9, 122, "bad_encoding"),
            (10, 131, "nul_character"),
            (12, 147, "bad_csv"),
        ],
    ),
    "scalars.jsonl": (
        [1, 7],
        [(line, byte, "not_an_object") for line, byte in ((2, 48), (3, 53), (4, 58), (5, 60), (6, 67))],
    ),
    "trailing_comma.json": ([1, 2], [(3, 100, "bad_json")]),
    "truncated.jsonl": ([1, 2], [(3, 96, "truncated")]),
    "truncated_character.jsonl": ([1], [(2, 48, "truncated")]),
    "two_layouts.jsonl": ([1, 3, 4], [(2, 48, "two_layouts")]),
    "unknown_layout.jsonl": ([1, 4], [(2, 48, "unknown_layout"), (3, 51, "unknown_layout")]),
    "unknown_role.jsonl": ([1, 4], [(2, 48, "unmatched_call"), (3, 131, "unknown_role")]),
    "unsupported_field.jsonl": (
        [1, 6],
        [
            (2, 48, "bad_arguments"),
            (3, 165, "nothing_trained"),
            (4, 266, "unsupported_field"),
            (5, 401, "bad_tools"),
        ],
    ),
    "windows_line_ends.jsonl": ([1, 3], [(2, 49, "bad_json")]),
    "wrong_type.jsonl": (
        [1, 8],
        [
            (line, byte, "wrong_type")
            for line, byte in ((2, 48), (3, 82), (4, 123), (5, 145), (6, 169), (7, 230), (9, 340))
        ],
    ),
}

# file -> why none of it is read: what it would lose could not be counted
FILES = {
    "cut_off.json": "record 2, which begins at byte 51",
    "cut_off.jsonl.gz": "the archive is cut off or damaged .* accepted: a whole one",
    "cut_off.jsonl.zst": "the archive is cut off or damaged .* accepted: a whole one",
    "damaged.jsonl.gz": "the archive is cut off or damaged .* accepted: a whole one",
    "empty.jsonl": "the file is empty; accepted: a file with at least one record",
    "git_lfs_pointer.jsonl": "the file is a Git LFS pointer, .* download the data with git lfs pull",
    "header_latin_1.csv": "line 1, the header row, cannot be read .* looks like Latin-1",
    "header_twice.csv": "the header row has 'prompt' more than once; accepted: each name once",
    "html_page.csv": "the file is an HTML page",
    "no_parquet.parquet": r"not a whole Parquet file .*; accepted: an undamaged Parquet file; for a file of another",
    "not_packed.jsonl.gz": "not compressed, although its name says so",
    "object.json": "it does not begin with .* with nothing around it; .* format: jsonl",
    "open_string.json": "record 2, .* a quote is missing",
    "two_arrays.json": "the array ends at byte 49, but more follows",
    "utf_16.jsonl": "the file is UTF-16",
    "utf_16_without_mark.jsonl": "the file is UTF-16",
    "utf_32.jsonl": "the file is UTF-32",
    "xml_page.jsonl": "the file is an XML page",
    "zip.jsonl": "the file is compressed in another format",
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_malformed_file_is_expected() -> None:
    assert {path.name for path in CORPUS.iterdir()} - {".gitattributes"} == RECORDS.keys() | FILES.keys()


@pytest.mark.parametrize("name", RECORDS)
def test_each_bad_record_is_refused_in_its_place_and_the_good_ones_are_kept(name: str) -> None:
    content = (CORPUS / name).read_bytes()
    kept, refused = read(content, name)
    lines, refusals = RECORDS[name]
    assert [row["line"] for row in kept] == lines
    assert [(entry["line"], entry["byte"], entry["reason"]) for entry in refused] == refusals
    for entry in refused:
        assert entry["file"] == name
        assert entry["row_id"] is None
        assert entry["detail"]
        assert "\n" not in entry["detail"]
        assert content[entry["byte"] :].decode("utf-8", "replace").startswith(entry["text"])


@pytest.mark.parametrize("name", [name for name in RECORDS if name.endswith(".jsonl")])
def test_a_kept_record_stands_at_its_byte(name: str) -> None:
    content = (CORPUS / name).read_bytes()
    for row in read(content, name)[0]:
        (alone,) = read(content[row["byte"] :].partition(b"\n")[0])[0]
        assert alone["row_id"] == row["row_id"]


def test_an_array_in_a_file_of_lines_is_said_to_need_another_format() -> None:
    (refused,) = read(b"[" + GOOD + b",\n" + GOOD)[1]
    assert refused["detail"].endswith("if the file is one JSON array, set format to json")


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_a_table_of_other_separators_is_read_and_loses_no_row_to_an_open_quote(mark: str) -> None:
    lines = [
        f"instruction{mark}output",
        f'"a{mark} ""b"", c"{mark}d, e',
        f'"never closed{mark}f',
        f'"g ""h"" i"{mark}j',
        f"k{mark}l{mark}m",
        f'"n\no"{mark}p',
    ]
    kept, refused = read("\n".join(lines).encode(), "rows.csv")
    said = [[turn["content"] for turn in row["messages"]] for row in kept]
    assert said == [[f'a{mark} "b", c', "d, e"], ['g "h" i', "j"], ["n\no", "p"]]
    open_quote, too_many = (row["detail"] for row in refused)
    assert open_quote == "a quote opened here is not closed before line 4"
    assert too_many.startswith("3 columns, the header row has 2, read as separated by ")
    assert "; accepted: as many, with text that has " in too_many
    assert "commas" not in too_many


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_data_stops_with_one_clear_line(name: str) -> None:
    with pytest.raises(DataError, match=rf"^data\.sources\[0\]: {name}: {FILES[name]}") as caught:
        read((CORPUS / name).read_bytes(), name, max_line_bytes=1_000)
    assert "\n" not in str(caught.value)


UNBALANCED = {"byte_order_mark.jsonl", "windows_line_ends.jsonl", "truncated.jsonl", "truncated_character.jsonl"}


@pytest.mark.parametrize("name", [name for name in RECORDS if name.endswith(".jsonl") and name not in UNBALANCED])
def test_an_array_is_as_strict_as_lines(name: str) -> None:
    lines = [line for line in (CORPUS / name).read_bytes().split(b"\n") if line.strip() and not line.startswith(BOM)]
    as_lines, as_array = read(b"\n".join(lines)), read(b"[\n" + b",\r\n".join(lines) + b"\n]\n", "a.json")
    for rows, key in ((0, "row_id"), (0, "line"), (1, "reason"), (1, "line")):
        assert [row[key] for row in as_array[rows]] == [row[key] for row in as_lines[rows]]


def test_another_encoding_is_named_by_what_it_would_say() -> None:
    (entry,) = read((CORPUS / "latin_1.jsonl").read_bytes())[1]
    assert "looks like Latin-1 or Windows-1252" in entry["detail"]
    assert "Grüße" in entry["detail"]
    (entry,) = read(GOOD + b"\n" + '{"instruction": "こんにちは世界"}'.encode("shift_jis"))[1]
    assert entry["reason"] == "bad_encoding"
    assert "looks like" not in entry["detail"], "seven letters do not tell Japanese from Chinese and Korean"


TOKEN = "ghp_" + "q7Xv2Lk9Rt4Wm8Zp1Yc6" + "Nb3Hs5Jd0Gf7Ku9T"
PHONE = "212-736-" + "5000"
MAIL = "ann.lee" + "@" + "corp-mail.com"


@pytest.mark.parametrize(
    "line",
    [
        json.dumps({"conversations": [{"from": MAIL, "value": "a"}]}),
        json.dumps({"conversations": [{"from": "x" * 40 + f" {TOKEN}", "value": "a"}]}),  # over where it is cut
        json.dumps({"instruction": "a", "output": "b", "time": f"by {MAIL}"}),
        json.dumps({"instruction": "a", "output": "b", "time": [MAIL]}),
        json.dumps({"instruction": "a", "output": "b", "time": f"call\n{PHONE}"}),
        json.dumps({"instruction": "a", "output": "b", "time": [f"call\n{PHONE}"]}),
        json.dumps({"messages": [{"role": "user", "content": "a", "weight": MAIL}]}),
        json.dumps({"messages": [{"role": "user", "content": [{"type": MAIL}]}]}),
        json.dumps({MAIL: "a"}),
        f'{{"{MAIL}": 1, "{MAIL}": 2}}',
        "y" * 480 + f" {TOKEN}",  # over where the text is cut
        json.dumps({"input": 'a password="' + "hx72kq9zw" + '"'}),
        json.dumps({"input": f"call\n{PHONE}"}),
        f"gr\u00fc\u00dfe {MAIL}",
    ],
)
def test_what_is_secret_or_personal_is_not_in_a_refusal(line: str) -> None:
    Path("a.jsonl").write_bytes(GOOD + b"\n" + line.encode("latin-1") + b"\n")
    _, (entry,) = tables(run("a.jsonl"))
    shown = entry["detail"] + entry["text"]
    assert "not shown, it holds: " in entry["text"]
    assert len(entry["text"]) <= 500
    for part in ("ann.lee", "corp-mail", "ghp_q", "hx72kq9zw", "212-736"):
        assert part not in shown
    with pytest.raises(DataError) as caught:
        run("a.jsonl", max_refused_share=0)
    assert "ann.lee" not in str(caught.value)


def test_a_value_that_utf_8_cannot_hold_is_masked_as_well() -> None:
    time = "password: \ud800" + "hx72kq9zw"
    _, (entry,) = read(GOOD + b"\n" + json.dumps({"instruction": "a", "output": "b", "time": time}).encode())
    assert entry["reason"] == "bad_time"
    assert "hx72kq9zw" not in entry["detail"] + entry["text"]


def nested(depth: int) -> bytes:
    """A good record whose extra field nests so deep in all, brackets inside a string not counted."""
    return GOOD[:-1] + b', "text": "[[{\\"[", "more": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def test_nesting_is_refused_from_level_65_on_and_never_reaches_the_parser() -> None:
    assert len(read(nested(64))[0]) == 1
    assert read(GOOD + b"\n" + nested(65))[1][0]["reason"] == "too_deep"
    endless = b'{"a":' * 200_000 + b"1" + b"}" * 200_000
    kept, refused = read(GOOD + b"\n" + endless, max_line_bytes=10_000_000)
    assert (len(kept), refused[0]["reason"]) == (1, "too_deep")
    assert read(b"[" + GOOD + b"," + endless + b"]", "a.json", max_line_bytes=10_000_000)[1][0]["reason"] == "too_deep"
    assert read(GOOD + b"\n" + b"[" * 200_000, max_line_bytes=10_000_000)[1][0]["reason"] == "too_deep"


def test_a_number_of_thousands_of_digits_is_refused() -> None:
    assert read(GOOD + b"\n" + GOOD[:-1] + b', "id": ' + b"9" * 5_000 + b"}")[1][0]["reason"] == "bad_json"


def test_a_line_of_exactly_the_limit_is_kept_whatever_its_end() -> None:
    line = b'{"instruction": "a", "output": "' + b"b" * 966 + b'"}'
    assert len(line) == 1_000
    for end in (b"", b"\n", b"\r\n"):
        assert len(read(line + end, max_line_bytes=1_000)[0]) == 1
        assert read(GOOD + b"\n " + line + end, max_line_bytes=1_000)[1][0]["reason"] == "too_long"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_what_follows_a_record_that_is_too_long_keeps_its_place(name: str) -> None:
    records = [b'"' + b"x" * 3_000_000 + b'\\"["', GOOD, b"[" + b"1," * 5_000 + b"1]", GOOD]
    content = b"\n".join(records) if name == "a.jsonl" else b"[" + b",\n".join(records) + b"]"
    kept, refused = read(content, name, max_line_bytes=1_000)
    assert [row["line"] for row in kept] == [2, 4]
    assert [(entry["line"], entry["reason"]) for entry in refused] == [(1, "too_long"), (3, "too_long")]
    for row in kept:
        assert content[row["byte"] :].startswith(GOOD)


@pytest.mark.parametrize("block", [1, 2, 3, 7])
def test_an_array_is_the_same_wherever_its_blocks_end(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (CORPUS / "elements.json").read_bytes()[:-2] + b', {"instruction": "\\\\", "output": "\\"],\\\\"}\n]\n'
    whole = read(content, "a.json")
    monkeypatch.setattr("tunewright.tasks.ingest.arrays.BLOCK", block)
    assert read(content, "a.json") == whole
    assert texts(whole[0][-1]) == ["\\", '"],\\']


def test_a_small_archive_of_a_huge_line_is_read_within_little_memory() -> None:
    import tracemalloc

    Path("a.jsonl.gz").write_bytes(gzip.compress(b"0" * 100_000_000 + b"\n" + GOOD + b"\n", 1))
    tracemalloc.start()
    kept, refused = tables(run("a.jsonl.gz"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(row["line"], row["byte"]) for row in kept] == [(2, 100_000_001)]
    assert refused[0]["reason"] == "too_long"
    assert peak < 20_000_000


def test_the_last_line_end_is_no_blank_line_and_a_further_one_is() -> None:
    assert read(GOOD + b"\n")[1] == []
    assert [entry["line"] for entry in read(GOOD + b"\n\n")[1]] == [2]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_a_byte_order_mark_and_windows_line_ends_change_no_row(name: str) -> None:
    lines = {
        "a.jsonl": [GOOD, GOOD],
        "a.json": [b"[" + GOOD + b",", GOOD + b"]"],
        "a.csv": [b"instruction,output", b"Say hello,Hello", b"Say hello,Hello"],
    }[name]
    plain = read(b"\n".join(lines) + b"\n", name)
    marked = read(b"\xef\xbb\xbf" + b"\r\n".join(lines) + b"\r\n", name)
    assert len(plain[0]) == 2
    assert [row | {"byte": 0} for row in marked[0]] == [row | {"byte": 0} for row in plain[0]]


def test_too_many_refused_records_stop_with_the_first_of_each_reason() -> None:
    content = b"\n".join([GOOD] * 7 + [b"{]", b"[]", b"}"])
    assert len(read(content, max_refused_share=0.3)[0]) == 7
    message = (
        r"3 of 10 records quarantined, over data.max_refused_share=0.29: "
        r"2 bad_json, first a.jsonl line 8, Expecting property name .* at character 2; "
        r"1 not_an_object, first a.jsonl line 9, a record is an object, this is an array$"
    )
    with pytest.raises(DataError, match=message):
        read(content, max_refused_share=0.29)
    with pytest.raises(
        DataError, match=r"1 of 1 records quarantined, so no row is left: 1 unknown_layout, first a.jsonl"
    ):
        read(b"{}")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(sorted(FIELDS))
parts = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "x"]), "text": st.text() | values}) | values)
conversations = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "x"]), "content": st.text() | values | parts},
        optional={"weight": values, "tool_calls": values},
    )
    | values
)
records = st.dictionaries(fields, values | conversations) | values
pieces = st.sampled_from([b"\n", b"\r\n", b'"', b",", b"[", b"]", b"{", b"}", b"\\", b"\0", b"\xff", GOOD, b"a,b\n"])
soup = st.lists(pieces | st.binary(max_size=6), max_size=30).map(b"".join)
lines = st.lists(records.map(lambda record: json.dumps(record).encode()), max_size=6)
quick = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def account(name: str, content: bytes, **options: Any) -> Rows | None:
    """Read a file and check its row account; return None if all of it was refused with a Tunewright error."""
    Path(name).write_bytes(content)
    try:
        rows = run(name, **options)
    except TunewrightError as error:
        assert "\n" not in str(error)
        return None
    tables(rows)
    return rows


@quick
@given(lines=lines, end=st.sampled_from([b"\n", b"\r\n"]))
def test_the_account_adds_up_for_any_json_and_what_is_good_is_kept(lines: list[bytes], end: bytes) -> None:
    rows = account("a.jsonl", end.join([GOOD, *lines, GOOD]), repair=("mojibake", "nfc"))
    assert rows
    assert rows.num_read == len(lines) + 2
    assert {1, len(lines) + 2} <= {row["line"] for row in tables(rows)[0]}
    array = account("a.json", b"[" + b",".join([GOOD, *lines, GOOD]) + b"]")
    assert array
    assert (array.num_read, array.reasons) == (rows.num_read, rows.reasons)


@quick
@given(content=soup)
@example(content=b"\x1b$@")
def test_no_bytes_crash_a_reader_and_every_line_is_accounted_for(content: bytes) -> None:
    account("a.json", content)
    account("a.json", b"[" + content + b"]")
    account("a.csv", b"prompt,completion\na,b\n" + content)
    account("a.parquet", content)
    rows = account("a.jsonl", GOOD + b"\n" + content)
    if content.isascii() and any(escape in content for escape in TO_JAPANESE):
        assert rows is None, "the file is in ISO-2022-JP"
        return
    assert rows
    assert rows.num_read == 1 + content.count(b"\n") + (not content.endswith(b"\n") and content != b"")
    assert tables(rows)[0][0]["line"] == 1


@quick
@given(position=st.integers(0, 10_000), value=st.integers(0, 255), end=st.sampled_from(["gz", "zst"]))
def test_a_damaged_archive_never_crashes_and_its_account_adds_up(position: int, value: int, end: str) -> None:
    name = {"gz": "cut_off.jsonl.gz", "zst": "cut_off.jsonl.zst"}[end]
    content = bytearray((CORPUS / name).read_bytes())
    content[position % len(content)] = value
    account(name, bytes(content))


def test_a_quote_that_does_not_close_takes_no_line_with_it_but_its_own() -> None:
    lines = [
        "id,instruction,output",
        'A-1,"two',
        'lines, and ""quotes""",yes',
        'Z-1,"sin cerrar la comilla,envio',
        "Z-2,one,yes",
        "Z-3,too,many,fields",
        'Z-4,"in, quotes",yes',
        'Z-5,"again',
        'two",yes',
        'B-1,"a line',
        'and its end","open,yes',
        "B-2,last,yes",
    ]
    kept, refused = read("\n".join(lines).encode(), "a.csv")
    assert [(row["line"], texts(row)[0]) for row in kept] == [
        (2, 'two\nlines, and "quotes"'),
        (5, "one"),
        (7, "in, quotes"),
        (8, "again\ntwo"),
        (12, "last"),
    ]
    assert [(entry["line"], entry["reason"], entry["detail"]) for entry in refused] == [
        (4, "bad_csv", "a quote opened here is not closed before line 7"),
        (
            6,
            "bad_csv",
            "4 columns, the header row has 3, read as separated by commas; accepted: as many, with text that has "
            "commas in double quotes",
        ),
        (10, "bad_csv", "a quote opened in line 11 is not closed before the end of the file"),
        (11, "bad_csv", "a quote opened here is not closed before the end of the file"),
    ]


def test_a_quote_that_closes_in_its_line_is_no_open_one() -> None:
    _, refused = read(b'instruction,output\n"closed" and more,a\n"two\nlines" and more,b\nc,d\n', "a.csv")
    assert [(entry["line"], entry["detail"]) for entry in refused] == [
        (2, "',' expected after '\"'"),
        (3, "a quote opened here is not closed before line 4"),
        (4, "a quote in a field without quotes around it, behind a line whose quote does not close"),
    ]


@pytest.mark.parametrize("line", [b'"a\n', b'a,"b\n', b'"a\n' + b'a""b,c\n' * 20 + b'"x"y\n'])
def test_lines_behind_open_quotes_are_not_read_over_and_over(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    num_taken = 0
    plain = readers._Pulled.__next__

    def counted(pulled: readers._Pulled) -> str:
        nonlocal num_taken
        num_taken += 1
        return plain(pulled)

    monkeypatch.setattr(readers._Pulled, "__next__", counted)
    lines = line * 50
    kept, refused = read(b"prompt,completion\ngood,row\n" + lines, "a.csv")
    assert [row["line"] for row in kept] == [2]
    assert [entry["line"] for entry in refused] == list(range(3, 3 + lines.count(b"\n")))
    assert num_taken < 4 * lines.count(b"\n")


WINDOWS = '{"instruction": "Grüße sagen", "output": "Grüße"}\n'
TABLE = "instruction,output\nGrüße sagen,Grüße\n"


def test_a_file_in_iso_2022_jp_is_refused_although_all_its_bytes_are_ascii(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("instruction,output\n注文はどこですか,配送中です\n".encode("iso2022_jp"))
    with pytest.raises(DataError, match=r"the file is ISO-2022-JP; accepted: UTF-8; to convert it: ") as told:
        run(str(file))
    subprocess.run(str(told.value).partition("; to convert it: ")[2], shell=True, check=True, timeout=60)
    (row,) = tables(run(str(tmp_path / "a-utf8.csv")))[0]
    assert texts(row) == ["注文はどこですか", "配送中です"]
    file.write_text("instruction,output\nWhat does \x1b$B begin?,漢字\n", encoding="utf-8")
    assert len(tables(run(str(file)))[0]) == 1


@pytest.mark.parametrize("folder", [".", "of the file"])
@pytest.mark.parametrize(
    ("name", "encoding", "text", "as_named"),
    [
        ("täglich neu.jsonl", "cp1252", WINDOWS, "WINDOWS-1252"),
        ("a.csv", "cp1252", TABLE, "WINDOWS-1252"),
        ("-a.csv", "cp1252", TABLE.replace("output", "über,output").replace(",Gr", ",ja,Gr"), "WINDOWS-1252"),
        ("a.csv", "utf-16", TABLE, "UTF-16"),
        ("a.csv", "utf-16-le", TABLE, "UTF-16LE"),
        ("a.csv", "utf-16-be", TABLE, "UTF-16BE"),
        ("a.csv.gz", "utf-16", TABLE, "UTF-16"),
        ("a.jsonl.gz", "cp1252", WINDOWS, "WINDOWS-1252"),
        ("a.jsonl", "utf-32", WINDOWS, "UTF-32"),
    ],
)
def test_a_file_in_another_encoding_is_refused_with_the_command_that_converts_it(
    name: str, encoding: str, text: str, as_named: str, folder: str
) -> None:
    content = text.encode(encoding)
    Path(folder).mkdir(exist_ok=True)
    Path(folder, name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with config.working_in(Path(folder)), pytest.raises(DataError, match=f"; to convert it: .*{as_named} -t") as told:
        run(name, max_refused_share=0)
    command = str(told.value).partition("; to convert it: ")[2].partition("; see ")[0]
    subprocess.run(command, shell=True, check=True, timeout=60)
    plain = name.removesuffix(".gz")
    stem, _, suffix = plain.rpartition(".")
    (row,) = tables(run(str(Path(folder, f"{stem}-utf8.{suffix}"))))[0]
    assert texts(row) == ["Grüße sagen", "Grüße"]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_file_that_mixes_encodings_is_refused_with_the_command_that_keeps_its_lines_in_utf_8(name: str) -> None:
    head, row = "instruction,output\n", "Grüße sagen,Grüße aus Łódź\n"
    content = f"{head}{row}".encode() + "“Was” für…,Ä\n".encode("cp1252") + row.encode()
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=r"bad_encoding, first a\.csv\S* line 3, byte 1 is 0x93, not UTF-8") as told:
        run(name, max_refused_share=0)
    said = str(told.value)
    assert "looks like Latin-1 or Windows-1252 (Western European), in which it reads '“Was” für…" in said
    assert "other lines are in UTF-8, so iconv would spoil them" in said
    command = said.partition("only the bytes that are not UTF-8: ")[2].partition("; see ")[0]
    subprocess.run(command.replace("python -c", f"{sys.executable} -c"), shell=True, check=True, timeout=60)
    rows, refused = tables(run("a-utf8.csv"))
    assert not refused
    assert [texts(row) for row in rows] == [
        *(["Grüße sagen", "Grüße aus Łódź"], ["“Was” für…", "Ä"], ["Grüße sagen", "Grüße aus Łódź"])
    ]


def test_a_file_that_a_conversion_would_spoil_gets_no_command() -> None:
    other = b"\x81\n"
    Path("a.jsonl").write_bytes(WINDOWS.encode("cp1252") + other)
    with pytest.raises(DataError, match="looks like Latin-1 or Windows-1252") as told:
        run("a.jsonl", max_refused_share=0)
    assert "to convert" not in str(told.value)


def test_an_evaluation_file_in_another_encoding_has_its_command() -> None:
    Path("a.jsonl").write_bytes(GOOD + b"\n")
    Path("b.txt").write_bytes("Grüße\n".encode("cp1252"))
    with pytest.raises(
        DataError, match=r"b\.txt line 1: bad_encoding, .*iconv -f WINDOWS-1252 -t UTF-8 b\.txt > b-utf8"
    ):
        run("a.jsonl", held_out=(RecordFiles(path="b.txt"),))


@pytest.mark.parametrize("limit", [None, 321])
def test_a_file_in_another_encoding_is_refused_beside_many_records_in_utf_8(limit: int | None) -> None:
    Path("a.jsonl").write_bytes((GOOD + b"\n") * 300)
    Path("b.jsonl.gz").write_bytes(gzip.compress(JAPANESE.encode("cp932") * 20))
    Path("c.jsonl").write_bytes(WINDOWS.encode("cp1252"))
    with pytest.raises(
        DataError, match=r"^data\.sources\[1\]: b\.jsonl\.gz: 20 of 20 records are not UTF-8, over data\.max_r"
    ) as told:
        run("a.jsonl", "b.jsonl.gz", "c.jsonl", max_refused_share=0.1, limit=limit)
    message = str(told.value)
    assert "=0.1 of this file; so it is with c.jsonl: 20 bad_encoding, first b.jsonl.gz line 1, byte 13 is" in message
    assert "; to convert it: gzip -dc b.jsonl.gz | iconv -f CP932 -t UTF-8 > b-utf8.jsonl" in message
    assert run("a.jsonl", "b.jsonl.gz", max_refused_share=1).num_quarantined == 20


def test_a_sample_counts_the_records_of_a_file_in_another_encoding_in_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = WINDOWS.encode("cp1252")
    Path("a.jsonl").write_bytes(one + (GOOD + b"\n") * 19)  # 5 % of them, all of the sample
    with monkeypatch.context() as context:
        context.setattr("tunewright.tasks.ingest.sample", lambda *_: frozenset({("a.jsonl", 1), ("b.jsonl", 1)}))
        Path("b.jsonl").write_bytes(GOOD + b"\n")
        assert run("a.jsonl", "b.jsonl", max_refused_share=0.5, limit=2).num_quarantined == 1


POLISH = '{"instruction": "Kurier dostarczył paczkę?", "output": "Łatwo sprawdzić, gdzie są: wpisz numer zamówienia"}\n'
JAPANESE = '{"prompt": "注文した荷物がまだ届きません。", "completion": "配送の状況を調べます"}\n'
RUSSIAN = '{"prompt": "Где мой заказ?", "completion": "Ваш заказ уже в пути"}\n'


@pytest.mark.parametrize(
    ("codec", "text", "looks", "said"),
    [
        ("cp1250", POLISH, "Windows-1250 (Central European)", "Kurier dostarczył paczkę"),
        ("iso8859-2", POLISH, "ISO 8859-2 (Central European)", "Kurier dostarczył paczkę"),
        ("cp1251", RUSSIAN, "Windows-1251 (Cyrillic)", "Ваш заказ уже в пути"),
        ("koi8-r", RUSSIAN, "KOI8-R (Cyrillic)", "Ваш заказ уже в пути"),
        ("cp1253", '{"prompt": "Πού είναι;", "completion": "Έφτασε η παραγγελία"}\n', "Windows-1253 (Greek)", ""),
        ("cp1254", '{"prompt": "Siparişim gelmedi", "completion": "İşte çözüm"}\n', "Windows-1254 (Turkish)", ""),
        ("cp1257", '{"prompt": "Mano užsakymas", "completion": "Ačiū už pagalbą"}\n', "Windows-1257 (Baltic)", ""),
        ("cp932", JAPANESE, "Shift-JIS (Japanese)", "注文した荷物がまだ届きません"),
        ("euc_jp", JAPANESE, "EUC-JP (Japanese)", "注文した荷物がまだ届きません"),
        (
            "gb18030",
            '{"prompt": "我的订单还没有到", "completion": "已经发货"}\n',
            "GBK or GB18030 (simplified Chinese)",
            "我的",
        ),
        (
            "big5",
            '{"prompt": "我的訂單還沒有到", "completion": "已經寄出"}\n',
            "Big5 (traditional Chinese)",
            "我的訂單",
        ),
        (
            "cp949",
            '{"prompt": "주문한 물건이 아직 오지 않았어요", "completion": "배송"}\n',
            "EUC-KR (Korean)",
            "주문한",
        ),
    ],
)
def test_the_code_page_is_told_by_the_language_that_it_makes_of_the_bytes(
    codec: str, text: str, looks: str, said: str
) -> None:
    Path("a.jsonl").write_bytes(text.encode(codec))
    with pytest.raises(DataError, match=r"not UTF-8; (it|the file as a whole) looks like") as told:
        run("a.jsonl", max_refused_share=0)
    message = str(told.value)
    assert f" looks like {looks}, in which it reads '{said}" in message
    assert message.count("looks like") == 1
    assert ": check that it reads right; to convert it: iconv" in message
    command = message.partition("; to convert it: ")[2].partition("; see ")[0]
    subprocess.run(command, shell=True, check=True, timeout=60)
    assert Path("a-utf8.jsonl").read_text(encoding="utf-8") == text


def test_the_code_page_of_a_file_in_two_languages_is_told_by_its_lines() -> None:
    spanish = [f"¿Dónde está mi pedido número {at}? La contraseña del año pasado no funciona" for at in range(20)]
    german = [f"Wo ist Bestellung {at}? Ich möchte schnell eine Rückmeldung für mein Gerät" for at in range(20)]
    text = "".join(
        f"{json.dumps({'prompt': each, 'completion': 'x'}, ensure_ascii=False)}\n" for each in spanish + german
    )
    Path("a.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"looks like Latin-1 or Windows-1252.*; to convert it: iconv") as told:
        run("a.jsonl", max_refused_share=0)
    command = str(told.value).partition("; to convert it: ")[2].partition("; see ")[0]
    subprocess.run(command, shell=True, check=True, timeout=60)
    assert Path("a-utf8.jsonl").read_text(encoding="utf-8") == text


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "b.txt"])
def test_where_a_line_looks_like_another_code_page_the_whole_file_s_is_named_alone(name: str) -> None:
    like_both, of_one = "Kurier dostarczył paczkę", "Łatwo sprawdzić, gdzie są: wpisz numer zamówienia"
    texts = {
        "a.jsonl": "".join(f'{{"prompt": "{each}", "completion": "tak"}}\n' for each in (like_both, of_one)),
        "a.csv": f'prompt,completion,{like_both}\ntak,nie,"{of_one}"\n',
        "b.txt": f"{like_both}\n{of_one}\n",
    }
    Path("good.jsonl").write_bytes(GOOD + b"\n")
    Path(name).write_bytes(texts[name].encode("iso8859-2"))
    with pytest.raises(DataError, match=r"not UTF-8.*; the file as a whole looks like ISO 8859-2 ") as told:
        held_out = (RecordFiles(path=name),) if name == "b.txt" else ()
        run("good.jsonl" if held_out else name, held_out=held_out, max_refused_share=0)
    message = str(told.value)
    assert "Windows-1250" not in message
    assert message.count("looks like") == message.count("in which it reads") == 1


@pytest.mark.parametrize(
    "text", ["Où est ma commande ? Elle a été livrée à côté", "El niño llega mañana por la mañana", "Não é aceitável"]
)
def test_languages_of_the_west_stay_in_windows_1252(text: str) -> None:
    content = json.dumps({"prompt": text, "completion": text}, ensure_ascii=False)
    Path("a.jsonl").write_bytes(content.encode("cp1252"))
    with pytest.raises(DataError, match="; to convert it: iconv -f WINDOWS-1252 -t UTF-8"):
        run("a.jsonl", max_refused_share=0)


def test_a_mixed_file_is_converted_from_the_code_page_of_its_other_lines() -> None:
    Path("a.jsonl").write_bytes(POLISH.encode("cp1250") + WINDOWS.encode())
    with pytest.raises(DataError, match=r"looks like Windows-1250 \(Central European\)") as told:
        run("a.jsonl", max_refused_share=0)
    command = str(told.value).partition("only the bytes that are not UTF-8: ")[2].partition("; see ")[0]
    subprocess.run(command.replace("python -c", f"{sys.executable} -c"), shell=True, check=True, timeout=60)
    assert Path("a-utf8.jsonl").read_text(encoding="utf-8") == POLISH + WINDOWS


def test_lines_with_several_bytes_a_character_among_lines_in_utf_8_are_converted() -> None:
    Path("a.jsonl").write_bytes(JAPANESE.encode("cp932") + JAPANESE.encode() + WINDOWS.encode())
    with pytest.raises(DataError, match=r"looks like Shift-JIS \(Japanese\)") as told:
        run("a.jsonl", max_refused_share=0)
    command = str(told.value).partition("only the bytes that are not UTF-8: ")[2].partition("; see ")[0]
    subprocess.run(command.replace("python -c", f"{sys.executable} -c"), shell=True, check=True, timeout=60)
    assert Path("a-utf8.jsonl").read_text(encoding="utf-8") == JAPANESE + JAPANESE + WINDOWS


def in_windows_1258(text: str) -> bytes:
    """The bytes of a Vietnamese text: five tones are characters behind their letters."""
    tones, written = "\u0300\u0301\u0303\u0309\u0323", ""
    for letter in text:
        apart = unicodedata.normalize("NFD", letter)
        tone = "".join(mark for mark in apart if mark in tones)
        written += unicodedata.normalize("NFC", "".join(mark for mark in apart if mark not in tones)) + tone
    return written.encode("cp1258")


VIETNAMESE = '{"prompt": "Đơn hàng của tôi ở đâu?", "completion": "Tôi sẽ kiểm tra ngay"}\n'


def test_a_vietnamese_file_is_known() -> None:
    Path("a.jsonl").write_bytes(in_windows_1258(VIETNAMESE))
    with pytest.raises(DataError, match=r"looks like Windows-1258 \(Vietnamese\), in which it reads 'Đơn hàng") as told:
        run("a.jsonl", max_refused_share=0)
    command = str(told.value).partition("; to convert it: ")[2].partition("; see ")[0]
    subprocess.run(command, shell=True, check=True, timeout=60)
    assert Path("a-utf8.jsonl").read_text(encoding="utf-8") == VIETNAMESE


def test_one_line_that_is_not_utf_8_is_converted_and_its_command_stands_behind_its_reason() -> None:
    one = '{"prompt": "đặt 2 bàn", "completion": "được"}\n'
    Path("a.jsonl").write_bytes(VIETNAMESE.encode() * 3 + in_windows_1258(one) + b"\n" + VIETNAMESE.encode())
    with pytest.raises(DataError, match=r"1 blank_line, first a\.jsonl line 5, empty; 1 bad_encoding, first") as told:
        run("a.jsonl", max_refused_share=0)
    assert "other lines are in UTF-8, so iconv would spoil them" in str(told.value)
    command = str(told.value).partition("only the bytes that are not UTF-8: ")[2].partition("; see ")[0]
    subprocess.run(command.replace("python -c", f"{sys.executable} -c"), shell=True, check=True, timeout=60)
    assert Path("a-utf8.jsonl").read_text(encoding="utf-8") == VIETNAMESE * 3 + one + "\n" + VIETNAMESE


def test_a_few_bytes_that_may_be_in_several_pages_have_a_command_that_says_for_which() -> None:
    short = json.dumps({"prompt": "1", "completion": "Да"}, ensure_ascii=False).encode("cp1251") + b"\n"
    Path("a.jsonl").write_bytes(WINDOWS.encode() + short)
    with pytest.raises(DataError, match=r"; what is not UTF-8 may be .*Windows-1251 \(Cyrillic\)") as told:
        run("a.jsonl", max_refused_share=0)
    assert re.search(r"to convert only the bytes that are not UTF-8 if they are Windows-125\d: python", str(told.value))


@pytest.mark.parametrize("header", ["Pytanie;Odpowiedź", "instruction;output"])
def test_a_spreadsheet_with_semicolons_in_windows_1250_gets_the_encoding_first(header: str) -> None:
    Path("a.csv").write_bytes(f"{header}\nGdzie jest paczka?;Kurier ją dostarczył\n".encode("cp1250"))
    with pytest.raises(DataError, match=r".* Windows-1250 \(Central European\).*: iconv -f WINDOWS-1250 -t"):
        run("a.csv")


def test_a_code_page_that_is_unsure_has_no_command() -> None:
    Path("a.jsonl").write_bytes(json.dumps({"prompt": "1", "completion": "Да"}, ensure_ascii=False).encode("cp1251"))
    with pytest.raises(
        DataError, match=r"; the file may be .*Windows-1251 \(Cyrillic\).* in which it reads right"
    ) as told:
        run("a.jsonl", max_refused_share=0)
    assert "iconv" not in str(told.value)


@pytest.mark.parametrize("other", ["", "Zoë,prima\n"])
def test_where_a_file_has_too_few_words_the_page_that_one_record_tells_is_that_of_the_command(other: str) -> None:
    record = 'instruction,output\n"Hallo,\nich möchte schnell eine Rückmeldung für mein Gerät","Ja"\n'
    Path("a.csv").write_bytes(
        record.encode("cp1252") + other.encode() + "Ødegård;Peña,Gonçalves;Müller\n".encode("cp1252") * 400
    )
    with pytest.raises(
        DataError, match=r"line 2, byte \d+ of the record is 0xf6.*looks like Latin-1 or Windows-1252"
    ) as told:
        run("a.csv", max_refused_share=0)
    assert ("; to convert only the bytes" if other else "; to convert it: iconv -f WINDOWS-1252") in str(told.value)


def test_no_excerpt_is_shown_of_what_is_near_something_personal() -> None:
    text = json.dumps({"prompt": "Wyślij do anna.nowak@firma.pl", "completion": "Już wysłałem"}, ensure_ascii=False)
    Path("a.jsonl").write_bytes(text.encode("cp1250"))
    with pytest.raises(DataError, match=r"looks like Windows-1250 \(Central European\); to convert it") as told:
        run("a.jsonl", max_refused_share=0)
    assert "nowak" not in str(told.value)


def test_a_field_of_another_name_is_told_with_the_setting_that_maps_it() -> None:
    row = b'{"instruction": "Say hello", "answer": "Hello", "id": 1}\n'
    (entry,) = read(GOOD + b"\n" + row)[1]
    assert entry["reason"] == "missing_field"
    assert entry["detail"] == (
        "there is no output; the fields are 'instruction', 'answer', 'id'; columns of the source can map them"
    )


def test_a_mapped_field_that_is_missing_has_the_names_of_the_record() -> None:
    records = [{"frage": "Hi", "antwort": "Hello"}, {"frage": "Hi", "kunde": "a"}, {"frage": "Hi", "antwort": None}, {}]
    Path("a.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    columns = {"instruction": "frage", "output": "antwort", "group": "kunde"}
    _, refused = tables(run(Source(path="a.jsonl", columns=columns), max_refused_share=0.9))
    assert [entry["detail"].partition("; accepted")[0] for entry in refused] == [
        "there is no antwort (output); the fields are 'frage', 'kunde'",
        "antwort (output) is null",
        "it has no field",
    ]


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_an_array_of_records_in_a_file_for_lines_is_told_how_to_be_read(end: bytes) -> None:
    content = b"[" + GOOD + b"," + GOOD + b"]" + end
    said = (
        r"a record is an object, this is an array; if the whole file is one JSON array, name it \.json, or set format"
    )
    with pytest.raises(DataError, match=said):
        read(content)
    assert len(read(content, "a.json")[0]) == 2
    (entry,) = read(b"[" + GOOD + b",[" + GOOD + b"]]", "a.json")[1]
    assert entry["detail"] == "a record is an object, this is an array"


@pytest.mark.parametrize(("name", "content"), [("a.csv", "soru,yanit\n{},x\n"), ("a.jsonl", '{{"soru": "{}"}}\n')])
def test_an_encoding_that_no_record_can_be_read_in_is_told_before_a_column_is_missed(name: str, content: str) -> None:
    Path(name).write_bytes(content.format("Поповнення рахунку").encode("cp1251"))
    with pytest.raises(DataError, match=r"1 of 1 records quarantined, .* 1 bad_encoding"):
        run(Source(path=name, columns={"instruction": "soru", "output": "yanit"}))
