"""Orthogonal subspace fine-tuning (OSF, arXiv 2504.07097): the main directions of each weight hardly change.

Each weight is decomposed once; of its singular directions those with the smallest singular values learn, and PEFT
takes out of their gradient what lies in the others. Adam scales each number of it by itself, so that a small part of a
step lies there after all. What was learned is added to the weights when it is saved, as tensors of the base like
Spectrum's: PEFT's own file would have to be decomposed again wherever it is loaded, and no server reads it.
"""

from typing import Any

import torch
from peft import OSFConfig, get_peft_model
from peft.tuners.osf import OSFLayer

from tunewright.config import Method
from tunewright.modeling import architecture
from tunewright.modeling.methods.modules import targets


def with_directions(model: Any, method: Method, precision: torch.dtype) -> Any:
    """The model with `method.share` of the directions of its modules ready to learn, the frozen rest in `precision`.

    Its weights have to be float32, in which they are decomposed; PEFT would round the directions to their type.
    Raises ValueError where a module is none that PEFT decomposes, or has no direction that could stay.
    """
    names = targets(model, method, architecture.of(model.config).unreached)
    for module in map(model.get_submodule, names):
        if not isinstance(module, torch.nn.Linear):
            raise ValueError(
                f"method.kind=osf: the base has {type(module).__name__} modules, which PEFT does not decompose; "
                "accepted for it are lora and full"
            )
        if int(min(module.weight.shape) * (1 - method.share)) < 1:
            raise ValueError(
                f"method.share={method.share:g}: a module of the base has {min(module.weight.shape)} directions, of "
                "which none would stay; accepted: less"
            )
    config = OSFConfig(effective_rank=1 - method.share, target_modules=names, task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(precision)
    for module in model.modules() if precision != torch.float32 else ():
        if isinstance(module, OSFLayer):
            # Autocast casts the directions; PEFT would cast each activation.
            module.cast_input_dtype_enabled = False  # pyright: ignore[reportAttributeAccessIssue]
    return model


def is_osf(model: Any) -> bool:
    """Whether the model was made by `with_directions`."""
    return any(isinstance(module, OSFLayer) for module in model.modules())


def merged(model: Any) -> Any:
    """The base with what was learned in its weights, of which those that it is in are marked as learning."""
    names = [name for name, module in model.base_model.model.named_modules() if isinstance(module, OSFLayer)]
    plain = model.merge_and_unload()
    plain.requires_grad_(False)
    for name in names:
        plain.get_submodule(name).weight.requires_grad_(True)
    return plain
