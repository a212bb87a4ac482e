"""Answers that a vLLM server draws with the adapter in training (compute.vllm).

The server has an environment of its own, as vLLM needs other versions of some packages. It reads each state of the
adapter from the trainer's folder, so it runs on the same machine, or where that folder has the same path. What it
computes differs a little from the trainer: the log-likelihood that it gives each token corrects for that.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunewright.errors import ConfigError
from tunewright.generation.rows import Answer
from tunewright.generation.sampling import number_of
from tunewright.json_api import JsonApi

SETTING = "compute.vllm"
AT_ONCE = 64  # prompts that are sent
SECONDS = 600.0  # for one reply
BEAT = 10.0  # seconds between two calls of on_progress, at most
NEEDED = "a vLLM server of model.base with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
# What the server's generation config would otherwise say.
PLAIN: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}


class VllmServer:
    """The server at a URL, such as http://localhost:8000/v1; `folder` is where it is given the adapter."""

    def __init__(self, url: str, folder: Path, *, stops: Sequence[int], max_new_tokens: int) -> None:
        self.url, self.folder = url.rstrip("/"), folder
        self.stops, self.max_new_tokens = sorted(stops), max_new_tokens
        self.api = JsonApi(setting=SETTING, who="the vLLM server", accepted=NEEDED, seconds=SECONDS)
        self.run = uuid.uuid4().hex[:8]  # of this process: a resumed one has other weights under the same draw
        self.loaded, self.seed = "", ""

    def load(self, model: Any, seed: str) -> None:
        """Have the server draw with the adapter of `model` as it is; `seed` names the draw.

        Raises ConfigError where it refuses, and ApiError where it does not answer.
        """
        name, before = f"tunewright-{self.run}-{seed.replace(' ', '-')}", self.loaded
        model.save_pretrained(str(self.folder / name), save_embedding_layers=False)
        where = str(self.folder.absolute() / name)
        self.api.post(f"{self.url}/load_lora_adapter", {"lora_name": name, "lora_path": where})
        self.loaded, self.seed = name, seed
        if before:
            with suppress(ConfigError):  # a server that was started again has it no more
                self.api.post(f"{self.url}/unload_lora_adapter", {"lora_name": before})
            shutil.rmtree(self.folder / before)

    def draw(
        self,
        asked: Sequence[Answer],
        names: Sequence[str],
        number: int,
        on_progress: Callable[[int], None] = lambda _: None,
    ) -> list[list[Answer]]:
        """As Sampling draws them; the answers also have the server's log-likelihoods."""
        threads = ThreadPoolExecutor(AT_ONCE)
        try:
            drawn = [threads.submit(self._ask, *each, number) for each in zip(asked, names, strict=True)]
            for done, future in enumerate(drawn):
                while not wait([future], BEAT).done:
                    on_progress(done)
                future.result()
                on_progress(done + 1)
            return [future.result() for future in drawn]
        finally:
            threads.shutdown(cancel_futures=True)

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
        reply = self.api.post(url := f"{self.url}/completions", PLAIN | request)
        try:
            choices = sorted(json.loads(reply.body)["choices"], key=lambda each: each["index"])
            given = [(each["token_ids"], each["logprobs"]["token_logprobs"]) for each in choices]
            if len(given) == number and all(ids and len(ids) == len(values) for ids, values in given):
                return [self._drawn(asked, *each) for each in given]
        except (ValueError, LookupError, TypeError) as error:
            raise self.api.refused(url, reply) from error
        raise ConfigError(f"{SETTING}={url}: its reply does not have {number} answers with tokens; accepted: {NEEDED}")

    def _drawn(self, asked: Answer, tokens: list[int], likelihoods: list[float]) -> Answer:
        answer = Answer(prompt=asked.prompt, reference=asked.reference)
        answer.add(tokens, self.stops, self.max_new_tokens)
        answer.served = likelihoods[: len(answer.tokens) + answer.stopped]
        return answer
