"""EVA: an adapter that starts from the main directions of the activations on training rows (arXiv 2410.07170).

PEFT looks at batches, again and again, until the directions settle; it would go on forever where they do not. Every
module keeps the rank that was asked for (the paper's rho = 1), so that a plan's figures hold.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.lora.eva import initialize_lora_eva_weights

TOKENS = 8_192  # of the training rows, taken evenly: enough for the directions to settle
PATIENCE = 400  # batches, until we say that they do not settle

Batch = dict[str, torch.Tensor]


def begin(model: Any, examples: Sequence[Sequence[int]]) -> None:
    """Gives the model's adapter its first weights from the activations on `examples`, rows of token ids.

    Raises ValueError where these are too few, or too much alike, to tell the directions.
    """
    config = model.peft_config["default"]
    data = batches(examples, config.r)
    seen = 0

    def forward(model: Any, batch: Batch) -> Any:
        nonlocal seen
        seen += 1
        if seen > PATIENCE:
            raise ValueError(
                f"method.init=eva: {config.r} directions did not converge in {PATIENCE} batches of training rows; "
                "lower method.rank, or set method.init=default"
            )
        return model(**batch, use_cache=False, logits_to_keep=1)

    initialize_lora_eva_weights(model, data, forward_fn=forward, show_progress_bar=False)


def batches(examples: Sequence[Sequence[int]], rank: int) -> list[Batch]:
    """Padded batches, each of many times as many tokens as there are directions to find."""
    step = max(1, sum(map(len, examples)) // TOKENS)
    wanted, groups, group = 16 * rank, [], []
    for row in examples[::step]:
        group.append(row)
        if sum(map(len, group)) >= wanted:
            groups.append(group)
            group = []
    if not groups:
        raise ValueError(
            f"method.init=eva: the training rows have fewer than the {wanted} tokens that method.rank={rank} needs; "
            "lower it, or set method.init=default"
        )
    return [_padded(group) for group in groups]


def _padded(group: Sequence[Sequence[int]]) -> Batch:
    width = max(map(len, group))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in group])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in group])
    return {"input_ids": ids, "attention_mask": mask}
