"""The faults of benchmarks/faults.py: each strikes a run at a random moment, and says when it did."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fault_bench import Bench, Proxy, living, one_of, wait

STAGES = ("ingest", "base", "check", "dedupe", "split", "render", "train", "evaluate", "decide", "verdict_page")
TRAINER = "tasks.trainer"
OUTAGE_SECONDS = 12.0
ROOM = "64m"  # of a small disk, once there is room again


@dataclass
class Scene:
    """A run that is to be disturbed."""

    bench: Bench
    home: Path
    chance: random.Random
    seconds: float  # that an undisturbed run takes
    training: float  # seconds of these
    process: subprocess.Popen[bytes]
    begun: float  # when it did, by time.monotonic
    proxy: Proxy | None
    second: subprocess.Popen[bytes] | None = None

    def stage(self) -> str:
        """The stage that it is in, by its log."""
        lines = self.home.with_suffix(".log").read_text(encoding="utf-8", errors="replace").splitlines()
        names = [line.split()[0] for line in lines if line.split() and line.split()[0] in (*STAGES, "register")]
        return names[-1] if names else "start"

    def sleep(self, earliest: float = 0.02, latest: float = 0.98) -> None:
        """Until a random moment between two shares of what an undisturbed run takes."""
        until = self.begun + self.seconds * self.chance.uniform(earliest, latest)
        while time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.02)

    def kill(self) -> None:
        """Ends the run as a power cut would."""
        for process in living(self.home):
            with contextlib.suppress(OSError, LookupError):
                os.kill(process.pid, signal.SIGKILL)
        self.process.wait()


Strike = Callable[[Scene], None]


@dataclass(frozen=True)
class Fault:
    """A kind of fault, and what it needs."""

    name: str
    strike: Strike
    needs: str = ""  # "proxy", "disk", "prefect" or "up"


def flow(sent: signal.Signals) -> Strike:
    """Sends a signal to the run itself."""

    def strike(scene: Scene) -> None:
        scene.sleep()
        scene.process.send_signal(sent)

    return strike


def trainer(sent: signal.Signals) -> Strike:
    """Sends a signal to the trainer at a random moment of its life."""

    def strike(scene: Scene) -> None:
        found = wait(lambda: one_of(scene.home, TRAINER) or scene.process.poll() is not None, 300.0)
        time.sleep(scene.training * scene.chance.random())
        with contextlib.suppress(LookupError, OSError, AttributeError):
            os.kill(found.pid, sent)

    return strike


def service(words: str, sent: signal.Signals) -> Strike:
    """Sends a signal to the process whose command has these words."""

    def strike(scene: Scene) -> None:
        scene.sleep(0.1)
        if found := one_of(scene.home, words):
            os.kill(found.pid, sent)

    return strike


def mlflow_fails(mode: str) -> Strike:
    """MLflow's answers fail from a moment on when the training is about to end, and the champion is looked up."""

    def strike(scene: Scene) -> None:
        assert scene.proxy
        trained = partial(_files, scene.home, "artifacts/train/*/manifest.json")
        wait(lambda: trained() or scene.process.poll() is not None, 300.0)
        time.sleep(scene.chance.uniform(0.0, 6.0))
        scene.proxy.fail(mode, OUTAGE_SECONDS)  # pyright: ignore[reportArgumentType] one of its modes

    return strike


def _files(home: Path, pattern: str) -> list[Path]:
    return list(home.glob(pattern))


def harm(file: Path, chance: random.Random) -> str:
    """Truncates, flips, empties or removes a file, and says which."""
    what = chance.choice(("truncated", "flipped", "emptied", "removed"))
    content = bytearray(file.read_bytes())
    if what == "removed":
        file.unlink()
    elif what == "flipped" and content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2] if what == "truncated" else b"")
    return what


def artifact_harmed(scene: Scene) -> None:
    """A power cut in the later part of a run, after which a file of an artifact is not as it was."""
    scene.sleep(0.4)
    scene.kill()
    files = [file for file in scene.home.glob("artifacts/*/[!.]*/**/*") if file.is_file()]
    if files:
        harm(scene.chance.choice(sorted(files)), scene.chance)


def checkpoint_harmed(scene: Scene) -> None:
    """A power cut in training, after which a file of the newest checkpoint is not as it was."""
    sealed = partial(_files, scene.home, "work/train/*/checkpoints/checkpoint-*/manifest.json")
    wait(lambda: len(sealed()) >= 2 or scene.process.poll() is not None, 300.0, 0.01)
    time.sleep(scene.training * scene.chance.uniform(0, 0.2))
    scene.kill()
    if found := sealed():
        newest = max((each.parent for each in found), key=lambda each: int(each.name.rpartition("-")[2]))
        harm(scene.chance.choice(sorted(file for file in newest.iterdir() if file.is_file())), scene.chance)


def database_cut(scene: Scene) -> None:
    """A power cut while MLflow's database is made."""
    wait(lambda: (scene.home / ".mlflow.db.unfinished").exists() or scene.process.poll() is not None, 300.0, 0.01)
    time.sleep(scene.chance.uniform(0.0, 5.0))
    scene.kill()


def database_removed(scene: Scene) -> None:
    """A power cut, after which MLflow's database is gone."""
    scene.sleep(0.6)
    scene.kill()
    (scene.home / "mlflow.db").unlink(missing_ok=True)


def two_at_once(scene: Scene) -> None:
    """The same command once more, a moment later."""
    time.sleep(scene.chance.uniform(0.0, 3.0))
    scene.second = scene.bench.start(scene.home, "run", "tiny.yaml")


def nothing(scene: Scene) -> None:
    """The disk was small from the start."""


FAULTS = (
    Fault("kill -9 the run", flow(signal.SIGKILL)),
    Fault("SIGTERM the run", flow(signal.SIGTERM)),
    Fault("kill -9 the trainer", trainer(signal.SIGKILL)),
    Fault("SIGTERM the trainer", trainer(signal.SIGTERM)),
    Fault("SIGSTOP the trainer", trainer(signal.SIGSTOP)),
    Fault("full disk", nothing, "disk"),
    Fault("file of a checkpoint", checkpoint_harmed),
    Fault("file of an artifact", artifact_harmed),
    Fault("MLflow answers 503", mlflow_fails("503"), "proxy"),
    Fault("MLflow is gone", mlflow_fails("dead"), "proxy"),
    Fault("MLflow hangs", mlflow_fails("hangs"), "proxy"),
    Fault("cut while mlflow.db is made", database_cut),
    Fault("mlflow.db removed", database_removed),
    Fault("two runs at once", two_at_once),
    Fault("kill -9 Prefect's server", service("prefect.server.api", signal.SIGKILL), "prefect"),
    Fault("SIGTERM Prefect's server", service("prefect.server.api", signal.SIGTERM), "prefect"),
    Fault("up: kill -9 the worker", service("worker start", signal.SIGKILL), "up"),
    Fault("up: SIGTERM the worker", service("worker start", signal.SIGTERM), "up"),
    Fault("up: kill -9 Prefect", service("prefect_app", signal.SIGKILL), "up"),
    Fault("up: kill -9 MLflow", service("mlflow server", signal.SIGKILL), "up"),
    Fault("up: kill -9 the run", service("prefect.engine", signal.SIGKILL), "up"),
    Fault("up: kill -9 the trainer", service(TRAINER, signal.SIGKILL), "up"),
)


def small_disk(home: Path, size: int) -> Callable[[bool], None]:
    """Puts the home on a disk of so many bytes. What is returned gives it room, or takes the disk away for good."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(home)], check=True)

    def change(take: bool) -> None:
        command = ["umount", "-l", str(home)] if take else ["mount", "-o", f"remount,size={ROOM}", str(home)]
        subprocess.run(command, check=True)

    return change


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a disk."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    probe = folder / "probe"
    probe.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(probe)], capture_output=True, check=False
    )
    if mounted.returncode == 0:
        subprocess.run(["umount", str(probe)], check=True)
    probe.rmdir()
    return mounted.returncode == 0


def in_background(strike: Strike, scene: Scene) -> threading.Thread:
    """Strikes while the caller waits for the run."""
    thread = threading.Thread(target=strike, args=(scene,), daemon=True)
    thread.start()
    return thread
