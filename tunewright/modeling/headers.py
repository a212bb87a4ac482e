"""The headers of safetensors files: names and shapes of tensors, and whether config.json is of the same model.

No weight is read. Transformers gives random weights to layers that no file has, and takes minutes to fail for absurd
sizes, so both are refused before a run.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.modeling.architecture.tiny import HIDDEN, LAYERS

Tensors = list[tuple[str, Sequence[int]]]  # names and shapes
LAYER = re.compile(r"(?:^|\.)(\d{1,9})\.")

MOST_IN_ONE = 2  # layers that a class of transformers keeps under one number


def tensors_in(file: Path) -> Tensors:
    """Return the names and shapes of a file's tensors. Raises ValueError where it is no whole safetensors file.

    An OSError names the file, as safetensors' own does not: it says "Permission denied (os error 13)" alone.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            return [(name, opened.get_slice(name).get_shape()) for name in opened.keys()]  # noqa: SIM118 is no dict
    except SafetensorError as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{file.name} is not a complete safetensors file ({said}); copy it again") from error
    except OSError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if error.filename or not number:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error


def check_config(fields: Mapping[str, Any], folder: Path) -> None:
    """Raises ValueError where a config.json has sizes that the folder's weights do not have, or a file was cut."""
    tensors = [tensor for file in sorted(folder.glob("*.safetensors")) for tensor in tensors_in(file)]
    num_layers = max((1 + int(found[1]) for name, _ in tensors if (found := LAYER.search(name))), default=0)
    lengths = {length for _, shape in tensors for length in shape}
    for name in LAYERS:
        if num_layers and (fields.get(name) or 0) > MOST_IN_ONE * num_layers:
            raise ValueError(f"config.json says {name}={fields[name]}, the weights have {num_layers} layers")
    for name in (*HIDDEN, "vocab_size"):
        if (fields.get(name) or 0) not in {0, *lengths}:
            raise ValueError(f"config.json says {name}={fields[name]}, and no tensor of the weights is of that length")
