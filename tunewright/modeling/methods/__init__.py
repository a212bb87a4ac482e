"""Which weights learn: an adapter, an adapter on a quantized base, chosen modules, or all of them.

What learns is float32, whatever it is multiplied in; the frozen rest is as small as it may be. An adapter's first
weights are random, so seed before.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.config import Method
from tunewright.modeling import architecture
from tunewright.modeling.methods.modules import num_in_experts, without_adapter
from tunewright.serving import TRAINED, as_stored

if TYPE_CHECKING:
    from tunewright.modeling.compute import Chosen

log = logging.getLogger("tunewright")

HEAD = ("lm_head", "embed_out")


def load_trainable(
    weights: Path,
    method: Method,
    chosen: "Chosen",
    modules: Sequence[str] = (),
    examples: Sequence[Sequence[int]] | None = None,
    begins_as: Path | None = None,
) -> Any:
    """The base in the folder `weights`, ready to train by `method`.

    `modules` are the names of those that learn with spectrum; `examples` the token ids of training rows, which
    init=eva looks at. `begins_as` is what a training before this one saved by the same method, which goes on from it.
    Raises ValueError where the base has no such modules or layers.
    """
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    from tunewright.modeling.methods.adapter import add_adapter
    from tunewright.modeling.methods.osf import with_directions

    precision = torch.bfloat16 if chosen.precision == "bfloat16" else torch.float32
    options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
    options["dtype"] = torch.float32 if method.kind in {"full", "osf"} else precision
    if method.kind == "qlora":
        options["quantization_config"] = _quantization(weights, method, precision, sharded=chosen.sharded)
    read = begins_as if begins_as is not None and method.kind == "full" else weights
    model: Any = as_stored(AutoModelForCausalLM.from_pretrained(read, **options))
    if method.kind != "full" and (beside := num_in_experts(model)):
        log.warning(
            "the base is a mixture of experts: method.kind=%s does not train%s its %s expert weights, only the other "
            "linear modules; method.kind=full trains all",
            *(method.kind, " or quantize" if method.kind == "qlora" else "", f"{beside:,}"),
        )
    for module in model.modules() if method.kind == "qlora" else ():
        # bitsandbytes would pack 4-bit weights anew in the first evaluation on a CPU. What they are multiplied by then
        # has no backward: gradients would end at such a layer from there on.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if method.kind in {"spectrum", "osf"} and begins_as is not None:
        model.load_state_dict(load_file(begins_as / TRAINED), strict=False)
    if method.kind == "spectrum":
        model.requires_grad_(False)
        for name in modules:
            model.get_submodule(name).float().requires_grad_(True)
    if method.kind in {"full", "spectrum"}:
        return model
    if method.kind in {"lora", "osf"} and torch.cuda.is_available():
        model.to("cuda")  # what an adapter starts from is decomposed there in a fraction of the time
    if method.kind == "osf":
        return with_directions(model, method, precision)
    return add_adapter(model, method, precision, examples, begins_as)


def _quantization(weights: Path, method: Method, precision: Any, *, sharded: bool) -> Any:
    """Return how the base's layers are quantized; its head, embeddings and norms are not, nor weights
    that its class reads by itself. To be sharded, packed weights lie in tensors of the others' type.
    """
    from transformers import AutoConfig, BitsAndBytesConfig

    config = AutoConfig.from_pretrained(weights, local_files_only=True)
    read = without_adapter(config.model_type, architecture.of(config).unreached)
    skipped = [*sorted(read), *HEAD] if read else None  # without any, transformers finds the head by itself
    if method.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=skipped,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision,
        bnb_4bit_quant_storage=precision if sharded else None,
    )


def trained_share(model: Any) -> tuple[int, int]:
    """The number of parameters that learn, and of all; a packed one counts as the weights that it holds."""
    return model.num_parameters(only_trainable=True), model.num_parameters()
