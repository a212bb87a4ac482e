"""The trainer process: SFTTrainer on rows or pairs that are tokenized already, with early stopping and checkpoints.

It is started by the stage as `python -m tunewright.tasks.train.trainer JOB PARENT_PID`, writes what happens to files
beside the job, and ends with one of the exit codes below; only FINISHED means that training reached its planned end.
What is here is all that its parent knows of it, and imports no library of training.
"""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel

from tunewright.artifacts.payloads import Contract
from tunewright.config import CHECKPOINT_MINUTES, Compute, Grpo, Method, Preference, Training
from tunewright.modeling.compute import DdpMemory

FINISHED, FAILED, INTERRUPTED, OUT_OF_MEMORY, LOST = 0, 1, 75, 77, 79  # LOST: another machine is gone


class Job(BaseModel, frozen=True):
    """All that the trainer is told; the file lies in the folder that it works in."""

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
    ddp: DdpMemory | None = None  # by which compute.strategy=auto decides, the same on each machine
    checkpoint_minutes: float = CHECKPOINT_MINUTES  # the most between two checkpoints
    preference: Preference | None = None  # of a training on pairs, whose steps are those of `training` as well
    grpo: Grpo | None = None  # of a training on rewards, likewise
    json_schema: str = ""  # the JSON Schema of its reward schema_valid
    import_from: tuple[str, ...] = ()  # folders with the team's reward functions, which come after all others
    begins_as: Path | None = None  # the model/ folder of what it goes on from; None begins as the base

    @property
    def section(self) -> str:
        """The section of the settings of its steps."""
        return "grpo" if self.grpo else "preference" if self.preference else "training"

    @property
    def measures_start(self) -> bool:
        """Whether the weights that it begins with are a result too, where no step is better."""
        return bool(self.grpo) or (self.begins_as is not None and not self.preference)

    @classmethod
    def of(cls, weights: Path, tokens: Path, **settings: Any) -> Self:
        """A job on the rows, and by the contract, of a folder that render made; `settings` are all other fields."""
        contract = Contract.load_from(tokens)
        return cls(
            weights=weights,
            train=tokens / "train.parquet",
            validation=tokens / "validation.parquet",
            pad_token_id=contract.pad_token_id,
            stop_token_ids=contract.stop_token_ids,
            **settings,
        )
