"""A home that is no folder, or that cannot be written, is one line for every command, as for a run."""

import ctypes
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
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

    home.mkdir()
    with pytest.raises(typer.Exit) as ended:
        failing(home / "made" / ".x.lock")
    line = f"TUNEWRIGHT_HOME={home}: cannot be written: {os.strerror(number)}; accepted: a folder to write to"
    assert ended.value.exit_code == 2
    said = capsys.readouterr()
    assert said.err == f"error: {line}\n"
    assert json.loads(said.out) == {"error": line, "exit_code": 2}
    with pytest.raises((OSError, typer.Exit)):  # of another place
        failing(tmp_path / "elsewhere")
    assert "TUNEWRIGHT_HOME=" not in capsys.readouterr().err


def test_the_line_says_what_is_wrong_with_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")

    def why(place: Path) -> str:
        monkeypatch.setenv("TUNEWRIGHT_HOME", str(place))
        with pytest.raises(ConfigError) as refused:
            config.make_home()
        begins, ends = f"TUNEWRIGHT_HOME={place}: ", "; accepted: a folder to write to"
        assert str(refused.value).startswith(begins) and str(refused.value).endswith(ends)
        return str(refused.value).removeprefix(begins).removesuffix(ends)

    assert why(tmp_path / "file") == "is a file, not a folder"
    assert why(tmp_path / "file" / "home") == f"{tmp_path / 'file'} is a file, not a folder"
    assert why(tmp_path / "link") == "is a link to nothing"
    assert why(Path("/proc/tw")) == "cannot be created here: No such file or directory"


ALL_OF_THEM = """
import json, sys
from typer.testing import CliRunner
from tunewright.cli.main import app
for words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, words)
    print(json.dumps([done.exit_code, done.stderr]))
"""


def drop_privileges() -> None:
    """Lets the permissions of files hold for root too, in a process that is about to begin another program."""
    if os.getuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
            assert libc.prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP


def test_commands_that_only_read_work_without_the_permission_to_write(
    register_candidate: Callable[..., Any], home: Path, tmp_path: Path
) -> None:
    register_candidate()
    (home / "versions").mkdir(exist_ok=True)
    (home / "versions" / "tickets.jsonl").write_text("")
    moved = home.rename(tmp_path / "moved")
    reading = [["release", "history", "triage"], ["clean"], ["home", "backup", str(tmp_path / "home.tar")]]
    commands = [*reading, ["clean", "--yes"], ["release", "withdraw", "triage", "--reason", "bad"]]
    places = [moved, *moved.rglob("*")]
    for place in places:
        place.chmod(place.stat().st_mode & ~0o222)
    done = subprocess.run(
        [sys.executable, "-c", ALL_OF_THEM, json.dumps(commands)],
        env=os.environ | {"TUNEWRIGHT_HOME": str(moved), "MLFLOW_TRACKING_URI": ""},  # MLflow sets it in this process
        preexec_fn=drop_privileges,
        capture_output=True,
        text=True,
        check=True,
    )
    for place in places:
        place.chmod(place.stat().st_mode | 0o200)
    *read, cleaned, withdrawn = map(json.loads, done.stdout.splitlines())
    assert read == [[0, ""]] * len(reading)
    line = f"error: TUNEWRIGHT_HOME={moved}: cannot be written: Permission denied; accepted: a folder to write to\n"
    assert (cleaned, withdrawn) == ([2, line], [2, line])


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
    assert training["methods"][0]["steps"] == 96
    assert not home.exists()
