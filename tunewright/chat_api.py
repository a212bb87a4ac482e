"""Requests to a model behind an OpenAI-compatible API: retried while it is busy, with one line where it fails."""

import json
import logging
import time
from dataclasses import dataclass
from typing import Any

from tunewright.errors import ApiError, ConfigError

log = logging.getLogger("tunewright")

ATTEMPTS = 5  # with 1, 2, 4 and 8 seconds between them
MOST_BYTES = 10_000_000  # of one reply, unpacked
AGAIN = {408, 425, 429, 500, 502, 503, 504}
SECONDS = 120  # for one reply
ACCEPTED = "the base address of an OpenAI-compatible API, its model's name and its key"


@dataclass(frozen=True)
class Reply:
    """A message of a model, and its tokens and time."""

    message: dict[str, Any]  # its content and tool_calls, whatever these are
    stopped: bool  # by itself, not by a limit of tokens
    input_tokens: int  # 0 where the API does not count them
    output_tokens: int
    seconds: float  # of the request that was answered

    @property
    def text(self) -> str:
        """The content; empty where that is no text, of which nothing can be read."""
        content = self.message.get("content")
        return content if isinstance(content, str) else ""


class ChatApi:
    """One model of one API; its methods can be called from several threads.

    `setting` is the one that errors name, and `who` what the log calls the model.
    """

    def __init__(self, url: str, model: str, key: str = "", *, setting: str, who: str, wait: float = 1.0) -> None:
        import httpx

        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(headers=headers, timeout=SECONDS)
        self.url, self.model, self.wait = f"{url.rstrip('/')}/chat/completions", model, wait
        self.setting, self.who = setting, who
        self.faults: set[str] = set()  # that were told of

    def ask(self, messages: list[dict[str, Any]], **more: Any) -> Reply:
        """The reply to a conversation; `more` are other fields of the request.

        Raises ApiError where there is none after some attempts, ConfigError where the API refuses the request.
        """
        fault = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                if fault not in self.faults:
                    self.faults.add(fault)
                    log.info("  %s does not answer; retrying: %s", self.who, fault)
                time.sleep(self.wait * 2 ** (attempt - 1))
            fault, reply = self._post({"model": self.model, "messages": messages} | more)
            if reply is not None:
                return reply
        raise ApiError(f"{self.setting}={self.url}: no answer after {ATTEMPTS} attempts: {fault}")

    def _post(self, request: dict[str, Any]) -> tuple[str, Reply | None]:
        """Send a request; return the temporary error and None, or "" and the reply."""
        import httpx

        answered, started = bytearray(), time.monotonic()
        try:
            with self.client.stream("POST", self.url, json=request) as response:
                for part in response.iter_bytes():
                    answered += part
                    if len(answered) > MOST_BYTES:
                        raise ConfigError(
                            f"{self.setting}={self.url} answers more than {MOST_BYTES:,} bytes; longer replies are "
                            "refused"
                        )
        except httpx.RequestError as error:
            return f"{type(error).__name__}: {error}", None
        said = f"{response.status_code} {' '.join(answered[:200].decode(errors='replace').split())}"
        if response.status_code in AGAIN:
            return said, None
        try:
            response.raise_for_status()
            return "", _read(json.loads(answered), time.monotonic() - started)
        except (httpx.HTTPStatusError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise ConfigError(f"{self.setting}={self.url} answers {said}; accepted: {ACCEPTED}") from error


def _read(answered: Any, seconds: float) -> Reply:
    choice = answered["choices"][0]
    used = answered.get("usage")
    counts = [used.get(name) if isinstance(used, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    read, written = (count if isinstance(count, int) and count > 0 else 0 for count in counts)
    return Reply(dict(choice["message"]), choice.get("finish_reason") in ("stop", "tool_calls"), read, written, seconds)
