"""The rate at which training computes here, measured: by a few steps of the real thing, or by an earlier run."""

import hashlib
import json
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tunewright import config
from tunewright.artifacts import Base, Tokens, training_log
from tunewright.artifacts.payloads import Contract
from tunewright.config import METHODS, Compute, Method, Training
from tunewright.cost_model.case import BudgetCase
from tunewright.cost_model.learning import learning
from tunewright.cost_model.timing import Rate
from tunewright.errors import TrainingError
from tunewright.reports.pages import counted
from tunewright.reports.progress import duration
from tunewright.store.caching import MANIFEST
from tunewright.tasks.train import trainer
from tunewright.tasks.train.stage import ATTEMPT, LOG, started

STEPS = 5  # of which the first warms up
MOST_SECONDS = 30.0  # after the model is loaded
OTHER_ROWS = 0.2  # of a speed, that rows of other lengths make more or less
LOADING_SECONDS = 300.0
POLL_SECONDS = 0.2


def calibrate(base: Base, tokens: Tokens, case: BudgetCase) -> Rate:
    """Trains a few steps of the run that is planned, in a process of its own, and keeps the rate.

    Raises TrainingError where not one step is done in time, or the trainer fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        seconds = _seconds(_job(Path(folder), base, tokens, case), Path(folder))
    rate = case.flops_a_row * case.training.batch / statistics.median(seconds[1:] or seconds)
    rate *= case.compute.nodes  # of which this machine alone was timed
    kept = {"flops_per_second": rate, "steps": len(seconds), "made": time.strftime("%Y-%m-%d", time.gmtime())}
    file = _file(base, case)
    config.make_home()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(kept), encoding="utf-8")
    return _rate(kept)


def measured(base: Base, tokens: Tokens | None, case: BudgetCase) -> Rate | None:
    """The rate that was measured here for this base, or None.

    It is a run's on the same rows, or else a calibration's, or else a run's on other rows. That of another method
    stands in where there is none of this one, since the arithmetic is known of both.
    """
    others = [Method(kind=kind) for kind in METHODS if kind != case.method.kind]
    for tried in (case.method, *others):
        other = replace(case, method=tried)
        file = _file(base, other)
        found = rate_of_runs(base, tokens, other) if tokens else None
        found = found or (_rate(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else None)
        if found := found or rate_of_runs(base, None, other):
            return found if tried is case.method else found._replace(source=f"{found.source} with {tried.kind}")
    return None


def _rate(kept: dict[str, Any]) -> Rate:
    speed = kept["flops_per_second"]
    return Rate(speed, speed, f"a calibration of {counted(kept['steps'], 'step')} on this machine on {kept['made']}")


def _way(training: Training, compute: Compute) -> list[Any]:
    """Return the settings that change the time of the same arithmetic."""
    how = [compute.precision, compute.threads, compute.compile, compute.attention, compute.num_ranks, compute.strategy]
    return [training.speed, *how, *["offload"] * compute.offload]


def _file(base: Base, case: BudgetCase) -> Path:
    identity = [
        base.weights_digest,
        case.method.kind,
        case.method.bits,
        case.machine.device.kind,
        case.machine.device.name,
        platform.node(),
        *_way(case.training, case.compute),
    ]
    return config.home() / "calibration" / f"{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:20]}.json"


def _job(folder: Path, base: Base, tokens: Tokens, case: BudgetCase) -> trainer.Job:
    """A few steps of the planned run, on rows that are drawn as the estimate draws them."""
    schema = pq.read_schema(tokens.path("train.parquet"))
    rest = {"cluster": 0, "prompt_length": 1, "reference": ""}
    drawn = [row for step in case.drawn[:STEPS] for row in step]
    rows = [{**rest, "row_id": str(number), **row} for number, row in enumerate(drawn)]
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:1], schema), folder / "validation.parquet")
    shutil.copy(tokens.path(Contract.FILE), folder)
    modules: tuple[str, ...] = ()
    if case.method.kind == "spectrum":  # as many modules as it trains: any will do to time them
        modules = tuple(sorted(matrix.path for matrix in learning(case.ground.shape, case.method).matrices))
    return trainer.Job.of(
        base.weights,
        folder,
        reference=base.reference,
        method=case.method,
        modules=modules,
        training=case.training.model_copy(
            update={"max_steps": STEPS, "evaluate_every": None, "best_by": "loss", "kl_to_base": 0.0}
        ),
        compute=case.compute.without("nodes"),
        micro_batch=case.micro_batch,
        ddp=case.ddp,
    )


def _seconds(job: trainer.Job, folder: Path) -> list[float]:
    with started(job, folder, grace=0) as process:
        _wait(process, folder)
    if seconds := [line["seconds"] for line in training_log.read(folder / training_log.FILE) if "loss" in line]:
        return seconds
    why = f"no training step finished in {MOST_SECONDS:.0f} s; try a smaller training.batch"
    if (folder / "error.json").exists():
        error = json.loads((folder / "error.json").read_text(encoding="utf-8"))
        why = f"{error['type']}: {error['message']}"
    raise TrainingError(f"timing a few training steps: {why}")


def _wait(process: subprocess.Popen[bytes], folder: Path) -> None:
    began, loaded = time.monotonic(), 0.0
    while process.poll() is None:
        now = time.monotonic()
        if not loaded and (folder / "status.json").exists():
            loaded = now
        if now > (loaded + MOST_SECONDS if loaded else began + LOADING_SECONDS):
            return
        if sum("loss" in line for line in training_log.read(folder / training_log.FILE)) >= STEPS:
            return
        time.sleep(POLL_SECONDS)


def rate_of_runs(base: Base, tokens: Tokens | None, case: BudgetCase) -> Rate | None:
    """The rate of the newest run of this method on this device: on the rows of `tokens`, or with None on any.

    On other rows a token is taken to need as many operations as on these, within OTHER_ROWS.
    """
    files = (config.home() / "artifacts" / "train").glob(f"*/{MANIFEST}")
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            made = json.loads(file.read_text(encoding="utf-8"))
            read = made["ingredients"]
            if (read.get("base"), read.get("method.kind")) != (f"base {base.digest}", case.method.kind):
                continue
            if tokens and read.get("tokens") != f"render {tokens.digest}":
                continue
            status = json.loads((file.parent / "status.json").read_text(encoding="utf-8"))
            steps = [line for line in training_log.read(file.parent / training_log.FILE) if "loss" in line][1:]
            num_attempts = (file.parent / LOG).read_text(encoding="utf-8", errors="replace").count(ATTEMPT)
        except (OSError, ValueError, KeyError):  # removed or altered: then it says nothing
            continue
        if not steps or status.get("device") != case.machine.device.name:
            continue
        training, compute = _section(Training, read), _section(Compute, read)
        if _way(training, compute) != _way(case.training, case.compute):
            continue
        ran = replace(case, method=_section(Method, read), training=training, compute=compute)
        source = f"an earlier run of {counted(len(steps) + 1, 'step')} on this machine"
        if tokens is None:
            of_tokens = statistics.median(line["tokens_per_second"] for line in steps)
            speed = of_tokens * ran.flops_a_row / case.ground.row_tokens
            return Rate((1 - OTHER_ROWS) * speed, (1 + OTHER_ROWS) * speed, f"{source}, with other rows")
        speed = statistics.median(line["rows_per_second"] for line in steps) * ran.flops_a_row
        took = f" (the whole stage with loading: {duration(made['seconds'])})" if num_attempts == 1 else ""
        return Rate(speed, speed, f"{source}{took}")
    return None


def _section(section: type[Any], read: dict[str, Any]) -> Any:
    """A section of the settings as a run's key has it."""
    name = section.__name__.lower()
    return section(**{field: read[f"{name}.{field}"] for field in section.model_fields if f"{name}.{field}" in read})
