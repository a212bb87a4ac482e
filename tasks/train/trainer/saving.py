"""The tuned weights as files that answer as the trained model did: equal weights give equal bytes.

Three forms: an adapter, which is always a plain one of the untouched base; the tensors that learned (spectrum), which
are laid over the base; and all weights. The first two need the very base that they were trained on, which serving.py
finds by its digest: a file of a quarter of the weights, beside one that is there already, is smaller and as safe.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from tunewright.modeling.methods.adapter import BEGAN_AS
from tunewright.serving import TRAINED


def save(model: Any, folder: Path, reference: str, precision: Literal["bfloat16", "float32"]) -> None:
    """Writes what `model` learned to `folder`; weights of the base itself in the precision that they multiplied in.

    An adapter's config names the base as the user did, its sets are sorted, and no path of this machine is kept.
    """
    import torch

    shutil.rmtree(folder, ignore_errors=True)
    if hasattr(model, "peft_config"):
        _save_adapter(model, folder, reference)
        return
    model.to(getattr(torch, precision))
    if all(parameter.requires_grad for parameter in model.parameters()):
        model.save_pretrained(folder)
        return
    from safetensors.torch import save_file

    folder.mkdir()
    learned = {name: parameter.data for name, parameter in model.named_parameters() if parameter.requires_grad}
    save_file(learned, folder / TRAINED, metadata={"format": "pt"})


def _save_adapter(model: Any, folder: Path, reference: str) -> None:
    began_as = getattr(model, BEGAN_AS, None)
    if began_as is None:
        model.save_pretrained(folder)
    else:  # a plain adapter of twice the rank: what it has become, minus what it was taken out of the base as
        from safetensors.torch import save_file

        with tempfile.TemporaryDirectory() as place:
            (initial := Path(place, "initial")).mkdir()
            save_file(began_as, initial / "adapter_model.safetensors", metadata={"format": "pt"})
            model.save_pretrained(folder, path_initial_model_for_weight_conversion=str(initial))
    (folder / "README.md").unlink(missing_ok=True)
    file = folder / "adapter_config.json"
    adapter = json.loads(file.read_text(encoding="utf-8")) | {"base_model_name_or_path": reference, "revision": None}
    adapter = {name: sorted(value) if isinstance(value, list) else value for name, value in adapter.items()}
    file.write_text(json.dumps(adapter, indent=2, sort_keys=True), encoding="utf-8")
