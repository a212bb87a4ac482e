"""Which weights learn: an adapter, an adapter on a 4-bit base, or all of them."""

import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tasks.config import Method

ATTENTION_MODULES = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "dense"}


def has_bfloat16() -> bool:
    """Whether the hardware multiplies bfloat16 faster than float32, on the GPU or else on this CPU."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(encoding="ascii", errors="replace") if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def load_trainable(weights: Path, method: Method, **options: Any) -> Any:
    """The base in `weights`, ready to train by `method`: what learns is float32, the frozen rest as small as it may be.

    Seed before: an adapter's first weights are random.
    """
    options |= {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
    compute = torch.bfloat16 if has_bfloat16() else torch.float32
    if method.kind == "full":
        return AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32, **options)
    if method.kind == "qlora":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        )
    model = AutoModelForCausalLM.from_pretrained(weights, dtype=compute, **options)
    if method.kind == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    adapter = LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=_targets(model, method),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, adapter)
    if compute == torch.bfloat16:
        # Under autocast the small adapter weights are cast to bfloat16; PEFT would cast every activation to float32.
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.cast_input_dtype_enabled = False  # pyright: ignore[reportArgumentType] a plain attribute
    return model


def _targets(model: Any, method: Method) -> list[str]:
    """The full names of the modules that get an adapter: linear ones inside the chosen layers, never the head."""
    num_layers = model.config.get_text_config().num_hidden_layers
    first = num_layers - (method.layers or num_layers)
    if first < 0:
        raise ValueError(f"method.layers={method.layers}: the base has {num_layers} layers")
    names = []
    for name, module in model.named_modules():
        layer = re.search(r"layers\.(\d+)\.", name)
        linear = isinstance(module, torch.nn.Linear)  # bitsandbytes' 4-bit one is a subclass
        if linear and layer and int(layer[1]) >= first:
            names.append(name)
    if method.target == "attention":
        names = [name for name in names if name.rpartition(".")[2] in ATTENTION_MODULES]
    if not names:
        raise ValueError(f"method.target={method.target}: {type(model).__name__} has no such modules in its layers")
    return names


def trained_share(model: Any) -> tuple[int, int]:
    """The number of parameters that learn, and of all."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)
