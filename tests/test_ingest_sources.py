"""Kinds of source: files, globs, archives, objects in stores and data sets of the hub, each with an identity."""

import gzip
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingested import GOOD, cached, run, tables, texts

from tunewright.config import Data, Source
from tunewright.errors import ConfigError, DataError
from tunewright.tasks.ingest import files as files_module
from tunewright.tasks.ingest import source_files
from tunewright.tasks.prompt.documents import documents

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def found(*sources: Source | str) -> dict[str, str]:
    """The digest of each file that the sources mean."""
    named = tuple(Source(path=source) if isinstance(source, str) else source for source in sources)
    return {file.path: file.digest for file in source_files(Data(sources=named))}


def test_a_file_that_lies_in_a_folder_below_is_named() -> None:
    Path("data/more").mkdir(parents=True)
    Path("data/bank.jsonl").write_bytes(GOOD)
    Path("data/more/other.jsonl").write_bytes(GOOD)
    Path(".cache").mkdir()
    Path(".cache/a.jsonl").write_bytes(GOOD)
    with pytest.raises(ConfigError, match=r"no such file in .*; did you mean data/bank.jsonl\?$"):
        found("bank.jsonl")
    with pytest.raises(
        ConfigError, match=r"no such file in .*, whose data files are data/bank.jsonl, data/more/other.jsonl$"
    ):
        found("a.jsonl")


def test_links_that_lead_round_in_a_circle_end_soon_in_one_line() -> None:
    """Each of two links doubles the paths at each of 40 levels, also where no file matches."""
    for folder in ("data/a", "data/b", "data/other"):
        Path(folder).mkdir(parents=True)
    Path("data/a/rows.jsonl").write_bytes(GOOD)
    Path("data/b/elsewhere").symlink_to("../other")
    Path("data/same").symlink_to("other")
    Path("data/.hidden").symlink_to(".")
    assert [*found("data/**/*.jsonl")] == ["data/a/rows.jsonl"]
    for link, to in (("data/a/to_b", "../b"), ("data/b/to_a", "../a"), ("data/b/back", ".")):
        Path(link).symlink_to(to)
    said = r"\[0\](?:\.path)?=\S+: (?:\./)?data/\S+ is a link to a folder that it lies in, which \*\* would follow"
    for pattern in ("data/**/*.jsonl", "data/*/**/*.csv", "./**/rows.jsonl"):
        with pytest.raises(ConfigError, match=rf"^data\.sources{said}"):
            found(pattern)
        with pytest.raises(ConfigError, match=rf"^evaluation\.documents{said}"):
            documents([pattern])


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trian.jsonl", r"data.sources\[0\].path=trian.jsonl: no such file in .*; did you mean train.jsonl\?"),
        ("other.jsonl", r"no such file in .*, whose data files are notes.txt, train.jsonl$"),
        ("folder/train.jsonl", r"no such file in .*folder, which has no data files$"),
        ("nowhere/a.jsonl", r"no such file: there is no folder .*nowhere$"),
        ("*.csv", r"no file matches in .*, whose data files are notes.txt, train.jsonl$"),
        ("nowhere/*/a.jsonl", r"no file matches: there is no folder .*nowhere$"),
        ("folder", r"is a folder; accepted: a file or a glob such as folder/\*.jsonl"),
        (
            "notes.txt",
            r"path=notes.txt: ends in '.txt'; accepted: .jsonl, .ndjson, .json, .csv, .parquet, .arrow, .tsv, also",
        ),
        ("*.txt", r"path=\*.txt: notes.txt ends in '.txt'; accepted: .jsonl"),
        ("hub:name", r"path=hub:name: accepted: hub:org/name or hub:org/name/config:split"),
        ("nosuch://a/b.jsonl", "cannot be downloaded .*Protocol not known: nosuch"),
        ("memory://none.jsonl", "no such object$"),
        ("https://127.0.0.1:9/a.jsonl", r"cannot be downloaded \(ClientConnectorError: Cannot connect to host"),
        ("memory://none/*.jsonl", "no object"),
    ],
)
def test_a_source_that_names_nothing_readable_is_a_config_error(path: str, message: str) -> None:
    Path("train.jsonl").write_bytes(GOOD)
    Path("notes.txt").write_bytes(GOOD)
    Path("folder").mkdir()
    with pytest.raises(ConfigError, match=message) as caught:
        found(path)
    assert "\n" not in str(caught.value)


def test_a_store_whose_library_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "adlfs", None)
    with pytest.raises(
        ConfigError, match=r"path=abfss://a/b.jsonl: adlfs is not installed; pip install 'tunewright\[az"
    ):
        found("abfss://a/b.jsonl")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"columns": {"instructoin": "a"}},
            r"sources\[0\].columns: instructoin is not a known field; did you mean instr",
        ),
        (
            {"columns": {"frage": "prompt"}},
            r"frage is not a known field; did you mean \{prompt: frage\}\? accepted: answers, chosen, compl",
        ),
        ({"columns": {"question": "a"}}, "question is not a known field; accepted: answers, chosen, completion, "),
        ({"revision": "main"}, "revision=main: only a hub data set"),
    ],
)
def test_settings_that_would_do_nothing_are_config_errors(source: dict[str, Any], message: str) -> None:
    Path("a.jsonl").write_bytes(GOOD)
    with pytest.raises(ConfigError, match=message):
        found(Source(path="a.jsonl", **source))


def test_a_file_without_permission_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    Path("a.jsonl").write_bytes(GOOD)
    monkeypatch.setattr(files_module, "digest_of", refuse)
    with pytest.raises(ConfigError, match=r"a.jsonl: cannot be read \(Permission denied\)"):
        found("a.jsonl")


def test_sources_are_expanded_in_order_and_no_file_is_read_twice() -> None:
    for name in ("b.jsonl", "a.jsonl", "z.jsonl"):
        Path(name).write_bytes(GOOD)
    Path("c.jsonl").mkdir()
    assert list(found("z.jsonl", "[ab].*")) == ["z.jsonl", "a.jsonl", "b.jsonl"]
    with pytest.raises(ConfigError, match=r"z.jsonl is already read by data.sources\[0\]; list each file once"):
        found("z.jsonl", "*.jsonl")
    with pytest.raises(ConfigError, match=r"held_out\[0\].path=a.jsonl: a.jsonl is already read by data.sources\[0\]"):
        source_files(Data(sources=(Source(path="a.jsonl"),), held_out=(Source(path="a.jsonl"),)))


@pytest.mark.parametrize("compression", ["gz", "zst"])
@pytest.mark.parametrize("format", ["jsonl", "json", "csv"])
def test_a_compressed_file_is_read_as_the_plain_one(format: str, compression: str) -> None:  # noqa: A002 the settings' word
    plain = {"jsonl": GOOD + b"\n{\n", "json": b"[" + GOOD + b",{}]", "csv": b"prompt,completion\na,b\nc\n"}[format]
    codec = {"gz": "gzip", "zst": "zstd"}[compression]
    packed = b"".join(pa.compress(half, codec, asbytes=True) for half in (plain[:20], plain[20:]))  # two members
    Path(f"a.{format}").write_bytes(plain)
    Path(f"b.{format}.{compression}").write_bytes(packed)
    Path(f"c.{format}").write_bytes(packed)  # its ending does not say that it is compressed
    rows = run(f"a.{format}", f"b.{format}.{compression}", f"c.{format}")
    kept, refused = tables(rows)
    assert len(kept) == len(refused) == 3
    assert len({(row["row_id"], row["line"], row["byte"]) for row in kept}) == 1
    assert [detected.split(",")[0] for detected in rows.detected.values()] == [
        format,
        f"{format}.{compression}",
        f"{format}.{compression}",
    ]


def test_parquet_in_an_archive_is_refused() -> None:
    Path("a.parquet.gz").write_bytes(gzip.compress(b"PAR1"))
    with pytest.raises(DataError, match="Parquet compresses its columns itself"):
        found("a.parquet.gz")


@pytest.fixture
def memory() -> Iterator[Any]:
    """An empty store inside this process."""
    import fsspec

    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def test_a_url_is_identified_by_content_where_its_store_says_too_little(memory: Any) -> None:
    memory.pipe("/data/b.jsonl", GOOD)
    memory.pipe("/data/a.jsonl.gz", gzip.compress(GOOD))
    before = found("memory://data/*")
    assert list(before) == ["memory:///data/a.jsonl.gz", "memory:///data/b.jsonl"]
    memory.pipe("/data/b.jsonl", GOOD)  # again, at another time
    assert found("memory://data/*") == before
    memory.pipe("/data/b.jsonl", GOOD + b" ")
    assert found("memory://data/*") != before
    rows = run("memory://data/*")
    assert rows.num_rows == 2
    assert tables(rows)[0][0]["source"] == "a.jsonl.gz"


def test_an_object_that_changes_while_it_is_read_is_refused(memory: Any) -> None:
    memory.pipe("/a.jsonl", GOOD)
    data = Data(sources=(Source(path="memory://a.jsonl"),))
    files = source_files(data)
    memory.pipe("/a.jsonl", GOOD + b"\n" + GOOD)
    with pytest.raises(DataError, match="changed while it was read"):
        cached(data, files)


def test_objects_in_s3_are_read_and_not_read_again_until_they_change(
    s3: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.pipe("bucket/day=1/a.jsonl", GOOD + b"\n{\n")
    s3.pipe("bucket/day=2/b.jsonl.gz", gzip.compress(GOOD))
    pq.write_table(pa.table({"prompt": ["a"], "completion": ["b"]}), "c.parquet")
    s3.put("c.parquet", "bucket/day=2/c.parquet")
    data = Data(sources=(Source(path="s3://bucket/*/*"),), max_refused_share=0.5)
    rows = cached(data, source_files(data))
    kept, refused = tables(rows)
    assert [(row["file"], row["line"], row["byte"]) for row in kept] == [
        ("s3://bucket/day=1/a.jsonl", 1, 0),
        ("s3://bucket/day=2/b.jsonl.gz", 1, 0),
        ("s3://bucket/day=2/c.parquet", 1, None),
    ]
    assert [(entry["line"], entry["byte"]) for entry in refused] == [(2, 48)]
    s3.pipe("bucket/day=3/d.jsonl", GOOD)

    opened: list[str] = []
    monkeypatch.setattr(
        "tunewright.tasks.ingest.opening.opened",
        lambda path, of=files_module.stores.opened: opened.append(path) or of(path),
    )
    files = source_files(data)
    opened.clear()  # looking at how each begins
    assert cached(data, files).num_rows == 4
    assert opened == ["s3://bucket/day=3/d.jsonl"]
    manifests = "".join(path.read_text() for path in home.rglob("manifest.json"))
    assert "ETag" in manifests
    assert "hush-hush" not in manifests

    before = found("s3://bucket/day=1/a.jsonl")
    s3.pipe("bucket/day=1/a.jsonl", GOOD + b"\n")
    assert found("s3://bucket/day=1/a.jsonl") != before
    with pytest.raises(ConfigError, match=r"path=s3://bucket/none.jsonl: no such object"):
        found("s3://bucket/none.jsonl")
    s3.clear_instance_cache()
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(ConfigError, match=r"cannot be downloaded .*[Cc]redentials"):
        found("s3://bucket/day=1/a.jsonl")


@pytest.mark.parametrize(
    "url",
    [
        "https://ann:hush@host/a.jsonl",
        "https://ghp_hush@host/a.jsonl",
        "https://a@hush@host/a.jsonl",
        "https://host/a.jsonl?X-Amz-Signature=hush",
        "https://host/a?sig=hush",
        "HTTPS://host/a?api_key=hush",
        "https://host/a?key=hush",
        "http://host/a?hush",
        "simplecache::https://host/a?access_key=hush",
        "https://host/a?\nhush",
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    expected = r"(?i)https?://host/a.*: a URL with credentials or a query; leave them out and set"
    with pytest.raises(ValueError, match=expected) as caught:
        Source(path=url)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    "path", ["https://host/a@b.jsonl", "s3://bucket/part-?.jsonl", "https://host/a?", "data/?@.csv"]
)
def test_a_path_without_credentials_is_accepted(path: str) -> None:
    assert Source(path=path).path == path


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache that `datasets` leaves for org/my_data at COMMIT, with the network unreachable."""
    import datasets
    import datasets.config
    from datasets.arrow_writer import ArrowWriter

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "more": datasets.Value("int8"),
        }
    )
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "hub" / "org___my_data" / "default" / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    info = datasets.DatasetInfo(features=features, config_name="default", dataset_name="my_data", version="0.0.0")
    info.splits = datasets.SplitDict()
    for split, labels in {"train": [0, 1, -1], "test": [1]}.items():
        writer = ArrowWriter(path=str(folder / f"my_data-{split}.arrow"), features=features)
        for number, label in enumerate(labels):
            writer.write({"text": f"{split} {number}", "label": label, "more": 1})
        num_examples, num_bytes = writer.finalize()
        info.splits.add(
            datasets.SplitInfo(split, num_bytes=num_bytes, num_examples=num_examples, dataset_name="my_data")
        )
    info.write_to_directory(str(folder))
    return folder


COLUMNS = {"prompt": "text", "completion": "label"}


def test_a_hub_data_set_is_read_at_its_commit(hub_cache: Path) -> None:
    source = Source(path="hub:org/my_data/default:test", columns=COLUMNS)
    rows = run(Source(path="hub:org/my_data", columns=COLUMNS, revision=COMMIT[:8]), source)
    assert found(source) == {"hub:org/my_data/default:test": COMMIT}
    kept, refused = tables(rows)
    assert [texts(row) for row in kept] == [["train 0", "no"], ["train 1", "yes"], ["test 0", "yes"]]
    assert [(row["file"], row["line"], row["byte"]) for row in kept][2] == ("hub:org/my_data/default:test", 1, None)
    assert [(entry["line"], entry["reason"]) for entry in refused] == [(3, "null_field")]  # -1 is no label
    assert rows.detected["hub:org/my_data"] == "hub, prompt_completion"


@pytest.mark.parametrize(
    ("path", "revision", "message"),
    [
        (
            "hub:org/other",
            None,
            r"path=hub:org/other: cannot download it from the hub \(offline: .* not in the cache\)",
        ),
        ("hub:org/my_data/small", None, "Available configs in the cache: .'default'."),
        ("hub:org/my_data", "main", f"offline, and the copy in the cache is {COMMIT}, not revision main"),
        ("hub:org/my_data:tset", None, "there is no split tset; accepted: train, test"),
    ],
)
def test_a_hub_data_set_that_is_not_there_is_one_clear_line(
    hub_cache: Path, path: str, revision: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        run(Source(path=path, revision=revision))
    assert "\n" not in str(caught.value)


def test_a_hub_data_set_without_a_known_column_is_refused(hub_cache: Path) -> None:
    with pytest.raises(DataError, match=r"hub:org/my_data: no known column in \['text', 'label', "):
        run("hub:org/my_data")


def test_a_folder_is_never_read_for_a_hub_data_set_of_its_name(hub_cache: Path) -> None:
    Path("org/my_data").mkdir(parents=True)
    Path("org/my_data/train.jsonl").write_bytes(GOOD)
    with pytest.raises(ConfigError, match=r"path=hub:org/my_data: .*/org/my_data has that name too; run elsewhere"):
        found("hub:org/my_data")


def test_what_identifies_a_hub_data_set_is_a_commit(hub_cache: Path) -> None:
    hub_cache.rename(hub_cache.with_name("local-copy"))
    with pytest.raises(ConfigError, match="path=hub:org/my_data: local-copy is not a commit of 40 hex digits"):
        found("hub:org/my_data")


def test_an_older_copy_of_a_hub_data_set_is_not_taken_silently(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.load._raise_if_offline_mode_is_enabled", _unreachable)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    with pytest.raises(
        ConfigError, match="the hub does not answer; HF_HUB_OFFLINE=1 takes the copy in the cache, 0123"
    ):
        found("hub:org/my_data")


def _unreachable() -> None:
    raise ConnectionError("no route to host")


def test_a_run_with_a_hub_data_set_may_reach_the_hub_though_its_base_is_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.config import Model, Settings, prepare_environment

    for path, offline in (("a.jsonl", "1"), ("hub:org/name", None)):
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        prepare_environment(Settings(data=Data(sources=(Source(path=path),)), model=Model(base=str(tmp_path))))
        assert os.environ.get("HF_HUB_OFFLINE") == offline
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_hub_data_set_has_no_format() -> None:
    with pytest.raises(ConfigError, match="a hub data set has no format setting"):
        found(Source(path="hub:org/my_data", format="jsonl"))
