"""Requests with JSON to a server, such as an OpenAI-compatible API of a model.

They are tried again while it is busy or away, and fail with one line. A file keeps replies that are paid for.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Generic, NamedTuple, TypeVar

from tunewright.errors import ApiError, ConfigError

log = logging.getLogger("tunewright")

Request = TypeVar("Request")
Kept = TypeVar("Kept")

AT_ONCE = 4  # requests
ATTEMPTS = 5  # with 1, 2, 4 and 8 seconds between them, or as many as the server asks for
LONGEST_WAIT = 60.0  # seconds that a server may ask for: the limits of most APIs are of a minute
MOST_BYTES = 10_000_000  # of one reply, unpacked
AGAIN = {408, 425, 429, 500, 502, 503, 504}
CHAT_SECONDS = 120  # for one reply
CHAT_API = "the base address of an OpenAI-compatible API, its model's name and its key"


class JsonReply(NamedTuple):
    """The answer of a server to one request."""

    status: int
    body: bytes
    seconds: float
    retry_after: float = 0.0  # seconds that the server asks to wait before the next request

    def __str__(self) -> str:
        """The status and how the body begins, in one line."""
        return f"{self.status} {' '.join(self.body[:200].decode(errors='replace').split())}"


class JsonApi:
    """The server that `setting` names; its method can be called from several threads.

    `who` is what the log calls it, and `accepted` what errors say must be there; a reply may take so many `seconds`.
    """

    def __init__(
        self, *, setting: str, who: str, accepted: str, seconds: float, key: str = "", wait: float = 1.0
    ) -> None:
        import httpx

        self.client = httpx.Client(headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=seconds)
        self.setting, self.who, self.accepted, self.wait = setting, who, accepted, wait
        self.faults: set[str] = set()  # that were told of

    def post(self, url: str, request: dict[str, Any]) -> JsonReply:
        """The reply to a request, whose status is one of success.

        Raises ApiError where there is none after some attempts, ConfigError where the server refuses the request.
        """
        fault, asked = "", 0.0
        for attempt in range(ATTEMPTS):
            if attempt:
                if fault not in self.faults:
                    self.faults.add(fault)
                    log.info("  %s does not answer; retrying: %s", self.who, fault)
                time.sleep(max(self.wait * 2 ** (attempt - 1), asked))
            reply = self._reply(url, request)
            if isinstance(reply, JsonReply) and reply.status not in AGAIN:
                if 200 <= reply.status < 300:
                    return reply
                raise self.refused(url, reply)
            fault, asked = str(reply), reply.retry_after if isinstance(reply, JsonReply) else 0.0
        raise ApiError(f"{self.setting}={url}: no answer after {ATTEMPTS} attempts: {fault}; accepted: {self.accepted}")

    def refused(self, url: str, reply: JsonReply) -> ConfigError:
        """The error for a reply that is not what was asked for."""
        return ConfigError(f"{self.setting}={url} answers {reply}; accepted: {self.accepted}")

    def _reply(self, url: str, request: dict[str, Any]) -> JsonReply | str:
        """A reply, or why there was none."""
        import httpx

        body, started = bytearray(), time.monotonic()
        try:
            with self.client.stream("POST", url, json=request) as response:
                for part in response.iter_bytes():
                    body += part
                    if len(body) > MOST_BYTES:
                        raise ConfigError(
                            f"{self.setting}={url} answers more than {MOST_BYTES:,} bytes; longer replies are refused"
                        )
        except httpx.RequestError as error:
            return f"{type(error).__name__}: {error}"
        return JsonReply(response.status_code, bytes(body), time.monotonic() - started, _retry_after(response.headers))


def _retry_after(headers: Mapping[str, str]) -> float:
    """The seconds of a header Retry-After, at most LONGEST_WAIT; 0 where there is none, or a date."""
    try:
        return min(max(0.0, float(headers.get("Retry-After", 0))), LONGEST_WAIT)
    except ValueError:
        return 0.0


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
    """One model of one API; its method can be called from several threads.

    `setting` is the one that errors name, and `who` what the log calls the model.
    """

    def __init__(self, url: str, model: str, key: str = "", *, setting: str, who: str, wait: float = 1.0) -> None:
        self.url, self.model = f"{url.rstrip('/')}/chat/completions", model
        self.server = JsonApi(setting=setting, who=who, accepted=CHAT_API, seconds=CHAT_SECONDS, key=key, wait=wait)

    def ask(self, messages: list[dict[str, Any]], **more: Any) -> Reply:
        """The reply to a conversation; `more` are other fields of the request.

        Raises ApiError where there is none after some attempts, ConfigError where the API refuses the request.
        """
        reply = self.server.post(self.url, {"model": self.model, "messages": messages} | more)
        try:
            return _read(json.loads(reply.body), reply.seconds)
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self.server.refused(self.url, reply) from error


def _read(answered: Any, seconds: float) -> Reply:
    choice = answered["choices"][0]
    used = answered.get("usage")
    counts = [used.get(name) if isinstance(used, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
    read, written = (count if isinstance(count, int) and count > 0 else 0 for count in counts)
    return Reply(dict(choice["message"]), choice.get("finish_reason") in ("stop", "tool_calls"), read, written, seconds)


class KeptReplies(Generic[Kept]):
    """The replies that a file keeps, each a line of JSON with the key of its request, so that none is paid for twice.

    `read` makes a reply of its JSON. A line that it raises TypeError or LookupError for, or that is only half there
    since a run was killed, is asked for again.
    """

    def __init__(self, file: Path, read: Callable[[Any], Kept]) -> None:
        self.file, self.adding = file, Lock()
        self.replies: dict[str, Kept] = {}
        for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
            try:
                key, value = json.loads(line)
                self.replies[key] = read(value)
            except (ValueError, TypeError, LookupError):
                continue

    def new(self, requests: Mapping[str, Request]) -> dict[str, Request]:
        """The requests that have no reply yet."""
        return {key: request for key, request in requests.items() if key not in self.replies}

    def ask(self, new: Mapping[str, Request], reply: Callable[[Request], Kept], tell: Callable[[int], None]) -> None:
        """Ask for the replies to new requests, AT_ONCE at a time, and keep each as it comes, also if another fails.

        `tell` is called with the number of replies that came. Raises what `reply` raises.
        """
        if not new:
            return
        self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.file.open("a", buffering=1, encoding="utf-8") as lines, ThreadPoolExecutor(AT_ONCE) as threads:
            lines.write("\n")  # behind half a line

            def keep(key: str, request: Request) -> None:
                replied = reply(request)
                with self.adding:
                    self.replies[key] = replied
                    lines.write(json.dumps([key, replied], default=asdict) + "\n")

            waiting = [threads.submit(keep, key, request) for key, request in new.items()]
            try:
                for number, future in enumerate(as_completed(waiting), 1):
                    future.result()
                    tell(number)
            finally:
                threads.shutdown(cancel_futures=True)
