"""One machine's part in one attempt at a training on several machines.

They meet at a store of torch's that the run serves (rendezvous.py). Each machine starts its own ranks, gives a sign of
life every second, and says how its ranks ended; where one fails or falls silent, all end. The first machine, that of
the run, waits for the others before its ranks start, and its verdict is the attempt's.
"""

import contextlib
import json
import os
import platform
import socket
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import psutil

from tunewright.errors import ConfigError
from tunewright.tasks.train.trainer import FAILED, LOST

if TYPE_CHECKING:  # torch takes seconds
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage] documented

ATTEMPT = "TUNEWRIGHT_ATTEMPT"  # the variable by which trainers and ranks know theirs: HOST:PORT NUMBER NODE NODES
ERROR = "error.json"
BEAT_SECONDS = 1.0
SILENT_SECONDS = 30.0  # without a sign of life: the machine is gone
END_SECONDS = 10.0  # the same, once one has failed; longer than a machine gives its ranks to end (ranks.py)
POLL_SECONDS = 0.2
STORE_SECONDS = 30.0  # for an answer of the store


class Meeting(NamedTuple):
    """The address of the first machine at which the machines of a training meet."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str, place: str) -> Self:
        """Read HOST:PORT. Raises ConfigError, in which `place` is where it was given."""
        host, _, port = text.rpartition(":")
        host = host.strip("[]")
        if not port.isdecimal() or not 0 < int(port) < 65536 or host in ("", "0.0.0.0", "::"):  # noqa: S104 refused
            raise ConfigError(
                f"{place}={text}: accepted: HOST:PORT, an address of the machine of the run that the others reach"
            )
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def store(self) -> "Store":
        """The store as its client."""
        return self._store()

    def served(self, descriptor: int) -> "Store":
        """The store as its server on a listening socket; by itself it would listen on all addresses."""
        return self._store(is_master=True, master_listen_fd=descriptor)

    def _store(self, **options: Any) -> "Store":
        from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage] documented

        wait = timedelta(seconds=STORE_SECONDS)
        return TCPStore(self.host, self.port, wait_for_workers=False, timeout=wait, **options)

    def interface(self) -> str:
        """The network interface of this machine's that leads there: ranks listen on no other."""
        family, kind, *_, place = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            own = probe.getsockname()[0]
        named = psutil.net_if_addrs().items()
        return next(name for name, found in named if own in {each.address.partition("%")[0] for each in found})


def of_attempt(number: int, store: "Store") -> "Store":
    """The part of the store that is the attempt's."""
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage] documented

    return PrefixStore(f"attempt {number}", store)


class Attempt:
    """The part of machine `node`, from 0 on, of `nodes`, in the attempt `number`."""

    def __init__(self, meeting: Meeting, number: int, node: int, nodes: int) -> None:
        self.meeting, self.node, self.nodes = meeting, node, nodes
        self.store = of_attempt(number, meeting.store())
        self.watched = [each for each in range(nodes) if each != node] if node == 0 else [0]
        self.seen = {each: (-1, time.monotonic()) for each in self.watched}  # the last sign of life, and when it came
        self.beaten = 0.0

    @classmethod
    def here(cls) -> Self | None:
        """The attempt that this process takes part in; None where one machine trains alone."""
        if ATTEMPT not in os.environ:
            return None
        address, *numbers = os.environ[ATTEMPT].split()
        return cls(Meeting.of(address, ATTEMPT), *map(int, numbers))

    @property
    def variables(self) -> Mapping[str, str]:
        """Environment of the ranks: the interface that they listen on, unless the user named one.

        accelerate asks for an address, which is not used once the ranks have met.
        """
        name = self.meeting.interface()
        listening = {each: os.environ.get(each, name) for each in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}
        return {**listening, "MASTER_ADDR": self.meeting.host, "MASTER_PORT": str(self.meeting.port)}

    def gather(self, tell: Callable[[str], object]) -> None:
        """Waits at the first machine until the others have joined. Raises ConfigError where one cannot take part."""
        while self.node == 0 and (joined := self.store.add("joined", 0)) < self.nodes - 1:
            if self.store.check(["refused"]):
                raise ConfigError(self.store.get("refused").decode())
            tell(f"waiting for machines: {joined + 1} of {self.nodes} are here; tunewright join {self.meeting}")
            time.sleep(POLL_SECONDS)
        self.store.set(f"name {self.node}", platform.node())
        self.seen = {each: (-1, time.monotonic()) for each in self.watched}

    def goes_on(self) -> bool:
        """Gives a sign of life, and returns whether no machine failed or fell silent."""
        now = time.monotonic()
        if now - self.beaten < BEAT_SECONDS:
            return True
        self.beaten = now
        self.store.add(f"beat {self.node}", 1)
        return not any(self._code(each) or self._is_silent(each, SILENT_SECONDS) for each in self.watched)

    def end(self, code: int | None, folder: Path) -> int:
        """Says with which exit code the ranks of this machine ended, None where others' failure ended them.

        Returns the attempt's at the first machine, whose `folder` then has the error of the machine that failed.
        """
        with contextlib.suppress(FileNotFoundError):
            self.store.set(f"error {self.node}", (folder / ERROR).read_text(encoding="utf-8"))
        self.store.set(f"place {self.node}", str(self.store.add("ended", 1)))
        said = FAILED if code is None else code
        self.store.set(f"code {self.node}", str(0 if self.node and code is None else said))
        if self.node or code == 0:
            return said
        until = time.monotonic() + END_SECONDS + BEAT_SECONDS
        ends = {0: code or 0}
        while len(ends) < self.nodes and time.monotonic() < until:
            ends |= {each: found for each in self.watched if (found := self._code(each)) is not None}
            silent = [each for each in self.watched if each not in ends and self._is_silent(each, END_SECONDS)]
            ends |= dict.fromkeys(silent, LOST)
            time.sleep(POLL_SECONDS)
        # As of the ranks of one machine: a signal, then a machine that is gone, then the first that failed.
        failed = {each: found for each, found in ends.items() if found}
        if not failed:
            return FAILED
        node = min(failed, key=lambda each: (failed[each] >= 0, -failed[each], self._place(each)))
        if failed[node] == LOST:
            self._write(folder, {"type": "Lost", "message": f"{self._name(node)} gave no sign of life any more"})
        elif node and self.store.check([f"error {node}"]):
            error = json.loads(self.store.get(f"error {node}"))
            self._write(folder, error | {"message": f"{error['message']} (on {self._name(node)})"})
        return failed[node]

    def _code(self, node: int) -> int | None:
        return int(self.store.get(f"code {node}")) if self.store.check([f"code {node}"]) else None

    def _place(self, node: int) -> int:
        return int(self.store.get(f"place {node}")) if self.store.check([f"place {node}"]) else self.nodes

    def _name(self, node: int) -> str:
        name = self.store.get(f"name {node}").decode() if self.store.check([f"name {node}"]) else "which never began"
        return f"machine {node + 1} of {self.nodes}, {name}"

    def _is_silent(self, node: int, seconds: float) -> bool:
        count, now = self.store.add(f"beat {node}", 0), time.monotonic()
        if count != self.seen[node][0]:
            self.seen[node] = count, now
        return now - self.seen[node][1] > seconds

    @staticmethod
    def _write(folder: Path, error: Mapping[str, str]) -> None:
        (folder / ERROR).write_text(json.dumps(error), encoding="utf-8")
