"""The trainer process: SFTTrainer on rows that are tokenized already, with early stopping and sealed checkpoints.

It is started by tasks/train.py as `python -m tasks.trainer JOB PARENT_PID`, writes what happens to files beside the
job, and ends with one of the exit codes below; only FINISHED means that training reached its planned end. What is here
is all that its parent knows of it, and imports no library of training.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.config import Compute, Method, Training

FINISHED, FAILED, INTERRUPTED, OUT_OF_MEMORY = 0, 1, 75, 77


class Job(BaseModel):
    """All that the trainer is told; the file lies in the folder that it works in."""

    model_config = ConfigDict(frozen=True)

    weights: Path
    reference: str
    train: Path
    validation: Path
    pad_token_id: int
    stop_token_ids: tuple[int, ...]
    method: Method
    modules: tuple[str, ...]  # that learn with spectrum
    training: Training
    compute: Compute
    micro_batch: int
