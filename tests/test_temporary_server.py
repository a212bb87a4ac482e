"""The server that Prefect starts for one run takes no signals of the terminal, and does not outlive the run."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

RUN = """
import time
from prefect import flow
from flows import temporary_server

temporary_server.outlive_signals()

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
    said = "from flows import temporary_server; temporary_server.outlive_signals(); import sys; print(*sys.modules)"
    environment = os.environ | {"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run([sys.executable, "-c", said], env=environment, capture_output=True, text=True, check=True)
    assert "prefect.server.api.server" not in done.stdout.split()
