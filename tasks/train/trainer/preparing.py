"""Makes a loaded model compute as was chosen."""

from typing import Any

from torch import nn

from tunewright.modeling.batches import ATTENTION
from tunewright.modeling.compute import Chosen
from tunewright.tasks.train.trainer.fused import fuse

# Fused cross-entropies of the package score all positions; ours scores those with labels.
LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}


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
