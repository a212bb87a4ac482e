"""Where the machines of a training meet: a store of torch's that the run serves for as long as it lasts.

It listens on the address that TUNEWRIGHT_RENDEZVOUS names and on no other. Other machines join by `tunewright join`
(joining.py), take part in each attempt at a training that is called out here, and end with the run.
"""

import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tunewright import config
from tunewright.errors import ConfigError
from tunewright.tasks.train.trainer import Job
from tunewright.tasks.train.trainer.attempt import ATTEMPT, Meeting, of_attempt

if TYPE_CHECKING:  # torch takes seconds
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] documented

log = logging.getLogger("tunewright")

LEAVE_SECONDS = 5.0  # for the other machines to see that the run has ended
POLL_SECONDS = 0.1
_SERVED: list[tuple[Meeting, "Store"]] = []  # by this process


class CalledJob(BaseModel, frozen=True):
    """The call to take part in an attempt: its job, and the code and packages that each machine must have."""

    job: Job
    versions: dict[str, Any]


@contextlib.contextmanager
def served(nodes: int) -> Iterator[None]:
    """Serves the store in the block, where `nodes` is more than one; a block within such a block uses the same.

    Raises ConfigError where TUNEWRIGHT_RENDEZVOUS is not set, or nothing can listen there.
    """
    if nodes == 1 or _SERVED:
        yield
        return
    if not (given := config.rendezvous()):
        raise ConfigError(
            f"compute.nodes={nodes}: TUNEWRIGHT_RENDEZVOUS is not set; accepted: HOST:PORT, an address of this machine "
            "that the others reach in a private network"
        )
    meeting = Meeting.of(given, "TUNEWRIGHT_RENDEZVOUS")
    try:
        family, *_, place = socket.getaddrinfo(*meeting, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(place, family=family)
    except OSError as error:
        raise ConfigError(
            f"TUNEWRIGHT_RENDEZVOUS={meeting}: nothing can listen there ({error.strerror}); accepted: an address of "
            "this machine and a free port"
        ) from error
    store = meeting.served(listening.detach())
    _SERVED.append((meeting, store))
    log.info("  %d machines train together; on each of the others: tunewright join %s", nodes, meeting)
    code = 1
    try:
        yield
        code = 0
    finally:
        _SERVED.clear()
        store.set("ended", str(code))
        until = time.monotonic() + LEAVE_SECONDS
        while store.add("left", 0) < store.add("here", 0) and time.monotonic() < until:
            time.sleep(POLL_SECONDS)


def called(job: Job, versions: Mapping[str, Any]) -> dict[str, str]:
    """Calls the other machines to an attempt at the job; the environment by which the trainer here takes part."""
    ((meeting, store),) = _SERVED
    number = store.add("attempts", 1)
    of_attempt(number, store).set("call", CalledJob(job=job, versions={**versions}).model_dump_json())
    return {ATTEMPT: f"{meeting} {number} 0 {job.compute.nodes}"}
