"""The queue of requests before a version that answers one at a time, and the watch on the alias that replaces it."""

import gc
import json
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from time import monotonic
from typing import Any

import torch

from tunewright.cli.predict.model import FetchedVersion, fetch
from tunewright.cli.serve.answering import AnswerText, ServedVersion, StopReached, loads_apart
from tunewright.cli.serve.asking import Asked, RequestError
from tunewright.config import Registry
from tunewright.errors import TunewrightError, one_line
from tunewright.registry import release
from tunewright.registry.versions import current_version
from tunewright.tools.conversation import tools_of
from tunewright.tools.parsing import UNREADABLE, parse

POLL_SECONDS = 2.0  # between looks at the alias
RETRY_SECONDS = 60.0  # before a version that could not be loaded is tried again

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


def called(text: str) -> tuple[str, list[dict[str, Any]]]:
    """The text of an answer beside its calls, and these as OpenAI has them; a call that cannot be read is text."""
    parsed = parse(text)
    if not parsed.calls or any(call.name == UNREADABLE for call in parsed.calls):
        return text, []
    functions = [
        {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)} for call in parsed.calls
    ]
    calls = [{"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": each} for each in functions]
    return parsed.content, calls


class Endpoint:
    """The version under the alias, or the one that was named, and the requests that wait for it."""

    def __init__(self, registry: Registry, number: str | None, max_waiting: int, tell: Tell) -> None:
        """Fetch, verify and load the version. Raises ConfigError, TunewrightError."""
        self.registry, self.tell, self.max_waiting = registry, tell, max_waiting
        self.is_fixed = number is not None
        self.served = ServedVersion(fetch(registry, number))
        self.is_withdrawn = False
        self.num_waiting = self.num_swaps = self.num_failed_swaps = 0
        self._worker = ThreadPoolExecutor(1, "answers")
        self._stopping = threading.Event()
        self._watch = threading.Thread(target=self._look_again, name="alias", daemon=True)
        self._refused = ("", 0.0)  # version that could not be loaded, and when it may be tried again
        self._said = ""

    @property
    def model(self) -> str:
        """The name of what answers now, such as triage@3."""
        return f"{self.registry.name}@{self.served.number}"

    @property
    def models(self) -> list[str]:
        """The names that a request may have."""
        name = self.registry.name
        return [name, *([] if self.is_fixed else [f"{name}@{self.registry.alias}"]), self.model]

    def start(self) -> None:
        """Begin to watch the alias."""
        if not self.is_fixed:
            self._watch.start()

    def stop(self) -> None:
        """End the answer at hand and refuse the others; may be called from a signal handler."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for the thread of the model."""
        self.stop()
        self._worker.shutdown(wait=True, cancel_futures=True)

    def require_model(self, name: str) -> None:
        """Raises RequestError where it serves no such model now."""
        if name not in self.models:
            accepted = ", ".join(self.models)
            raise RequestError(
                f"the model {ascii(name)[:80]} is not served here; accepted: {accepted}",
                HTTPStatus.NOT_FOUND,
                param="model",
                code="model_not_found",
            )
        if self.is_withdrawn:
            raise RequestError(
                f"no version of {self.registry.name} is @{self.registry.alias} now", HTTPStatus.SERVICE_UNAVAILABLE
            )

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
        asked, served = job.asked, self.served
        self.require_model(asked.model)
        is_chat = asked.messages is not None
        prompt = served.prompt_tokens(asked.messages or []) if is_chat else served.raw_tokens(asked.prompt)
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
        said, calls = called(text.text) if has_tools else (text.text, [])
        if part := said if has_tools else part:
            job.on_part(part)
        return Finished(said, text.tokens, "tool_calls" if calls and reason == "stop" else reason, calls)

    def _require_wanted(self, job: QueuedRequest) -> None:
        if job.is_cancelled or self._stopping.is_set():
            raise JobCancelled

    def _look_again(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                self._look()
            except Exception as error:  # what loading a model can raise is anything; the old one goes on
                if self._stopping.is_set():
                    return
                said = str(error) if isinstance(error, TunewrightError) else one_line(error)
                self._say(f"{self.model} goes on: {said}")

    def _say(self, line: str) -> None:
        if line != self._said:
            self.tell(line)
        self._said = line

    def _look(self) -> None:
        """Serve the version that carries the alias now."""
        with release.opened(self.registry) as client:
            version = current_version(client, self.registry)
        alias = f"@{self.registry.alias}"
        if version is None:
            if not self.is_withdrawn:
                self.tell(f"no version of {self.registry.name} is {alias} now: requests get status 503")
            self.is_withdrawn = True
            return
        number = str(version.version)
        if number == self.served.number:
            self._said, self._refused = "", ("", 0.0)
        if number != self.served.number and not (number == self._refused[0] and monotonic() < self._refused[1]):
            try:
                self._swap(fetch(self.registry, number))
            except Exception:
                self.num_failed_swaps += 1
                self._refused = (number, monotonic() + RETRY_SECONDS)
                raise
            self.tell(f"{self.model} is {alias} now and answers from here on")
        elif number == self.served.number and self.is_withdrawn:
            self.tell(f"{self.model} is {alias} again")
        self.is_withdrawn = self.is_withdrawn and number != self.served.number

    def _swap(self, version: FetchedVersion) -> None:
        """Load a version and let it answer from the next request on."""
        if loads_apart(version):
            self.served = ServedVersion(version)
        else:
            self.served = self._worker.submit(ServedVersion, version).result()
        self.num_swaps += 1
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def opened(registry: Registry, number: str | None, max_waiting: int, tell: Tell) -> Endpoint:
    """The endpoint of a version. Raises TunewrightError where it cannot be loaded."""
    try:
        return Endpoint(registry, number, max_waiting, tell)
    except RequestError as error:  # its template cannot ask anything
        raise TunewrightError(f"{registry.name}: {error}") from error
