"""Another machine's part in a run: it waits for the run, trains in each attempt that it is called to, and ends with it.

It needs neither the deployment file, nor the rows, nor the base: all that it lacks comes from the first machine.
"""

import logging
import platform
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tunewright import config, cost_model
from tunewright.errors import ConfigError
from tunewright.store import cache_key, needless
from tunewright.tasks.train import stage, trainer
from tunewright.tasks.train.rendezvous import CalledJob
from tunewright.tasks.train.trainer.attempt import ATTEMPT, Meeting, of_attempt

if TYPE_CHECKING:  # torch takes seconds
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] documented

log = logging.getLogger("tunewright")

POLL_SECONDS = 0.5
NAMED = 3  # differences that are named


def join(meeting: Meeting) -> bool:
    """Take part in the trainings of the run that serves the address, and return whether the run ended well.

    Waits for the run, also again where it is killed. Raises ConfigError where code or packages are others here.
    """
    from torch.distributed import DistError

    needless.remove_stale(config.home() / "artifacts" / "join")
    log.info("waiting for the run at %s", meeting)
    while True:
        if not _answers(meeting):
            time.sleep(POLL_SECONDS)
            continue
        try:
            return _until_ended(meeting)
        except DistError:
            log.warning("the run at %s is gone; waiting for it to come back", meeting)


def _answers(meeting: Meeting) -> bool:
    with suppress(OSError), socket.create_connection(meeting, timeout=10):
        return True
    return False


def _until_ended(meeting: Meeting) -> bool:
    store, done = meeting.store(), 0
    store.add("here", 1)
    log.info("joined the run at %s", meeting)
    while not store.check(["ended"]):
        if (number := store.add("attempts", 0)) > done:
            done = number
            _take_part(meeting, store, number)
        time.sleep(POLL_SECONDS)
    store.add("left", 1)
    return store.get("ended") == b"0"


def _take_part(meeting: Meeting, whole: "Store", number: int) -> None:
    store = of_attempt(number, whole)
    call = CalledJob.model_validate_json(store.get("call"))
    job = call.job
    if differing := _differing(call):
        refusal = f"{platform.node()} cannot train with the run at {meeting}: {differing}; install the same on each"
        store.set("refused", refusal)
        raise ConfigError(refusal)
    with cost_model.on_devices(job.compute.devices):
        if store.check(["code 0"]) or (node := store.add("joined", 1)) >= job.compute.nodes:
            log.info("the training has its %d machines; waiting for the next one", job.compute.nodes)
            return
        log.info("training as machine %d of %d", node + 1, job.compute.nodes)
        part = {ATTEMPT: f"{meeting} {number} {node} {job.compute.nodes}"}
        folder = config.home() / "work" / "join"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as own:
            with stage.started(job, Path(own), part) as process:
                code = process.wait()
            if code in (trainer.FINISHED, trainer.INTERRUPTED):
                log.info("the training %s", "is done" if code == trainer.FINISHED else "was stopped")
            else:
                log.warning("the attempt ended: %s", stage.error_in(Path(own)))


def _differing(call: CalledJob) -> str:
    """The differences of code and packages from those of the call; empty where there are none."""
    here = cache_key.of_call({}, stage.__name__, stage.LIBRARIES)
    names = cache_key.differing(call.versions, here)
    said = [
        f"{name.removeprefix('library ')} is {here.get(name)} here and {call.versions.get(name)} there"
        for name in names
        if not name.startswith("code ")
    ]
    said += ["another version of Tunewright's code is here"] * any(name.startswith("code ") for name in names)
    return "; ".join(said[:NAMED])
