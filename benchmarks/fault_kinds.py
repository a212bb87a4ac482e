"""The faults of benchmarks/faults.py: each strikes a run at a random moment, and notes when it did."""

import contextlib
import ctypes
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
from fault_bench import RUN_SECONDS, Bench, Proxy, living, one_of, wait

STAGE = re.compile(
    r"^(?:.* tunewright - )?(ingest|base|check|dedupe|split|render|train|evaluate|decide|verdict_page|register)\b", re.M
)
TRAINER = "tunewright.tasks.train.trainer"
OUTAGE_SECONDS = 12.0
ROOM = "64m"  # of a small disk, once there is room again
CLONE_NEWNS = 0x20000  # linux/sched.h
T = TypeVar("T")


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
    moment: str = ""  # when it was struck; "" where it had ended before

    def stage(self) -> str:
        """The stage that it is in, by its log, or by that of the worker."""
        logs = [log for log in (self.home / "logs" / "worker.log", self.home.with_suffix(".log")) if log.exists()]
        names = STAGE.findall(logs[0].read_text(encoding="utf-8", errors="replace"))
        return names[-1] if names else "start"

    def sleep(self, earliest: float = 0.02, latest: float = 0.98) -> None:
        """Until a random moment between two shares of what an undisturbed run takes."""
        until = self.begun + self.seconds * self.chance.uniform(earliest, latest)
        while time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.02)

    def until(self, found: Callable[[], T | None], step: float = 0.05) -> T | None:
        """The first value that is true; None where the run ends before there is one."""
        return wait(lambda: found() or self.process.poll() is not None, RUN_SECONDS, step) and found()

    def is_hit(self) -> bool:
        """Notes the moment of the fault, unless the run has ended."""
        if self.process.poll() is None:
            self.moment = f"{time.monotonic() - self.begun:.0f} s, {self.stage()}"
        return bool(self.moment)

    def send(self, process: psutil.Process | None, sent: signal.Signals) -> None:
        """Sends a signal to one of its processes."""
        with contextlib.suppress(psutil.Error):
            if process and process.is_running() and self.is_hit():
                process.send_signal(sent)

    def kill(self) -> bool:
        """Ends the run as a power cut would; False where it had ended before."""
        if not self.is_hit():
            return False
        for process in living(self.home):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()
        return True


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
        run = psutil.Process(scene.process.pid)
        scene.sleep()
        scene.send(run, sent)

    return strike


def trainer(sent: signal.Signals) -> Strike:
    """Sends a signal to the trainer at a random moment of its life."""

    def strike(scene: Scene) -> None:
        found = scene.until(partial(one_of, scene.home, TRAINER))
        time.sleep(scene.training * scene.chance.random())
        scene.send(found, sent)

    return strike


def service(words: str, sent: signal.Signals) -> Strike:
    """Sends a signal to the process whose command has these words, as soon as it is there."""

    def strike(scene: Scene) -> None:
        scene.sleep(0.1)
        scene.send(scene.until(partial(one_of, scene.home, words)), sent)

    return strike


def mlflow_fails(mode: str) -> Strike:
    """MLflow's answers fail from a moment on when the training is about to end, and the champion is looked up."""

    def strike(scene: Scene) -> None:
        assert scene.proxy
        scene.until(partial(_files, scene.home, "artifacts/train/*/manifest.json"))
        time.sleep(scene.chance.uniform(0.0, 6.0))
        if scene.is_hit():
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
    if scene.kill():
        files = [file for file in scene.home.glob("artifacts/*/[!.]*/**/*") if file.is_file()]
        _harm_one(scene, files)


def checkpoint_harmed(scene: Scene) -> None:
    """A power cut in training, after which a file of the newest checkpoint is not as it was."""
    sealed = partial(_files, scene.home, "work/train/*/checkpoints/checkpoint-*/manifest.json")
    scene.until(lambda: len(sealed()) >= 2, 0.01)
    time.sleep(scene.training * scene.chance.uniform(0, 0.2))
    if scene.kill():
        newest = max((each.parent for each in sealed()), key=_step, default=scene.home)
        _harm_one(scene, [file for file in newest.iterdir() if file.is_file()] if newest != scene.home else [])


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _harm_one(scene: Scene, files: list[Path]) -> None:
    """Harms one of the files, and notes which; where there is none, the fault did not come about."""
    if not files:
        scene.moment = ""
        return
    file = scene.chance.choice(sorted(files))
    scene.moment += f": {file.name} {harm(file, scene.chance)}"


def database_cut(scene: Scene) -> None:
    """A power cut while MLflow's database is made."""
    scene.until(lambda: (scene.home / ".mlflow.db.unfinished").exists(), 0.01)
    time.sleep(scene.chance.uniform(0.0, 5.0))
    scene.kill()


def database_removed(scene: Scene) -> None:
    """A power cut once MLflow's database is there, after which it is gone."""
    database = scene.home / "mlflow.db"
    scene.until(database.exists, 0.01)
    time.sleep(scene.chance.uniform(0.0, 5.0))
    if scene.kill():
        database.unlink()


def two_at_once(scene: Scene) -> None:
    """The same command once more, a moment later."""
    time.sleep(scene.chance.uniform(0.0, 3.0))
    if scene.is_hit():
        scene.second = scene.bench.start(scene.home, "run", "tiny.yaml")
        scene.second.wait()  # since the kernel ends what a thread has started when that thread ends


def small_disk(scene: Scene) -> None:
    """The disk was small from the start, and full by the time that the run fails."""
    if scene.process.wait():
        scene.moment = "from the start"


FAULTS = (
    Fault("kill -9 the run", flow(signal.SIGKILL)),
    Fault("SIGTERM the run", flow(signal.SIGTERM)),
    Fault("kill -9 the trainer", trainer(signal.SIGKILL)),
    Fault("SIGTERM the trainer", trainer(signal.SIGTERM)),
    Fault("SIGSTOP the trainer", trainer(signal.SIGSTOP)),
    Fault("full disk", small_disk, "disk"),
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
    Fault("up: kill -9 the trainer", trainer(signal.SIGKILL), "up"),
)


def own_mounts() -> bool:
    """Gives this process and its children mounts of their own, which go when the last of them ends.

    False where the user may not.
    """
    is_own = hasattr(ctypes.CDLL(None), "unshare") and ctypes.CDLL(None).unshare(CLONE_NEWNS) == 0
    return is_own and subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode == 0


def mount_small(home: Path, size: int) -> Callable[[bool], None]:
    """Puts the home on a disk of so many bytes. What is returned gives it room, or takes the disk away for good."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(home)], check=True)

    def change(take: bool) -> None:
        command = ["umount", "-l", str(home)] if take else ["mount", "-o", f"remount,size={ROOM}", str(home)]
        subprocess.run(command, check=True)

    return change
