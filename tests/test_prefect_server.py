"""The server that Prefect starts for one run takes no signals of the terminal, and does not outlive the run."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)

from flows import temporary_server
from tasks.errors import TunewrightError

RUN = """
import time
from prefect import flow
from flows import temporary_server

temporary_server.start()

@flow
def run() -> None:
    from prefect.server.api.server import SubprocessASGIServer

    print(SubprocessASGIServer().server_process.pid, flush=True)
    time.sleep(60)

run()
"""


def test_the_server_of_a_run_is_out_of_reach_of_the_terminal_and_ends_with_the_run(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | {
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    }
    with subprocess.Popen(
        [sys.executable, "-c", RUN], env=environment, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout
        server = psutil.Process(int(run.stdout.readline()))
        assert os.getsid(server.pid) == server.pid != os.getsid(run.pid)
        os.kill(run.pid, signal.SIGKILL)
    gone, _ = psutil.wait_procs([server], timeout=20)
    assert gone


def test_a_run_that_uses_another_server_starts_none(tmp_path: Path) -> None:
    said = "from flows import temporary_server; temporary_server.start(); import sys; print(*sys.modules)"
    environment = os.environ | {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run([sys.executable, "-c", said], env=environment, capture_output=True, text=True, check=True)
    assert "prefect.server.api.server" not in done.stdout.split()


def test_one_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    updates: dict[Any, Any] = {
        PREFECT_HOME: tmp_path,
        PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{tmp_path}/none/prefect.db",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 1,
    }
    with (
        temporary_settings(updates, restore_defaults=(PREFECT_API_URL,)),
        pytest.raises(TunewrightError, match=r"did not answer within 1 s: see what .*DATABASE_CONNECTION_URL can be"),
    ):
        temporary_server.start()
