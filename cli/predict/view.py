"""The output of `tunewright predict`, in a terminal and as JSON."""

from typing import Any

from rich.console import Console
from rich.text import Text

from tunewright.cli.predict.answering import Predicted
from tunewright.reports.pages import counted
from tunewright.reports.progress import duration


def show(console: Console, found: Predicted, *, quiet: bool) -> None:
    """Print how many records were answered, how many were refused and why, and where the answers are."""
    which = f"version {found.version} of {found.name}{f' (@{found.alias})' if found.alias else ''}"
    said = f"{found.num_answered:,} of {counted(found.num_records, 'record')}, by {which}, in {duration(found.seconds)}"
    if found.num_resumed:
        said += f"; {found.num_resumed:,} of them by an earlier call"
    console.print(Text.assemble(("Answered: ", "bold green"), said), soft_wrap=True)
    if quiet:
        return
    if found.reasons:
        console.print(Text(f"{counted(found.reasons.total(), 'record')} refused, without an answer:", "yellow"))
        for line in found.said_of_refused():
            console.print(Text(f"  {line}", "yellow"), soft_wrap=True)
    if found.num_cut_off:
        limited, limit = counted(found.num_cut_off, "answer"), counted(found.max_new_tokens, "token")
        said = f"{limited} ran to the limit of {limit}; --max-new-tokens allows more"
        console.print(Text(said, "yellow"), soft_wrap=True)
    console.print(Text.assemble((f"{'answers':<20}", "bold"), str(found.output)), soft_wrap=True)


def as_json(found: Predicted) -> dict[str, Any]:
    """Return the output of `--json`."""
    return {
        "name": found.name,
        "version": found.version,
        "alias": found.alias,
        "files": list(found.files),
        "output": str(found.output.absolute()),
        "records": found.num_records,
        "answered": found.num_answered,
        "refused": found.reasons.total(),
        "reasons": dict(found.reasons),
        "cut_off": found.num_cut_off,
        "resumed": found.num_resumed,
        "max_new_tokens": found.max_new_tokens,
        "seconds": found.seconds,
    }
