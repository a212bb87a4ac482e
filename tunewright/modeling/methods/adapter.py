"""An adapter of PEFT's: where it goes, what it starts from, and what it is when it is saved.

PiSSA and OLoRA move the base's main directions from its weights into the adapter. On the untouched base such an adapter
answers wrongly, so what it began as is kept, and saving makes a plain adapter of the difference (saving.py). Here the
adapter begins in float32 whatever the base is in; PEFT would round it to the base's type after it was taken out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

from tunewright.config import Method
from tunewright.modeling import architecture
from tunewright.modeling.methods import eva
from tunewright.modeling.methods.modules import targets

PISSA = "pissa_niter_16"  # iterations of a fast decomposition: seconds instead of hours, and as good by PEFT's account
BEGAN_AS = "adapter_began_as"  # the attribute of the model that keeps an adapter which was taken out of its weights


def add_adapter(model: Any, method: Method, precision: torch.dtype, examples: Sequence[Sequence[int]] | None) -> Any:
    """The model with an adapter that learns, in float32, and everything else frozen; `precision` is multiplied in."""
    from_activations = method.init == "eva"
    config = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=targets(model, method, architecture.of(model.config).unreached),
        use_rslora=method.rslora,
        use_dora=method.dora,
        init_lora_weights="eva" if from_activations else True,
        eva_config=EvaConfig(rho=1.0, use_label_mask=False) if from_activations else None,
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    if from_activations:
        eva.begin(model, examples or [])
        config.init_lora_weights, config.eva_config = True, None  # loaded, it is an adapter like any other
    if method.init in {"pissa", "olora"}:
        _take_out(model, method)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    # Under autocast the small adapter weights are cast to bfloat16; PEFT would cast every activation to float32.
    for module in model.modules() if precision != torch.float32 else ():
        if isinstance(module, BaseTunerLayer):
            module.cast_input_dtype_enabled = False  # pyright: ignore[reportAttributeAccessIssue]
    return model


def _take_out(model: Any, method: Method) -> None:
    """Moves the main directions of each adapted weight into the adapter, and keeps what the adapter then is."""
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        base: Any = layer.get_base_layer()
        largest = min(base.weight.shape)
        if method.rank > largest:
            raise ValueError(
                f"method.rank={method.rank}: method.init={method.init} allows at most {largest}, the size of {name}"
            )
        if method.init == "pissa":
            layer.pissa_init("default", PISSA)
        else:
            layer.olora_init("default")
    began_as = {name: tensor.to("cpu", copy=True) for name, tensor in get_peft_model_state_dict(model).items()}
    setattr(model, BEGAN_AS, began_as)
