"""The header of a GGUF file: its settings and its tensors' shapes, in milliseconds; no weight is read.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The package gguf reads every token of the
vocabulary into an array first, which takes seconds.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
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


@dataclass(frozen=True)
class Header:
    """`config` with the names of config.json, `tensors` with those of transformers' modules."""

    config: dict[str, Any]
    tensors: Sequence[tuple[str, Sequence[int]]]


def read_header(file: Path) -> Header:
    """What a GGUF file says of its model. Raises ValueError where it is no such file."""
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise ValueError(f"{file} does not begin as a GGUF file does")
        _, num_tensors, num_settings = struct.unpack("<IQQ", opened.read(20))
        settings = {_text(opened): _value(opened, _number(opened, "I")) for _ in range(num_settings)}
        tensors = [_tensor(opened) for _ in range(num_tensors)]
    kind = settings["general.architecture"]
    named = {ours: settings.get(f"{kind}.{theirs}") for theirs, ours in SETTINGS.items()}
    config = {name: value for name, value in named.items() if value is not None} | {"model_type": kind}
    config.setdefault("vocab_size", dict(tensors)["embed_tokens.weight"][0])
    return Header(config, tensors)


def _tensor(file: BinaryIO) -> tuple[str, list[int]]:
    name = _text(file)
    shape = [_number(file, "Q") for _ in range(_number(file, "I"))]
    file.seek(12, 1)  # its type and where it begins
    *place, module, ending = name.split(".")
    return ".".join([*place, MODULES.get(module, module), ending]), shape[::-1]  # GGUF has the inputs first


def _value(file: BinaryIO, kind: int) -> Any:
    """A setting; of an array, which are the vocabulary's, only its length."""
    if kind == STRING:
        return _text(file)
    if kind != ARRAY:
        return _number(file, SCALARS[kind])
    inner, length = _number(file, "I"), _number(file, "Q")
    if inner in SCALARS:
        file.seek(length * struct.calcsize(SCALARS[inner]), 1)
    else:
        for _ in range(length):
            _value(file, inner)
    return length


def _number(file: BinaryIO, code: str) -> Any:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(code)))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode("utf-8", errors="replace")
