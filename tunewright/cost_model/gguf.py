"""The header of a GGUF file: its settings and its tensors' shapes, in milliseconds; no weight is read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package gguf reads every token of the
vocabulary into an array first, which takes seconds.
"""

import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LARGEST = 10_000_000  # of a model's sizes
SETTINGS = {
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "vocab_size": "vocab_size",
}
MODULES = {
    "token_embd": "embed_tokens",
    "output": "lm_head",
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_qkv": "qkv_proj",
    "attn_output": "o_proj",
    "ffn_gate": "gate_proj",
    "ffn_up": "up_proj",
    "ffn_down": "down_proj",
}


Tensors = Sequence[tuple[str, Sequence[int]]]  # names and shapes


def read_header(file: str) -> tuple[dict[str, Any], Tensors]:
    """Read a GGUF file's header: settings by the names of config.json, tensors by those of transformers' modules.

    Raises ValueError where it is no such file. Of a file that is not trusted it is called in a bounded child.
    """
    with Path(file).open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError("does not begin with the magic bytes of a GGUF file")
        try:
            _, num_tensors, num_settings = struct.unpack("<IQQ", opened.read(20))
            settings = {_text(opened): _value(opened, _number(opened, "I")) for _ in range(num_settings)}
            tensors = [_tensor(opened) for _ in range(num_tensors)]
        except struct.error as error:
            raise ValueError("is cut off") from error
    return _config(settings, tensors), tensors


def read_settings(file: Path) -> dict[str, Any]:
    """Read all settings of a GGUF file that is trusted, also the arrays of its vocabulary."""
    with file.open("rb") as opened:
        opened.seek(16)
        num_settings = _number(opened, "Q")
        return {_text(opened): _value(opened, _number(opened, "I"), is_whole=True) for _ in range(num_settings)}


def _config(settings: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    kind = settings.get("general.architecture")
    if not isinstance(kind, str):
        raise ValueError(f"has general.architecture={kind}, which is not a name")
    config: dict[str, Any] = {"model_type": kind}
    for theirs, ours in SETTINGS.items():
        value = settings.get(f"{kind}.{theirs}")
        if value is None:
            continue
        if not isinstance(value, int) or not 0 < value <= LARGEST:
            raise ValueError(f"has {kind}.{theirs}={value!r:.80}, which is not a whole number from 1 to {LARGEST:,}")
        config[ours] = value
    embedding = dict(tensors).get("embed_tokens.weight")
    return {"vocab_size": embedding[0]} | config if embedding else config


def _tensor(file: BinaryIO) -> tuple[str, list[int]]:
    name = _text(file)
    shape = [_number(file, "Q") for _ in range(_number(file, "I"))]
    file.seek(12, 1)  # its type and where it begins
    parts = name.split(".")
    parts[-2:-1] = [MODULES.get(module, module) for module in parts[-2:-1]]
    return ".".join(parts), shape[::-1]  # GGUF has the inputs first


def _value(file: BinaryIO, kind: int, *, is_whole: bool = False) -> Any:
    """A setting; of an array, which are the vocabulary's, only its length unless it `is_whole`."""
    if kind == STRING:
        return _text(file)
    if kind in SCALARS:
        return _number(file, SCALARS[kind])
    if kind != ARRAY:
        raise ValueError(f"has a setting of type {kind}; accepted: 0 to 12")
    inner, length = _number(file, "I"), _number(file, "Q")
    if is_whole:
        return [_value(file, inner, is_whole=True) for _ in range(length)]
    if inner in SCALARS:
        file.seek(_whole(file, length * struct.calcsize(SCALARS[inner])), 1)
    else:
        for _ in range(length):
            _value(file, inner)
    return length


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_whole(file, _number(file, "Q"))).decode("utf-8", errors="replace")


def _whole(file: BinaryIO, length: int) -> int:
    """The length in bytes, where the file has so many left. Raises ValueError where it has not."""
    if length > os.fstat(file.fileno()).st_size - file.tell():
        raise ValueError(f"declares {length:,} bytes, more than the file has left")
    return length
