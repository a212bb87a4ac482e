"""No text of a row, a file name or an error steers a terminal."""

import io
import json
import os
import pty
import subprocess
from contextlib import suppress

import pytest
import typer
from rich.table import Table
from rich.text import Text
from servers import TUNEWRIGHT

from tunewright.cli import command_line
from tunewright.cli.visible import Visible, as_line
from tunewright.errors import DataError
from tunewright.privacy.excerpts import in_a_line

HALF = "\ud800"  # of a surrogate pair, which no terminal's encoding has
HOSTILE = "a\x1b]52;c;cm0gLXJm\x07b\x1b[2Jc\x9b31md\u202ee\x7f\r"
STEERS = "\x1b\x07\x9b\u202e\x7f\r"


def test_what_is_printed_steers_no_terminal() -> None:
    out = io.StringIO()
    console = Visible(file=out, force_terminal=True, width=100, highlight=False, color_system="truecolor")
    table = Table("text")
    table.add_row(Text(HOSTILE))
    console.print(table)
    console.print(Text(HOSTILE, "bold"), HOSTILE, markup=False)
    shown = out.getvalue()
    assert shown.count("\u241b]52;c;cm0gLXJm") == 3
    assert not {*"\x07\x9b\u202e\x7f\r"} & {*shown}
    assert "\x1b[1m" in shown, "its own styles are there"
    assert "\x1b]52" not in shown and "\x1b[2J" not in shown


def test_an_error_and_json_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), command_line.one_line_errors(as_json=True):
        raise DataError(f"{HOSTILE}.jsonl: bad")
    said = capsys.readouterr()
    assert not {*STEERS} & {*said.err, *said.out}
    assert "\u241b" in said.err
    assert json.loads(as_line({"text": HOSTILE})) == {"text": HOSTILE}


def test_an_error_and_a_value_that_a_log_prints_as_they_are_steer_no_terminal() -> None:
    for said in (str(DataError(f"{HOSTILE}.jsonl: bad")), in_a_line(HOSTILE)):
        assert not {*STEERS} & {*said} and "\u241b" in said


def test_half_of_a_surrogate_pair_can_be_printed() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    Visible(file=out).print(HALF, as_line({"text": HALF}), markup=False)


@pytest.mark.parametrize("command", ["settings gate", "--help", "plan --help", "release --help", "doctor"])
def test_no_color_is_no_style_at_all(command: str) -> None:
    """In a terminal, where rich leaves bold and dim on."""

    def printed(**environment: str) -> bytes:
        master, slave = pty.openpty()
        base = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
        with subprocess.Popen(
            [*TUNEWRIGHT, *command.split()],
            stdout=slave,
            stderr=slave,
            env={**base, "TERM": "xterm-256color", **environment},
        ) as process:
            os.close(slave)
            shown = b""
            with suppress(OSError):  # how the other end is closed
                while piece := os.read(master, 65_536):
                    shown += piece
            os.close(master)
        assert process.returncode == 0
        return shown

    assert b"\x1b[" in printed() or command == "doctor"
    assert b"\x1b" not in printed(NO_COLOR="1")
