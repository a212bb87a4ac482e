"""A loaded version as it answers one request: by the decoding of the evaluation, a token after the other."""

import gc
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from http import HTTPStatus
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList

from tunewright.cli.predict.model import Answerer, FetchedVersion
from tunewright.cli.serve.asking import Asked, RequestError
from tunewright.generation import Answer, Greedy
from tunewright.modeling import architecture
from tunewright.modeling.chat import Untrainable
from tunewright.registry.rehearsal import measured_max_new_tokens
from tunewright.tools.conversation import Conversation, Message

REPLACEMENT = "�"  # in the text of tokens that end within a character
CLEANED = 8  # characters that may still change where a tokenizer removes spaces before punctuation

Watch = Callable[[list[int], bool], None]  # gets all tokens of an answer so far, and whether it stopped by itself


def free_memory() -> None:
    """Give back the memory of a model that nothing holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class StopReached(Exception):
    """A stop text of the request is in the answer."""


@dataclass
class AnswerText:
    """The text of an answer that grows: each part is handed out once it can change no more."""

    tokenizer: Any
    stops: tuple[str, ...] = ()
    tokens: list[int] = field(default_factory=list)
    text: str = ""  # all that was handed out
    is_cut: bool = False  # at one of the stop texts

    def grow(self, tokens: list[int], *, is_last: bool = False) -> str:
        """Take all tokens so far, and return the next part of the text. Raises StopReached where it ends there."""
        self.tokens = list(tokens)
        whole = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        ends = [at for stop in self.stops if (at := whole.find(stop)) >= 0]
        self.is_cut = bool(ends)
        safe = whole[: min(ends)] if ends else whole if is_last else whole[: len(whole) - self._unsure(whole)]
        part = safe[len(self.text) :]
        self.text += part
        if self.is_cut and not is_last:
            raise StopReached(part)
        return part

    def _unsure(self, whole: str) -> int:
        """The characters at the end that the next token may change, or that may begin a stop text."""
        unsure = len(whole) - len(whole.rstrip(REPLACEMENT))
        if getattr(self.tokenizer, "clean_up_tokenization_spaces", False):
            unsure = max(unsure, CLEANED)
        begun = (n for stop in self.stops for n in range(1, len(stop)) if whole.endswith(stop[:n]))
        return max(unsure, *begun, 0)


class ServedVersion:
    """A version in memory. Only one thread asks it at a time."""

    def __init__(self, version: FetchedVersion) -> None:
        """Load the version as predict does. Raises TunewrightError where it cannot be."""
        self.number, self.digest = version.number, version.digest
        self.most = measured_max_new_tokens(version.copy)
        self.answerer = Answerer(version, self.most, batch=1)
        model = self.answerer.model
        model.generation_config = GenerationConfig()  # sampling and penalties of a base are not how it was measured
        self.greedy = Greedy(model, stops=self.answerer.stops, max_new_tokens=self.most, batch=1)  # keeps its drafts
        # What the first request would wait for: the process that renders templates, and the model's first pass.
        prompt = self.prompt_tokens([{"role": "user", "content": "Hello"}])
        self.answer(prompt, Asked(model=""), 1, lambda *_: None)

    @cached_property
    def tools_left_out(self) -> str:
        """As the contract's template has it (ChatFormat)."""
        return self.answerer.format.tools_left_out()

    def prompt_tokens(self, messages: list[Message], most: int | None = None) -> list[int]:
        """The prompt of an answer of at most so many tokens, as the contract's template writes it.

        Raises RequestError where it cannot be asked.
        """
        if isinstance(messages, Conversation) and self.tools_left_out:
            message = f"tools: the chat template of this version {self.tools_left_out}; leave them out"
            raise RequestError(message, param="tools", code="unsupported_parameter")
        (prompt,) = self.answerer.ask([messages], most or self.most)
        if isinstance(prompt, Untrainable):
            raise RequestError(prompt.detail.replace("model.base", "the version"), param="messages", code=prompt.reason)
        return prompt

    def raw_tokens(self, prompt: str | list[int]) -> list[int]:
        """The tokens of a prompt as it stands: no template writes it, and nothing is added. Raises RequestError."""
        if examples := self.answerer.example_prompt:
            message = (
                f"prompt: this version is the base with a {examples.name}, which a text as it stands has no place for"
            )
            raise RequestError(f"{message}; accepted: messages, at /v1/chat/completions", param="prompt")
        tokenizer = self.answerer.tokenizer
        if isinstance(prompt, list):
            if max(prompt) >= (known := self.answerer.model.config.get_text_config().vocab_size):
                raise RequestError(f"prompt: token {max(prompt)}; accepted: ids below {known}", param="prompt")
            return prompt
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise RequestError("prompt: has half of a surrogate pair; accepted: Unicode text", param="prompt") from None
        return tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def most_tokens(self, prompt: list[int], asked: Asked) -> int:
        """The limit of the answer's tokens. Raises RequestError where they have no room behind the prompt."""
        most, context, read = asked.most or self.most, self.answerer.context, len(prompt)
        if context and read + most > context:
            limit = f"max_tokens={most}" if asked.most else f"the {most:,} of an answer"
            advice = "shorten the prompt, or send a smaller max_tokens" if read < context else "shorten the prompt"
            raise RequestError(
                f"{read:,} tokens of the prompt and {limit} are more than the {context:,} that the model reads at "
                f"once; {advice}",
                param="max_tokens" if read < context else "messages" if asked.messages else "prompt",
                code="context_length_exceeded",
            )
        return most

    def answer(self, prompt: list[int], asked: Asked, most: int, watch: Watch) -> None:
        """Answer a prompt; after each pass through the model `watch` gets the answer so far, and may raise to end it.

        Raises RequestError where the model's likelihoods are not finite.
        """
        model = self.answerer.model
        if asked.temperature or architecture.of(model.config, len(prompt) + most).decoding == "library":
            return self._generate(prompt, asked, most, watch)
        row = Answer(prompt, [self.answerer.stops[0]])
        self.greedy.max_new_tokens = most
        self.greedy.answer([row], on_progress=lambda _: watch(row.tokens, row.stopped))
        if not math.isfinite(row.nll):
            raise RequestError(
                f"{self.answerer.uri} gets NaN or infinite likelihoods: its weights are broken",
                HTTPStatus.INTERNAL_SERVER_ERROR,
            )
        return None

    def _generate(self, prompt: list[int], asked: Asked, most: int, watch: Watch) -> None:
        """The same by the library: for sampling, and for models that are evaluated so."""
        model, stops = self.answerer.model, self.answerer.stops
        sampling: dict[str, Any] = {"do_sample": False}
        if asked.temperature:
            sampling = {"do_sample": True, "temperature": asked.temperature, "top_p": asked.top_p, "top_k": 0}
            torch.manual_seed(secrets.randbits(63) if asked.seed is None else asked.seed)
        settings = GenerationConfig(
            max_new_tokens=most, eos_token_id=stops, pad_token_id=stops[0], use_cache=True, **sampling
        )

        def look(ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            said = ids[0, len(prompt) :].tolist()
            end = next((at for at, token in enumerate(said) if token in stops), None)
            watch(said[:end], end is not None)
            return torch.zeros(1, dtype=torch.bool, device=ids.device)

        ids = torch.tensor([prompt], device=model.device)
        criteria: Any = StoppingCriteriaList([look])  # pyright: ignore[reportArgumentType] any callable will do
        with torch.inference_mode():
            model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                stopping_criteria=criteria,
            )


def loads_apart(version: FetchedVersion) -> bool:
    """Whether a version can be loaded while another one answers.

    transformers sets the default precision of the whole process while it loads, which in float32 changes nothing.
    """
    return version.precision == "float32"
