"""Inputs for benchmarks/fuzz.py: valid files with a few faults, as bytes.

Valid content alone finds nothing, and random bytes are refused at the first of them. So every input begins as a valid
file, some of its values are replaced by extreme ones, and then a few bytes are flipped, cut, repeated or spliced in.
"""

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

Bytes = st.SearchStrategy[bytes]

SPLICES = (
    *(b"\0", b"\xff", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", "\u2028".encode(), b"\x85", b"\r", b"\n", b"\r\n\r\n"),
    *(b'"', b"'", b"\\", b"\\u0000", b"\\ud800", b",", b":", b"{", b"}", b"[", b"]", b"{}", b"[]", b"null", b"true"),
    *(b"NaN", b"-Infinity", b"1e999", b"-0", b"9" * 400, b"1e-400", b"0x10", b"1:30", b"010", b"\xff\xff\xff\x7f"),
    *(b"[" * 100, b'{"a":' * 100, b"[" * 5_000, b"- " * 200, b"&a ", b"*a", b"<<: *a", b"!!python/name:os.system"),
    *(b"\x1f\x8b\x08\0", b"PAR1", b"ARROW1\0\0", b"\xff\xff\xff\xff", b"\0" * 8, b"../../etc/passwd", b"a" * 300),
)
EDITS = st.tuples(
    st.sampled_from(("flip", "splice", "delete", "repeat", "truncate", "swap")),
    st.floats(0, 1, width=16),
    st.integers(0, 40),
    st.sampled_from(SPLICES),
)
TEXTS = st.text(max_size=20) | st.sampled_from(
    ("", " ", "\ud800", "\0", "\u202e", "é" * 100, "9" * 30, "=1+1", "٣", "²")
)
NUMBERS = (
    st.integers()
    | st.integers(-2, 70)
    | st.floats()
    | st.sampled_from((2**31, 2**63, 2**64, 10**30, 10**400, -1, -0.0, 1e308, 1_700_000_000, 1e12))
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


@st.composite
def faulty(draw: st.DrawFn, valid: Bytes) -> bytes:
    """The bytes that a strategy draws, with up to four edits."""
    content = draw(valid)
    for kind, share, size, piece in draw(st.lists(EDITS, max_size=4)):
        at = round(share * len(content))
        before, span, after = content[:at], content[at : at + size], content[at + size :]
        match kind:
            case "flip":
                content = before + bytes(byte ^ (1 << size % 8) for byte in span[:1]) + content[at + 1 :]
            case "splice":
                content = before + piece + content[at:]
            case "delete":
                content = before + after
            case "repeat":
                content = before + span * 3 + after
            case "truncate":
                content = before
            case _:
                content = after + before
    return content


@st.composite
def altered(draw: st.DrawFn, valid: Any) -> Any:
    """A plain value in which some parts are replaced by any other, left out or added."""
    if draw(st.integers(0, 11)) == 11:  # 0 is what comes most
        return draw(VALUES)
    if isinstance(valid, dict):
        more = draw(st.dictionaries(TEXTS, VALUES, max_size=1))
        return {key: draw(altered(value)) for key, value in valid.items() if draw(st.integers(0, 15)) < 15} | more
    return [draw(altered(value)) for value in valid] if isinstance(valid, list | tuple) else valid


@st.composite
def altered_once(draw: st.DrawFn, valid: Any) -> Any:
    """A plain value in which one part, at any depth, is another, so that all else is read."""
    if not valid or not isinstance(valid, dict | list) or draw(st.integers(0, 9)) == 9:
        return draw(VALUES)
    if isinstance(valid, dict):
        key = draw(st.sampled_from([*valid]))
        return valid | {key: draw(altered_once(valid[key]))}
    at = draw(st.integers(0, len(valid) - 1))
    return [*valid[:at], draw(altered_once(valid[at])), *valid[at + 1 :]]


def as_json(value: Any) -> bytes:
    """A value as Python writes it: with NaN and halves of surrogate pairs, which standard JSON does not have."""
    return json.dumps(value).encode()


def json_files(*valid: Any) -> Bytes:
    """One of some values as a JSON file with faults."""
    chosen = st.sampled_from(valid)
    return chosen.flatmap(altered_once).map(as_json) | faulty(chosen.flatmap(altered).map(as_json))


def _turns(roles: str, role: str, content: str) -> list[dict[str, str]]:
    return [{role: name, content: f"text of {name}"} for name in roles.split()]


RECORDS: tuple[dict[str, Any], ...] = (  # the layouts that ingest reads
    {"messages": _turns("system user assistant", "role", "content"), "time": "2024-05-01T10:00:00Z", "group": 7},
    {
        "messages": [
            {"role": "developer", "content": [{"type": "text", "text": "a"}]},
            *_turns("user", "role", "content"),
        ]
    },
    {"conversations": _turns("human gpt human gpt", "from", "value"), "system": "be kind", "tools": []},
    {"instruction": "Say hello", "input": "to me", "output": "Hello", "source": "s"},
    {"prompt": "a", "completion": "b", "time": 1_700_000_000},
    {"prompt": _turns("user", "role", "content"), "completion": _turns("assistant", "role", "content")},
    {"chosen": _turns("user assistant", "role", "content"), "rejected": "\n\nHuman: text of user\n\nAssistant: b"},
    {"conversations": _turns("human", "from", "value"), "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"},
    {"prompt": "a", "answers": ["b", "c"], "scores": [1, 2.5]},
)
SOME_RECORDS: st.SearchStrategy[list[Any]] = st.lists(
    st.sampled_from(RECORDS).flatmap(altered_once) | st.sampled_from(RECORDS).flatmap(altered), min_size=1, max_size=4
)
JSONL = faulty(SOME_RECORDS.map(lambda records: b"\n".join(map(as_json, records)) + b"\n"))
JSON = faulty(SOME_RECORDS.map(as_json))
LINES = st.lists(st.lists(TEXTS.map(lambda text: text.replace('"', '""')), min_size=2, max_size=3), max_size=4)
CSV = faulty(
    st.tuples(st.sampled_from((["instruction", "output"], ["prompt", "completion", "time"])), LINES).map(
        lambda table: "\n".join(
            ",".join(f'"{cell}"' for cell in line) for line in (table[0], *(line[: len(table[0])] for line in table[1]))
        ).encode("utf-8", "surrogatepass")
    )
)
COLUMNS: tuple[Callable[[Any], pa.Array], ...] = (
    lambda values: pa.array([str(value) for value in values], pa.string()),
    lambda values: pa.array([str(value).encode() for value in values], pa.binary()),
    lambda values: pa.array([len(str(value)) for value in values], pa.timestamp("s")),
    lambda values: pa.array([hash(str(value)) for value in values], pa.int64()),
    lambda values: pa.array([str(value) for value in values]).dictionary_encode(),
    lambda values: pa.array([_turns("user assistant", "role", "content") for _ in values]),
)


@st.composite
def _tables(draw: st.DrawFn) -> pa.Table:
    values = draw(st.lists(st.text(max_size=9), min_size=1, max_size=5))
    names = draw(st.sampled_from((["prompt", "completion", "time"], ["messages", "group"], ["instruction", "output"])))
    return pa.table({name: draw(st.sampled_from(COLUMNS))(values) for name in names})


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _arrow(table: pa.Table, is_file: bool) -> bytes:
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_file if is_file else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


PARQUET = faulty(_tables().map(_parquet))
ARROW = faulty(st.builds(_arrow, _tables(), st.booleans()))
ARCHIVES = faulty(
    (JSONL | JSON | CSV).map(gzip.compress) | JSONL.map(lambda content: pa.compress(content, "zstd", asbytes=True))
)
