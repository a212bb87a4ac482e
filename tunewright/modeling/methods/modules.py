"""The modules of a decoder's layers by name, and which of them a method touches."""

import re
from collections.abc import Collection
from typing import Any

from tunewright.config import Method

ATTENTION = {
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "qkv_proj",
    "out_proj",
    "query_key_value",
    "c_attn",
    "dense",
    "q_a_proj",
    "q_b_proj",
    "kv_b_proj",
}
# Models whose fused kernels read the weight of out_proj by themselves: PEFT refuses an adapter there.
OUT_PROJ_FUSED = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.(.+)$")


def layer_of(name: str) -> int:
    """The number of the layer that a module lies in, counted from 0."""
    found = LAYER.search(name)
    assert found
    return int(found[1])


def type_of(name: str) -> str:
    """Return a module's type, the same in every layer: self_attn.q_proj."""
    found = LAYER.search(name)
    assert found
    return found[2]


def linear_modules(model: Any) -> dict[str, Any]:
    """The linear modules inside the model's layers by their full names, in its order; never the head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    # bitsandbytes' packed ones are subclasses of Linear
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D))
    return {name: module for name, module in found if LAYER.search(name)}


def num_in_experts(model: Any) -> int:
    """Count the weights that are stacked experts, [experts, out, in], in the model's layers: no linear modules, so that
    neither an adapter nor packing nor Spectrum's ranking reaches them.
    """
    from torch.nn.modules.conv import _ConvNd

    inside = (module for name, module in model.named_modules() if LAYER.search(name))
    owners = (module for module in inside if not isinstance(module, _ConvNd))
    tensors = (tensor for owner in owners for tensor in owner.parameters(recurse=False))
    # RWKV's vectors have two more dimensions of size 1.
    return sum(tensor.numel() for tensor in tensors if tensor.dim() == 3 and tensor.shape[0] > 1)


def without_adapter(model_type: str, unreached: Collection[str] = ()) -> set[str]:
    """The names of the linear modules in which an adapter would do nothing; `unreached` are those that are not called
    (tunewright/modeling/architecture).
    """
    return {*unreached} | ({"out_proj"} if model_type in OUT_PROJ_FUSED else set())


def targets(model: Any, method: Method, unreached: Collection[str] = ()) -> list[str]:
    """The full names of the modules that get an adapter, where it acts. Raises ValueError where there are none such."""
    without = without_adapter(model.config.model_type, unreached)
    num_layers = model.config.get_text_config().num_hidden_layers
    if method.layers and method.layers > num_layers:
        raise ValueError(f"method.layers={method.layers}: the base has only {num_layers} layers")
    first = num_layers - (method.layers or num_layers)
    linear = [name for name in linear_modules(model) if layer_of(name) >= first]
    if named := sorted({name.strip().rpartition(".")[2] for name in method.target.split(",")} & without):
        raise ValueError(
            f"method.target={method.target}: the base uses the weight of {named[0]} directly, so an adapter "
            "there would have no effect; leave it out"
        )
    linear = [name for name in linear if name.rpartition(".")[2] not in without]
    if method.target == "all-linear":
        return _found(linear, method)
    if method.target == "attention":
        return _found([name for name in linear if name.rpartition(".")[2] in ATTENTION], method)
    wanted = [name.strip() for name in method.target.split(",")]
    ends = {end: [name for name in linear if f".{name}".endswith(f".{end}")] for end in wanted}
    if missing := [end for end, names in ends.items() if not names]:
        there = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise ValueError(f"method.target={method.target}: the base has no {missing[0]} in its layers; it has {there}")
    return [name for name in linear if any(name in names for names in ends.values())]


def _found(names: list[str], method: Method) -> list[str]:
    if not names:
        raise ValueError(f"method.target={method.target}: the base has no such modules; accepted: names of its modules")
    return names
