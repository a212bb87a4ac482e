"""An OpenAI-compatible API on this machine, which says what a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[Any, str | None], tuple[int, Any]]  # of a request and its Authorization: a status and the body
AnswerAt = Callable[[str, Any, str | None], tuple[int, Any]]  # the same, of a path behind /v1/ before both


@contextmanager
def json_server(answer: AnswerAt) -> Iterator[str]:
    """The base URL of a server that answers requests so: with JSON, or with a text as it is."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = answer(self.path.removeprefix("/v1/"), request, self.headers["Authorization"])
            is_text = isinstance(body, str)
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.end_headers()
            self.wfile.write((body if is_text else json.dumps(body)).encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 http.server's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def chat_server(answer: Answer) -> Iterator[str]:
    """The base URL of an API that answers requests so."""
    with json_server(lambda path, *asked: answer(*asked) if path == "chat/completions" else (404, "none")) as url:
        yield url


def reply_of(message: str | dict[str, Any], finish_reason: str = "stop", tokens: tuple[int, int] = (50, 5)) -> Any:
    """The body of a reply: a text or a whole message."""
    whole = {"role": "assistant", "content": message} if isinstance(message, str) else message
    used = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
    return {"choices": [{"message": whole, "finish_reason": finish_reason}], "usage": used}
