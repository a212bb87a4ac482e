"""The result of a run as a job has it: the registered version and its verdict, the checkpoint, the result file."""

import math
import time
from pathlib import Path
from typing import Any

from tunewright.cli.api import curves
from tunewright.cli.api.files import StoredFiles
from tunewright.cli.api.jobs import FineTuningJob, KeptCheckpoint, RegisteredResult
from tunewright.reports.pages import counted


def metrics_of(printed: dict[str, Any]) -> Path:
    """The points of the training in the artifact of a run; `printed` is what the run printed as JSON."""
    return _artifacts(printed)["train"] / "metrics.jsonl"


def fields(job: FineTuningJob, printed: dict[str, Any], files: StoredFiles) -> dict[str, Any]:
    """The fields of a job that has succeeded; its result file is written."""
    found, training, verdict = curves.points(metrics_of(printed)), printed["training"], printed["verdict"]
    train_loss, valid_loss = curves.losses(found, step := training["best_step"])
    trained, now = curves.epochs(found), int(time.time())
    counted = {"n_epochs": max(1, math.ceil(trained))} if job.hyperparameters["n_epochs"] == "auto" else {}
    named = {name: printed["model"][name] for name in ("alias", "run_id", "version")}
    return {
        "status": "succeeded",
        "finished_at": now,
        "trained_tokens": curves.trained_tokens(_artifacts(printed)["render"], trained),
        "result_files": (files.write(curves.as_csv(found), "step_metrics.csv").id,),
        "hyperparameters": job.hyperparameters | counted,
        "checkpoint": KeptCheckpoint(step=step, created_at=now, train_loss=train_loss, valid_loss=valid_loss),
        "result": RegisteredResult(
            model=printed["model"]["name"],
            **named,
            decision=verdict["decision"],
            sentence=verdict["reason"],
            rows=printed["rows"],
        ),
    }


def messages(job: FineTuningJob, printed: dict[str, Any]) -> list[str]:
    """The sentences on what a run made, in the order in which it did."""
    rows, training, model = printed["rows"], printed["training"], printed["model"]
    said = [
        f"{counted(rows['read'], 'record')}: {rows['train']:,} training, {rows['validation']:,} validation and "
        f"{counted(rows['test'], 'test row')}, {rows['quarantined']:,} quarantined, "
        f"{counted(rows['duplicates'], 'duplicate')}"
    ]
    if training["stopped_early"]:
        said.append(
            f"Training ended early, after step {training['steps']}: the validation rows showed no more progress"
        )
    said.append(f"Checkpoint kept: step {training['best_step']}, the best by {training['best_by']} on validation rows")
    said.append(f"Verdict: {printed['verdict']['reason']}")
    alias = f"it is @{model['alias']} now" if model["alias"] else "the alias did not move to it"
    version = f"version {model['version']} of {model['name']}"
    return [*said, f"New fine-tuned model created: {job.model_name}; it is {version}, and {alias}"]


def _artifacts(printed: dict[str, Any]) -> dict[str, Path]:
    return {each["stage"]: Path(each["artifact"]) for each in printed["stages"] if each.get("artifact")}
