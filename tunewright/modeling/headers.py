"""Checks of a base's files before a run: the headers of safetensors files, and a stranger's tokenizer.json.

No weight is read. Transformers gives random weights to layers that no file has, and takes minutes to fail for absurd
sizes, so both are refused before a run.

A tokenizer.json can crash the interpreter, a list of tokens can take twenty times its size here, and replacements in a
row can make a text longer without end. So it is read in a bounded process first.
"""

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.machine import bounded
from tunewright.machine.bounded import Unreadable
from tunewright.modeling.architecture.tiny import HIDDEN, LAYERS

Tensors = list[tuple[str, Sequence[int]]]  # names and shapes
LAYER = re.compile(r"(?:^|\.)(\d{1,9})\.")

MOST_IN_ONE = 2  # layers that a class of transformers keeps under one number
MEGABYTES = 400  # for the child that reads it; the largest known, of 34 MB, takes 160, and 700 in this process
MOST_GROWTH = 100  # times that replacements may make a text longer; of the tokenizers known at most 3


def tensors_in(file: Path) -> Tensors:
    """Return the names and shapes of a file's tensors. Raises ValueError where it is no whole safetensors file.

    An OSError names the file, as safetensors' own does not: it says "Permission denied (os error 13)" alone.
    """
    from safetensors import SafetensorError, safe_open

    with file.open("rb"):  # what may not be read is not there, as safetensors says it
        pass
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


def refused_tokenizer(file: Path) -> str:
    """Why a tokenizer.json is not read here, with the limit that it meets; empty where it meets none, or is not there.

    Of a file that is merely wrong says more who loads it.
    """
    if not file.is_file():
        return ""
    status = file.stat()
    return _refused(str(file.absolute()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(100)
def _refused(file: str, *_: int) -> str:
    """The same, once for each state of the file."""
    try:
        return bounded.call(read_tokenizer, file, megabytes=MEGABYTES)
    except Unreadable as error:
        limits = f"{bounded.SECONDS:.0f} s of processor time and {MEGABYTES} MB of memory"
        return f"{file} cannot be read within {limits} ({error})" if error.is_limit else ""


def read_tokenizer(file: str) -> str:
    """Reads it, and returns how it makes texts too long; for the bounded process."""
    import os

    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}  # each thread reserves memory
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(file)
    for name, part in (("normalizer", tokenizer.normalizer), ("decoder", tokenizer.decoder)):
        found = growth(json.loads(part.__getstate__())) if part else 1.0
        if found > MOST_GROWTH:
            times = f"{found:,.0f} times" if found < 1e9 else f"over {1e9:,.0f} times"
            return f"{file}: its {name} makes a text {times} as long; accepted: at most {MOST_GROWTH} times"
    return ""


def growth(part: dict[str, Any]) -> float:
    """Return the factor by which the replacements of a normalizer or decoder can lengthen a text."""
    found = 1.0
    for replacement in _replacements(part):
        pattern, content = replacement["pattern"], replacement["content"]
        # What a regular expression matches can be of any length, also of none between two characters.
        times = len(content) / max(1, len(pattern["String"])) if "String" in pattern else len(content) + 1.0
        found = min(found * max(1.0, times), 1e300)
    return found


def _replacements(part: Any) -> Iterator[dict[str, Any]]:
    inner = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    if isinstance(part, dict) and part.get("type") == "Replace":
        yield part
    for each in inner:
        yield from _replacements(each)
