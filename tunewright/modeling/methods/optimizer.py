"""LoRA+: the B matrices of an adapter learn faster than the A matrices (arXiv 2402.12354)."""

from typing import Any

from peft.optimizers import create_loraplus_optimizer


def lora_plus_optimizer(model: Any, ratio: float, optimizer: type, options: dict[str, Any]) -> Any:
    """An optimizer of the given class, with `ratio` times the learning rate for the B matrices.

    `options` are the class's own, its learning rate `lr` among them, as transformers has them for each optimizer.
    """
    rest = {name: value for name, value in options.items() if name != "lr"}
    return create_loraplus_optimizer(model, optimizer, lr=options["lr"], loraplus_lr_ratio=ratio, **rest)
