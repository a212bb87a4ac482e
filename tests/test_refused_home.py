"""A home that is no folder, or that cannot be written, is one line for every command, as for a run."""

import errno
import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest
import typer
from typer.testing import CliRunner

from tunewright import config
from tunewright.cli import command_line
from tunewright.cli.main import app
from tunewright.errors import ConfigError
from tunewright.modeling import architecture

DEMO = str(Path(__file__).parent.parent / "deployments" / "demo.yaml")


@pytest.mark.parametrize(
    "command",
    [
        ("plan", DEMO),
        ("data", DEMO),
        ("clean",),
        ("compare", DEMO),
        ("deploy", DEMO),
        ("release", "history", "tiny"),
        ("home", "backup", "home.tar"),
    ],
)
@pytest.mark.parametrize("below", ["", "home"])
def test_every_command_says_as_a_run_does_that_the_home_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], below: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNEWRIGHT_HOME", str(tmp_path / "file" / below))
    with pytest.raises(ConfigError) as refused:
        config.make_home()
    result = CliRunner().invoke(app, [*command, "--json"])
    assert (result.exit_code, result.stderr) == (2, f"error: {refused.value}\n")
    assert json.loads(result.stdout) == {"error": str(refused.value), "exit_code": 2}


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOTDIR])
def test_a_home_that_cannot_be_written_is_the_line_of_a_run(
    number: int, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(place: Path) -> None:
        with command_line.one_line_errors(as_json=True):
            raise OSError(number, os.strerror(number), str(place))

    with pytest.raises(typer.Exit) as ended:
        failing(home / "made" / ".x.lock")
    line = f"TUNEWRIGHT_HOME={home}: {os.strerror(number)}; accepted: a folder to write to"
    assert ended.value.exit_code == 2
    said = capsys.readouterr()
    assert said.err == f"error: {line}\n"
    assert json.loads(said.out) == {"error": line, "exit_code": 2}
    with pytest.raises((OSError, typer.Exit)):  # of another place
        failing(tmp_path / "elsewhere")
    assert "TUNEWRIGHT_HOME=" not in capsys.readouterr().err


def test_a_plan_on_a_home_that_is_only_read_probes_the_base_and_keeps_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = config.refused_home(OSError(errno.EROFS, os.strerror(errno.EROFS)))
    monkeypatch.setattr("tunewright.config.make_home", Mock(side_effect=refused))
    architecture._kept.cache_clear()
    result = CliRunner().invoke(app, ["plan", DEMO, "--json"])
    architecture._kept.cache_clear()  # what was kept nowhere is probed again by the next test
    assert result.exit_code == 0, result.stderr
    training = json.loads(result.stdout.splitlines()[-1])["training"]
    assert training["methods"][0]["steps"] == 80
    assert not home.exists()
