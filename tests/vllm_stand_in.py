"""A stand-in for a vLLM server: it loads the adapters that it is told of, and draws answers token by token.

Its endpoints and their fields are those of vLLM 0.33. A field that it does not know is an error, as in vLLM.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from chat_server import json_server

from tunewright.artifacts import Base
from tunewright.modeling.models import load_model

OF_COMPLETIONS = {
    *("model", "prompt", "n", "max_tokens", "seed", "stop_token_ids", "logprobs", "return_token_ids"),
    *("add_special_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
}
OF_LORA = {"lora_name", "lora_path"}


class StandIn:
    """The models that it serves, and what was asked of it."""

    def __init__(self, base: Base) -> None:
        self.base, self.models = base, dict[str, Any]()
        self.url, self.requests = "", list[tuple[str, Any]]()
        self.statuses: list[int] = []  # of the next replies, in place of 200
        self.gap = 0.0  # that it tells each log-likelihood too low by
        self.lock = threading.Lock()

    def load_lora_adapter(self, request: Any) -> None:
        assert request.keys() <= OF_LORA and Path(request["lora_path"]).is_absolute()
        self.models[request["lora_name"]] = load_model(self.base, Path(request["lora_path"]))

    def unload_lora_adapter(self, request: Any) -> None:
        del self.models[request["lora_name"]]

    def completions(self, request: Any) -> Any:
        assert request.keys() <= OF_COMPLETIONS and request["logprobs"] == 0 and request["temperature"] == 1
        drawn = [self._draw(request, request["seed"] + at) for at in range(request["n"])]
        choices = [
            {"index": at, "token_ids": ids, "logprobs": {"token_logprobs": values}}
            for at, (ids, values) in enumerate(drawn)
        ]
        return {"choices": choices[::-1]}

    def _draw(self, request: Any, seed: int) -> tuple[list[int], list[float]]:
        random, ids, values = torch.Generator().manual_seed(seed), list[int](), list[float]()
        while len(ids) < request["max_tokens"] and not {*ids} & {*request["stop_token_ids"]}:
            with torch.inference_mode():
                logits = self.models[request["model"]](torch.tensor([request["prompt"] + ids])).logits[0, -1].float()
            ids.append(int(torch.multinomial(logits.softmax(-1), 1, generator=random)))
            values.append(float(logits.log_softmax(-1)[ids[-1]]) - self.gap)
        return ids, values


@contextmanager
def vllm_stand_in(base: Base) -> Iterator[StandIn]:
    """Starts it on this machine; its address is `url`."""
    served = StandIn(base)

    def answer(path: str, request: Any, _: str | None) -> tuple[int, Any]:
        with served.lock:
            served.requests.append((path, request))
            status = served.statuses.pop(0) if served.statuses else 200
            return status, getattr(served, path)(request) or "Success" if status == 200 else {"error": "no"}

    with json_server(answer) as served.url:
        yield served
