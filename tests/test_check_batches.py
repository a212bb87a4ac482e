"""Rows are looked at batch by batch in bounded memory, and how they are cut changes nothing."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checked import BAD, FOUND, GOOD, SPECIAL, changed
from conftest import MakeRows

from tunewright.data_checks.batches import Ask, look, row_batches
from tunewright.data_checks.columns import Columns
from tunewright.tasks.check.validate import validate_rows


def test_the_number_of_processes_and_batches_changes_nothing(
    make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows([*GOOD, *BAD.values(), *FOUND.values()])
    ask = Ask(frozenset(Columns._fields), SPECIAL)
    (whole,) = look(rows.path("rows.parquet"), ask)
    monkeypatch.setattr("tunewright.data_checks.batches.BATCH", 3)
    parts = list(look(rows.path("rows.parquet"), ask, processes=2))
    assert len(parts) == 6
    assert pa.concat_tables(part.columns for part in parts).combine_chunks().equals(whole.columns.combine_chunks())


@pytest.mark.parametrize("rows_of_a_group", [1, 7, 64])
def test_rows_of_long_texts_come_few_at_a_time_however_the_table_was_written(
    make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch, rows_of_a_group: int
) -> None:
    monkeypatch.setattr("tunewright.data_checks.batches.BATCH", 12)
    monkeypatch.setattr("tunewright.data_checks.batches.BATCH_BYTES", 50_000)
    long = [(f"{n}" + "p" * 10_000, "a") for n in range(20)]
    file = make_rows([*long, *[(f"question {n}", "a") for n in range(30)]]).path("rows.parquet")
    table = pq.read_table(file)
    pq.write_table(table, file, row_group_size=rows_of_a_group)
    batches = list(row_batches(file))
    assert pa.Table.from_batches(batches).combine_chunks().equals(table.combine_chunks())
    assert max(map(len, batches)) <= 12
    assert max(batch.nbytes for batch in batches) <= 50_000
    assert rows_of_a_group > 1 or len(batches) == 7  # five of four long texts or more


def test_no_more_batches_wait_than_there_are_processes_and_one(
    make_rows: MakeRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []

    class Pool(contextlib.AbstractContextManager["Pool"]):
        def submit(self, of: Callable[..., Any], batch: pa.RecordBatch) -> Future[Any]:
            given.append(len(batch))
            future: Future[Any] = Future()
            future.set_result(of(batch))
            return future

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr("tunewright.data_checks.batches._pool", lambda _: Pool())
    monkeypatch.setattr("tunewright.data_checks.batches.BATCH", 1)
    looked = look(make_rows(GOOD * 3).path("rows.parquet"), Ask(frozenset({"num_turns"}), SPECIAL), processes=2)
    assert [len(given) - taken for taken, _ in enumerate(looked)] == [3] * 10 + [2, 1]


def test_costly_columns_are_derived_only_where_something_looks_at_them(make_rows: MakeRows) -> None:
    from tunewright.data_checks.suite import suite

    file = make_rows(GOOD).path("rows.parquet")
    assert "secret" in validate_rows(file, suite(()), SPECIAL).frame
    off = changed({"name": "secrets", "severity": "skip"})
    assert "secret" not in validate_rows(file, suite(off.expectations), SPECIAL).frame
    named = changed(
        {"name": "secrets", "severity": "skip"},
        {"name": "great_expectations.expectations.ExpectColumnValuesToBeNull", "arguments": {"column": "secret"}},
    )
    assert "secret" in validate_rows(file, suite(named.expectations), SPECIAL).frame
