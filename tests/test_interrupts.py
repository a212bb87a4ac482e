"""Ctrl-C and SIGTERM are one line and exit code 130 or 143 at any moment of a command, also during its imports."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tunewright.cli import interrupts

ROOT = Path(__file__).parents[1]
DEMO = str(ROOT / "deployments" / "demo.yaml")
INTERRUPTED = "error: interrupted\n"
RESUMED = "error: interrupted; the next run resumes from the last finished stage or checkpoint\n"
TERMINATED = RESUMED.replace("interrupted", "ended by SIGTERM, not finished")
AT_IMPORT = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from tunewright.cli.main import main
main()
"""
SWALLOWED = """
import os, signal, sys

class Swallowing:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            try:
                os.kill(os.getpid(), {number})
            except BaseException as error:
                print("Failed to initialize plugins:", repr(error))

sys.meta_path.insert(0, Swallowing())
from tunewright.cli.main import main
main()
"""
AT_THE_END = """
import atexit, os, signal
from tunewright.cli.main import main
atexit.register(os.kill, os.getpid(), signal.SIGINT)
main()
"""
COMMANDS = {
    "run": ("run", DEMO),
    "plan": ("plan", DEMO),
    "compare": ("compare", DEMO, "--vary", "training.batch=8,16"),
    "data": ("data", DEMO),
    "history": ("release", "history", "demo"),
    "deploy": ("deploy", DEMO),
    "doctor": ("doctor",),
    "settings": ("settings",),
}
UP = "from tunewright.cli.main import main; main()"


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "TUNEWRIGHT_HOME": str(home), "PYTHONPATH": str(ROOT), "PREFECT_API_URL": ""}


def called(code: str, *arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("module", ["tunewright.cli.command_line", "typer", "pydantic", "yaml"])
def test_while_the_command_line_is_imported(module: str, tmp_path: Path) -> None:
    done = called(AT_IMPORT.format(module=module), "settings", home=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (130, INTERRUPTED, "")


@pytest.mark.parametrize(
    ("command", "module"),
    [
        *(
            ("run", "numpy"),
            ("run", "prefect"),
            ("run", "tunewright.flows.finetune"),
            ("plan", "prefect"),
            ("plan", "torch"),
        ),
        *(
            ("compare", "tunewright.cli.deployment_file"),
            ("compare", "prefect"),
            ("data", "pyarrow"),
            ("data", "numpy"),
        ),
        *(("history", "mlflow"), ("history", "sqlalchemy"), ("deploy", "tunewright.cli.deploy"), ("doctor", "psutil")),
        *(("doctor", "tunewright.cli.doctor.environment"), ("settings", "tunewright.cli.settings")),
    ],
)
def test_while_a_command_imports_what_it_needs(command: str, module: str, tmp_path: Path) -> None:
    if command == "history":
        (tmp_path / "mlflow.db").touch()  # without which nothing is looked up
    code = AT_IMPORT.format(module=module)
    if command == "deploy":
        code = f"import os; os.environ['PREFECT_API_URL'] = 'http://127.0.0.1:9/api'\n{code}"
    done = called(code, *COMMANDS[command], home=tmp_path)
    assert (done.returncode, done.stderr) == (130, RESUMED if command in ("run", "compare") else INTERRUPTED)


def test_once_it_is_done_and_python_ends(tmp_path: Path) -> None:
    done = called(AT_THE_END, "settings", home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "training.epochs" in done.stdout
    failed = called(AT_THE_END, "settings", "nosuch", home=tmp_path)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1


def ports() -> tuple[str, str, str, str]:
    """Options of `up` that name two free ports."""
    with socket.socket() as one, socket.socket() as other:
        for each in (one, other):
            each.bind(("127.0.0.1", 0))
        return "--port", str(one.getsockname()[1]), "--mlflow-port", str(other.getsockname()[1])


@pytest.mark.parametrize("module", ["tunewright.cli.up.database", "prefect.settings", "prefect.client.orchestration"])
def test_a_library_that_swallows_it_does_not_keep_up_from_ending(module: str, tmp_path: Path) -> None:
    done = called(SWALLOWED.format(module=module, number=2), "up", *ports(), home=tmp_path / "home")
    assert (done.returncode, done.stderr, done.stdout) == (130, INTERRUPTED, "")
    assert not (tmp_path / "home" / "logs").exists()  # no process was started


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, RESUMED), (signal.SIGTERM, TERMINATED)])
def test_a_library_that_swallows_it_does_not_keep_a_run_from_ending(number: int, said: str, tmp_path: Path) -> None:
    code = SWALLOWED.format(module="prefect", number=int(number))
    done = called(code, *COMMANDS["run"], home=tmp_path / "home")
    assert (done.returncode, done.stderr, done.stdout) == (128 + number, said, "")


def test_what_was_swallowed_is_known_before_anything_is_started() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.raised():
        interrupts.raise_if_came()
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        interrupts.raise_if_came()
        pytest.fail("it went on")
    interrupts.raise_if_came()


def test_a_program_gets_its_line_of_json(tmp_path: Path) -> None:
    early = called(AT_IMPORT.format(module="typer"), "settings", "--json", home=tmp_path)
    late = called(AT_IMPORT.format(module="tunewright.cli.settings"), "settings", "--json", home=tmp_path)
    assert early.stdout == late.stdout == '{"error": "interrupted", "exit_code": 130}\n'


def test_a_library_that_makes_another_error_of_it_changes_nothing() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.raised():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot import name 'x'") from None


def test_who_imports_the_command_line_keeps_its_own_answer() -> None:
    done = called(
        "import signal, tunewright.cli.main; print(signal.getsignal(2) is signal.default_int_handler)", home=Path()
    )
    assert done.stdout == "True\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5, 4.0])
def test_up_ends_with_its_children_and_no_traceback(seconds: float, number: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", UP, "up", *ports()],
        env=environment(tmp_path / "home"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    time.sleep(seconds)
    with suppress(ProcessLookupError):
        os.kill(process.pid, number) if number == signal.SIGTERM else os.killpg(process.pid, number)
    said = process.communicate(timeout=120)[0]
    assert "Traceback" not in said
    line = "error: ended by SIGTERM\n" if number == signal.SIGTERM else INTERRUPTED
    if "all stopped" in said:  # it had begun to start its services
        assert process.returncode == (143 if number == signal.SIGTERM else 0)
        assert [each for each in said.splitlines() if "stopped" in each or "error" in each] == ["all stopped"]
        assert len(said.splitlines()) <= 4  # with what was ready by then
    elif process.returncode != -signal.SIGTERM:  # before Python has begun with ours
        assert (process.returncode, said) == (128 + number, line)


def test_the_child_that_makes_mlflows_database_is_out_of_the_terminals_reach(tmp_path: Path) -> None:
    """Ctrl-C comes once the child has begun, to all that the terminal started."""
    code = """
import os, signal, threading
from tunewright.cli.up import database
def strike():
    while not os.listdir("."): pass
    os.killpg(0, signal.SIGINT)
threading.Thread(target=strike, daemon=True).start()
try:
    database.make()
except KeyboardInterrupt:
    print("ended")
"""
    home = tmp_path / "home"
    home.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(home),
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.communicate(timeout=120) == ("ended\n", "")
    assert not (home / "mlflow.db").exists()
