"""The summary of a run says all that was done to the rows."""

from io import StringIO
from typing import Any

from rich.console import Console

from flows import terminal
from flows.calls import Step
from flows.outcome import Outcome
from tasks.artifacts import Rows


def summary(**rows: Any) -> str:
    """What a person reads after a run that ended with ingest."""
    record = Rows(num_read=20, num_rows=19, num_quarantined=1, reasons={"bad_json": 1}, detected={}, **rows)
    console = Console(file=StringIO(), width=120, highlight=False)
    terminal.show_outcome(console, Outcome.of([Step(stage="ingest", state="ran", record=record)]), "x.yaml")
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_repairs_are_counted_where_some_were_made() -> None:
    assert "repaired: mojibake 12, nfc 3" in summary(repaired={"mojibake": 12, "nfc": 3})
    assert "repaired" not in summary()
