"""Two machines train as one process does; a machine that dies ends the attempt, and the next resumes to the same bytes.

The second machine is a process of `tunewright join` with a home of its own.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from test_ranks import FULL, require_same, tokens
from test_train import LONG, SMALL, curve, weights
from trained import WITH_DEEPSPEED, by_forks, in_this_process

from tunewright import config
from tunewright.artifacts import Base, Tokens
from tunewright.config import Compute, Data, Method, Model, Registry, Settings, Source, Training
from tunewright.errors import ConfigError, TrainerDied, is_transient
from tunewright.flows.finetune import run
from tunewright.store import cache_key
from tunewright.tasks.train import rendezvous, stage, trainer
from tunewright.tasks.train.stage import train
from tunewright.tasks.train.trainer import LOST, attempt, copies, ranks
from tunewright.tasks.train.trainer.attempt import Attempt, Meeting

__all__ = ["tokens"]

ONE = Compute(threads=1, precision="float32")
TWO = ONE.model_copy(update={"nodes": 2})


class Machines:
    """The processes of `tunewright join`, each with a home and a folder of locks of its own."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address
        self.joined: list[subprocess.Popen[str]] = []

    def add(self, **environment: str) -> subprocess.Popen[str]:
        own = self.folder / f"machine {len(self.joined)}"
        (own / "tmp").mkdir(parents=True)
        of_machine = {"TUNEWRIGHT_HOME": str(own / "home"), "TMPDIR": str(own / "tmp"), **environment}
        command = [Path(sys.executable).with_name("tunewright"), "join", self.address]
        log = (own / "log").open("w")
        self.joined.append(
            subprocess.Popen(command, env=os.environ | of_machine, stdout=log, stderr=log, text=True, cwd=own)
        )
        return self.joined[-1]

    def said(self, number: int = 0) -> str:
        return (self.folder / f"machine {number}" / "log").read_text()


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("TUNEWRIGHT_RENDEZVOUS", address)
    made = Machines(tmp_path / "machines", address)
    yield made
    for process in made.joined:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("method", "strategy", "devices"),
    [
        pytest.param(SMALL, "ddp", 1, id="lora-ddp"),
        pytest.param(FULL, "fsdp", 1, id="full-fsdp"),
        pytest.param(Method(kind="qlora", rank=2, alpha=4), "fsdp", 2, id="qlora-fsdp-2x2"),
        pytest.param(FULL, "zero3", 1, id="full-zero3", marks=WITH_DEEPSPEED),
    ],
)
def test_two_machines_have_the_losses_and_weights_of_one_process(
    method: Method,
    strategy: str,
    devices: int,
    tokens: Tokens,
    tiny_base: Base,
    machines: Machines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    training = Training(
        learning_rate=1e-3, max_steps=6, batch=4, micro_batch=2, evaluate_every=2, best_by="token_f1", patience=None
    )
    joined = machines.add()
    with rendezvous.served(2):
        compute = TWO.model_copy(update={"strategy": strategy, "devices": devices})
        two = train.fn(tokens, tiny_base, method, training, compute)
    assert joined.wait(20) == 0, machines.said()
    monkeypatch.setattr(stage, "_attempt", in_this_process)
    one = train.fn(tokens, tiny_base, method, training, ONE)
    require_same(one, two)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_where_another_machine_dies_the_attempt_ends_and_the_next_resumes_to_the_same_bytes(
    strategy: str, tokens: Tokens, tiny_base: Base, home: Path, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped = SMALL.model_copy(update={"dropout": 0.1})  # by a random state of each rank
    with monkeypatch.context() as patch:
        patch.setenv("TUNEWRIGHT_HOME", str(home / "undisturbed"))
        patch.setattr(stage, "_attempt", by_forks)
        ranks_of_one = ONE.model_copy(update={"devices": 2, "strategy": strategy})
        undisturbed = train.fn(tokens, tiny_base, dropped, LONG, ranks_of_one)
    two = TWO.model_copy(update={"strategy": strategy})
    joined = [machines.add() for _ in range(2)]  # one more than trains, which takes the place of the other
    with rendezvous.served(2):
        of_it = _kill_after(home / "work", '"step": 7', machines)
        with pytest.raises(TrainerDied, match=r"machine 2 of 2, .* gave no sign of life any more; .* resumes") as died:
            train.fn(tokens, tiny_base, dropped, LONG, two)
        assert is_transient(died.value)
        assert not any(process.is_running() for process in of_it()), "its ranks ended with it"
        assert not [each for each in psutil.Process().children(recursive=True) if "trainer" in str(each.cmdline())]
        resumed = train.fn(tokens, tiny_base, dropped, LONG, two)
    assert sorted(machine.wait(20) for machine in joined) == [-signal.SIGKILL, 0]
    assert 6 <= json.loads(resumed.path("status.json").read_text())["resumed_from"] < 24
    assert weights(resumed) == weights(undisturbed)
    assert [line["step"] for line in curve(resumed) if "loss" in line] == list(range(1, 25))


def _kill_after(work: Path, line: str, machines: Machines) -> Callable[[], list[psutil.Process]]:
    """Kills the command of the machine that trains once the metrics hold `line`; its trainer and rank, once done."""
    found: list[psutil.Process] = []

    def wait_and_kill() -> None:
        while not any(line in metrics.read_text() for metrics in work.glob("train/*/metrics.jsonl")):
            time.sleep(0.02)
        number = next(each for each in range(2) if "training as machine 2 of 2" in machines.said(each))
        machine = machines.joined[number]
        found.extend(psutil.Process(machine.pid).children(recursive=True))
        machine.kill()
        machine.wait()

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()

    def processes() -> list[psutil.Process]:
        thread.join()
        assert len(found) == 2
        return found

    return processes


def test_a_machine_with_other_packages_is_refused_at_both_ends(
    tokens: Tokens, tiny_base: Base, machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = cache_key.of_call
    monkeypatch.setattr(cache_key, "of_call", lambda *call: own(*call) | ({} if call[0] else {"library torch": "1.0"}))
    joined = machines.add()
    refusal = r"cannot train with the run at 127.0.0.1:\d+: torch is 2\S+ here and 1.0 there; install the same on each"
    with rendezvous.served(2), pytest.raises(ConfigError, match=refusal):
        train.fn(tokens, tiny_base, SMALL, LONG, TWO)
    assert joined.wait(20) == 2
    assert re.search(refusal, " ".join(machines.said().split()))


@pytest.mark.parametrize("code", [0, 1])
def test_a_machine_ends_with_the_run_also_where_nothing_trains(code: int, machines: Machines) -> None:
    joined = machines.add()
    with suppress(OSError), rendezvous.served(2):
        until = time.monotonic() + 60
        while "joined the run" not in machines.said() and time.monotonic() < until:
            time.sleep(0.1)
        if code:
            raise OSError("of a stage")
    assert joined.wait(20) == code, machines.said()


def test_the_run_listens_on_the_address_that_is_named_and_on_no_other(machines: Machines) -> None:
    with rendezvous.served(2), rendezvous.served(2):
        listening = {each.laddr for each in psutil.Process().net_connections() if each.status == psutil.CONN_LISTEN}
        assert {tuple(each) for each in listening} == {Meeting.of(machines.address, "")}
        assert Meeting.of(machines.address, "").interface() == ("lo" if sys.platform == "linux" else "lo0")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "compute.nodes=2: TUNEWRIGHT_RENDEZVOUS is not set; accepted: HOST:PORT"),
        ("0.0.0.0:29400", "TUNEWRIGHT_RENDEZVOUS=0.0.0.0:29400: accepted: HOST:PORT, an address of the machine"),
        ("here", "TUNEWRIGHT_RENDEZVOUS=here: accepted: HOST:PORT"),
        ("192.0.2.1:29400", "TUNEWRIGHT_RENDEZVOUS=192.0.2.1:29400: nothing can listen there .*; accepted: an address"),
    ],
)
def test_an_address_at_which_nobody_can_meet_is_refused(
    address: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNEWRIGHT_RENDEZVOUS", address)
    with pytest.raises(ConfigError, match=message), rendezvous.served(2):
        pass


@pytest.mark.parametrize(
    ("ends", "verdict"),
    [
        ({1: 1, 0: 1}, (1, "ValueError", "of machine 1 (on machine 2 of 3, ")),  # the first that failed
        ({0: 1, 1: trainer.OUT_OF_MEMORY}, (trainer.OUT_OF_MEMORY, "ValueError", "of machine 1 (on machine 2 of 3, ")),
        ({0: 1, 2: -signal.SIGKILL}, (-signal.SIGKILL, "ValueError", "of machine 2 (on machine 3 of 3, ")),
        ({1: LOST, 0: 1}, (LOST, "Lost", "machine 2 of 3, ")),
        # Ranks that hang without the others are ended, which is no failure of theirs; also at the first machine.
        ({1: None, 0: trainer.OUT_OF_MEMORY}, (trainer.OUT_OF_MEMORY, "ValueError", "of machine 0")),
        ({1: trainer.OUT_OF_MEMORY, 0: None}, (trainer.OUT_OF_MEMORY, "ValueError", "of machine 1 (on")),
    ],
)
def test_the_verdict_on_an_attempt_is_that_on_the_machine_that_failed(
    ends: dict[int, int | None],
    verdict: tuple[int, str, str],
    machines: Machines,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt, "END_SECONDS", 0.5)
    monkeypatch.setattr(attempt, "BEAT_SECONDS", 0.5)
    with rendezvous.served(3):
        parts = [Attempt(Meeting.of(machines.address, ""), 1, node, 3) for node in range(3)]
        for part in parts[1:]:
            part.store.add("joined", 1)
        for part in parts:
            part.gather(pytest.fail)
            (tmp_path / str(part.node)).mkdir()
            error = {"type": "ValueError", "message": f"of machine {part.node}"}
            (tmp_path / str(part.node) / "error.json").write_text(json.dumps(error))
        for node, code in ends.items():
            if node and code != LOST:
                parts[node].end(code, tmp_path / str(node))
        living = [part for part in parts[1:] if ends.get(part.node) != LOST]
        ended = threading.Event()
        signs = threading.Thread(target=_give_signs, args=(living, ended), daemon=True)
        signs.start()
        found = parts[0].end(ends[0], tmp_path / "0")
        assert not parts[1].goes_on(), "the others end as well"
        ended.set()
        signs.join()
        error = json.loads((tmp_path / "0" / "error.json").read_text())
        assert (found, error["type"]) == verdict[:2]
        assert error["message"].startswith(verdict[2])


def _give_signs(parts: list[Attempt], ended: threading.Event) -> None:
    while not ended.wait(0.05):
        for part in parts:
            part.store.add(f"beat {part.node}", 1)


def test_where_a_machine_falls_silent_or_fails_the_others_see_it(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "BEAT_SECONDS", 0.0)
    monkeypatch.setattr(attempt, "SILENT_SECONDS", 0.5)
    with rendezvous.served(2):
        first, other = (Attempt(Meeting.of(machines.address, ""), 1, node, 2) for node in range(2))
        for _ in range(3):
            assert first.goes_on() and other.goes_on()
            time.sleep(0.3)
        assert first.goes_on()
        time.sleep(0.6)
        assert not first.goes_on()
        assert other.goes_on()
        assert first.goes_on()
        first.end(trainer.FINISHED, tmp_path)
        assert other.goes_on()
        other.end(trainer.FAILED, tmp_path)
        assert not first.goes_on()


def test_files_that_a_machine_lacks_are_copied_to_it_once_and_its_own_are_moved_to_the_first(tmp_path: Path) -> None:
    """Four processes as two machines of two ranks; for the second one the first one's folder is not there."""
    base = tmp_path / "base"
    (base / "inner").mkdir(parents=True)
    (base / "inner" / "weights").write_bytes(os.urandom(300_000))
    (base / "empty").touch()
    (base / "left out.txt").touch()
    pieces, real = 2**16, copies._digests

    def work(rank: int) -> None:
        own = tmp_path / f"machine {rank // 2}"
        if rank > 1:
            copies._digests = lambda folder, pattern: {} if folder == base else real(folder, pattern)
        copies.PIECE = pieces
        os.environ["TUNEWRIGHT_HOME"] = str(own)
        with ranks.joined():
            place = copies.here(base)
            assert (place == base) == (rank < 2)
            assert real(place, "*") == real(base, "*")
            ranks.wait()
            if rank == 2:
                (place / "inner" / "weights").write_bytes(b"altered")
            ranks.wait()
            assert place == copies.here(base)
            assert real(place, "*") == real(base, "*")
            assert [*real(copies.here(base, "*.txt"), "*")] == ([*real(base, "*")] if rank < 2 else ["left out.txt"])
            checkpoint = own / "checkpoint"
            checkpoint.mkdir(parents=True, exist_ok=True)
            (checkpoint / f"part {rank}").write_text(f"of rank {rank}")
            ranks.wait()
            copies.at_first(checkpoint)
            assert checkpoint.exists() == (rank < 2)
            copies.on_each(checkpoint)
            assert {file.name: file.read_text() for file in checkpoint.iterdir()} == {
                f"part {each}": f"of rank {each}" for each in range(4)
            }

    variables = {ranks.MEETING: str(tmp_path / "meeting"), "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", **ranks.LOOPBACK}
    forked = [_fork(work, rank, {**variables, **ranks._names(rank, rank % 2)}) for rank in range(4)]
    assert [os.waitpid(pid, 0)[1] for pid in forked] == [0, 0, 0, 0]


def _fork(work: Callable[[int], None], rank: int, variables: dict[str, str]) -> int:
    if pid := os.fork():
        return pid
    try:
        os.environ |= variables
        work(rank)
        os._exit(0)
    finally:
        traceback.print_exc()
        os._exit(1)


def test_a_run_that_trains_without_a_place_to_meet_is_refused_before_its_first_stage(
    tiny_base: Base, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    data, model = Data(sources=(Source(path=str(tmp_path / "rows.jsonl")),)), Model(base=tiny_base.reference)
    settings = Settings(data=data, model=model, registry=Registry(name="tiny"), compute=TWO)
    with pytest.raises(ConfigError, match=r"compute\.nodes=2: TUNEWRIGHT_RENDEZVOUS is not set"):
        run(settings, "train", ())
    assert not (config.home() / "artifacts").exists()
