"""Training on rewards (GRPO), from where the trainings before it ended, or from the base.

It is the training of tasks/train on another loss: the same trainer process, checkpoints and resuming.
"""

from pathlib import Path

from tunewright.artifacts import Adapter, Base, Scan, Tokens
from tunewright.config import Compute, Grpo, Method, Training
from tunewright.store.stage import stage
from tunewright.tasks.train.stage import LIBRARIES, VOLATILE, trained


@stage("grpo lr={training.learning_rate}", libraries=LIBRARIES, volatile=VOLATILE)
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
) -> Adapter:
    """The tuned weights of the step with the highest reward on the validation rows, with the curves and the contract.

    `training` has the steps on rewards, grpo.schedule(). `schema` is what evaluation.json_schema holds, and `own` the
    team's reward functions, each with a digest of its code. `begins_as` is the training before this one.
    """
    return trained(folder, tokens, base, method, training, compute, scan, grpo=grpo, schema=schema, begins_as=begins_as)
