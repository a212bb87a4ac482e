"""Tries the team's expectations on a few made-up rows, so that what can never run is told before anything does."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from tunewright.accepted import shown
from tunewright.data_checks.batches import HASHES, Ask, look_at
from tunewright.data_checks.columns import Columns
from tunewright.data_checks.own import TEXTS, looks_at_texts, own_expectation, stop_on_column
from tunewright.data_checks.rules import Expected, columns_of
from tunewright.data_checks.suite import Entry, SuiteError
from tunewright.data_checks.validation import ExpectationOutcome, run
from tunewright.privacy.excerpts import in_a_line

SAID = (  # in JSON: on other texts some of Great Expectations' own classes raise, which need not meet any
    ('"Where is my order with the number 1042?"', '"It left on Monday and arrives tomorrow."'),
    ('"How do I reset the password of my account?"', '"Open the settings and choose a new one."'),
    ('"Can I have an invoice for my last purchase?"', '"Of course, it is on its way to you."'),
)


def try_out(entries: Sequence[Entry], schema: pa.Schema) -> None:
    """Holds made-up rows of a row table's schema against each expectation of the team's.

    Raises SuiteError for the first that cannot be made, that names a column which rows do not have, or that Great
    Expectations cannot evaluate. What the team's own code raises is left to the run: it may be the made-up rows.
    """
    made = [own_expectation(entry) for entry in entries]
    columns = [*TEXTS, *(name for name in schema.names if name not in ("messages", "chat")), *Columns._fields, *HASHES]
    for entry, each in zip(entries, made, strict=True):
        stop_on_column(entry, each, columns)
    asked = {entry.key: entry for entry in entries}
    for outcome in _outcomes(entries, made, schema):
        entry = asked[outcome.entry.key]
        # Whether the error came out of the package, or the module, that a class of the team's lies in.
        package = entry.name.partition(".")[0]
        files = [Path(file).with_suffix("") for file in re.findall(r'File "([^"]+)"', outcome.trace)]
        is_own = package != "great_expectations" and any(package in file.parts for file in files)
        if outcome.error and not is_own:
            said = f"={shown(entry.given)} of {entry.name} cannot be evaluated: {in_a_line(outcome.error)}"
            raise SuiteError(f"{entry.key}.arguments", said)


def _outcomes(entries: Sequence[Entry], made: Sequence[Expected], schema: pa.Schema) -> list[ExpectationOutcome]:
    of_rows = [each for each in made if not looks_at_texts(each)]
    of_texts = [entry for entry, each in zip(entries, made, strict=True) if looks_at_texts(each)]
    named = {"num_turns", *(column for each in made for column in columns_of(each.expectation))}
    looked = look_at(_rows(schema), Ask(frozenset(named) & frozenset(Columns._fields), (), tuple(of_texts)))
    frame = looked.columns.to_pandas(types_mapper=pd.ArrowDtype)
    return [*(run(frame, of_rows) if of_rows else []), *looked.of_texts]


def _rows(schema: pa.Schema) -> pa.RecordBatch:
    """Rows with a value in every column."""
    texts = {"source": "orders", "file": "orders.jsonl", "use_as": "train", "repairs": "nfc"}
    rows = [
        {"row_id": f"{number:064x}", "group": f"customer {number}", "time": f"2026-01-0{number}T00:00:00Z"}
        | {"line": number, "byte": 100 * number, **texts}
        | {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
        for number, (prompt, answer) in enumerate(SAID, start=1)
    ]
    return pa.Table.from_pylist(rows, schema).to_batches()[0]
