"""Helpers for tests of ingest: read files without the cache, and read the results."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tunewright.artifacts import QUARANTINE_SCHEMA, ROW_SCHEMA, Rows
from tunewright.config import Data, Source
from tunewright.tasks.ingest import ingest, source_files

GOOD = b'{"instruction": "Say hello", "output": "Hello"}'
MESSAGES = [{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "Hello"}]

cached: Any = ingest.fn


def run(*sources: str | Source, **options: Any) -> Rows:
    """Ingests the sources into a new folder, letting any share be refused."""
    named = tuple(Source(path=source) if isinstance(source, str) else source for source in sources)
    data = Data(sources=named, **{"max_refused_share": 1, **options})
    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    return cached.build(folder, data, source_files(data)).model_copy(update={"folder": folder})


def read(content: bytes, name: str = "a.jsonl", **options: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The kept rows and the refusals of one file."""
    Path(name).write_bytes(content)
    return tables(run(name, **options))


def tables(rows: Rows) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The kept rows and the refusals, their account checked."""
    kept, refused = pq.read_table(rows.path("rows.parquet")), pq.read_table(rows.path("quarantine.parquet"))
    assert kept.schema.equals(ROW_SCHEMA)
    assert refused.schema.equals(QUARANTINE_SCHEMA)
    assert (rows.num_rows, rows.num_quarantined) == (kept.num_rows, refused.num_rows)
    assert rows.num_read == rows.num_rows + rows.num_quarantined
    assert rows.reasons == Counter(sorted(refused["reason"].to_pylist()))
    assert list(rows.reasons) == sorted(rows.reasons)
    return kept.to_pylist(), refused.to_pylist()


def texts(row: dict[str, Any]) -> list[str]:
    """Return the contents of a row's turns."""
    return [turn["content"] for turn in row["messages"]]


def turns(*pairs: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    """A record in the layout of OpenAI."""
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **more}
