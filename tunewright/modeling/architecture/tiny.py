"""A configuration of the same kind in small: what a class computes with it takes milliseconds, and is done alike.

Widths are divided by one factor, so that what has to match goes on matching. Heads, kinds of layers and switches stay.
What a row is too long for, such as a sliding window, stays too short for it.
"""

import math
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

ROW = 40  # tokens of the longest row that a tiny model reads
SHORT, WIDE = 8, 1_024  # what stands for a window that a row exceeds, and for one that it does not
HEAD_SIZE = 16  # about what a head is reduced to: a quarter of it, turned by rotary embeddings, is even still
VOCABULARY, CHUNK = 128, 16
MOST_LAYERS, ALL_LAYERS, MOST_EXPERTS, WIDEST = 12, 64, 8, 2_048

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_blocks")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "attention_heads")
HIDDEN = ("hidden_size", "n_embd", "d_model", "embedding_dim")
HEAD_COUNT = re.compile(r"(?:^|_)(?:num|n)_(?:\w+_)?heads?$|attention_heads$|query_groups$")
HEAD_WIDTH = re.compile(r"head_?dim$|head_size$|d_head$|dim_head$|kv_channels$|^rotary_dim$")
WINDOW = re.compile(
    r"window(?!.*(?:layers|pattern))|attention_chunk|attn_chunk|local_attention$|index_topk$|rel_extent$"
)
WIDTH = re.compile(
    r"(?:^|_)(?:(?:hidden|intermediate|inner|proj|embed\w*|head|state|ffn\w*|dense|router)_size|size_mlp|dim|\w*dim|rank|"
    r"width|n_embd|n_inner|d_model|d_inner|d_ssm|d_head|headdim|d_state|dff|dim_ff|hidden_size_per_layer_input|channels)$"
)
KERNEL = re.compile(r"conv|kernel")
POSITIONS = re.compile(r"position_embeddings$|^n_positions$|^n_ctx$|^max_seq_len$|^context_length$")
EXPERTS = re.compile(r"^(?:moe_)?(?:num|n)_(?:\w+_)?experts$")
CHOSEN_EXPERTS = re.compile(r"experts_per_tok|^moe_k$|^moe_topk$")
EVERY = re.compile(r"interval|period|every|offset|pattern$|first_k_dense")
SIZES = (HEAD_COUNT, HEAD_WIDTH, WIDTH, EXPERTS)
LARGEST, MOST_HIDDEN_LAYERS = 10_000_000, 10_000  # of any model
MOST_NESTED = 20  # lists and objects in each other in one field; of the models known at most 4
LABELS = "num_labels"  # for each of which transformers makes two entries of a dictionary
TOKEN_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2}
ROPE = ("rope_scaling", "rope_parameters")


def absurd(fields: Mapping[str, Any]) -> str:
    """A size of a config.json that no model has, and what is accepted; empty where there is none."""
    for name, value in fields.items():
        is_main, is_layers = name in (*LAYERS, *HEADS, *HIDDEN, "vocab_size"), name in (*LAYERS, LABELS)
        is_size = is_main or name == LABELS or any(pattern.search(name) for pattern in SIZES)
        least, most = int(is_main), MOST_HIDDEN_LAYERS if is_layers else LARGEST
        is_wrong = not least <= value <= most if _is_int(value) else is_main and value is not None
        if is_size and is_wrong:
            return f"{name}={value!r:.80}; accepted: a whole number from {least} to {most:,}"
    return ""


def nested(fields: Mapping[str, Any]) -> str:
    """A field of a config.json that is nested deeper than any model's, and what is accepted; empty if there is none.

    Those who compute with a configuration recurse into it.
    """
    for name, value in fields.items():
        level = [value]
        for _ in range(MOST_NESTED + 1):
            level = [each for each in level if isinstance(each, dict | list) and each]
            level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
        if level:
            return f"{name[:80]!r} nested over {MOST_NESTED} deep; accepted: at most {MOST_NESTED} lists and objects"
    return ""


def windows(fields: Mapping[str, Any]) -> dict[str, int]:
    """The windows of tokens in a config.json by their names, each with its size."""
    return {name: value for name, value in sorted(fields.items()) if _is_window(name, value)}


def tiny(fields: Mapping[str, Any], exceeded: Collection[str], *, all_layers: bool = False) -> dict[str, Any]:
    """The fields of a config.json as those of a model of some hundred thousand weights; its rows exceed the windows of
    these names.
    """
    heads, head_width = _factors(fields)
    whole = next((fields[name] for name in LAYERS if fields.get(name)), 0)
    num_layers = min(whole, ALL_LAYERS) if all_layers else _num_layers(fields)
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, list) and len(value) == whole and whole > num_layers:
            small[name] = value[:num_layers]
        elif not _is_int(value):
            small[name] = value
        elif name in LAYERS:
            small[name] = num_layers
        elif _is_window(name, value):
            small[name] = SHORT if name in exceeded else WIDE
        else:
            small[name] = _reduced(name, value, heads, head_width)
    if "attention_types" in fields and "attention_layers" in small:  # GPT-Neo writes each kind with a number of times
        small["attention_types"] = [[small["attention_layers"], 1]]
    for name in ROPE:
        if isinstance(fields.get(name), dict):
            small[name] = _plain_rope(fields[name])
    for name, value in fields.items():
        if isinstance(value, dict) and name not in ROPE:
            small[name] = {key: _reduced(key, v, heads, head_width) if _is_int(v) else v for key, v in value.items()}
    return small | {name: id_ for name, id_ in TOKEN_IDS.items() if fields.get(name) is not None}


def _is_window(name: str, value: Any) -> bool:
    return _is_int(value) and bool(WINDOW.search(name))


def _is_int(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _reduced(name: str, value: int, heads: int, head_width: int) -> int:
    if "vocab" in name:
        return VOCABULARY
    if POSITIONS.search(name):
        return min(value, WIDE)
    if EXPERTS.search(name):
        return min(value, MOST_EXPERTS)
    if CHOSEN_EXPERTS.search(name):
        return min(value, 2)
    if HEAD_COUNT.search(name):
        return max(1, value // heads)
    if HEAD_WIDTH.search(name):
        return max(min(value, 4), value // head_width)
    if WIDTH.search(name) and not KERNEL.search(name):
        narrow = max(min(value, 8), value // (heads * head_width))
        return min(WIDEST, narrow if name in HIDDEN else narrow // 8 * 8 or narrow)  # experts are multiplied in blocks
    most = {"chunk_size": CHUNK, "mamba_chunk_size": CHUNK, "n_group": 2, "topk_group": 1}
    most |= {"n_groups": 1, "mamba_n_groups": 1}
    return min(value, most.get(name, value))


def _factors(fields: Mapping[str, Any]) -> tuple[int, int]:
    """Return the divisors of head counts and of head widths, at least two of several heads remaining; other widths are
    divided by both, so that heads still fill them.
    """
    counts = [value for name, value in fields.items() if HEAD_COUNT.search(name) and isinstance(value, int) and value]
    hidden = next((fields[name] for name in HIDDEN if fields.get(name)), 0)
    heads = next((fields[name] for name in HEADS if fields.get(name)), 0)
    if not heads:
        return 1, max(1, hidden // (4 * HEAD_SIZE))
    head = fields.get("qk_rope_head_dim") or fields.get("head_dim") or hidden // heads
    fewest = min((count for count in counts if count > 1), default=1)
    shared = math.gcd(*counts)
    fewer = next(n for n in range(max(1, fewest // 2), 0, -1) if shared % n == 0)
    narrower = next(n for n in range(max(1, head // HEAD_SIZE), 0, -1) if math.gcd(head, hidden // fewer) % n == 0)
    return fewer, narrower


def _num_layers(fields: Mapping[str, Any]) -> int:
    """So few layers that each kind of them is still there."""
    whole = next((fields[name] for name in LAYERS if fields.get(name)), 2)
    lists = [value for value in fields.values() if isinstance(value, list) and len(value) == whole]
    kinds = [max(value.index(kind) for kind in value) + 1 for value in lists]
    kinds += [len(value) for value in fields.values() if isinstance(value, list) and len(value) <= MOST_LAYERS]
    every = [
        value + 1 for name, value in fields.items() if EVERY.search(name) and isinstance(value, int) and value < whole
    ]
    return min(whole, MOST_LAYERS, max([2, *kinds, *every]))


def _plain_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary embeddings without their stretching to longer rows, whose factors are as many as a head is wide."""
    if any(isinstance(value, dict) for value in rope.values()):  # of each kind of layer its own
        return {name: _plain_rope(value) if isinstance(value, dict) else value for name, value in rope.items()}
    kept = {name: value for name, value in rope.items() if name in ("rope_theta", "partial_rotary_factor")}
    return {"rope_type": "default"} | kept
