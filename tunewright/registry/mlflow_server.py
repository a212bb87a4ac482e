"""MLflow's server as `tunewright up` starts it: for whoever has the password of this home, and for no page of others.

MLflow itself lets any page of localhost in, whatever its port, and whoever reaches the port. Its assistant starts the
command line agents of this machine for them, and cannot be turned off: its API is not served, and its panel not shown.

Its database says where files lie on the machine of the home. Whoever asks the server may be on another machine, or may
not be let into the home: what it answers names the same files as mlflow-artifacts:/, which MLflow's clients fetch from,
and send to, the server.
"""

import base64
import binascii
import json
import re
import secrets
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tunewright import config
from tunewright.machine import addresses

OPEN = {"/health", "/version"}  # they tell nothing of this home
ASSISTANT = "/mlflow/assistant"
# Into MLflow's page: neither the assistant's panel nor a notice of telemetry, since both are off. And its address loses
# the password of the link that logs a browser in, with which the page could ask for nothing.
QUIET = """<style>[data-assistant-ui] { display: none !important; }</style><script>
if (new URL(document.baseURI).username) location.replace(location.origin + location.pathname + location.hash);
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
localStorage.setItem("mlflow.telemetry.info.alert.dismissed_v1", "true");
</script></head>"""

# The page reaches no other server: MLflow's would load the code of its editor, and maps, from others. Its charts are
# compiled, it shows artifacts in frames of its own, and QUIET is in the page.
POLICY = "; ".join(
    (
        "default-src 'self' data: blob:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "object-src 'self' blob:",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
KEYS = ("artifact_uri", "artifact_location", "root_uri", "storage_location", "artifactUri", "artifactLocation")


class Guard:
    """Refuses what comes without the password, from a page of another origin, or for the assistant.

    `page` is what MLflow's user interface begins with.
    """

    def __init__(self, app: ASGIApp, password: str, page: str) -> None:
        self.app = app
        self.password = password.encode()
        headers = {"Cache-Control": "no-cache", "X-Frame-Options": "SAMEORIGIN", "Content-Security-Policy": POLICY}
        self.page = HTMLResponse(page.replace("</head>", QUIET), headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers why not."""
        answer: Response | None = None
        if scope["type"] == "http":
            answer = self._refusal(scope["path"], Headers(scope=scope)) or (self.page if scope["path"] == "/" else None)
        await (answer or self.app)(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> PlainTextResponse | None:
        if headers.get("origin", own := f"http://{headers.get('host')}") != own:
            return PlainTextResponse("a page of another origin", status_code=403)
        if ASSISTANT in path:
            return PlainTextResponse("tunewright up serves no assistant", status_code=404)
        if path in OPEN or secrets.compare_digest(_password(headers), self.password):
            return None
        challenge = {"WWW-Authenticate": 'Basic realm="tunewright: any user name, the password of the home"'}
        return PlainTextResponse("the password is in the home folder", status_code=401, headers=challenge)


def _password(headers: Headers) -> bytes:
    """The password of basic authentication, with any user name; empty where there is none."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    try:
        return base64.b64decode(credentials).partition(b":")[2] if scheme.lower() == "basic" else b""
    except binascii.Error:
        return b""


def create_app() -> ASGIApp:
    """MLflow's app behind the guard; MLflow finds it as the plug-in `tunewright` of its group mlflow.app."""
    from mlflow import server
    from mlflow.server.fastapi_app import app

    if not (password := addresses.password()):
        raise RuntimeError(f"no password in {addresses.password_file()}: tunewright up creates it")
    app.add_middleware(ServedPaths, folder=config.mlflow_artifacts())
    page = Path(server.__file__).parent / "js" / "build" / "index.html"
    app.add_middleware(Guard, password=password, page=page.read_text(encoding="utf-8"))
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=addresses.HOSTS, www_redirect=False)
    return app


class ServedPaths:
    """Puts mlflow-artifacts:/ in the place of `folder`, the server's artifacts destination, in all answers in JSON."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self.app = app
        spelled = {json.dumps(str(folder), ensure_ascii=escaped)[1:-1] for escaped in (True, False)}
        places = "|".join(map(re.escape, sorted(spelled)))
        self.local = re.compile(rf'("(?:{"|".join(KEYS)})"\s*:\s*")(?:file://)?(?:{places})(?:/+|(?="))'.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and its answer back."""
        held: list[Message] = []

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_json(message):
                held.append(message)
            elif not held:
                await send(message)
            else:
                held.append(message)
                if not message.get("more_body"):
                    await self._send(held, send)

        await self.app(scope, receive, answer if scope["type"] == "http" else send)

    async def _send(self, held: list[Message], send: Send) -> None:
        start, *parts = held
        body = self.local.sub(rb"\1mlflow-artifacts:/", b"".join(part.get("body", b"") for part in parts))
        MutableHeaders(scope=start)["content-length"] = str(len(body))
        await send(start)
        await send({"type": "http.response.body", "body": body})


def _is_json(start: Message) -> bool:
    return Headers(raw=start["headers"]).get("content-type", "").startswith("application/json")
