"""Makes a loaded model compute as was chosen.

For a CPU in bfloat16 the arithmetic of adapters and norms is done in fewer passes over memory: there they cost as much
as the products. Each computes what the library's own does, to rounding, and replaces it only where that was seen to be
so.
"""

from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.nn import functional

from tunewright.modeling.batches import ATTENTION
from tunewright.modeling.compute import Chosen

# Fused cross-entropies of the package score all positions; ours scores those with labels.
LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}
DEFAULT = "default"  # PEFT's name of the one adapter


def prepare(model: Any, chosen: Chosen) -> None:
    """Sets attention, kernels and compilation; weights and their names stay as they are."""
    model.set_attn_implementation(ATTENTION if chosen.layout in {"shared", "packed"} else chosen.attention)
    if chosen.fused:
        fuse(model)
    if chosen.liger:
        from transformers.integrations.liger import apply_liger_kernel

        apply_liger_kernel(model, LIGER)
    if chosen.compile:
        # Layers are alike: one is compiled and serves all, in a fraction of the time of the whole model.
        for layer in decoder_layers(model):
            layer.compile(dynamic=True)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of a decoder, with or without an adapter."""
    lists = (module for name, module in model.named_modules() if name.rpartition(".")[2] in {"layers", "h", "blocks"})
    return next(module for module in lists if isinstance(module, nn.ModuleList))


def fuse(model: Any) -> int:
    """Replaces the forward of plain adapters and of RMS norms; how many it replaced."""
    replaced = 0
    for module in model.modules():
        if isinstance(module, LoraLinear) and _is_plain(module):
            module.forward = _Adapted(module)  # pyright: ignore[reportAttributeAccessIssue] it is called by position
            replaced += 1
        elif type(module).__name__.endswith("RMSNorm") and _is_known_norm(module):
            module.forward = _Normed(module)  # pyright: ignore[reportAttributeAccessIssue]
            replaced += 1
    return replaced


def _is_plain(module: Any) -> bool:
    """Whether an adapter is a low-rank product beside a plain linear layer, and nothing more."""
    alone = list(module.lora_A) == [DEFAULT] and not module.lora_variant
    undropped = isinstance(module.lora_dropout[DEFAULT], nn.Identity)
    linear = type(module.base_layer) is nn.Linear and not module.base_layer.weight.requires_grad
    return alone and undropped and linear and not module.lora_bias[DEFAULT]


class _Adapted:
    def __init__(self, module: Any) -> None:
        self.module, self.own = module, module.forward

    def __call__(self, states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        module: Any = self.module
        weight = module.base_layer.weight
        if module.disable_adapters or module.merged or weight.dtype != states.dtype:
            return self.own(states, *args, **kwargs)
        down, up = module.lora_A[DEFAULT].weight, module.lora_B[DEFAULT].weight
        flat = states.flatten(0, -2)
        with torch.autocast(states.device.type, enabled=False):
            result = _LowRank.apply(flat, weight, module.base_layer.bias, down, up, module.scaling[DEFAULT])
        return result.unflatten(0, states.shape[:-1])


class _LowRank(torch.autograd.Function):
    """x W' + b + s (x A') B' of x [tokens, in], W [out, in], A [rank, in], B [out, rank], where W and b are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        down, up = down.to(states.dtype), (up * scale).to(states.dtype)
        inner = states @ down.t()
        result = functional.linear(states, weight, bias).addmm_(inner, up.t())
        ctx.save_for_backward(states, weight, down, up, inner)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight, down, up, inner = ctx.saved_tensors
        gradient = outer[0]
        of_inner = gradient @ up
        of_up = (gradient.t() @ inner).float() * ctx.scale
        of_down = (of_inner.t() @ states).float()
        of_states = (gradient @ weight).addmm_(of_inner, down) if ctx.needs_input_grad[0] else None
        return of_states, None, None, of_down, of_up, None


def _is_known_norm(module: Any) -> bool:
    """Whether a norm computes what ours does, seen by its output, and learns nothing."""
    weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
    if weight is None or epsilon is None or weight.requires_grad or weight.dim() != 1:
        return False
    sample = torch.linspace(-3, 2, 4 * len(weight), device=weight.device).view(4, -1).to(weight.dtype)
    with torch.no_grad():
        own, ours = module(sample).float(), _Normed(module)(sample).float()
    return torch.allclose(own, ours, rtol=2e-2 if weight.dtype == torch.bfloat16 else 1e-5, atol=1e-6)


class _Normed:
    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return _RootMeanSquare.apply(hidden_states, self.module.weight, self.module.variance_epsilon)


class _RootMeanSquare(torch.autograd.Function):
    """w x / sqrt(mean(x^2) + epsilon) over the last dimension, in float32 inside; w is frozen."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = states.float()
        size = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = size.square_().div_(wide.shape[-1]).add_(epsilon).rsqrt_()
        normed = (wide * scale).to(states.dtype)
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        normed, scale, weight = ctx.saved_tensors
        gradient, wide = (outer[0] * weight).float(), normed.float()
        along = (gradient * wide).mean(dim=-1, keepdim=True)
        return gradient.addcmul_(wide, along, value=-1).mul_(scale).to(normed.dtype), None, None
