"""Calls of `tunewright export` in tests, and the error of one that was refused."""

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tunewright.cli.main import app


def export(folder: Path, *options: str) -> Any:
    """The result of a command that exports version 1 of triage to a folder."""
    return CliRunner().invoke(app, ["export", "triage", str(folder), *options])


def refused(result: Any, folder: Path, code: int = 1) -> str:
    """The error of a command that left nothing."""
    assert result.exit_code == code, result.output
    assert not folder.exists() or not any(folder.iterdir())
    assert not list(folder.parent.glob(f".{folder.name}.*"))
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line
