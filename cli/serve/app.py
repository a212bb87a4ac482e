"""The HTTP side: the paths of the OpenAI API, for whoever has the key and for no web page of others."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from tunewright.accepted import shown
from tunewright.cli.serve.answering import ServedVersion
from tunewright.cli.serve.asking import RequestError, read
from tunewright.cli.serve.metrics import Metrics, RequestMetrics
from tunewright.cli.serve.queue import Finished, JobCancelled, QueuedRequest, RequestQueue
from tunewright.errors import TunewrightError, one_line
from tunewright.machine.addresses import HOSTS, LOOPBACK

LARGEST = 10_000_000  # bytes of a request
OPEN = {"/health"}  # it tells nothing of the model
CHAT, COMPLETIONS, FIGURES = "/v1/chat/completions", "/v1/completions", "/metrics"
ANSWERING = {CHAT, COMPLETIONS, "/v1/responses"}
CLIENT_CLOSED = 499  # as nginx counts it


class AsJson(Response):
    """JSON in ASCII, which takes any text."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content).encode()


class KeyGuard:
    """Refuses what comes from a page of another origin, or without the key."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self.app, self.api_key = app, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers why not."""
        if scope["type"] != "http" or not (refusal := self._refusal(scope["path"], Headers(scope=scope))):
            return await self.app(scope, receive, send)
        return await AsJson(refusal.body, refusal.status)(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> RequestError | None:
        if headers.get("origin", own := f"http://{headers.get('host')}") != own:
            return RequestError("a page of another origin", HTTPStatus.FORBIDDEN, code="other_origin")
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode() if scheme.lower() == "bearer" else b""
        if path in OPEN or not self.api_key or secrets.compare_digest(given, self.api_key):
            return None
        message = "wrong or no API key; send Authorization: Bearer KEY, with the key that the server names at its start"
        return RequestError(message, HTTPStatus.UNAUTHORIZED, code="invalid_api_key")


class Api:
    """The paths."""

    def __init__(self, endpoint: RequestQueue) -> None:
        self.endpoint, self.metrics = endpoint, Metrics(endpoint)

    async def health(self, _: Request) -> Response:
        """The state of the endpoint, for whoever watches it."""
        is_well = not self.endpoint.is_withdrawn
        return AsJson({"status": "ok" if is_well else "no version"}, 200 if is_well else 503)

    async def models(self, request: Request) -> Response:
        """The list of models, or one of them."""
        if (name := request.path_params.get("name")) is not None:
            if name not in self.endpoint.bases:
                self.endpoint.require_model(name)
            return AsJson(self._model(name))
        names = [*([] if self.endpoint.is_withdrawn else self.endpoint.models), *self.endpoint.bases]
        return AsJson({"object": "list", "data": [self._model(each) for each in names]})

    def _model(self, name: str) -> dict[str, Any]:
        is_base = name in self.endpoint.bases
        created = self.endpoint.began if is_base else self.endpoint.created(name)
        return {"id": name, "object": "model", "created": created, "owned_by": "system" if is_base else "tunewright"}

    async def chat(self, request: Request) -> Response:
        """The answer to a conversation."""
        return await self._ask(request, is_chat=True)

    async def completions(self, request: Request) -> Response:
        """The continuation of a text."""
        return await self._ask(request, is_chat=False)

    async def _ask(self, request: Request, *, is_chat: bool) -> Response:
        asked = read(await body_of(request), is_chat=is_chat)
        self.endpoint.require_model(asked.model)
        events: asyncio.Queue[Any] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def put(event: Any) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        job = QueuedRequest(asked, lambda served, prompt: put((served, prompt)), put)

        def end(ended: Finished | Exception) -> None:
            loop.call_soon_threadsafe(self.endpoint.leave)
            put(ended)

        self.endpoint.submit(job, end)
        answer = _Answering(self, job, events, is_chat=is_chat)
        with _ended_with(request, job):
            await answer.start()
            if not asked.is_streamed:
                return AsJson(await answer.whole())
        return StreamingResponse(answer.stream(request), media_type="text/event-stream")


class _Answering:
    """The events of a job as the parts of a response."""

    def __init__(self, api: Api, job: QueuedRequest, events: asyncio.Queue[Any], *, is_chat: bool) -> None:
        self.endpoint, self.metrics = api.endpoint, api.metrics
        self.job, self.events, self.is_chat = job, events, is_chat
        self.id = f"{'chatcmpl' if is_chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self.served: ServedVersion
        self.prompt: list[int] = []
        self.has_text = False

    async def start(self) -> None:
        """Wait until the model begins. Raises RequestError where it refuses."""
        started = await self._next()
        self.served, self.prompt = started

    async def _next(self) -> Any:
        event = await self.events.get()
        if isinstance(event, JobCancelled):
            if self.job.is_cancelled:
                raise ClientDisconnect
            raise RequestError("the server is stopping", HTTPStatus.SERVICE_UNAVAILABLE)
        if isinstance(event, RequestError):
            raise event
        if isinstance(event, Exception):
            said = str(event) if isinstance(event, TunewrightError) else one_line(event)
            raise RequestError(said, HTTPStatus.INTERNAL_SERVER_ERROR)
        if isinstance(event, str) and not self.has_text:
            self.has_text = True
            self.metrics.first_token.observe(time.monotonic() - self.job.began)
        if isinstance(event, Finished):
            self.metrics.prompt_tokens.inc(len(self.prompt))
            self.metrics.answer_tokens.inc(len(event.tokens))
        return event

    async def whole(self) -> dict[str, Any]:
        """The response in one piece."""
        while not isinstance(event := await self._next(), Finished):
            pass
        text = event.text
        calls = {"tool_calls": event.calls} if event.calls else {}
        message = {"role": "assistant", "content": text or (None if calls else text), **calls}
        said = {"message": message} if self.is_chat else {"text": text}
        choice = self._choice(said, event.reason)
        if self.job.asked.with_tokens:
            choice["token_ids"] = event.tokens
        return self._response([choice], chunk=False) | {"usage": self._usage(event)}

    async def stream(self, request: Request) -> AsyncIterator[bytes]:
        """The response part by part, as server-sent events."""
        with _ended_with(request, self.job):
            try:
                if self.is_chat:
                    yield self._part({"role": "assistant", "content": ""})
                while not isinstance(event := await self._next(), Finished):
                    yield self._part({"content": event} if self.is_chat else {"text": event})
                if event.calls:
                    yield self._part({"tool_calls": [{"index": at} | call for at, call in enumerate(event.calls)]})
                yield self._part({} if self.is_chat else {"text": ""}, event.reason)
                if self.job.asked.with_usage:
                    yield _event(self._response([], chunk=True) | {"usage": self._usage(event)})
                yield b"data: [DONE]\n\n"
            except ClientDisconnect:
                return
            except RequestError as error:
                yield _event(error.body)

    def _part(self, said: dict[str, Any], reason: str | None = None) -> bytes:
        choice = self._choice({"delta": said} if self.is_chat else said, reason)
        usage: dict[str, Any] = {"usage": None} if self.job.asked.with_usage else {}
        return _event(self._response([choice], chunk=True) | usage)

    def _choice(self, said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        return {"index": 0, **said, "logprobs": None, "finish_reason": reason}

    def _response(self, choices: list[dict[str, Any]], *, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if chunk else "chat.completion") if self.is_chat else "text_completion"
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.endpoint.answered_as(self.job.asked.model, self.served),
            "system_fingerprint": f"fp_{self.served.digest[:12]}",
            "choices": choices,
        }

    def _usage(self, ended: Finished) -> dict[str, int]:
        read, said = len(self.prompt), len(ended.tokens)
        return {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}


def _event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


async def body_of(request: Request) -> bytes:
    """The whole body. Raises RequestError where it is too long."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LARGEST:
            message = f"the request is longer than {LARGEST:,} bytes"
            raise RequestError(message, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    return bytes(body)


@contextmanager
def _ended_with(request: Request, job: QueuedRequest) -> Iterator[None]:
    """Ends the job where the client goes away in the block, or the block fails."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    gone = asyncio.ensure_future(wait())
    try:
        yield
    except BaseException:
        job.cancel()
        raise
    finally:
        gone.cancel()


class Counted:
    """Counts requests by path and status, and the time of answers."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics, paths: set[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and counts its answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        began, path = time.monotonic(), scope["path"] if scope["path"] in self.paths else "other"
        is_answer = False

        async def send_counted(message: Any) -> None:
            nonlocal is_answer
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, message["status"]).inc()
                is_answer = path in ANSWERING and message["status"] == HTTPStatus.OK
            await send(message)
            if is_answer and message["type"] == "http.response.body" and not message.get("more_body"):
                self.metrics.whole.observe(time.monotonic() - began)

        return await self.app(scope, receive, send_counted)


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return AsJson({}, CLIENT_CLOSED)
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        error, headers = _not_here(request, error)
    assert isinstance(error, RequestError)
    if error.status == HTTPStatus.TOO_MANY_REQUESTS:
        headers["Retry-After"] = "1"
    return AsJson(error.body, error.status, headers)


def _not_here(request: Request, error: HTTPException) -> tuple[RequestError, dict[str, str]]:
    """The error of a request without a handler, and its headers: which methods its path has, if it is a path here."""
    path, status = request.url.path, HTTPStatus(error.status_code)
    if status == HTTPStatus.NOT_FOUND:
        return RequestError(f"{request.method} {shown(path)}: no such path", status, code="unknown_url"), {}
    if status != HTTPStatus.METHOD_NOT_ALLOWED:
        return RequestError(str(error.detail), status), {}
    routes = [route for route in request.app.routes if route.path_regex.match(path)]
    allowed = ", ".join(sorted(set[str]().union(*(route.methods for route in routes))))
    said = f"{request.method} {shown(path)}: accepted: {allowed}"
    return RequestError(said, status, code="method_not_supported"), {"Allow": allowed}


def create_app(endpoint: RequestQueue, host: str, api_key: str, further: Sequence[Route] = ()) -> ASGIApp:
    """The app; on this machine's own address it answers under that and localhost alone, as `tunewright up` does.

    `further` are paths beside those of the models, behind the same checks.
    """
    api = Api(endpoint)
    get, post = ["GET"], ["POST"]
    paths: dict[str, tuple[Callable[..., Any], list[str]]] = {
        CHAT: (api.chat, post),
        COMPLETIONS: (api.completions, post),
        "/v1/models": (api.models, get),
        "/health": (api.health, get),
    }
    routes = [Route(path, function, methods=methods) for path, (function, methods) in paths.items()]
    routes += [_figures(api.metrics), Route("/v1/models/{name:path}", api.models, methods=get), *further]
    handlers: Any = {RequestError: _refused, HTTPException: _refused, ClientDisconnect: _refused}
    app: ASGIApp = Starlette(routes=routes, exception_handlers=handlers)
    return _guarded(app, host, api_key, api.metrics, {*paths, FIGURES})


def guarded(app: Starlette, host: str, api_key: str, metrics: RequestMetrics) -> ASGIApp:
    """An app of another server with a page of metrics, behind the same checks."""
    app.router.routes.append(_figures(metrics))
    return _guarded(app, host, api_key, metrics, {route.path for route in app.routes if isinstance(route, Route)})


def _figures(metrics: RequestMetrics) -> Route:
    def page(_: Request) -> Response:
        return Response(metrics.page(), media_type="text/plain; version=0.0.4")

    return Route(FIGURES, page, methods=["GET"])


def _guarded(app: ASGIApp, host: str, api_key: str, metrics: RequestMetrics, paths: set[str]) -> ASGIApp:
    """The app behind the key, counted, which answers under this machine's own names alone if it listens there."""
    counted = Counted(KeyGuard(app, api_key), metrics, paths)
    return TrustedHostMiddleware(counted, allowed_hosts=HOSTS if host == LOOPBACK else ["*"], www_redirect=False)
