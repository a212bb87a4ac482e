"""Answers that a vLLM server draws with the adapter in training (compute.vllm).

The server has an environment of its own, as vLLM needs other versions of some packages. It reads each state of the
adapter from the trainer's folder, so it runs on the same machine, or where that folder has the same path. What it
computes differs a little from the trainer: the log-likelihood that it gives each token corrects for that.
"""

import logging
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tunewright.errors import ConfigError
from tunewright.generation.rows import Answer
from tunewright.generation.sampling import number_of

SETTING = "compute.vllm"
AT_ONCE = 64  # prompts that are sent
ATTEMPTS = 6  # of a request, with 1, 2, 4, 8 and 16 seconds between them
SECONDS = 600.0  # for one reply
AGAIN = {408, 429, 500, 502, 503, 504}
NEEDED = "a vLLM server of model.base with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
# What the server's generation config would otherwise say.
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}

log = logging.getLogger("tunewright")


class VllmServer:
    """The server at a URL, such as http://localhost:8000/v1; `folder` is where it is given the adapter."""

    def __init__(self, url: str, folder: Path, *, stops: Sequence[int], max_new_tokens: int, wait: float = 1.0) -> None:
        import httpx

        self.url, self.folder, self.wait = url.rstrip("/"), folder, wait
        self.stops, self.max_new_tokens = sorted(stops), max_new_tokens
        self.client = httpx.Client(timeout=SECONDS)
        self.run = uuid.uuid4().hex[:8]  # of this process: a resumed one has other weights under the same draw
        self.loaded, self.seed = "", ""

    def load(self, model: Any, seed: str) -> None:
        """Have the server draw with the adapter of `model` as it is; `seed` names the draw.

        Raises ConfigError where it does not.
        """
        name, before = f"tunewright-{self.run}-{seed.replace(' ', '-')}", self.loaded
        model.save_pretrained(str(self.folder / name), save_embedding_layers=False)
        self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(self.folder.absolute() / name)})
        self.loaded, self.seed = name, seed
        if before:
            self._post("unload_lora_adapter", {"lora_name": before})
            shutil.rmtree(self.folder / before)

    def draw(
        self,
        asked: Sequence[Answer],
        names: Sequence[str],
        number: int,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[list[Answer]]:
        """As Sampling draws them; the answers also have the server's log-likelihoods."""
        with ThreadPoolExecutor(AT_ONCE) as threads:
            waiting = [threads.submit(self._ask, *each, number) for each in zip(asked, names, strict=True)]
            found = list[list[Answer]]()
            for done, future in enumerate(waiting, 1):
                found.append(future.result())
                on_progress(done)
        return found

    def _ask(self, asked: Answer, name: str, number: int) -> list[Answer]:
        request = {
            "model": self.loaded,
            "prompt": asked.prompt,
            "n": number,
            "max_tokens": self.max_new_tokens,
            "seed": number_of(f"{self.seed} {name}"),
            "stop_token_ids": self.stops,
            "logprobs": 0,
            "return_token_ids": True,
            "add_special_tokens": False,
        }
        answered = self._post("completions", PLAIN | request)
        try:
            choices = sorted(answered["choices"], key=lambda each: each["index"])
            given = [(each["token_ids"], each["logprobs"]["token_logprobs"]) for each in choices]
            if len(given) == number and all(ids and len(ids) == len(values) for ids, values in given):
                return [self._drawn(asked, *each) for each in given]
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{SETTING}={self.url}: its reply has no {error}; accepted: {NEEDED}") from error
        raise ConfigError(f"{SETTING}={self.url}: its reply has not the tokens of {number} answers; accepted: {NEEDED}")

    def _drawn(self, asked: Answer, tokens: list[int], likelihoods: list[float]) -> Answer:
        answer = Answer(prompt=asked.prompt, reference=asked.reference)
        answer.add(tokens, self.stops, self.max_new_tokens)
        answer.served = likelihoods[: len(answer.tokens) + answer.stopped]
        return answer

    def _post(self, path: str, request: dict[str, Any]) -> Any:
        """The reply to a request; None where it is no JSON. Raises ConfigError where there is none."""
        import httpx

        fault = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                log.info("  the vLLM server does not answer; retrying: %s", fault)
                time.sleep(self.wait * 2 ** (attempt - 1))
            try:
                response = self.client.post(f"{self.url}/{path}", json=request)
            except httpx.RequestError as error:
                fault = f"{type(error).__name__}: {error}"
                continue
            fault = f"{path} answers {response.status_code} {' '.join(response.text[:200].split())}"
            if response.is_success:
                is_json = response.headers.get("content-type", "").startswith("application/json")
                return response.json() if is_json else None
            if response.status_code not in AGAIN:
                break
        raise ConfigError(f"{SETTING}={self.url}: {fault}; accepted: {NEEDED}")
