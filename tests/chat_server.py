"""An OpenAI-compatible API on this machine, which says what a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[Any, str | None], tuple[int, Any]]  # of a request and its Authorization: a status and the body


@contextmanager
def chat_server(answer: Answer) -> Iterator[str]:
    """The base URL of an API that answers requests so."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_known = self.path == "/v1/chat/completions"
            status, body = answer(request, self.headers["Authorization"]) if is_known else (404, "none")
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 http.server's name
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()


def reply_of(message: str | dict[str, Any], finish_reason: str = "stop", tokens: tuple[int, int] = (50, 5)) -> Any:
    """The body of a reply: a text or a whole message."""
    whole = {"role": "assistant", "content": message} if isinstance(message, str) else message
    used = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
    return {"choices": [{"message": whole, "finish_reason": finish_reason}], "usage": used}
