"""Training on rewards (GRPO), from where the trainings before it ended, or from the base.

It is the training of tasks/train on another loss: the same trainer process, checkpoints and resuming.
"""

from pathlib import Path

import pyarrow.parquet as pq

from tunewright.artifacts import Adapter, Base, Scan, Tokens
from tunewright.config import CHECKPOINT_MINUTES, Compute, Grpo, Method, Training
from tunewright.errors import ConfigError
from tunewright.metrics.catalogue import OF_CALLS
from tunewright.store.stage import stage
from tunewright.tasks.train.stage import LIBRARIES, UNKEYED, VOLATILE, trained


@stage("grpo lr={training.learning_rate}", libraries=LIBRARIES, volatile=VOLATILE, unkeyed=UNKEYED)
def reinforce(
    folder: Path,
    tokens: Tokens,
    base: Base,
    method: Method,
    grpo: Grpo,
    training: Training,
    compute: Compute,
    schema: str = "",
    own: tuple[tuple[str, str], ...] = (),
    scan: Scan | None = None,
    begins_as: Adapter | None = None,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> Adapter:
    """The tuned weights of the step with the highest reward on the validation rows, with the curves and the contract.

    `training` has the steps on rewards, grpo.schedule(). `schema` is what evaluation.json_schema holds, and `own` the
    team's reward functions, each with a digest of its code. `begins_as` is the training before this one. Raises
    ConfigError where a reward is of calls and no row has tools.
    """
    if needy := sorted({*grpo.rewards} & {metric.__name__ for metric in OF_CALLS}):
        tools = pq.read_table(tokens.path("train.parquet"), columns=["tools"])["tools"]
        if tools.null_count == len(tools):
            raise ConfigError(
                f"grpo.rewards={needy[0]}: no training row has tools; accepted: a reward of other answers"
            )
    inputs = (folder, tokens, base, method, training, compute, scan, checkpoint_minutes)
    return trained(*inputs, grpo=grpo, schema=schema, begins_as=begins_as)
