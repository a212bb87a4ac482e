"""The queue of requests before a model that answers one at a time."""

import json
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic
from typing import Any

from tunewright.cli.serve.answering import AnswerText, ServedVersion, StopReached
from tunewright.cli.serve.asking import Asked, RequestError
from tunewright.tools.conversation import tools_of
from tunewright.tools.parsing import UNREADABLE, parse

Tell = Callable[[str], None]


class JobCancelled(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Finished:
    """How an answer ended."""

    text: str
    tokens: list[int]
    reason: str  # stop, length or tool_calls, as OpenAI has it
    calls: list[dict[str, Any]] = field(default_factory=list)  # of tools, as OpenAI has them


@dataclass(eq=False)
class QueuedRequest:
    """A request in the queue; its answers go to `on_start` and `on_part`, in the thread of the model."""

    asked: Asked
    on_start: Callable[[ServedVersion, list[int]], None]
    on_part: Callable[[str], None]
    began: float = field(default_factory=monotonic)
    is_cancelled: bool = False

    def cancel(self) -> None:
        """End the answer at the next token."""
        self.is_cancelled = True


def called(text: str, most: int | None = None) -> tuple[str, list[dict[str, Any]]]:
    """The text of an answer and the first `most` of its calls, as OpenAI has them; one that cannot be read is text."""
    parsed = parse(text)
    if not parsed.calls or any(call.name == UNREADABLE for call in parsed.calls):
        return text, []
    functions = [
        {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)} for call in parsed.calls[:most]
    ]
    calls = [{"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": each} for each in functions]
    return parsed.content, calls


class RequestQueue(ABC):
    """The requests that wait, and the thread that answers them; which model answers is for a subclass to say."""

    bases: Sequence[str] = ()  # listed beside the models: what can be fine-tuned, and answers no requests

    def __init__(self, max_waiting: int, tell: Tell) -> None:
        self.max_waiting, self.tell = max_waiting, tell
        self.began = int(time.time())
        self.is_withdrawn = False  # nothing can answer now
        self.num_waiting = self.num_swaps = self.num_failed_swaps = 0
        self._worker = ThreadPoolExecutor(1, "answers")
        self._stopping = threading.Event()

    @property
    @abstractmethod
    def models(self) -> list[str]:
        """The names that a request may have."""

    @property
    @abstractmethod
    def loaded(self) -> Sequence[tuple[str, ServedVersion]]:
        """Registered models with a version in memory."""

    @abstractmethod
    def require_model(self, name: str) -> None:
        """Raises RequestError where it serves no such model now."""

    @abstractmethod
    def version_for(self, name: str) -> ServedVersion:
        """The version that answers a request, in the thread of the model. Raises as require_model does."""

    @abstractmethod
    def answered_as(self, name: str, served: ServedVersion) -> str:
        """The model that a response names; `name` is that of the request."""

    def created(self, name: str) -> int:
        """When a model came to be, in seconds since the epoch."""
        return self.began

    @abstractmethod
    def start(self) -> None:
        """Begin with what goes on beside the requests."""

    def stop(self) -> None:
        """End the answer at hand and refuse the others; may be called from a signal handler."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for the thread of the model."""
        self.stop()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def submit(self, job: QueuedRequest, on_end: Callable[[Finished | Exception], None]) -> None:
        """Put a job into the queue. Raises RequestError with 429 where it is full."""
        if self._stopping.is_set():
            raise RequestError("the server is stopping", HTTPStatus.SERVICE_UNAVAILABLE)
        if self.num_waiting > self.max_waiting:
            message = f"{self.num_waiting} requests are waiting already; try again later"
            raise RequestError(message, HTTPStatus.TOO_MANY_REQUESTS, code="rate_limit_exceeded")
        self.num_waiting += 1

        def run() -> None:
            try:
                ended: Finished | Exception = self._answered(job)
            except Exception as error:
                ended = error
            on_end(ended)

        self._worker.submit(run)

    def leave(self) -> None:
        """Count a job that has ended, in the thread that submits them."""
        self.num_waiting -= 1

    def _answered(self, job: QueuedRequest) -> Finished:
        self._require_wanted(job)
        asked, served = job.asked, self.version_for(job.asked.model)
        is_chat = asked.messages is not None
        prompt = served.prompt_tokens(asked.messages or [], asked.most) if is_chat else served.raw_tokens(asked.prompt)
        most = served.most_tokens(prompt, asked)
        job.on_start(served, prompt)
        text = AnswerText(served.answerer.tokenizer, asked.stops)
        has_stopped = False
        has_tools = bool(tools_of(asked.messages or []))  # what may be a call is sent once it is whole

        def watch(tokens: list[int], stopped: bool) -> None:
            nonlocal has_stopped
            self._require_wanted(job)
            has_stopped = stopped
            if len(tokens) > len(text.tokens) and (part := text.grow(tokens)) and not has_tools:
                job.on_part(part)

        try:
            served.answer(prompt, asked, most, watch)
            part = text.grow(text.tokens, is_last=True)
        except StopReached as reached:
            part = str(reached)
        reason = "stop" if has_stopped or text.is_cut else "length"
        said, calls = called(text.text, asked.most_calls) if has_tools else (text.text, [])
        if part := said if has_tools else part:
            job.on_part(part)
        return Finished(said, text.tokens, "tool_calls" if calls and reason == "stop" else reason, calls)

    def _require_wanted(self, job: QueuedRequest) -> None:
        if job.is_cancelled or self._stopping.is_set():
            raise JobCancelled
