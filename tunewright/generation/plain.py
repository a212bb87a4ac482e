"""Decoding by the library itself, of models whose states are not one key and value for each token."""

from collections.abc import Callable, Collection, Sequence
from inspect import signature
from typing import Any

import torch
from transformers import GenerationConfig

from tunewright.generation.rows import Answer, agreed


def parameters(model: Any) -> set[str]:
    """Return the parameter names of the model's forward, also under an adapter."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return {*signature(inner.forward).parameters}


def answer(
    model: Any,
    rows: Sequence[Answer],
    *,
    stops: Collection[int],
    max_new_tokens: int,
    batch: int,
    generate: bool,
    pads: bool,
    on_progress: Callable[[int], None],
) -> None:
    """Fills in tokens, stopped and nll; without `generate`, an answer that differs from its reference ends there.

    Without `pads` rows are answered one by one. `on_progress` is called with the number of answers that are whole.
    """
    going: list[Answer] = []
    for number, row in enumerate(rows, 1):
        going += [row] if row.add(_verify(model, row), stops, max_new_tokens) else []
        on_progress(number - len(going))
    longest_first = sorted(going, key=lambda row: -len(row.prompt)) if generate else []
    at_once = batch if pads else 1
    for start in range(0, len(longest_first), at_once):
        some = longest_first[start : start + at_once]
        generate_whole(model, some, sorted(stops), max_new_tokens)
        on_progress(len(rows) - len(longest_first) + start + len(some))


def answer_logits(model: Any, ids: list[int], num_answer: int) -> torch.Tensor:
    """The logits at each of the last `num_answer` places of a row: [num_answer, vocabulary], float32."""
    keep = {"logits_to_keep": num_answer + 1} if "logits_to_keep" in parameters(model) else {}
    laid = torch.tensor([ids], device=model.device)
    return model(input_ids=laid, use_cache=False, **keep).logits[0, -num_answer - 1 : -1].float()


def _verify(model: Any, row: Answer) -> list[int]:
    """Reads a reference, and returns what is said of it; a row at a time, since such a state takes no padding."""
    logits = answer_logits(model, row.prompt + row.reference, len(row.reference))
    chosen = torch.tensor(row.reference)[:, None]
    row.tokens = []
    row.nll = -logits.log_softmax(-1).gather(1, chosen).sum(dtype=torch.float64).item()
    return agreed(row.reference, logits.argmax(-1).tolist())


def generate_whole(
    model: Any, rows: Sequence[Answer], stops: list[int], max_new_tokens: int, temperature: float | None = None
) -> None:
    """Fills in tokens and how they stopped; with a temperature they are drawn, from torch's random state."""
    drawn: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(
        **(drawn if temperature else {"do_sample": False}),
        max_new_tokens=max_new_tokens,
        eos_token_id=stops,
        pad_token_id=stops[0],
        use_cache=True,
    )
    width = max(len(row.prompt) for row in rows)
    ids = torch.tensor([[stops[0]] * (width - len(row.prompt)) + row.prompt for row in rows])
    mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
    own, model.generation_config = model.generation_config, GenerationConfig()  # sampling, penalties are not greedy
    try:
        whole = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    finally:
        model.generation_config = own
    for row, said in zip(rows, whole[:, width:].tolist(), strict=True):
        end = next((at for at, token in enumerate(said) if token in stops), None)
        row.tokens, row.stopped = said[:end], end is not None
        row.stop = None if end is None else said[end]
