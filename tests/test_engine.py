"""A Ray cluster finds what this machine finds, row for row, and leaves nothing behind."""

import json
import random
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import BAD, FOUND, GOOD, SPECIAL
from conftest import MakeRows, MakeSplits
from hypothesis import given, settings
from hypothesis import strategies as st
from similarity_reference import jaccard
from similarity_reference import shingles as shingles_of
from split_rows import held_out_rows

from tunewright.artifacts import ROW_SCHEMA, Base, CheckedRows, Rows
from tunewright.config import Checks, Data, Dedupe, Model, Source, Split
from tunewright.errors import ConfigError
from tunewright.machine import cluster as machine_cluster
from tunewright.machine.cluster import EngineName, worker_map
from tunewright.similarity import cluster, spread
from tunewright.similarity.cluster import Ray
from tunewright.similarity.engine import Engine, engine_of
from tunewright.similarity.folding import fold_messages
from tunewright.similarity.prompts import Shingles, answers, cut, shingles
from tunewright.similarity.sets import Pairs
from tunewright.store.stage import cached_part
from tunewright.tasks.check import check
from tunewright.tasks.dedupe import dedupe, read
from tunewright.tasks.ingest import ingest, source_files
from tunewright.tasks.render import render
from tunewright.tasks.split import split

WORDS = ["card", "order", "money", "back", "where", "lost", "help", "手机没有", "卡片", "straße", "café", "ไม่ได้", "🙂"]

RUN = """
import signal
import psutil
from tunewright.similarity.engine import engine_of

def children():
    return [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]

try:
    with engine_of("ray") as engine:
        print(type(engine).__name__, len(children()) > 2, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
        raise ValueError("a stage fails")
except ValueError as error:
    print(error, len(children()))
"""


def messy(seed: int, num_rows: int) -> list[dict[str, Any]]:
    """Prompts of 1 to 30 words, most of them an earlier one with words or numbers changed, and one of three answers."""
    rng = random.Random(seed)
    said: list[list[str]] = []
    for _ in range(num_rows):
        words = [rng.choice(WORDS) + rng.choice("abcdefgh") for _ in range(rng.randint(1, 30))]
        if said and rng.random() < 0.6:
            words = [*rng.choice(said)]
            for _ in range(rng.choice([0, 0, 1, 2, 5])):
                words[rng.randrange(len(words))] = rng.choice([*WORDS, str(rng.randrange(9))])
        said.append(words)
    return [
        {
            "row_id": f"{rng.getrandbits(256):064x}",
            "source": f"file {line % 2}",
            "file": "data.jsonl",
            "line": line,
            "group": f"group {line // 2}" if line % 50 < 2 else None,
            "messages": [
                {"role": "user", "content": " ".join(words)},
                {"role": "assistant", "content": rng.choice("abA")},
            ],
        }
        for line, words in enumerate(said, start=1)
    ]


def write(file: Path, rows: list[dict[str, Any]], rows_of_a_group: int) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, ROW_SCHEMA), file, row_group_size=rows_of_a_group)
    return file


def shingled(batch: pa.Table, guarded: bool) -> Shingles:
    folded = fold_messages(batch["messages"])
    return shingles(cut(folded), np.empty(0, np.uint64), answers(folded) if guarded else None)


def labels(pairs: Pairs) -> list[int]:
    """The smallest row that each row is connected to."""
    label = np.arange(len(pairs.first))
    ends = np.concatenate([pairs.first, pairs.left]), np.concatenate([np.arange(len(label)), pairs.right])
    for _ in label:
        np.minimum.at(label, ends[0], label[ends[1]])
        np.minimum.at(label, ends[1], label[ends[0]])
    return label.tolist()


def tables(folder: Path) -> dict[str, pa.Table]:
    return {file.name: pq.read_table(file) for file in sorted(folder.glob("*.parquet"))}


@pytest.fixture
def checked(tmp_path: Path) -> CheckedRows:
    write(tmp_path / "rows.parquet", messy(1, 4000), 300)
    return CheckedRows(folder=tmp_path, digest="messy", num_rows=4000, num_quarantined=0, reasons={}, findings={})


@pytest.fixture(scope="module", autouse=True)
def token() -> Iterator[None]:
    """Only who has it can talk to the clusters of these tests; Ray reads the mode when it is first imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        yield


@pytest.fixture(scope="module")
def two_nodes(token: None) -> Iterator[None]:
    """Connected to a cluster of two nodes with a worker each, on the loopback interface."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20, "node_ip_address": "127.0.0.2"}
    nodes = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    with pytest.MonkeyPatch.context() as patch:
        try:
            nodes.add_node(**node)
            patch.setenv("RAY_ADDRESS", str(nodes.address))
            patch.setattr(cluster, "FEWEST_ROWS", 500)
            with engine_of("ray"):  # which the stages find, and leave as it is
                yield
        finally:
            nodes.shutdown()


@contextmanager
def in_this_process(parts: int) -> Iterator[Engine]:
    """The engine with its work done here and at once."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (cluster, machine_cluster):
            patch.setattr(module, "run", lambda function, *arguments, returns=1: function(*arguments))
            patch.setattr(module, "get", lambda references: references)
            patch.setattr(module, "put", lambda value: value)
        patch.setattr(machine_cluster, "versions", lambda module: {})
        patch.setattr(cluster, "FEWEST_ROWS", 4)
        engine = Ray.__new__(Ray)
        engine.parts = parts
        yield engine


def compare(rows: list[dict[str, Any]], threshold: float, parts: int, enough: int, rows_of_a_group: int) -> None:
    """All that an engine finds, of rows in pieces and of rows that lie together."""
    chosen = np.flatnonzero(np.arange(len(rows)) % 5 != 3)

    def found_by(engine: Engine) -> list[Any]:
        guarded = engine.sets(engine.over_batches(file, ["messages"], shingled, guarded=True))[chosen]
        sets = engine.sets(engine.over_batches(file, ["messages"], shingled, guarded=False))[chosen]
        nearest = engine.nearest_across(sets, np.arange(len(chosen)) % 3, threshold / 2)
        return [
            *(column.tolist() for column in engine.leaders(guarded, threshold)),
            *(column.tolist() for column in vars(engine.similar_pairs(sets, threshold, enough=len(rows))).values()),
            labels(engine.similar_pairs(sets, threshold, enough)),
            (nearest.one, nearest.other, nearest.similarity),
        ]

    with tempfile.TemporaryDirectory() as folder, in_this_process(parts) as pieces:
        file = write(Path(folder) / "rows.parquet", rows, rows_of_a_group)
        assert found_by(pieces) == found_by(Engine())


@given(
    st.lists(st.tuples(st.lists(st.sampled_from("abcde"), max_size=9), st.sampled_from("xy")), max_size=25),
    st.sampled_from([0.3, 0.6, 2 / 3, 1.0]),
    st.sampled_from([2, 4, 64]),
    st.sampled_from([0, 1]),
)
@settings(max_examples=100, deadline=None)
def test_rows_that_lie_in_pieces_are_compared_as_if_they_lay_together(
    said: list[tuple[list[str], str]], threshold: float, parts: int, enough: int
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": " ".join(words)}, {"role": "assistant", "content": answer}]}
        for words, answer in said
    ]
    compare(rows, threshold, parts, enough, rows_of_a_group=3)


@pytest.mark.parametrize("parts", [2, 16])
def test_longer_rows_that_lie_in_pieces_are_compared_as_if_they_lay_together(parts: int) -> None:
    compare(messy(2, 1000), 0.5, parts, enough=4, rows_of_a_group=100)


@pytest.mark.parametrize(("parts", "seed"), [(2, 1), (8, 1), (2, 9), (8, 9)])
def test_of_equally_near_pairs_the_one_with_the_smallest_sets_is_named_then_the_first(parts: int, seed: int) -> None:
    rng = random.Random(seed)
    made = [" ".join(rng.choice("abcd") for _ in range(rng.randint(2, 6))) for _ in range(100)]
    texts = [*{frozenset(shingles_of(text)): text for text in made}.values()]
    rank = {row: (len(shingles_of(text)), row) for row, text in enumerate(texts)}
    splits = np.arange(len(texts)) % 2
    across = [(i, j) for i in rank for j in rank if rank[j] < rank[i] and splits[i] != splits[j]]
    later, earlier = min(across, key=lambda pair: (-jaccard(texts[pair[0]], texts[pair[1]]), *map(rank.get, pair)))
    rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": ""}]} for text in texts]
    with tempfile.TemporaryDirectory() as folder, in_this_process(parts) as pieces:
        file = write(Path(folder) / "rows.parquet", rows, 7)
        for engine in (pieces, Engine()):
            sets = engine.sets(engine.over_batches(file, ["messages"], shingled, guarded=False))
            nearest = engine.nearest_across(sets, splits, 0.2)
            assert (nearest.one, nearest.other) == (min(later, earlier), max(later, earlier))


def test_a_cluster_removes_the_same_rows_for_the_same_reasons(
    two_nodes: None, checked: CheckedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Dedupe(max_removed_share=1)
    key = cached_part(dedupe).key(checked, settings)
    assert cached_part(dedupe).key(checked, settings, engine="ray") == key, "what the other made is found"
    here = dedupe.fn(checked, settings)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "there"))
    there = dedupe.fn(checked, settings, engine="ray")
    assert here.reasons.keys() == {"exact_duplicate", "near_duplicate"}
    assert tables(there.folder) == tables(here.folder)
    assert there.digest == here.digest


def test_a_cluster_puts_the_same_rows_on_the_same_splits(
    two_nodes: None, checked: CheckedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unique = dedupe.fn(checked, Dedupe(max_removed_share=1))
    table = pq.read_table(unique.path("rows.parquet")).drop_columns("use_as")
    user_provided_splits = pa.array(["test" if row % 20 == 0 else None for row in range(len(table))], pa.string())
    table = table.append_column("use_as", user_provided_splits).select(ROW_SCHEMA.names)
    pq.write_table(table, unique.path("rows.parquet"), row_group_size=300)
    here = split.fn(unique, held_out_rows([]), Split(threshold=0.5), None)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "there"))
    there = split.fn(unique, held_out_rows([]), Split(threshold=0.5), None, engine="ray")
    assert here.num_clusters < 0.9 * unique.num_rows
    assert here.reasons["repeats_test_row"] > 100
    assert there.digest == here.digest and tables(there.folder) == tables(here.folder)
    assert there.largest_similarity == here.largest_similarity > 0.375


def test_a_cluster_parses_the_same_rows_and_only_lines_that_are_new(
    two_nodes: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.tasks.ingest.parts.TILE_LINES", 100)
    lines = [json.dumps({"messages": row["messages"]}) for row in messy(3, 950)]
    lines[500], lines[700] = "{", json.dumps({"messages": []})
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines) + "\n")
    data = Data(sources=(Source(path=str(file)),))

    def read(engine: EngineName) -> Rows:
        return ingest.fn(data, source_files(data), engine=engine)

    here = read("local")
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "there"))
    there = read("ray")
    assert there.digest == here.digest and tables(there.folder) == tables(here.folder)
    assert there.model_dump(exclude={"folder"}) == here.model_dump(exclude={"folder"})
    assert there.num_quarantined == 2

    file.write_text(file.read_text() + lines[0] + "\n")
    sent: list[object] = []
    parse = machine_cluster.run
    monkeypatch.setattr(machine_cluster, "run", lambda f, work, item: [sent.append(item), parse(f, work, item)][1])
    assert read("ray").num_rows == 949
    assert [item is not None for item in sent] == [False] * 9 + [True], "what another run parsed is found"


def test_a_cluster_checks_rows_with_the_same_outcome(
    two_nodes: None, make_rows: MakeRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.data_checks.batches.BATCH", 7)
    rows = make_rows([*GOOD * 4, *BAD.values(), *FOUND.values()])
    loose = Checks(max_quarantined_share=1)
    here = check.fn(rows, loose, SPECIAL)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "there"))
    there = check.fn(rows, loose, SPECIAL, engine="ray")
    assert there.digest == here.digest and tables(there.folder) == tables(here.folder)
    assert there.reasons == here.reasons and len(there.reasons) > 5
    assert there.findings == here.findings


def test_a_cluster_writes_the_same_tokens_and_labels(
    two_nodes: None, make_splits: MakeSplits, tiny_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tunewright.tasks.render.BATCH", 8)
    rows = [("Where is my order?" * (1 + n % 7), f"It left {n}.") for n in range(60)]
    splits = make_splits(rows[:40], rows[40:50], rows[50:])
    settings = Model(base="tiny", max_length=60, on_long="quarantine")
    here = render.fn(splits, tiny_base, settings)
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "there"))
    there = render.fn(splits, tiny_base, settings, engine="ray")
    assert there.digest == here.digest and tables(there.folder) == tables(here.folder)
    assert there.num_quarantined == here.num_quarantined > 0


def test_what_a_worker_raises_is_raised_here(two_nodes: None) -> None:
    with worker_map("ray") as apply:
        found = apply(json.loads, ["1", "2", "x"] + ["3"] * 50)
        assert [next(found), next(found)] == [1, 2]
        with pytest.raises(json.JSONDecodeError, match=r"^Expecting value: line 1 column 1 \(char 0\)$"):
            next(found)


def test_a_node_with_other_code_is_refused_in_one_line(
    two_nodes: None, checked: CheckedRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_cluster, "versions", lambda module: {"tunewright.tasks.dedupe:read": "another"})
    with pytest.raises(ConfigError, match=r"^the Ray node .* has another version of tunewright.*$"):
        dedupe.fn(checked, Dedupe(), engine="ray")


def test_a_node_that_does_not_see_the_file_is_named_with_it(tmp_path: Path) -> None:
    work = machine_cluster.BatchWork(read, {}, {})
    with pytest.raises(ConfigError, match=r"rows\.parquet: the Ray node .* cannot see it; TUNEWRIGHT_HOME"):
        spread.on_piece(work, tmp_path / "rows.parquet", [], (0,))


def test_a_cluster_of_this_machine_ends_with_a_stage_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    run = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, timeout=120)
    assert (run.stdout, run.stderr) == ("Ray True True\na stage fails 0\n", "")


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'tunewright\[ray\]'"), engine_of("ray"):
        pass


def test_an_address_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"^RAY_ADDRESS={address}: .*; accepted: host:port"), engine_of("ray"):
        pass
