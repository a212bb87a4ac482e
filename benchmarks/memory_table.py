"""The well-known table of what fits which card, computed again; docs/memory.md has what this prints.

.venv/bin/python benchmarks/memory_table.py
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tunewright.config import Compute, Method, Training
from tunewright.cost_model import devices, shapes
from tunewright.cost_model.memory import Load, Memory, memory
from tunewright.modeling import compute

COLUMNS = (
    *("model", "method", "card", "rows x tokens", "checkpointing"),
    *("weights", "training state", "activations", "logits", "peak"),
)
STATES = ("weights", "adapter", "gradients", "optimizer")
LABELLED = 4  # one token in so many is an answer's
LLAMA: dict[str, dict[str, Any]] = {  # from the published config.json
    "Llama-2-7B": {
        "hidden_size": 4_096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32_000,
    },
    "Llama-3-8B": {
        "hidden_size": 4_096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "Llama-2-70B": {
        "hidden_size": 8_192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "vocab_size": 32_000,
    },
}


class Claim(NamedTuple):
    """A published claim that a model fits on a number of cards."""

    model: str
    kind: str
    card: str
    num_cards: int = 1


CLAIMS = (
    Claim("Llama-2-7B", "qlora", "rtx-5080"),
    Claim("Llama-3-8B", "qlora", "rtx-5080"),
    Claim("Llama-2-7B", "lora", "rtx-4090"),
    Claim("Llama-3-8B", "lora", "rtx-4090"),
    Claim("Llama-2-70B", "qlora", "rtx-4090"),
    Claim("Llama-2-70B", "qlora", "l40s"),
    Claim("Llama-2-7B", "full", "a100-80gb"),
    Claim("Llama-2-7B", "full", "a100-80gb", 2),
    Claim("Llama-2-7B", "full", "a100-80gb", 4),
)
SETTINGS = ((1, 512, False), (1, 2_048, False), (1, 2_048, True), (4, 2_048, True))  # rows, tokens, checkpointing


def shape_of(model: str) -> shapes.ModelShape:
    """The shape of one of LLAMA, whose heads are matrices of their own."""
    config = LLAMA[model] | {"model_type": "llama", "tie_word_embeddings": False}
    return llama_like(config)


def need(claim: Claim, rows: int, length: int, checkpointing: bool) -> tuple[Memory, float]:
    """The memory, and the peak of one card in GB: the states are cut among the cards, as FSDP and ZeRO-3 cut them."""
    shape = shape_of(claim.model)
    method, device = Method.model_validate({"kind": claim.kind}), devices.machine(claim.card).device
    switches = Compute(checkpointing=checkpointing)
    chosen = compute.choose(shape.config, method, Training(), switches, length, device)
    load = Load(tokens=rows * length, scored=rows * length // LABELLED, groups=((rows, length),))
    found = memory(shape, method, chosen, load, "cuda")
    states = {name: getattr(found, name) // claim.num_cards for name in STATES}
    return found, found.model_copy(update=states).peak / 1e9


def lines() -> Iterator[str]:
    """The table in markdown."""
    yield f"| {' | '.join(COLUMNS)} | |"
    yield "|---" * (len(COLUMNS) + 1) + "|"
    for claim in CLAIMS:
        for rows, length, checkpointing in SETTINGS:
            yield _line(claim, rows, length, checkpointing)


def _line(claim: Claim, rows: int, length: int, checkpointing: bool) -> str:
    found, peak = need(claim, rows, length, checkpointing)
    free = devices.machine(claim.card).free_bytes / 1e9
    verdict = "fits" if peak <= 0.85 * free else "tight" if peak <= free else "**no**"
    training = found.adapter + found.gradients + found.optimizer
    parts = (found.weights, training, found.activations, found.logits)
    cards = f"{claim.num_cards} x " if claim.num_cards > 1 else ""
    card = f"{cards}{devices.CARDS[claim.card].name}"
    sizes = " | ".join(f"{size / 1e9:.1f}" for size in parts)
    again = "on" if checkpointing else "off"
    return (
        f"| {claim.model} | {claim.kind} | {card}, {free:.1f} | {rows} x {length:,} | {again} | {sizes} | "
        f"{peak:.1f} | {verdict} |"
    )


def llama_like(config: Mapping[str, Any]) -> shapes.ModelShape:
    """The shape that a config.json stands for: what Llama, Mistral, Qwen and their like have in common."""
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    wide, narrow = heads * size, config.get("num_key_value_heads", heads) * size
    layer = {
        "q_proj": (wide, hidden),
        "k_proj": (narrow, hidden),
        "v_proj": (narrow, hidden),
        "o_proj": (hidden, wide),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }
    norms = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
    tensors: list[tuple[str, Sequence[int]]] = [
        (f"layers.{number}.{name}.weight", shape)
        for number in range(config["num_hidden_layers"])
        for name, shape in (layer | norms).items()
    ]
    tensors += [("embed_tokens.weight", (config["vocab_size"], hidden)), ("norm.weight", (hidden,))]
    return shapes.shape_of(config, tensors, "config.json")


if __name__ == "__main__":
    print("\n".join(lines()))
