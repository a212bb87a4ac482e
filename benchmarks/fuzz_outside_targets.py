"""Targets of what comes from outside a run: schemas, a judge's replies, MLflow's files and answers, and backups."""

import asyncio
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import fuzz_inputs as inputs
import httpx
import pyarrow as pa
import pyarrow.parquet as pq
from fuzz_target import Target, home, refusal
from hypothesis import strategies as st

from tunewright import config, serving
from tunewright.errors import TunewrightError
from tunewright.metrics import schemas
from tunewright.registry import files, mlflow_server
from tunewright.store import backup, caching, data_history
from tunewright.tasks.judge.asking import JudgeClient

SECONDS = 1.0  # of processor time for the answers to a schema, so that one without end is soon over

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$defs": {"name": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 9}},
    "$ref": "#/$defs/object",
    "type": "object",
    "properties": {"a": {"$ref": "#/$defs/name"}, "b": {"enum": [1, None]}, "c": {"format": "date"}},
    "patternProperties": {"^x-": {"$dynamicRef": "#here"}},
    "required": ["a"],
    "additionalProperties": False,
    "anyOf": [{"$dynamicAnchor": "here", "minProperties": 1}, {"if": {"const": 1}, "then": False}],
    "items": {"multipleOf": 0.1, "minimum": 0, "uniqueItems": True},
}
SCHEMA["$defs"]["object"] = {"type": "object"}
ANSWERS = ('{"a": "b"}', '{"a": "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!", "x-": {}}', "[" * 500, "[1e400, 0.3]", "no JSON", "")
STRANGE = ("^(a+)+$", "(", "http://127.0.0.1:1/a", "#", "#/$defs/name", "#here", "//[", "file:///etc/passwd", "urn:a")


@st.composite
def _schemas(draw: st.DrawFn) -> bytes:
    schema = draw(inputs.altered_once(SCHEMA) | inputs.altered(SCHEMA) | st.just(SCHEMA))
    if isinstance(schema, dict):
        key = draw(
            st.sampled_from(("$ref", "pattern", "$schema", "$id", "$dynamicRef", "$anchor", "format", "$comment"))
        )
        schema = schema | {key: draw(st.sampled_from(STRANGE))}
    return inputs.as_json(schema)


def schema(content: bytes) -> str:
    """A file is a JSON Schema by which any answers are right or wrong."""
    with home() as folder, patch.object(schemas, "SECONDS", SECONDS):
        (folder / "schema.json").write_bytes(content)
        try:
            text = schemas.json_schema(str(folder / "schema.json"))
            right = schemas.schema_valid(text, ANSWERS)
        except TunewrightError as error:
            return refusal(error)
        assert len(right) == len(ANSWERS)
        assert {*right} <= {0.0, 1.0}
        assert right[-1] == right[-2] == 0.0
    return ""


REPLY = {"choices": [{"index": 0, "message": {"role": "assistant", "content": 'So: {"better": "A"}'}}], "usage": {}}
JUDGE = JudgeClient("http://judge/v1", "m", wait=0)
CODINGS = ("gzip", "br", "deflate", "zstd", "http://[", "-1", "")
TYPES = ("application/json", "application/json; charset=utf-16", "text/html; charset=undefined", "text/a; charset=idna")
HEADERS = st.dictionaries(
    st.sampled_from(("content-type", "content-encoding", "location", "retry-after", "content-length")),
    st.sampled_from((*CODINGS, *TYPES)),
    max_size=2,
)


@st.composite
def _replies(draw: st.DrawFn) -> bytes:
    status = draw(st.just(200) | st.sampled_from((200, 204, 301, 400, 401, 404, 429, 500, 503, 599)))
    body = draw(inputs.json_files(REPLY))
    return inputs.as_json([status, draw(st.just({}) | HEADERS)]) + b"\n" + body


def judge(content: bytes) -> str:
    """Whatever a judge's server answers is a reply, or an error of ours."""
    head, _, body = content.partition(b"\n")
    status, names = json.loads(head)

    def answered(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=names, stream=httpx.ByteStream(body))

    JUDGE.api.server.client = httpx.Client(transport=httpx.MockTransport(answered))
    try:
        said = JUDGE.better("question", "reference", "a", "b")
    except TunewrightError as error:
        return refusal(error)
    assert said in ("A", "B", "tie", "unreadable")
    return "" if said == "A" else said


MODEL_FILES = {
    "artifacts/model/adapter.safetensors": b"weights",
    "MLmodel": b"flavors: {}\n",
    "artifacts/base.json": b"{}",
}
DIGESTS_NAMES = ("../../etc/passwd", "/dev/zero", "a\0b", "n" * 5_000, "\ud800", ".", "artifacts", "")


def _digests() -> bytes:
    with home() as folder:
        _lay(folder)
        files.seal(folder)
        return (folder / serving.DIGESTS).read_bytes()


def _lay(folder: Any) -> None:
    for name, said in MODEL_FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(said)


DIGESTS = _digests()


@st.composite
def _altered_digests(draw: st.DrawFn) -> bytes:
    valid = json.loads(DIGESTS)
    if draw(st.booleans()):
        return draw(inputs.json_files(valid, [*map(list, valid.items())]))
    name = draw(st.sampled_from(DIGESTS_NAMES))
    return inputs.as_json({name: "d"} | valid if draw(st.booleans()) else [[draw(inputs.VALUES), "d"]])


def digests(content: bytes) -> str:
    """A version's list of digests that says anything else than was registered is seen before the version is loaded."""
    with home() as folder:
        _lay(folder)
        (folder / serving.DIGESTS).write_bytes(content)
        fault = serving.altered(folder)
        assert len(fault.splitlines()) <= 1, fault
        fault.encode()
        if not fault:
            assert dict(json.loads(content)) == json.loads(DIGESTS)
        (folder / "listed").write_bytes(DIGESTS)
        digest = caching.digest_of(folder / "listed")
        (folder / "listed").unlink()
        assert bool(files.altered(folder, digest)) == (content != DIGESTS)
    return fault


FOLDER = "/home/a b/é/mlartifacts"
ANSWER: dict[str, Any] = {
    "run": {"info": {"artifact_uri": f"file://{FOLDER}/1/r/artifacts", "status": "FINISHED"}},
    "experiments": [{"artifact_location": f"{FOLDER}/1", "name": f'"artifact_uri": "{FOLDER}/1"'}],
    "storage_location": FOLDER,
    "root_uri": f"{FOLDER}s/other",
}


def _uris(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [each for key, each in value.items() if key in mlflow_server.KEYS and isinstance(each, str)]
        return own + [uri for each in value.values() for uri in _uris(each)]
    return [uri for each in value for uri in _uris(each)] if isinstance(value, list) else []


def served(content: bytes) -> str:
    """MLflow's answers stay the JSON that they were, and no place in them is one of this machine."""

    async def app(_: Any, __: Any, send: Any) -> None:
        start: Any = {"type": "http.response.start", "status": 200}
        await send(start | {"headers": [(b"content-type", b"application/json"), (b"content-length", b"1")]})
        for at in range(0, len(content) + 1, 50):
            more = at + 50 <= len(content)
            await send({"type": "http.response.body", "body": content[at : at + 50], "more_body": more})

    sent: list[Any] = []

    async def keep(message: Any) -> None:
        sent.append(message)

    middleware: Any = mlflow_server.ServedPaths(app, Path(FOLDER))
    asyncio.run(middleware({"type": "http"}, None, keep))
    start, answer = sent
    assert dict(start["headers"])[b"content-length"] == str(len(answer["body"])).encode()
    try:
        before = json.loads(content)
    except (ValueError, RecursionError):
        return "no JSON"
    after = json.loads(answer["body"])
    for was, now in zip(_uris(before), _uris(after), strict=True):
        path = was.removeprefix("file://")
        is_there = path == FOLDER or path.startswith(f"{FOLDER}/")
        assert now.startswith("mlflow-artifacts:/") if is_there else now == was, (was, now)
    return ""


INSIDE = ("versions/a.jsonl", "looks/a.jsonl", "mlflow.db", "mlartifacts/1/a", "versions", "versions/b", "versions/b/c")
OUTSIDE = ("other", "../out", "/tmp/fuzz-out", "versions/../../out", "", "a\0b", "é" * 200)
KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
Packing = Literal["w", "w:gz", "w:xz", "w:bz2"]
MEMBERS = st.tuples(  # of a tar file: name, kind and what a link leads to
    st.sampled_from((*INSIDE, *OUTSIDE)),
    st.sampled_from(KINDS),
    st.sampled_from(("a.jsonl", "..", "/etc/passwd", "versions/b", "")),
)


def _tar(members: list[tuple[str, bytes, str]], packing: Packing) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=packing) as archive:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            member.size = 3 if kind == tarfile.REGTYPE else 0
            archive.addfile(member, io.BytesIO(b"abc"))
    return sink.getvalue()


BACKUPS = inputs.faulty(
    st.builds(_tar, st.lists(MEMBERS, max_size=3), st.just("w") | st.sampled_from(("w:gz", "w:xz", "w:bz2")))
    | st.builds(_tar, st.lists(MEMBERS.map(lambda m: (m[0], tarfile.REGTYPE, "")), max_size=3), st.just("w"))
)


def restored(content: bytes) -> str:
    """A backup is put into the home, or refused; outside the home it writes nothing."""
    with home() as outside:
        (outside / "home").mkdir()
        (outside / "a.tar").write_bytes(content)
        with patch.dict("os.environ", TUNEWRIGHT_HOME=str(outside / "home")):
            try:
                backup.restore(outside / "a.tar")
            except TunewrightError as error:
                return refusal(error)
            finally:
                assert {path.name for path in outside.iterdir()} == {"home", "a.tar"}
                for path in config.home().rglob("*"):
                    assert Path(os.path.realpath(path)).is_relative_to(outside), path
    return ""


def _assignments() -> bytes:
    table = pa.table(
        [["r1", "r2"], ["train", "test"], [None, "set aside"], [1, 2], [True, True], [True, False]],
        schema=data_history.SCHEMA,
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def assignments(content: bytes) -> str:
    """The assignments of a version that were altered are refused, or give row_ids."""
    with home():
        folder = data_history.place("demo") / "d-1"
        folder.mkdir(parents=True)
        (folder / data_history.ASSIGNMENTS_FILE).write_bytes(content)
        try:
            trained = data_history.trained("demo", "d")
        except TunewrightError as error:
            return refusal(error)
        assert trained is not None
    return ""


OUTSIDE_TARGETS: dict[str, Target] = {
    "schema": Target(_schemas(), schema),
    "judge": Target(_replies(), judge, ("httpx",)),
    "digests": Target(_altered_digests(), digests),
    "served": Target(inputs.json_files(ANSWER), served),
    "backup": Target(BACKUPS, restored),
    "assignments": Target(inputs.faulty(st.just(_assignments())), assignments),
}
