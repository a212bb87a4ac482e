"""`tunewright doctor`: what of this machine, this environment and this home would hinder a run, and how to fix it.

Each of its functions yields findings and changes nothing; none reaches the network beyond this machine and the servers
that the settings name.
"""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from tunewright import config
from tunewright.cli.doctor.environment import Finding, of_hardware, of_safety, of_software
from tunewright.cli.doctor.home import of_home, of_servers
from tunewright.reports.pages import counted

SIGNS = {"ok": "ok", "warning": "!", "failure": "FAIL"}


def findings() -> Iterator[Finding]:
    """All of them, in the order in which they are read. What the libraries would be told is told first."""
    config.quiet_libraries()
    for found in (of_software, of_hardware, of_home, of_servers, of_safety):
        yield from found()


def show(console: Console, found: list[Finding]) -> None:
    """A line each, with its fix beneath."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in found:
        table.add_row(SIGNS[each.state], each.what, each.found)
        if each.fix:
            table.add_row("", "", f"fix: {each.fix}")
    console.print(table, markup=False)
    failures, warnings = (sum(each.state == state for each in found) for state in ("failure", "warning"))
    console.print(f"\n{counted(failures, 'failure')}, {counted(warnings, 'warning')}")


def as_json(found: list[Finding]) -> dict[str, Any]:
    """Return the output of `--json`."""
    return {"findings": [each._asdict() for each in found]}
