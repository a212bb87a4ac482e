"""Files of an export: merged weights, or an adapter and its base; tokenizer, template and generation settings.

Nothing of it names a path of this machine.
"""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from tunewright.errors import ConfigError, TunewrightError
from tunewright.modeling import headers
from tunewright.serving import OVERWRITTEN, ServedChat, example_prompt, load_weights, loaded_files

BASE = "base"  # folder in that of an adapter: its base, where no stranger can name it
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
# Of a weight; of those that a GGUF file alone has, with the scales of its blocks.
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "q8_0": 1.07, "q6_k": 0.83, "q5_k_m": 0.72, "q4_k_m": 0.62}
WITHOUT_QUANTIZE = ("float32", "bfloat16", "float16", "q8_0")  # llama.cpp's converter writes them by itself
BESIDE = 64_000_000  # bytes: tokenizer, settings and model card


def require_weights(name: str, version: str, tuned: Path) -> None:
    """Raises ConfigError where a version is the base with a prompt, which a folder of weights cannot hold."""
    if prompt := example_prompt(tuned):
        raise ConfigError(
            f"version {version} of {name} is the base with a {prompt.name}: it has no weights of its own, and an "
            f"exported folder would leave the examples out; serve it with: tunewright serve {name} --version {version}"
        )


def require_adapter(name: str, tuned: Path) -> None:
    """Raises ConfigError where a version has no adapter."""
    if not (tuned / ADAPTER[0]).is_file():
        raise ConfigError(
            f"--to adapter: {name} has no adapter, as weights of the base itself were trained; use --to merged"
        )


def require_room(folder: Path, loaded: ServedChat, tuned: Path, dtype: str, form: str, *, beside: bool) -> None:
    """Raises TunewrightError where the disk of `folder` has no room for what is to be written, also for a while."""
    if form != "adapter":
        meanwhile = 0 if form == "merged" else 4 if dtype in WITHOUT_QUANTIZE else 8
        shapes = (shape for file in loaded.base.glob("*.safetensors") for _, shape in headers.tensors_in(file))
        needed = BESIDE + math.ceil(sum(map(math.prod, shapes)) * (BYTES[dtype] + meanwhile))
    else:
        files = [*(tuned / name for name in ADAPTER), *(loaded_files(loaded.base) if beside else ())]
        needed = BESIDE + sum(file.stat().st_size for file in files)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise TunewrightError(
            f"{folder}: {free:,} bytes are free on its disk; needed: {needed:,}; free some, or export to another disk"
        )


def write_merged(folder: Path, loaded: ServedChat, tuned: Path, dtype: str) -> None:
    """Writes a whole model: the base with what was trained in its weights. `loaded` cannot answer afterwards.

    An adapter is merged in float32, whatever the weights are rounded to then.
    """
    import torch
    from transformers import GenerationConfig

    model, precision = loaded.model, getattr(torch, dtype)
    if model.dtype not in (torch.float32, precision) or (model.dtype != torch.float32 and is_adapter(model)):
        loaded.model = None
        model = load_weights(loaded.base, tuned, dtype=torch.float32)
    if is_adapter(model):
        model = model.merge_and_unload()
    model = model.to(precision)
    model.config.dtype = precision
    model.generation_config = GenerationConfig()  # not the base's own; write_settings writes how it was measured
    model.save_pretrained(folder)


def write_adapter(folder: Path, loaded: ServedChat, tuned: Path, hub: tuple[str, str | None] | None) -> None:
    """Writes the adapter, which names its base by `hub`, an id and a revision; without one the base is beside it."""
    for name in ADAPTER:
        shutil.copyfile(tuned / name, folder / name)
    change(folder / ADAPTER[0], base_model_name_or_path=hub[0] if hub else BASE, revision=hub[1] if hub else None)
    if hub is None:
        for file in loaded_files(loaded.base):
            target = folder / BASE / file.relative_to(loaded.base)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
        _without_machine(folder / BASE / "tokenizer_config.json")


def write_settings(folder: Path, loaded: ServedChat, max_new_tokens: int) -> None:
    """Writes the tokenizer with the contract's template, and greedy generation with its stop tokens."""
    loaded.tokenizer.chat_template = loaded.template
    loaded.tokenizer.save_pretrained(folder)
    _without_machine(folder / "tokenizer_config.json")
    generation_settings(loaded, max_new_tokens).save_pretrained(folder)


def generation_settings(loaded: ServedChat, max_new_tokens: int) -> Any:
    """How the version was measured, as transformers has it."""
    from transformers import GenerationConfig

    stops = loaded.contract["stop_token_ids"]
    return GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=list(stops), pad_token_id=stops[0]
    )


def is_adapter(model: Any) -> bool:
    """Whether a loaded model is a base with an adapter on top."""
    return hasattr(model, "peft_config")


def _without_machine(file: Path) -> None:
    if file.is_file():
        change(file, **dict.fromkeys(OVERWRITTEN))


def change(file: Path, **values: Any) -> None:
    """Set values in a JSON file, and remove those that are None."""
    fields = json.loads(file.read_bytes()) | values
    kept = {name: value for name, value in fields.items() if value is not None or name not in values}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
