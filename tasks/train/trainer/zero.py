"""DeepSpeed's ZeRO in place of DDP or FSDP2: its configuration, and what of it is not as theirs is.

torch's AdamW updates the weights, also in the main memory, so that nothing has to be compiled.
"""

import importlib
from typing import Any

import torch

from tunewright import compat
from tunewright.modeling.compute import BUCKET, Chosen


def configuration(chosen: Chosen, width: int) -> dict[str, Any]:
    """DeepSpeed's configuration; transformers fills in what is auto.

    `width` is that of the hidden states. In bfloat16 all weights are, with a float32 copy of what learns beside the
    optimizer's states. Gradients are summed in float32.
    """
    place = {"device": "cpu", "pin_memory": torch.cuda.is_available()} if chosen.offload else {"device": "none"}
    zero: dict[str, Any] = {"stage": chosen.zero, "offload_optimizer": place, "reduce_bucket_size": BUCKET}
    if chosen.zero == 3:
        zero |= {
            "offload_param": place,
            "stage3_param_persistence_threshold": 10 * width,  # tensors as small as a norm's are whole on each rank
            "stage3_max_live_parameters": 2 * BUCKET,
            "stage3_max_reuse_distance": 2 * BUCKET,
        }
    return {
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def joined(chosen: Chosen, model: Any) -> dict[str, Any]:
    """The arguments of a trainer by DeepSpeed, which is connected to the other ranks from here on."""
    compat.join_by_deepspeed()
    width = model.get_input_embeddings().embedding_dim
    return {"deepspeed": configuration(chosen, width), "accelerator_config": {"use_configured_state": True}}


def learned(model: Any) -> dict[str, torch.Tensor]:
    """The tensors that learned, in float32, put together from all ranks, which have to call this."""
    whole = importlib.import_module("deepspeed.utils").safe_get_full_fp32_param
    return {name: whole(each).cpu() for name, each in model.named_parameters() if each.requires_grad}
