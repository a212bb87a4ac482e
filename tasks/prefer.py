"""Training on preference pairs, from where the training on chosen answers ended, or from the base.

It is the training of tasks/train on another loss: the same trainer process, checkpoints and resuming.
"""

from pathlib import Path

from tunewright.artifacts import Adapter, Base, Scan, Tokens
from tunewright.config import Compute, Method, Preference, Training
from tunewright.errors import ConfigError
from tunewright.store.stage import stage
from tunewright.tasks.train.stage import LIBRARIES, VOLATILE, trained


@stage("{preference.method} lr={training.learning_rate}", libraries=LIBRARIES, volatile=VOLATILE)
def prefer(
    folder: Path,
    tokens: Tokens,
    base: Base,
    method: Method,
    preference: Preference,
    training: Training,
    compute: Compute,
    scan: Scan | None = None,
    begins_as: Adapter | None = None,
) -> Adapter:
    """The tuned weights of the step with the lowest loss on the validation pairs, with the curves and the contract.

    `training` has the steps on pairs, preference.schedule(). `begins_as` is the training on chosen answers before it.
    Raises ConfigError where too few rows are pairs.
    """
    for split, number in (("training", tokens.num_pairs), ("validation", tokens.num_validation_pairs)):
        if not number:
            raise ConfigError(
                f"preference.method={preference.method}: no {split} row has a rejected answer (columns chosen and "
                "rejected of a record); accepted: none, or such rows"
            )
    return trained(folder, tokens, base, method, training, compute, scan, preference=preference, begins_as=begins_as)
