"""Tiny models of many architectures, with random weights: `make_model("gemma2", folder)` writes one as a base is."""

from pathlib import Path
from typing import Any

from conftest import tiny_tokenizer

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
FOUR = {"num_hidden_layers": 4}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

# What each model_type needs besides SIZES. A window is shorter than the rows of the tests.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SIZES,
    "qwen2": SIZES,
    "qwen3": SIZES | {"head_dim": 8},
    "qwen3_moe": SIZES | MIXTURE | {"head_dim": 8},
    "mistral": SIZES | {"sliding_window": 16},
    "gemma": SIZES | {"head_dim": 8},
    "gemma2": SIZES | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "gemma3_text": SIZES | {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
    "phi": SIZES,
    "phi3": SIZES,
    "gpt2": GPT2,
    "gptj": GPT2 | {"rotary_dim": 4},
    "gpt_neo": {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
    | {"window_size": 16, "max_position_embeddings": 512},
    "gpt_neox": SIZES,
    "gpt_bigcode": GPT2,
    "olmo2": SIZES,
    "olmoe": SIZES | MIXTURE,
    "granite": SIZES | {"attention_multiplier": 0.2, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "stablelm": SIZES,
    "starcoder2": SIZES,
    "falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 512},
    "falcon_alibi": {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"alibi": True},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2, "max_seq_len": 512},
    "opt": {"hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"max_position_embeddings": 512, "word_embed_proj_dim": 32},
    "cohere": SIZES,
    "smollm3": SIZES | FOUR,
    "mixtral": SIZES | {"num_local_experts": 4},
    "qwen2_moe": SIZES | MIXTURE | {"shared_expert_intermediate_size": 16},
    "gpt_oss": SIZES | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "deepseek_v3": SIZES
    | {"num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    | {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
    "llama4_text": SIZES
    | FOUR
    | {"head_dim": 8, "num_local_experts": 2, "attention_chunk_size": 16, "intermediate_size_mlp": 48},
    "qwen3_next": SIZES
    | FOUR
    | MIXTURE
    | {"head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8}
    | {"linear_value_head_dim": 8, "shared_expert_intermediate_size": 16},
    "lfm2": SIZES | FOUR | {"layer_types": ["conv", "full_attention", "conv", "full_attention"], "block_ff_dim": 48},
    "mamba": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2},
    "mamba2": {"hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 2}
    | {"chunk_size": 8},
    "falcon_h1": SIZES
    | {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1}
    | {"mamba_d_state": 4, "mamba_chunk_size": 8},
    "granitemoehybrid": SIZES
    | {"layer_types": ["mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 48}
    | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 4, "mamba_chunk_size": 8},
    "recurrent_gemma": {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
    | {"lru_width": 32, "attention_window_size": 16, "head_dim": 8},
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 48}
    | {"rescale_every": 2},
}


# Those that learn something else than to go on with a text.
REFUSED: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
}


def make_model(name: str, folder: Path, *, tokenizer: Any = None, **changes: Any) -> Path:
    """Writes a model of the architecture `name` and its tokenizer, with a ChatML template, and returns the folder."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    tokenizer = tokenizer or tiny_tokenizer()
    sizes = {"model_type": name} | (ARCHITECTURES | REFUSED)[name]
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    fields = {"vocab_size": len(tokenizer), "initializer_range": 0.1, "tie_word_embeddings": False}
    config = AutoConfig.for_model(**(fields | ids | sizes | changes))
    torch.manual_seed(0)
    kind = AutoModel if name in REFUSED else AutoModelForCausalLM
    kind.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
