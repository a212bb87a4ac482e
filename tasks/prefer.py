"""Training on preference pairs or labelled answers, from where the training on chosen answers ended, or from the base.

It is the training of tasks/train on another loss: the same trainer process, checkpoints and resuming.
"""

from pathlib import Path

from tunewright.artifacts import Adapter, Base, Scan, Tokens
from tunewright.config import CHECKPOINT_MINUTES, Compute, Method, Preference, Training
from tunewright.errors import ConfigError
from tunewright.store.stage import stage
from tunewright.tasks.train.stage import LIBRARIES, UNKEYED, VOLATILE, trained


@stage("{preference.method} lr={training.learning_rate}", libraries=LIBRARIES, volatile=VOLATILE, unkeyed=UNKEYED)
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
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> Adapter:
    """The tuned weights of the step with the lowest loss on the validation pairs, with the curves and the contract.

    `training` has the steps on pairs, preference.schedule(). `begins_as` is the training on chosen answers before it.
    With kto they are labelled answers. Raises ConfigError where there are too few.
    """
    require_rows(tokens, preference)
    inputs = (folder, tokens, base, method, training, compute, scan, checkpoint_minutes)
    return trained(*inputs, preference=preference, begins_as=begins_as)


def require_rows(tokens: Tokens, preference: Preference) -> None:
    """Raises ConfigError where no training or no validation row is one that the method learns from."""
    pairs = tokens.num_pairs, tokens.num_validation_pairs
    if preference.learns_labels:
        pairs = pairs[0] + tokens.num_undesirable, pairs[1] + tokens.num_validation_undesirable
    for split, number in zip(("training", "validation"), pairs, strict=True):
        if not number:
            raise ConfigError(without_rows(preference, split))


def without_rows(preference: Preference, split: str) -> str:
    """The error of a split without a row that the method learns from."""
    lacks = "a rejected answer (columns chosen and rejected"
    if preference.learns_labels:
        lacks = "an undesirable answer (column label is false, or is 0 and named in columns, or chosen and rejected"
    return (
        f"preference.method={preference.method}: no {split} row has {lacks} of a record); accepted: none, or such rows"
    )
