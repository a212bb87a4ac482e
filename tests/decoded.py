"""Reference implementation of decoding, one row at a time."""

from typing import Any

import torch
from transformers import GenerationConfig


def generated(model: Any, prompt: list[int], stops: list[int], max_new_tokens: int) -> list[int]:
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=0, use_cache=True
    )
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return whole[0, len(prompt) :].tolist()


def likelihood(model: Any, prompt: list[int], reference: list[int]) -> float:
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + reference])).logits[0, len(prompt) - 1 : -1].double()
    return -logits.log_softmax(-1).gather(1, torch.tensor(reference)[:, None]).sum().item()
