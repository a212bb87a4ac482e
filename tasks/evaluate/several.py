"""The answers of one model on several devices: a process for each, which answers a part of the rows.

`python -m tunewright.tasks.evaluate.several JOB PARENT_PID` is such a process. It reads a line of JSON for each part
that it has to answer, and writes lines of JSON: how many rows it has answered, and that the part is done.
"""

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from tunewright import config, machine
from tunewright.artifacts import Contender
from tunewright.errors import TunewrightError

END_SECONDS = 10.0  # for a process that has nothing more to do


class HowToAnswer(BaseModel, frozen=True):
    """How rows are answered."""

    stops: tuple[int, ...]
    max_new_tokens: int
    batch: int


class AnswerJob(BaseModel, frozen=True):
    """The model of a process, and its threads."""

    contender: Contender
    precision: str
    threads: int  # on a CPU


class AnswerShare(HowToAnswer, frozen=True):
    """Rows of a Parquet file (TOKEN_SCHEMA) to answer, and the file for the answers (ANSWER_SCHEMA)."""

    rows: Path
    answers: Path


class AnswerProgress(BaseModel, frozen=True):
    """How far a process is with its part."""

    answered: int
    precision: str = ""  # of the weights that answered, once the part is done


Replies = queue.Queue[tuple[int, AnswerProgress | None]]  # of the processes by their numbers; None where one has ended


@contextmanager
def several(contender: Contender, precision: str, number: int) -> Iterator["Several"]:
    """So many processes with the contender's model, each on a GPU of its own or all on the CPU; they end with it."""
    gpus = machine.first_gpus(number)
    threads = max(1, machine.num_cores() // number)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        job = Path(folder, "job.json")
        job.write_text(
            AnswerJob(contender=contender, precision=precision, threads=threads).model_dump_json(), encoding="utf-8"
        )
        shown = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{}] * number
        yield Several([running.enter_context(_started(job, at, each)) for at, each in enumerate(shown)], Path(folder))


@contextmanager
def _started(job: Path, at: int, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with job.with_name(f"{at}.log").open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(job), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            env=machine.importing_project(os.environ | environment),
            text=True,
        )
    try:
        yield process
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
            process.wait(END_SECONDS)
    finally:
        process.kill()
        process.wait()


class Several:
    """Processes that answer together."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]], folder: Path) -> None:
        self.processes, self.folder = processes, folder
        self.replies: Replies = queue.Queue()
        for at, process in enumerate(processes):
            threading.Thread(target=self._listen, args=(at, process.stdout), daemon=True).start()

    def _listen(self, at: int, lines: IO[str]) -> None:
        for line in lines:
            self.replies.put((at, AnswerProgress.model_validate_json(line)))
        self.replies.put((at, None))

    def answered(self, test: pa.Table, how: HowToAnswer, tell: Callable[[int], None]) -> tuple[pa.Table, str]:
        """The answers to `test` (TOKEN_SCHEMA) in its order, as ANSWER_SCHEMA, and the precision of the weights.

        `tell` is called with the number of rows that are answered. Raises TunewrightError where a process ends.
        """
        parts = shares(test, len(self.processes))
        files = [self.folder / f"answers-{at}.parquet" for at in range(len(parts))]
        for at, places in enumerate(parts):
            rows = self.folder / f"rows-{at}.parquet"
            pq.write_table(test.take(places), rows)
            self._ask(at, AnswerShare(rows=rows, answers=files[at], **how.model_dump()))
        answered, precisions = [0] * len(parts), [""] * len(parts)
        while not all(precisions):
            at, reply = self.replies.get()
            if reply is None:
                raise TunewrightError(self._ended(at))
            answered[at], precisions[at] = reply.answered, reply.precision
            tell(sum(answered))
        in_order = np.argsort(np.concatenate(parts))
        return pa.concat_tables(pq.read_table(file) for file in files).take(in_order), precisions[0]

    def _ask(self, at: int, part: AnswerShare) -> None:
        given: Any = self.processes[at].stdin
        try:
            given.write(part.model_dump_json() + "\n")
            given.flush()
        except BrokenPipeError:
            raise TunewrightError(self._ended(at)) from None

    def _ended(self, at: int) -> str:
        code = self.processes[at].wait()
        lines = (self.folder / f"{at}.log").read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended: {said[:500]}"
        return f"process {at + 1} of {len(self.processes)} that answer the test rows {how}"


def shares(test: pa.Table, number: int) -> list[np.ndarray]:
    """The places of the rows that each of so many processes answers, at most as many as rows.

    Prompts that begin alike stay together, since what they share is computed once.
    """
    prompts = zip(test["input_ids"].to_pylist(), test["prompt_length"].to_pylist(), strict=True)
    asked = [ids[:length] for ids, length in prompts]
    order = sorted(range(len(asked)), key=asked.__getitem__)
    return np.array_split(order, min(number, len(order)))


def main(job_file: Path, parent: int) -> int:
    """Answers what it is asked, on its input, by the process `parent`, and returns the exit code."""
    machine.end_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        return 1  # it died before the kernel was asked
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no reply
    config.quiet_libraries()
    import torch

    from tunewright.tasks.evaluate.answers import alone

    job = AnswerJob.model_validate_json(job_file.read_text(encoding="utf-8"))
    torch.set_num_threads(job.threads)
    answer: Any = alone(job.contender, job.precision)  # the types of this module have another name in it

    def reply(answered: int, precision: str = "") -> None:
        replies.write(AnswerProgress(answered=answered, precision=precision).model_dump_json() + "\n")
        replies.flush()

    for line in sys.stdin:
        part = AnswerShare.model_validate_json(line)
        test = pq.read_table(part.rows)
        answers, precision = answer(test, part, reply)
        pq.write_table(answers, part.answers)
        reply(len(test), precision)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
